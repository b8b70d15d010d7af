"""Render the manifests that depend on the tiers. `make manifests` writes them, and a test checks that it was run.

Envoy's bootstrap is the output of `extproc envoy`. A mesh has its own Envoy, which is configured for the router.
Istio gets an EnvoyFilter, and Envoy Gateway gets Gateway API routes. Both are the *plain* form, which works on
Envoy 1.36. It routes by intent and sets reasoning and caps. It does not judge or escalate answers, because the
cascade needs the priority-group cluster specifier of Envoy 1.40.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

from extproc.api.paths import APIS
from extproc.config.load import Config, load_config
from extproc.contract.names import HeaderName, Key
from extproc.envoy.bootstrap import PlainDumper, render_envoy
from extproc.envoy.builders import from_metadata, set_header
from extproc.envoy.filters import HEADERS_FILTER, ROUTER_FILTER
from extproc.settings import Tier

Dict = dict[str, Any]
HERE = Path(__file__).parent
INTENTS = HERE.parents[1] / "intents"
# The same as in base/kustomization.yaml. The proxies of a mesh are in another namespace, so they need it in names.
NAMESPACE = "semantic-router"
SOCKET = "/run/extproc/router.sock"
_HEADER = "# Rendered by `make manifests`. Edit intents/policy.yaml instead of this file.\n"
_MANAGER = "envoy.filters.network.http_connection_manager"


def rendered(config: Config) -> dict[str, str]:
    """Return the text of every rendered file, by its path under deploy/k8s."""
    return {
        "base/envoy/bootstrap.yaml": _bootstrap(config, "extproc:50051"),
        "overlays/sidecar/bootstrap.yaml": _bootstrap(config, f"unix://{SOCKET}"),
        "overlays/istio/envoyfilter.yaml": _yaml([envoy_filter(config)]),
        "overlays/envoy-gateway/routes.yaml": _yaml(gateway_routes(config)),
    }


def _bootstrap(config: Config, extproc: str) -> str:
    return render_envoy(config, "0.0.0.0:10000", [extproc], "127.0.0.1:9901", None, probe="0.0.0.0:9902")


def envoy_filter(config: Config) -> Dict:
    """Return an EnvoyFilter, which patches the Envoy of Istio's ingress gateway."""
    tiers = config.policy.tiers
    default = next(t for t in tiers if t.name == config.policy.default_tier)
    bootstrap = yaml.safe_load(_bootstrap(config, f"extproc.{NAMESPACE}.svc.cluster.local:50051"))
    clusters = {c["name"]: c for c in bootstrap["static_resources"]["clusters"]}
    filters = _filters(bootstrap)
    gateway: Dict = {"context": "GATEWAY"}
    before_router = {"name": _MANAGER, "subFilter": {"name": "envoy.filters.http.router"}}
    chain = gateway | {"listener": {"filterChain": {"filter": before_router}}}
    manager = gateway | {"listener": {"filterChain": {"filter": {"name": _MANAGER}}}}
    routes = gateway | {"routeConfiguration": {"vhost": {"name": "*:80"}}}
    rest = {
        "name": "extproc-rest",
        "match": {"prefix": "/"},
        "route": {"cluster": default.cluster_name, "timeout": "0s", "auto_host_rewrite": True},
    }
    patches = [
        # Requests are buffered for the router. With the default limit Envoy answers 413 above 1 MiB.
        _patch("LISTENER", gateway, "MERGE", {"per_connection_buffer_limit_bytes": config.policy.max_body_bytes}),
        _patch("NETWORK_FILTER", manager, "MERGE", {"name": _MANAGER, "typed_config": _manager(bootstrap)}),
        *(_patch("HTTP_FILTER", chain, "INSERT_BEFORE", value) for value in _plain_filters(filters)),
        *(
            _patch("CLUSTER", gateway, "ADD", cluster)
            for cluster in (
                clusters["extproc"],
                *(_plain_cluster(clusters[t.cluster_name]) for t in tiers),
            )
        ),
        # Each route is inserted before the others, so the last one in this list is matched first.
        _patch("HTTP_ROUTE", routes, "INSERT_FIRST", rest),
        _patch("HTTP_ROUTE", routes, "INSERT_FIRST", _route(config, default, None)),
        *(_patch("HTTP_ROUTE", routes, "INSERT_FIRST", _route(config, tier, tier.cluster_name)) for tier in tiers),
    ]
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "extproc", "namespace": "istio-system"},
        "spec": {"workloadSelector": {"labels": {"istio": "ingressgateway"}}, "configPatches": patches},
    }


def _patch(where: str, match: Dict, operation: str, value: Dict) -> Dict:
    return {"applyTo": where, "match": match, "patch": {"operation": operation, "value": value}}


def _filters(bootstrap: Dict) -> Dict:
    manager = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return {f["name"]: f["typed_config"] for f in manager["http_filters"]}


def _manager(bootstrap: Dict) -> Dict:
    """Remove headers that clients may not set, before the first route match. Older Envoys remove by name only."""
    [entry] = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
    [early] = copy.deepcopy(entry["typed_config"]["early_header_mutation_extensions"])
    early["typed_config"]["mutations"] = [{"remove": name} for name in (HeaderName.CLUSTER, HeaderName.MAX_RETRIES)]
    return {"@type": entry["typed_config"]["@type"], "early_header_mutation_extensions": [early]}


def _plain_filters(filters: Dict) -> list[Dict]:
    """Return the router's filter and one that shows the decision.

    The router gets two messages instead of one, so it needs no filter behind it.
    """
    router = copy.deepcopy(filters[ROUTER_FILTER])
    router["processing_mode"]["request_header_mode"] = "SEND"
    # The headers are sent before the body, with its length. The router removes the length if it changes the body.
    router["mutation_rules"]["allow_expression"]["regex"] = f"^({HeaderName.CLUSTER}|content-length)$"
    shown = copy.deepcopy(filters[HEADERS_FILTER])
    shown["mutations"] = {
        "response_mutations": [
            set_header(header, from_metadata(key))
            for header, key in (
                (HeaderName.COHORT, Key.COHORT),
                (HeaderName.TIER, Key.TIER),
                (HeaderName.REASON, Key.REASON),
            )
        ]
    }
    return [
        {"name": ROUTER_FILTER, "typed_config": router},
        {"name": "extproc.decision", "typed_config": shown},
    ]


def _plain_cluster(cluster: Dict) -> Dict:
    """Return a tier's cluster without the filters that run on every attempt. Its answers are not judged."""
    plain = copy.deepcopy(cluster)
    [options] = plain["typed_extension_protocol_options"].values()
    del options["http_filters"]
    # Without escalation the cluster does not need its other endpoints, which refuse connections to escalate.
    group = plain["load_assignment"]["endpoints"][0]
    plain["load_assignment"]["endpoints"] = [group]
    for endpoint in group["lb_endpoints"]:
        address = endpoint["endpoint"]["address"]["socket_address"]
        address["address"] = _from_elsewhere(address["address"])
    return plain


def _from_elsewhere(host: str) -> str:
    """Return the name of a Service as other namespaces resolve it."""
    return host if "." in host else f"{host}.{NAMESPACE}.svc.cluster.local"


def _route(config: Config, tier: Tier, decided: str | None) -> Dict:
    """Return a route to `tier` for requests with the decision `decided`, or for those without one (None)."""
    paths = "|".join(APIS)
    headers: list[Dict] = [{"name": ":method", "string_match": {"exact": "POST"}}]
    if decided is not None:
        headers.append({"name": HeaderName.CLUSTER, "string_match": {"exact": decided}})
    return {
        "name": f"extproc-{decided or 'undecided'}",
        "match": {"safe_regex": {"regex": paths}, "headers": headers},
        "route": {
            "cluster": tier.cluster_name,
            "timeout": "0s",  # a flowing answer is never cut
            "idle_timeout": f"{config.policy.timeouts.attempt_s:g}s",
            "auto_host_rewrite": True,
        },
    }


def gateway_routes(config: Config) -> list[Dict]:
    """Return a Backend for each tier of Envoy Gateway, and routes that match the header with the decision."""
    tiers = config.policy.tiers
    default = next(t for t in tiers if t.name == config.policy.default_tier)
    rules = [_rule(tier, tier.cluster_name, config) for tier in tiers] + [_rule(default, None, config)]
    documents = [_http_route("llm", rules), _http_route("rest", [{"backendRefs": [_backend_ref(default)]}])]
    for tier in tiers:
        fqdns = [{"fqdn": {"hostname": _from_elsewhere(a.host), "port": a.port}} for a in tier.addresses]
        documents.append(_document("gateway.envoyproxy.io/v1alpha1", "Backend", tier.name, {"endpoints": fqdns}))
        if tier.tls:
            target = {"group": "gateway.envoyproxy.io", "kind": "Backend", "name": tier.name}
            trust = {"wellKnownCACertificates": "System", "hostname": tier.sni or tier.addresses[0].host}
            spec = {"targetRefs": [target], "validation": trust}
            documents.append(_document("gateway.networking.k8s.io/v1", "BackendTLSPolicy", tier.name, spec))
    return documents


def _document(version: str, kind: str, name: str, spec: Dict) -> Dict:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _http_route(name: str, rules: list[Dict]) -> Dict:
    spec = {"parentRefs": [{"name": "llm"}], "rules": rules}
    return _document("gateway.networking.k8s.io/v1", "HTTPRoute", name, spec)


def _backend_ref(tier: Tier) -> Dict:
    return {"group": "gateway.envoyproxy.io", "kind": "Backend", "name": tier.name}


def _rule(tier: Tier, decided: str | None, config: Config) -> Dict:
    match: Dict = {"method": "POST"}
    if decided is not None:
        match["headers"] = [{"name": HeaderName.CLUSTER, "value": decided}]
    rule: Dict = {
        "matches": [match | {"path": {"type": "Exact", "value": path}} for path in APIS],
        "backendRefs": [_backend_ref(tier)],
        "timeouts": {"request": "0s"},  # a flowing answer is never cut
    }
    if tier.tls:  # providers accept only their own host name
        rewrite = {"hostname": tier.addresses[0].host}
        rule["filters"] = [{"type": "URLRewrite", "urlRewrite": rewrite}]
    return rule


def _yaml(documents: list[Dict], header: str = _HEADER) -> str:
    return header + yaml.dump_all(documents, Dumper=PlainDumper, sort_keys=False, width=120)


if __name__ == "__main__":
    for path, text in rendered(load_config(INTENTS)).items():
        (HERE / path).write_text(text)
        print(f"wrote deploy/k8s/{path}")
