"""Render the manifests that depend on the tiers. `make manifests` writes them, and a test checks that it was run.

Envoy's bootstrap is the output of `extproc envoy`. A mesh has its own Envoy, which is configured for the router.
Istio gets an EnvoyFilter, and Envoy Gateway gets Gateway API routes. Both are the *plain* form, which works on
Envoy 1.36. It routes by intent and sets reasoning and caps. It does not judge or escalate answers, because the
cascade needs the priority-group cluster specifier of Envoy 1.40.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from extproc.api.errors import error_body
from extproc.api.paths import APIS, SIDE_PATHS
from extproc.config.load import Config, ConfigError, load_config
from extproc.config.residency import refused_headers
from extproc.config.schema import POLICY_FILE
from extproc.config.strict_yaml import Problem, line_of
from extproc.contract.names import HeaderName, Key
from extproc.envoy.bootstrap import PlainDumper, render_envoy
from extproc.envoy.builders import from_metadata, set_header
from extproc.envoy.filters import HEADERS_FILTER, ROUTER_FILTER
from extproc.envoy.other_routes import base_rewrite, model_routes
from extproc.settings import USUAL_BASE, Tier

Dict = dict[str, Any]
HERE = Path(__file__).parent
INTENTS = HERE.parents[1] / "intents"
# The same as in base/kustomization.yaml. The proxies of a mesh are in another namespace, so they need it in names.
NAMESPACE = "semantic-router"
SOCKET = "/run/extproc/router.sock"
_HEADER = "# Rendered by `make manifests`. Edit intents/policy.yaml instead of this file.\n"
# The paths that the router reads. A mesh opens no others.
_PATHS = (*APIS, *SIDE_PATHS)
_CLOSED = f"this path is closed. Served here: POST {', '.join(_PATHS)}"
_MANAGER = "envoy.filters.network.http_connection_manager"


def rendered(config: Config) -> dict[str, str]:
    """Return the text of every rendered file, by its path under deploy/k8s. Raises ConfigError as they do."""
    return {path: render(config) for path, render in FILES.items()}


def _istio(config: Config) -> str:
    _refuse(config, "istio", _mesh_problems(config))
    return _yaml([envoy_filter(config)])


def _envoy_gateway(config: Config) -> str:
    _refuse(config, "envoy-gateway", [*_mesh_problems(config), *_backend_problems(config)])
    return _yaml(gateway_routes(config))


# Each rendered file, by its path under deploy/k8s. Raises ConfigError if a mesh cannot do what the policy says.
FILES: dict[str, Callable[[Config], str]] = {
    "base/envoy/bootstrap.yaml": lambda config: _bootstrap(config, "extproc:50051"),
    "overlays/sidecar/bootstrap.yaml": lambda config: _bootstrap(config, f"unix://{SOCKET}"),
    "overlays/istio/envoyfilter.yaml": _istio,
    "overlays/envoy-gateway/routes.yaml": _envoy_gateway,
}


def _refuse(config: Config, overlay: str, problems: list[tuple[str, str]]) -> None:
    if problems:
        remedy = "use the overlay `standalone` or `sidecar`, or remove it"
        raise ConfigError(
            [
                Problem(POLICY_FILE, line_of(config.lines, POLICY_FILE, at), f"{what}: {overlay} cannot; {remedy}")
                for at, what in problems
            ]
        )


def _mesh_problems(config: Config) -> list[tuple[str, str]]:
    """The settings that no mesh carries out, by their place. To leave them out silently would cost more."""
    problems = [
        (f".tiers[{i}].key", f"tier `{tier.name}` has a `key`, which only our Envoy adds")
        for i, tier in enumerate(config.policy.tiers)
        if tier.key is not None
    ]
    if refused_headers(config.policy, config.intents) != []:
        what = f"`only` excludes the default tier `{config.policy.default_tier}`, which must get nothing undecided"
        problems.append((".default_tier", what))
    return problems


def _backend_problems(config: Config) -> Iterator[tuple[str, str]]:
    """The settings that the Backend API of Envoy Gateway does not have."""
    for i, tier in enumerate(config.policy.tiers):
        if tier.ca:
            yield f".tiers[{i}].ca", f"tier `{tier.name}` has a private `ca`, and a Backend trusts public ones"
        if len({endpoint.weight for endpoint in tier.endpoints}) > 1:
            yield f".tiers[{i}].endpoints", f"tier `{tier.name}` has weights, and a Backend has none"


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
        *(_patch("HTTP_ROUTE", routes, "INSERT_FIRST", _closed(path)) for path in ("/", "/v1/messages/")),
        *(_patch("HTTP_ROUTE", routes, "INSERT_FIRST", route) for route in reversed(list(model_routes(config)))),
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
    paths = "|".join(_PATHS)
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
            **base_rewrite(tier),
        },
    }


def _closed(prefix: str) -> Dict:
    """Return the route that answers every other path below `prefix`, in the shape of its API."""
    json_type = {"header": {"key": "content-type", "value": "application/json"}}
    return {
        "name": "extproc-closed",
        "match": {"prefix": prefix},
        "direct_response": {"status": 404, "body": {"inline_string": error_body(prefix, 404, _CLOSED).decode()}},
        "response_headers_to_add": [json_type | {"append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
    }


def gateway_routes(config: Config) -> list[Dict]:
    """Return a Backend for each tier of Envoy Gateway, and routes that match the header with the decision."""
    tiers = config.policy.tiers
    default = next(t for t in tiers if t.name == config.policy.default_tier)
    rules = [_rule(tier, tier.cluster_name, config) for tier in tiers] + [_rule(default, None, config)]
    closed = {"statusCode": 404, "contentType": "application/json"}
    closed["body"] = {"type": "Inline", "inline": error_body("/", 404, _CLOSED).decode()}
    answer = {"group": "gateway.envoyproxy.io", "kind": "HTTPRouteFilter", "name": "closed"}
    documents = [
        _http_route("llm", rules),
        _http_route("rest", [{"filters": [{"type": "ExtensionRef", "extensionRef": answer}]}]),
        _document("gateway.envoyproxy.io/v1alpha1", "HTTPRouteFilter", "closed", {"directResponse": closed}),
    ]
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
    # An exact path beats a prefix with headers, so all rules have prefixes if one of them needs it.
    prefixed = any(other.base != USUAL_BASE for other in config.policy.tiers)
    paths = [_BELOW_V1] if prefixed else [{"type": "Exact", "value": path} for path in _PATHS]
    return {
        "matches": [match | {"path": path} for path in paths],
        "backendRefs": [_backend_ref(tier)],
        "timeouts": {"request": "0s"},  # a flowing answer is never cut
        **_filters_of(tier),
    }


_BELOW_V1 = {"type": "PathPrefix", "value": USUAL_BASE}


def _filters_of(tier: Tier) -> Dict:
    """Return the filters of a rule: providers accept only their own host name, and have a base path."""
    rewrite: Dict = {"hostname": tier.addresses[0].host} if tier.tls else {}
    if tier.base != USUAL_BASE:
        rewrite["path"] = {"type": "ReplacePrefixMatch", "replacePrefixMatch": tier.base}
    return {"filters": [{"type": "URLRewrite", "urlRewrite": rewrite}]} if rewrite else {}


def _yaml(documents: list[Dict], header: str = _HEADER) -> str:
    return header + yaml.dump_all(documents, Dumper=PlainDumper, sort_keys=False, width=120)


if __name__ == "__main__":
    config, failed = load_config(INTENTS), False
    for path, render in FILES.items():
        try:
            (HERE / path).write_text(render(config))
            print(f"wrote deploy/k8s/{path}")
        except ConfigError as error:
            failed = True
            print(f"{error}\ndid not write deploy/k8s/{path}", file=sys.stderr)
    sys.exit(failed)
