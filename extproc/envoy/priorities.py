"""Clusters whose nth priority is the tier of the nth attempt, for Envoys that lack the composite cluster.

Envoy's retry priority leaves out the priorities of earlier attempts. If a tier has no host, Envoy leaves out its
priority, too. The attempt would go to the next tier, with the body and the key of this one. So each tier of a
ladder has one more host, which refuses every connection. Its weight is so small that a tier with hosts hardly uses
it.
"""

from collections.abc import Sequence

from extproc.config.load import Config
from extproc.envoy.attempts import attempt_filters
from extproc.envoy.builders import Dict, typed
from extproc.envoy.clusters import tier_cluster
from extproc.settings import Tier

_MATCH = "envoy.transport_socket_match"
_PROTOCOL = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# The largest sum of weights that Envoy accepts, and the number of addresses that a name may have.
_MOST_WEIGHT, _ADDRESSES = 2**32 - 1, 256
# A retry policy with this part sends each attempt to a priority that no earlier attempt of the request had.
RETRY_PRIORITY: Dict = {
    "name": "envoy.retry_priorities.previous_priorities",
    "typed_config": typed(
        "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", update_frequency=1
    ),
}


def priorities_cluster(name: str, tiers: Sequence[Tier], config: Config) -> Dict:
    """Return the cluster of a ladder. Its last tier has a priority for each of its repeated attempts, too."""
    attempts = (*tiers, *[tiers[-1]] * tiers[-1].same_retries)
    clusters = [tier_cluster(tier, config, follow_keys=False) for tier in attempts]
    cluster = clusters[0] | {"name": name}
    if any(other["type"] == "STRICT_DNS" for other in clusters):
        cluster |= {"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED"}
    hosts = _hosts if len(tiers) == 1 else _hosts_of_rung
    cluster["load_assignment"] = {
        "cluster_name": name,
        "endpoints": [
            {"priority": number, "lb_endpoints": [_labelled(host, tier) for host in hosts(other)]}
            for number, (tier, other) in enumerate(zip(attempts, clusters, strict=True))
        ],
    }
    if len(tiers) > 1:
        options = dict(cluster["typed_extension_protocol_options"][_PROTOCOL])
        options["http_filters"] = attempt_filters(attempts, config, follow_keys=False)
        options["common_http_protocol_options"] = {"idle_timeout": f"{min(tier.idle_s for tier in tiers):g}s"}
        cluster["typed_extension_protocol_options"] = {_PROTOCOL: options}
    cluster.pop("transport_socket", None)
    sockets = {tier.name: _socket(other) for tier, other in zip(attempts, clusters, strict=True)}
    cluster["transport_socket_matches"] = [
        {"name": tier, "match": {"tier": tier}, "transport_socket": socket} for tier, socket in sockets.items()
    ]
    return cluster


def _hosts(cluster: Dict) -> list[Dict]:
    """Return the hosts of a tier. Nothing is asked after it, so it needs no host that refuses."""
    hosts: list[Dict] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    return hosts


def _hosts_of_rung(cluster: Dict) -> list[Dict]:
    """Return the hosts of a tier, with the one that refuses."""
    first, second = (group["lb_endpoints"] for group in cluster["load_assignment"]["endpoints"])
    weights = [host.get("load_balancing_weight", 1) for host in first]
    unit = max(_MOST_WEIGHT // (_ADDRESSES * sum(weights)), 1)
    weighted = [
        host | {"load_balancing_weight": weight * unit} for host, weight in zip(first, weights, strict=True)
    ]
    return weighted + [host | {"load_balancing_weight": 1} for host in second]


def _labelled(host: Dict, tier: Tier) -> Dict:
    """Return a host that the transport socket of its tier is chosen for."""
    metadata = host["metadata"]["filter_metadata"] | {_MATCH: {"tier": tier.name}}
    return host | {"metadata": {"filter_metadata": metadata}}


def _socket(cluster: Dict) -> Dict:
    plain = {
        "name": "envoy.transport_sockets.raw_buffer",
        "typed_config": typed("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"),
    }
    socket: Dict = cluster.get("transport_socket", plain)
    return socket
