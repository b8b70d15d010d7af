"""Our listener inside the Envoy of a gateway that others use, too. It receives the requests of one host.

The gateway sends the host's requests through a local socket to a listener with all the filters and routes of
`bootstrap`. So our filters are not in the chain of other hosts. The gateway's policies for the host, such as
authentication and rate limits, stay in place. The socket has no file: its name starts with "@".
"""

from typing import Any

import msgspec

from extproc.config.load import Config
from extproc.envoy.bootstrap import static_resources
from extproc.envoy.builders import Dict, address, typed
from extproc.envoy.unsupported import Cascade

# The namespace of the manifests in deploy/k8s. Proxies in other namespaces need it in the names of Services.
NAMESPACE = "semantic-router"
ROUTER = f"extproc.{NAMESPACE}.svc.cluster.local:50051"
# No name server knows this host. The gateway's configuration needs a backend, and this is it: without our patch,
# requests are answered with 503 and go nowhere.
UNPATCHED_HOST = "extproc-unpatched.invalid"
# The local socket to our listener. It belongs to the pod's network, so every pod has its own.
SOCKET = "@semantic-router"
_PROTOCOL = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_MOST_REQUESTS = 65536


class Gateway(msgspec.Struct, frozen=True):
    """A listener of a gateway in Kubernetes, and the host whose requests go to our listener."""

    namespace: str
    name: str
    listener: str
    host: str

    @property
    def entrance(self) -> str:
        """The name of the cluster that leads to our listener, and of that listener."""
        return f"extproc/{self.host}"


class Parts(msgspec.Struct, frozen=True):
    """Our additions to the gateway's Envoy."""

    listener: Dict
    clusters: list[Dict]


def shared_parts(
    config: Config,
    gateway: Gateway,
    routers: list[str],
    otlp: str | None,
    cascade: Cascade,
    secrets: dict[str, Dict],
) -> Parts:
    """Return the parts for one host. `secrets` has the SDS config of each tier's own key, by the key's name."""
    socket = f"unix://{SOCKET}"
    resources = static_resources(config, socket, routers, otlp, None, cascade)
    [listener] = resources["listeners"]
    clusters = [_entrance(gateway, socket), *resources["clusters"]]
    for cluster in clusters:
        _resolve_elsewhere(cluster)
    return Parts(listener | {"name": gateway.entrance}, [_with_secrets(cluster, secrets) for cluster in clusters])


def _entrance(gateway: Gateway, socket: str) -> Dict:
    """Return the cluster that leads to our listener. Its limits are those of the tiers and of the router."""
    thresholds = ("max_connections", "max_pending_requests", "max_requests")
    return {
        "name": gateway.entrance,
        "alt_stat_name": "extproc_entrance",
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [dict.fromkeys(thresholds, _MOST_REQUESTS)]},
        "typed_extension_protocol_options": {
            _PROTOCOL: typed(_PROTOCOL, explicit_http_config={"http_protocol_options": {}})
        },
        "load_assignment": {
            "cluster_name": gateway.entrance,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(socket)}}]}],
        },
    }


def _resolve_elsewhere(cluster: Dict) -> None:
    """Complete the names of Services, so that other namespaces resolve them, too."""
    for group in cluster.get("load_assignment", {}).get("endpoints", []):
        for host in group["lb_endpoints"]:
            place = host["endpoint"]["address"].get("socket_address")
            if place is not None and "." not in place["address"] and ":" not in place["address"]:
                place["address"] += f".{NAMESPACE}.svc.cluster.local"


def _with_secrets(part: Any, secrets: dict[str, Dict]) -> Any:
    """Return a copy in which each key comes from its SDS config."""
    if isinstance(part, list):
        return [_with_secrets(item, secrets) for item in part]
    if not isinstance(part, dict):
        return part
    if part.keys() == {"name"} and part["name"] in secrets:
        return secrets[part["name"]]
    return {name: _with_secrets(item, secrets) for name, item in part.items()}
