"""The resources for Envoy Gateway: a route for the host, the tiers' keys, and a patch of the xDS.

The patch adds our listener and clusters, and changes where the host's route leads. Nothing else changes.
Names of xDS resources are those of Envoy Gateway without the runtime flag `XDSNameSchemeV2`.
"""

import re

from extproc.config.load import Config
from extproc.envoy.builders import Dict
from extproc.envoy.shared import NAMESPACE, UNPATCHED_HOST, Gateway, Parts, shared_parts
from extproc.envoy.unsupported import check_files, check_hosts, check_names
from extproc.settings import Tier

_NAME, _GROUP = "llm", "gateway.envoyproxy.io"
_BACKEND = "extproc-unpatched"
_TYPE = "type.googleapis.com/envoy.config"


def envoy_gateway(config: Config, gateway: Gateway, routers: list[str], otlp: str | None) -> list[Dict]:
    """Return the resources. Raises ConfigError if the policy has a setting that they cannot carry out."""
    check_files(config, keys=False)
    check_hosts(config, gateway.host)
    tiers = [tier for tier in config.policy.tiers if tier.key is not None]
    check_names(config, [(tier.name, _secret(tier)) for tier in tiers])
    secrets = {f"{tier.name}_key": _sds(tier) for tier in tiers}
    parts = shared_parts(config, gateway, routers, otlp, "composite", secrets)
    return [
        _route(gateway, tiers),
        _document("Backend", _BACKEND, {"endpoints": [{"fqdn": {"hostname": UNPATCHED_HOST, "port": 80}}]}),
        _document("BackendTrafficPolicy", _NAME, _TRAFFIC),
        *(_key(tier) for tier in tiers),
        _patch(gateway, parts),
    ]


# Our listener repeats attempts, so the gateway does not. Its settings for all routes are merged with these.
_TRAFFIC: Dict = {
    "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": _NAME}],
    "mergeType": "StrategicMerge",
    "retry": {"numRetries": 0},
}


def _document(kind: str, name: str, spec: Dict, namespace: str = NAMESPACE) -> Dict:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": f"{_GROUP}/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def _route(gateway: Gateway, tiers: list[Tier]) -> Dict:
    """Return the route of the host. Its further rules are for the keys: the gateway delivers only those in use."""
    backends = [{"group": _GROUP, "kind": "Backend", "name": _BACKEND}]
    rules = [{"matches": [_path("PathPrefix", "/")], "backendRefs": backends, "timeouts": {"request": "0s"}}]
    for tier in tiers:
        ref = {"group": _GROUP, "kind": "HTTPRouteFilter", "name": _secret(tier)}
        rules.append(
            {
                "matches": [_path("Exact", f"/.extproc/{_secret(tier)}")],
                "filters": [{"type": "ExtensionRef", "extensionRef": ref}],
                "backendRefs": backends,
            }
        )
    parent = {"name": gateway.name, "namespace": gateway.namespace, "sectionName": gateway.listener}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": _NAME, "namespace": NAMESPACE},
        "spec": {"parentRefs": [parent], "hostnames": [gateway.host], "rules": rules},
    }


def _path(kind: str, value: str) -> Dict:
    return {"path": {"type": kind, "value": value}}


def _secret(tier: Tier) -> str:
    """Return the name of the Secret with a tier's key, and of the filter that names it."""
    return f"extproc-key-{re.sub('[^a-z0-9.-]', '-', tier.name.lower())}"


def _key(tier: Tier) -> Dict:
    """Return the filter that makes the gateway deliver a tier's key. Our own filters send it, to that tier only."""
    assert tier.key is not None
    injection = {
        "overwrite": True,
        "header": tier.key.header,
        "credential": {"valueRef": {"group": "", "kind": "Secret", "name": _secret(tier)}},
    }
    return _document("HTTPRouteFilter", _secret(tier), {"credentialInjection": injection})


def _sds(tier: Tier) -> Dict:
    """Return where Envoy gets a key: from the gateway, under the name that it gives to the filter's credential."""
    name = f"credential_injector/credential/httproutefilter/{NAMESPACE}/{_secret(tier)}"
    return {"name": name, "sds_config": {"ads": {}, "resource_api_version": "V3"}}


def _patch(gateway: Gateway, parts: Parts) -> Dict:
    routes = f"{gateway.namespace}/{gateway.name}/{gateway.listener}"
    route = f"httproute/{NAMESPACE}/{_NAME}/rule/0/match/0/{gateway.host.replace('.', '_')}"
    here = {"jsonPath": f"..routes[?(@.name=='{route}')]"}
    operations = [
        ("listener.v3.Listener", gateway.entrance, {"op": "add", "path": "", "value": parts.listener}),
        *(("cluster.v3.Cluster", c["name"], {"op": "add", "path": "", "value": c}) for c in parts.clusters),
        # Our listener ends what takes too long.
        (
            "route.v3.RouteConfiguration", routes,
            {"op": "add", **here, "path": "/route/idle_timeout", "value": "0s"},
        ),
        (
            "route.v3.RouteConfiguration", routes,
            {"op": "replace", **here, "path": "/route/cluster", "value": gateway.entrance},
        ),
    ]  # fmt: skip
    patches = [{"type": f"{_TYPE}.{kind}", "name": name, "operation": op} for kind, name, op in operations]
    target = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": gateway.name}
    spec = {"targetRef": target, "type": "JSONPatch", "jsonPatches": patches}
    return _document("EnvoyPatchPolicy", _NAME, spec, gateway.namespace)
