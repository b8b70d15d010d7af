"""The resources for Istio's ingress gateway: a route for the host, and an EnvoyFilter.

The EnvoyFilter adds our listener and clusters, and changes where the host's route leads. Istio's build of Envoy has
no composite cluster, so each ladder is a cluster with a priority for each attempt.
"""

from extproc.config.load import Config
from extproc.envoy.builders import Dict
from extproc.envoy.shared import NAMESPACE, UNPATCHED_HOST, Gateway, Parts, shared_parts
from extproc.envoy.unsupported import check_files, check_hosts

_NAME = "llm"
_GATEWAY: Dict = {"context": "GATEWAY"}
# The ports that clients reach. Istio puts the port into the name of the virtual host.
_PORTS = (80, 443)


def istio(config: Config, gateway: Gateway, routers: list[str], otlp: str | None) -> list[Dict]:
    """Return the resources. Raises ConfigError if the policy has a setting that they cannot carry out."""
    check_files(config, keys=True)
    check_hosts(config, gateway.host)
    return [_service(gateway), _filter(gateway, shared_parts(config, gateway, routers, otlp, "priorities", {}))]


def _service(gateway: Gateway) -> Dict:
    """Return the route of the host. Without the EnvoyFilter it leads nowhere, and is answered with 503."""
    route = {
        "name": _NAME,
        "route": [{"destination": {"host": UNPATCHED_HOST, "port": {"number": 80}}}],
        "timeout": "0s",
        "retries": {"attempts": 0},
    }
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": _NAME, "namespace": NAMESPACE},
        "spec": {"hosts": [gateway.host], "gateways": [f"{gateway.namespace}/{gateway.name}"], "http": [route]},
    }


def _filter(gateway: Gateway, parts: Parts) -> Dict:
    action = {"route": {"cluster": gateway.entrance, "idle_timeout": "0s"}}
    patches = [
        _patch("LISTENER", _GATEWAY, "ADD", parts.listener),
        *(_patch("CLUSTER", _GATEWAY, "ADD", cluster) for cluster in parts.clusters),
        *(_patch("HTTP_ROUTE", _at(gateway, port), "MERGE", action) for port in _PORTS),
    ]
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": f"extproc-{gateway.host}", "namespace": "istio-system"},
        "spec": {"workloadSelector": {"labels": {"istio": "ingressgateway"}}, "configPatches": patches},
    }


def _at(gateway: Gateway, port: int) -> Dict:
    """Return the match of the host's route on one port."""
    host = {"name": f"{gateway.host}:{port}", "route": {"name": _NAME}}
    return _GATEWAY | {"routeConfiguration": {"vhost": host}}


def _patch(where: str, match: Dict, operation: str, value: Dict) -> Dict:
    return {"applyTo": where, "match": match, "patch": {"operation": operation, "value": value}}
