"""The EnvoyFilter of the Istio overlay, with its patches applied like istiod does, on Envoys as old as in meshes.

There is no istiod here. The gateway has the smallest configuration that the patches need, and this test applies
them. The Envoy that runs the result is real.
"""

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config.load import load_config
from extproc.demo.stack import Stack, running
from tests.deploy.manifests import REPOSITORY, executable, render_module
from tests.e2e.traffic import (
    CHAT,
    EXTRACT,
    EXTRACTED,
    MODELS,
    PROVE,
    PROVED,
    Answer,
    arrived,
    ask,
    eventually,
    send,
)

Dict = dict[str, Any]
# `make` installs an Envoy 1.36 there, separate from the one that the product needs.
_OLD = sorted((REPOSITORY / ".venv").glob("envoy-1.36*/envoy/_bin/envoy"))
_ENVOYS, _NAMES = [*_OLD, None], [*(path.parents[2].name for path in _OLD), "ours"]
_MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def _gateway(stack: Stack) -> Dict:
    """Return an ingress gateway with one host, as the overlay's VirtualService makes it."""
    router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
    manager = {
        "@type": _MANAGER, "stat_prefix": "outbound_0.0.0.0_8080",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        "route_config": {"virtual_hosts": [{
            "name": "*:80", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 404}}],
        }]},
    }  # fmt: skip
    listener = {
        "name": "0.0.0.0_8080",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": stack.port}},
        "filter_chains": [{
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        }],
    }  # fmt: skip
    admin = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": stack.admin_port}}}
    return {"admin": admin, "static_resources": {"listeners": [listener], "clusters": []}}


def _endpoint(port: int) -> Dict:
    return {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}


def _merge(into: Dict, value: Dict) -> None:
    """Merge like protobuf: messages field by field, lists appended, everything else replaced."""
    for key, new in value.items():
        if isinstance(new, dict) and isinstance(into.get(key), dict):
            _merge(into[key], new)
        elif isinstance(new, list) and isinstance(into.get(key), list):
            into[key] += new
        else:
            into[key] = new


def _patched(bootstrap: Dict, envoy_filter: Dict) -> Dict:
    """Apply the patches in their order."""
    resources = bootstrap["static_resources"]
    [listener] = resources["listeners"]
    [network] = listener["filter_chains"][0]["filters"]
    filters = network["typed_config"]["http_filters"]
    routes = network["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
    for patch in copy.deepcopy(envoy_filter["spec"]["configPatches"]):
        assert patch["match"]["context"] == "GATEWAY"
        value = patch["patch"]["value"]
        match (patch["applyTo"], patch["patch"]["operation"]):
            case ("LISTENER", "MERGE"):
                _merge(listener, value)
            case ("NETWORK_FILTER", "MERGE"):
                _merge(network, value)
            case ("HTTP_FILTER", "INSERT_BEFORE"):
                filters.insert(len(filters) - 1, value)
            case ("CLUSTER", "ADD"):
                resources["clusters"].append(value)
            case ("HTTP_ROUTE", "INSERT_FIRST"):
                routes.insert(0, value)
            case other:
                raise AssertionError(f"istiod knows {other}, this test does not")
    return bootstrap


def _on_loopback(bootstrap: Dict, stack: Stack) -> Dict:
    """Return the clusters that the patches added, with the addresses of the router and the upstreams of `stack`."""
    ports = stack.upstreams.ports | {"extproc": stack.router_port}
    for cluster in bootstrap["static_resources"]["clusters"]:
        if cluster["name"] in ports:
            [group] = cluster["load_assignment"]["endpoints"]
            group["lb_endpoints"] = [_endpoint(ports[cluster["name"]])]
            cluster["type"] = "STATIC"
            cluster.pop("dns_lookup_family", None)
            cluster.pop("transport_socket", None)
    return bootstrap


def _routed(gateway: Stack, prompt: str, **more: str) -> Answer | None:
    """Return the answer, unless the router was late. A busy machine is not what this tests."""
    answer = ask(gateway.port, prompt, **more)
    return answer if answer.said.get("x-router-reason") in ("matched", "capability") else None


@contextlib.contextmanager
def _beside(stack: Stack, folder: Path, envoy: Path | None, router: bool = True) -> Iterator[Stack]:
    """Start an ingress gateway with the sample's EnvoyFilter, on the upstreams and the router of `stack`."""
    gateway = Stack(stack.intents, folder, stack.upstreams)
    if router:
        gateway.router_port, gateway.router = stack.router_port, stack.router
    files = render_module().rendered(load_config(REPOSITORY / "intents"))
    envoy_filter = yaml.safe_load(files["overlays/istio/envoyfilter.yaml"])
    bootstrap = _on_loopback(_patched(_gateway(gateway), envoy_filter), gateway)
    try:
        gateway.start_envoy(bootstrap, binary=str(envoy or executable("envoy")))
        yield gateway
    finally:
        gateway.router = None  # the other stack ends it
        gateway.stop()


@pytest.fixture(scope="module")
def routed(small_intents: Path) -> Iterator[Stack]:
    """Upstreams and a router. The stack's own Envoy gets no requests."""
    with running(small_intents) as stack:
        yield stack


@pytest.fixture(scope="module", params=_ENVOYS, ids=_NAMES)
def gateway(
    request: pytest.FixtureRequest, routed: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    with _beside(routed, tmp_path_factory.mktemp("gateway"), request.param) as gateway:
        yield gateway


@pytest.mark.parametrize(("prompt", "said"), [(EXTRACT, EXTRACTED), (PROVE, PROVED)], ids=["small", "large"])
def test_a_mesh_routes_by_intent(gateway: Stack, prompt: str, said: dict[str, str]) -> None:
    """The cohort's tier gets the request, with its model name and its reasoning. The answer has the decision."""
    assert eventually(lambda: _routed(gateway, prompt), "it is routed").said == said
    body = json.loads(arrived(gateway).body)
    assert (arrived(gateway).tier, body["model"]) == (said["x-router-tier"], MODELS[said["x-router-tier"]])
    assert body["chat_template_kwargs"] == {"enable_thinking": said["x-router-tier"] != "small"}


def test_a_mesh_takes_the_routing_header_from_clients(gateway: Stack) -> None:
    """A client cannot reach a tier by naming it."""
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": EXTRACT}]}).encode()
    send(gateway.port, CHAT, body, {"x-router-cluster": "frontier"})
    assert arrived(gateway).tier in ("small", "large")
    before = len(gateway.upstreams.received)
    refused = send(gateway.port, CHAT, b"not JSON", {"x-router-cluster": "frontier"})
    assert (refused.status, len(gateway.upstreams.received)) == (400, before)


def test_a_mesh_passes_long_prompts(gateway: Stack) -> None:
    """The prompt is longer than Envoy's default buffer."""
    answer = eventually(lambda: _routed(gateway, PROVE, user="x" * 3_000_000), "it is routed")
    assert (answer.status, answer.said["x-router-cohort"]) == (200, "math_reasoning")


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/v1/files/f_1"), ("GET", "/"), ("GET", CHAT), ("POST", "/v1/messages/batches")],
)
def test_other_paths_are_closed(gateway: Stack, method: str, path: str) -> None:
    """The client gets 404 in the shape of the API. No upstream sees the request."""
    before = len(gateway.upstreams.received)
    answer = send(gateway.port, path, b"{}" if method == "POST" else None, method=method)
    error = json.loads(answer.body)
    assert (answer.status, len(gateway.upstreams.received)) == (404, before)
    assert error["error"]["message"].startswith("this path is closed. Served here: POST /v1/chat/completions")
    assert (error.get("type") == "error") == path.startswith("/v1/messages/")


def test_a_mesh_lists_the_models_and_names_the_model_where_tokens_are_counted(gateway: Stack) -> None:
    listed = json.loads(send(gateway.port, "/v1/models", method="GET").body)
    assert [model["id"] for model in listed["data"]] == ["auto", *MODELS.values()]
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": EXTRACT}]}).encode()
    send(gateway.port, "/v1/messages/count_tokens", body)
    assert json.loads(arrived(gateway).body)["model"] == MODELS[arrived(gateway).tier]


@pytest.mark.parametrize("envoy", _ENVOYS, ids=_NAMES)
def test_a_mesh_fails_open_to_the_default_tier(routed: Stack, tmp_path: Path, envoy: Path | None) -> None:
    """Without the router the request keeps the client's model name, because no filter can change it."""
    with _beside(routed, tmp_path, envoy, router=False) as gateway:
        answer = ask(gateway.port, EXTRACT, model="qwen3-32b")
        assert (answer.status, arrived(gateway).tier, answer.contract) == (200, "large", {})
