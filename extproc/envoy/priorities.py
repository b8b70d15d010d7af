"""Clusters whose nth priority is the tier of the nth attempt, for Envoys that lack the composite cluster.

Envoy's retry priority leaves out the priorities of earlier attempts. Each priority has a second host that refuses
every connection. It is degraded, so Envoy asks it only if the tier has no host. Without it Envoy would send the
attempt to the next tier, with the body and the key of this one.
"""

from collections.abc import Sequence

from extproc.config.load import Config
from extproc.envoy.attempts import attempt_filters
from extproc.envoy.builders import Dict, typed
from extproc.envoy.clusters import tier_cluster
from extproc.settings import Tier

_MATCH = "envoy.transport_socket_match"
_PROTOCOL = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# Envoy multiplies the share of healthy hosts in a priority by this many percent. One host of a thousand is enough.
_OVERPROVISIONING = 100_000
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
    cluster["load_assignment"] = {
        "cluster_name": name,
        "endpoints": [
            _priority(number, tier, other)
            for number, (tier, other) in enumerate(zip(attempts, clusters, strict=True))
        ],
        "policy": {"overprovisioning_factor": _OVERPROVISIONING},
    }
    cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
    if len(tiers) > 1:
        options = dict(cluster["typed_extension_protocol_options"][_PROTOCOL])
        options["http_filters"] = attempt_filters(attempts, config, follow_keys=False)
        options["common_http_protocol_options"] = {"idle_timeout": f"{min(tier.idle_s for tier in tiers):g}s"}
        cluster["typed_extension_protocol_options"] = {_PROTOCOL: options}
    cluster.pop("transport_socket", None)
    cluster["transport_socket_matches"] = [
        {
            "name": tier.name,
            "match": {"tier": tier.name},
            "transport_socket": _socket(tier_cluster(tier, config, False)),
        }
        for tier in dict.fromkeys(tiers)
    ]
    return cluster


def _priority(number: int, tier: Tier, cluster: Dict) -> Dict:
    """Return one priority: the hosts of a tier, and the degraded one."""
    first, second = cluster["load_assignment"]["endpoints"]
    [refusing] = second["lb_endpoints"]
    hosts = [*first["lb_endpoints"], refusing | {"health_status": "DEGRADED"}]
    return {"priority": number, "lb_endpoints": [_labelled(host, tier) for host in hosts]}


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
