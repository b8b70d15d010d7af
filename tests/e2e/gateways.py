"""The xDS that Envoy Gateway and Istio make of our resources, translated by hand for an Envoy without a cluster.

`TRANSLATED` has the result for each kind. Both start from a gateway with another application: the host
`other.test`, whose requests go to the cluster `other`. Names and values are those of the gateways' published tests.
The xDS is one file here: resources that a gateway sends over ADS are inline, and the secrets are files.
"""

import copy
import re
from pathlib import Path
from typing import Any

import yaml

Dict = dict[str, Any]
# The result for each kind.
TRANSLATED = {
    "HTTPRoute": "a virtual host for its host, a route for each match, and a cluster for each rule",
    "Backend": "the hosts of those clusters",
    "BackendTrafficPolicy": "the retry policy of its routes",
    "HTTPRouteFilter": "a secret, and a disabled filter that its routes enable",
    "EnvoyPatchPolicy": "operations on the listener, the route configuration and the clusters",
    "VirtualService": "a virtual host for each port, with a route to a cluster that Istio does not have",
    "EnvoyFilter": "operations on them",
}
_TYPES = "type.googleapis.com/envoy"
_MANAGER = f"{_TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_NETWORK = "envoy.filters.network.http_connection_manager"


def of_kind(documents: list[Dict], kind: str) -> list[Dict]:
    return [document for document in documents if document["kind"] == kind]


def envoy_gateway(
    documents: list[Dict], port: int, admin_port: int, other_port: int, secrets: dict[str, Path]
) -> Dict:
    """Return a bootstrap. `secrets` has the file of each Secret."""
    [route] = of_kind(documents, "HTTPRoute")
    [parent] = route["spec"]["parentRefs"]
    name = f"{parent['namespace']}/{parent['name']}/{parent['sectionName']}"
    injectors = {d["metadata"]["name"]: _injector(d) for d in of_kind(documents, "HTTPRouteFilter")}
    routes, clusters = _gateway_routes(route, documents)
    hosts = [_host(f"{name}/{host.replace('.', '_')}", [host], routes) for host in route["spec"]["hostnames"]]
    config = {
        "name": name,
        "ignore_port_in_host_matching": True,
        "virtual_hosts": [*hosts, _host(f"{name}/other_test", ["other.test"], [_OTHER_ROUTE])],
    }
    manager = {
        "@type": _MANAGER,
        "stat_prefix": f"http-{port}",
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "server_header_transformation": "PASS_THROUGH",
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
        "http_filters": [*injectors.values(), _router(suppress_envoy_headers=True)],
    }
    listener = {
        "name": name,
        "address": _address(port),
        "per_connection_buffer_limit_bytes": 32768,
        "default_filter_chain": {"filters": [{"name": _NETWORK, "typed_config": manager}]},
    }
    resources = {
        "Listener": {name: listener},
        "RouteConfiguration": {name: config},
        "Cluster": {c["name"]: c for c in (*clusters, _cluster("other", "127.0.0.1", other_port))},
    }
    policies = of_kind(documents, "EnvoyPatchPolicy")
    for policy in sorted(policies, key=lambda policy: policy["spec"].get("priority", 0)):
        for patch in policy["spec"]["jsonPatches"]:
            kind = patch["type"].rpartition(".")[2]
            _apply(resources[kind], patch["name"], copy.deepcopy(patch["operation"]))
    manager["route_config"] = resources["RouteConfiguration"][name]
    bootstrap = _bootstrap(resources["Listener"].values(), resources["Cluster"].values(), admin_port)
    return _with_secrets(bootstrap, secrets)


def _gateway_routes(route: Dict, documents: list[Dict]) -> tuple[list[Dict], list[Dict]]:
    """Return the routes and the clusters of an HTTPRoute with one host."""
    base = f"httproute/{route['metadata']['namespace']}/{route['metadata']['name']}"
    [host] = route["spec"]["hostnames"]
    [policy] = of_kind(documents, "BackendTrafficPolicy")
    [backend] = of_kind(documents, "Backend")
    [endpoint] = backend["spec"]["endpoints"]
    routes, clusters = [], []
    for n, rule in enumerate(route["spec"]["rules"]):
        [ref] = rule["backendRefs"]
        assert (ref["kind"], ref["name"]) == ("Backend", backend["metadata"]["name"])
        action: Dict = {
            "cluster": f"{base}/rule/{n}",
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "retry_policy": {"num_retries": policy["spec"]["retry"]["numRetries"]},
        }
        if "timeouts" in rule:
            action["timeout"] = rule["timeouts"]["request"]
        names = [_filter_name(f["extensionRef"]["name"]) for f in rule.get("filters", [])]
        enabled = {name: {"@type": f"{_TYPES}.config.route.v3.FilterConfig", "config": {}} for name in names}
        for m, match in enumerate(rule["matches"]):
            kind, value = match["path"]["type"], match["path"]["value"]
            path = {"path": value} if kind == "Exact" else {"prefix": value}
            name = f"{base}/rule/{n}/match/{m}/{host.replace('.', '_')}"
            routes.append({"name": name, "match": path, "route": action, "typed_per_filter_config": enabled})
        clusters.append(_cluster(f"{base}/rule/{n}", endpoint["fqdn"]["hostname"], endpoint["fqdn"]["port"]))
    return sorted(routes, key=lambda route: "path" not in route["match"]), clusters  # exact paths come first


def _filter_name(name: str) -> str:
    return f"envoy.filters.http.credential_injector/httproutefilter/semantic-router/{name}"


def _injector(document: Dict) -> Dict:
    """Return the filter of the gateway for a credential. Its routes enable it."""
    injection = document["spec"]["credentialInjection"]
    name = f"credential_injector/credential/httproutefilter/semantic-router/{document['metadata']['name']}"
    generic = {
        "@type": f"{_TYPES}.extensions.http.injected_credentials.generic.v3.Generic",
        "credential": {"name": name, "sds_config": {"ads": {}, "resource_api_version": "V3"}},
        "header": injection["header"],
    }
    return {
        "name": _filter_name(document["metadata"]["name"]),
        "disabled": True,
        "typed_config": {
            "@type": f"{_TYPES}.extensions.filters.http.credential_injector.v3.CredentialInjector",
            "overwrite": injection["overwrite"],
            "credential": {"name": "envoy.http.injected_credentials.generic", "typed_config": generic},
        },
    }


def _apply(resources: dict[str, Dict], name: str, operation: Dict) -> None:
    """Apply one operation of an EnvoyPatchPolicy: JSON Patch below the places that a JSONPath selects."""
    if operation == {"op": "add", "path": "", "value": operation["value"]}:
        assert operation["value"]["name"] == name
        assert name not in resources
        resources[name] = operation["value"]
        return
    selected = _selected(resources[name], operation["jsonPath"]) if "jsonPath" in operation else [resources[name]]
    assert selected, f"nothing in {name} is at {operation['jsonPath']}"
    *parents, last = operation["path"].strip("/").split("/")
    place: Any
    for place in selected:
        for parent in parents:
            place = place[int(parent)] if isinstance(place, list) else place[parent]
        assert operation["op"] in ("add", "replace")
        assert operation["op"] == "add" or last in place
        place[last] = operation["value"]


def _selected(resource: Dict, path: str) -> list[Dict]:
    """Return the parts that `..key[?(@.name=='value')]` selects."""
    key, name = re.fullmatch(r"\.\.(\w+)\[\?\(@\.name=='([^']+)'\)\]", path).groups()  # type: ignore[union-attr]
    found: list[Dict] = []
    stack: list[Any] = [resource]
    while stack:
        part = stack.pop()
        if isinstance(part, list):
            stack += part
        elif isinstance(part, dict):
            found += [item for item in part.get(key, []) if isinstance(item, dict) and item.get("name") == name]
            stack += part.values()
    return found


def istio(documents: list[Dict], port: int, admin_port: int, other_port: int) -> Dict:
    """Return a bootstrap for the ingress gateway, on one port, which Istio knows as port 80."""
    [service] = of_kind(documents, "VirtualService")
    [host] = service["spec"]["hosts"]
    [http] = service["spec"]["http"]
    [destination] = (route["destination"] for route in http["route"])
    action = {
        "cluster": f"outbound|{destination['port']['number']}||{destination['host']}",
        "timeout": http["timeout"],
        "retry_policy": {"num_retries": http["retries"]["attempts"]},
    }
    hosts = [
        _host(
            f"{host}:80", [host, f"{host}:*"], [{"name": http["name"], "match": {"prefix": "/"}, "route": action}]
        ),
        _host("other.test:80", ["other.test"], [_OTHER_ROUTE]),
    ]
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "outbound_0.0.0.0_8080",
        "use_remote_address": True,
        "normalize_path": True,
        "route_config": {"name": "http.80", "virtual_hosts": hosts},
        "http_filters": [_router()],
    }
    listener = {
        "name": "0.0.0.0_8080",
        "address": _address(port),
        "per_connection_buffer_limit_bytes": 32768,
        "filter_chains": [{"filters": [{"name": _NETWORK, "typed_config": manager}]}],
    }
    listeners, clusters = [listener], [_cluster("other", "127.0.0.1", other_port)]
    [envoy_filter] = of_kind(documents, "EnvoyFilter")
    for patch in copy.deepcopy(envoy_filter["spec"]["configPatches"]):
        assert patch["match"].pop("context") == "GATEWAY"
        value = patch["patch"]["value"]
        match (patch["applyTo"], patch["patch"]["operation"]):
            case ("LISTENER", "ADD"):
                listeners.append(value)
            case ("CLUSTER", "ADD"):
                clusters.append(value)
            case ("HTTP_ROUTE", "MERGE"):
                wanted = patch["match"]["routeConfiguration"]["vhost"]
                for virtual_host in hosts:
                    for route in virtual_host["routes"]:
                        if (virtual_host["name"], route["name"]) == (wanted["name"], wanted["route"]["name"]):
                            route["route"] |= value["route"]
            case other:
                raise AssertionError(f"istiod knows {other}, this translation does not")
    return _bootstrap(listeners, clusters, admin_port)


def add_ai_gateway(bootstrap: Dict, port: int, ports: dict[str, int]) -> None:
    """Add a listener that routes as Envoy AI Gateway does, by the model's name. `ports` has its clusters."""
    model_header = """
function envoy_on_request(handle)
  local body = handle:body()
  local model = body:getBytes(0, body:length()):match('"model"%s*:%s*"([^"]+)"')
  handle:headers():replace("x-ai-eg-model", model)
  handle:clearRouteCache()
end
"""
    lua = {
        "@type": f"{_TYPES}.extensions.filters.http.lua.v3.Lua",
        "default_source_code": {"inline_string": model_header},
    }
    routes = [
        {
            "match": {
                "prefix": "/",
                "headers": [{"name": "x-ai-eg-model", "string_match": {"exact": name.rpartition("/")[2]}}],
            },
            "route": {"cluster": name},
        }
        for name in ports
    ]
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "ai",
        "route_config": {
            "virtual_hosts": [
                _host("ai", ["*"], [*routes, {"match": {"prefix": "/"}, "direct_response": {"status": 404}}])
            ]
        },
        "http_filters": [{"name": "model", "typed_config": lua}, _router()],
    }
    filters = [{"name": _NETWORK, "typed_config": manager}]
    resources = bootstrap["static_resources"]
    resources["listeners"].append(
        {"name": "ai", "address": _address(port), "filter_chains": [{"filters": filters}]}
    )
    resources["clusters"] += [_cluster(name, "127.0.0.1", port) for name, port in ports.items()]


def _host(name: str, domains: list[str], routes: list[Dict]) -> Dict:
    return {"name": name, "domains": domains, "routes": routes}


_OTHER_ROUTE = {"name": "other", "match": {"prefix": "/"}, "route": {"cluster": "other"}}


def _router(**settings: Any) -> Dict:
    config = {"@type": f"{_TYPES}.extensions.filters.http.router.v3.Router", **settings}
    return {"name": "envoy.filters.http.router", "typed_config": config}


def _address(port: int, host: str = "127.0.0.1") -> Dict:
    return {"socket_address": {"address": host, "port_value": port}}


def _cluster(name: str, host: str, port: int) -> Dict:
    hosts = [{"lb_endpoints": [{"endpoint": {"address": _address(port, host)}}]}]
    kind = "STATIC" if host == "127.0.0.1" else "STRICT_DNS"
    return {
        "name": name, "type": kind, "connect_timeout": "10s",
        "load_assignment": {"cluster_name": name, "endpoints": hosts},
    }  # fmt: skip


def _bootstrap(listeners: Any, clusters: Any, admin_port: int) -> Dict:
    return {
        "node": {"id": "gateway", "cluster": "gateway"},
        "admin": {"address": _address(admin_port)},
        "static_resources": {"listeners": [*listeners], "clusters": [*clusters]},
    }


def _with_secrets(part: Any, secrets: dict[str, Path]) -> Any:
    """Return the bootstrap with each secret from a file instead of ADS."""
    if isinstance(part, list):
        return [_with_secrets(item, secrets) for item in part]
    if not isinstance(part, dict):
        return part
    if "sds_config" in part:
        assert part["sds_config"] == {"ads": {}, "resource_api_version": "V3"}
        file = _secret_file(part["name"], secrets[part["name"].rpartition("/")[2]])
        return part | {"sds_config": {"path_config_source": {"path": str(file)}, "resource_api_version": "V3"}}
    return {name: _with_secrets(item, secrets) for name, item in part.items()}


def _secret_file(name: str, key: Path) -> Path:
    """Write what the gateway sends as a secret: the bytes of the Secret's entry `credential`."""
    secret = {
        "@type": f"{_TYPES}.extensions.transport_sockets.tls.v3.Secret",
        "name": name,
        "generic_secret": {"secret": {"inline_string": key.read_text()}},
    }
    file = key.with_suffix(".sds.yaml")
    file.write_text(yaml.safe_dump({"resources": [secret]}))
    return file
