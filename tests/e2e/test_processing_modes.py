"""Other processing modes that an operator may configure: requests are routed if possible, and pass otherwise."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from extproc.demo.stack import Stack
from tests.e2e.traffic import (  # fmt: skip
    APIS,
    CHAT,
    EXTRACT,
    EXTRACTED,
    JUDGED,
    LEGAL,
    MODELS,
    PROVE,
    PROVED,
    arrived,
    ask,
    body_of,
    envoy_beside,
    manager_of,
    numberless,
    send,
)

_HEADERS = {"request_header_mode": "SEND", "response_header_mode": "SKIP"}
_DUPLEX = {"request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND"}
_ROUTING = {
    "headers and buffered body": _HEADERS | {"request_body_mode": "BUFFERED"},
    "full duplex": _HEADERS | _DUPLEX,
    "buffered, response headers too": {
        "request_header_mode": "SEND", "request_body_mode": "BUFFERED", "response_header_mode": "SEND",
    },
    "buffered, whole response too": {
        "request_header_mode": "SEND", "request_body_mode": "BUFFERED",
        "response_header_mode": "SEND", "response_body_mode": "BUFFERED",
    },
    "full duplex both ways": _DUPLEX | {
        "request_header_mode": "SEND", "response_header_mode": "SEND",
        "response_body_mode": "FULL_DUPLEX_STREAMED", "response_trailer_mode": "SEND",
    },
    "full duplex, response streamed": _DUPLEX | {
        "request_header_mode": "SEND", "response_header_mode": "SEND", "response_body_mode": "STREAMED",
    },
}  # fmt: skip
_PASSING = {
    # This mode sends the whole body of most requests, but Envoy does not always choose the route again.
    "buffered partial": _HEADERS | {"request_body_mode": "BUFFERED_PARTIAL"},
    "streamed": _HEADERS | {"request_body_mode": "STREAMED"},
    "streamed both ways": {
        "request_header_mode": "SEND", "request_body_mode": "STREAMED", "request_trailer_mode": "SEND",
        "response_header_mode": "SEND", "response_body_mode": "STREAMED", "response_trailer_mode": "SEND",
    },
    "streamed body alone": {"request_header_mode": "SKIP", "request_body_mode": "STREAMED"},
    "headers alone": _HEADERS | {"request_body_mode": "NONE"},
    "response alone": {
        "request_header_mode": "SKIP", "request_body_mode": "NONE",
        "response_header_mode": "SEND", "response_body_mode": "STREAMED",
    },
}  # fmt: skip


def _configured(bootstrap: dict[str, Any], modes: dict[str, str]) -> None:
    """Return a configuration as an operator writes it: ext_proc on every route, and a route on x-router-cluster."""
    manager = manager_of(bootstrap)
    filters = {f["name"]: f for f in manager["http_filters"]}
    ext_proc = filters["envoy.filters.http.ext_proc.router"]
    del ext_proc["disabled"]
    ext_proc["typed_config"]["processing_mode"] = modes
    ext_proc["typed_config"]["mutation_rules"] = {
        "disallow_all": True, "allow_expression": {"regex": "^(x-router-(cluster|reason)|content-(length|type))$"},
    }  # fmt: skip
    mutation = filters["envoy.filters.http.header_mutation"]
    del mutation["typed_config"]["mutations"]["request_mutations"]
    manager["http_filters"] = [ext_proc, mutation, filters["envoy.filters.http.router"]]
    by_header = {"name": "x-router-cluster", "present_match": True}
    manager["route_config"]["virtual_hosts"] = [{
        "name": "llm", "domains": ["*"], "request_body_buffer_limit": 16 * 1024 * 1024,
        "routes": [
            {"match": {"prefix": "/", "headers": [by_header]}, "route": {"cluster_header": "x-router-cluster"}},
            {"match": {"prefix": "/"}, "route": {"cluster": "large"}},
        ],
    }]  # fmt: skip


def _envoy(
    request: pytest.FixtureRequest, shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("modes")
    with envoy_beside(shared_stack, folder, lambda bootstrap: _configured(bootstrap, request.param)) as beside:
        yield beside


routing = pytest.fixture(_envoy, scope="module", params=_ROUTING.values(), ids=list(_ROUTING), name="routing")
passing = pytest.fixture(_envoy, scope="module", params=_PASSING.values(), ids=list(_PASSING), name="passing")


def _no_trouble(envoy: Stack) -> None:
    stats = envoy.stats(r"http\.llm\.ext_proc\.router\.")
    prefix = "http.llm.ext_proc.router."
    names = ("failure_mode_allowed", "message_timeouts", "spurious_msgs_received", "rejected_header_mutations")
    assert {name: stats[prefix + name] for name in names} == dict.fromkeys(names, 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", APIS)
def test_each_api_is_routed(stack: Stack, routing: Stack, path: str, stream: bool) -> None:
    """The cohort's tier serves with its model, in every mode that sends the whole body to the router."""
    for prompt, said in ((EXTRACT, EXTRACTED), (PROVE, PROVED), (LEGAL, JUDGED)):
        answer = ask(routing.port, prompt, path, stream=stream)
        received, tier = arrived(stack), said["x-router-tier"]
        assert (answer.status, answer.said, received.tier) == (200, said, tier)
        assert msgspec.json.decode(received.body)["model"] == MODELS[tier]
        assert "x-router-cluster" not in received.headers
        assert received.headers.get("content-length", str(len(received.body))) == str(len(received.body))
        assert MODELS[tier].encode() in answer.body
    _no_trouble(routing)


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_a_body_of_many_pieces_is_routed(stack: Stack, routing: Stack, chunked: bool) -> None:
    """Half a megabyte, in one piece or in many, keeps every byte that the router need not change."""
    system = "This is background reading. " * 18_000
    messages = [{"role": "system", "content": system}, {"role": "user", "content": PROVE}]
    body = msgspec.json.encode({"model": "auto", "messages": messages})
    pieces = [body[i : i + 40_000] for i in range(0, len(body), 40_000)]
    answer = send(routing.port, CHAT, pieces if chunked else body)
    assert (answer.status, answer.said) == (200, PROVED)
    assert arrived(stack).body == (
        body.replace(b'"auto"', b'"qwen3-32b"', 1)[:-1] + b',"chat_template_kwargs":{"enable_thinking":true}}'
    )
    _no_trouble(routing)


@pytest.mark.parametrize("body", [b'{"model":"nobody\'s"}', b"{}", b""], ids=["another model", "object", "empty"])
def test_what_cannot_be_routed_passes(stack: Stack, routing: Stack, body: bytes) -> None:
    """The default tier gets the client's bytes, and the router causes no error."""
    answer = send(routing.port, CHAT, body)
    received = arrived(stack)
    assert (answer.status < 500, received.tier, received.body) == (True, "large", body)
    _no_trouble(routing)


def test_requests_without_a_body_pass(stack: Stack, routing: Stack) -> None:
    """GET and DELETE have headers only, so the router does not wait for a body."""
    for method, path in (("GET", "/v1/models"), ("DELETE", "/v1/models"), ("GET", CHAT)):
        send(routing.port, path, method=method)
        assert (arrived(stack).tier, arrived(stack).path) == ("large", path)
    _no_trouble(routing)


@pytest.mark.parametrize("path", APIS)
def test_modes_that_do_not_show_the_whole_body_pass(stack: Stack, passing: Stack, path: str) -> None:
    """Without the whole body the router decides nothing. Request and answer pass unchanged."""
    for more in ({}, {"stream": True}):
        sent = msgspec.json.encode(body_of(path, PROVE, "qwen3-32b") | more)
        answer = send(passing.port, path, sent)
        assert (answer.status, arrived(stack).tier, arrived(stack).body) == (200, "large", sent)
        unrouted = send(stack.plain_port, path, sent, {"x-plain-cluster": "large"})
        assert numberless(answer.body) == numberless(unrouted.body)
        assert set(answer.said) <= {"x-router-reason", "x-router-tier"}
    _no_trouble(passing)


def test_large_bodies_pass_in_those_modes(stack: Stack, passing: Stack) -> None:
    """Three megabytes stream through."""
    sent = msgspec.json.encode(body_of(CHAT, "x" * 3 * 1024 * 1024, "qwen3-32b"))
    for body in (sent, [sent[i : i + 65536] for i in range(0, len(sent), 65536)]):
        answer = send(passing.port, CHAT, body)
        assert (answer.status, arrived(stack).body == sent) == (200, True)
    _no_trouble(passing)


@pytest.mark.parametrize("size", [3, 33], ids=["3 MB", "33 MB"])
def test_full_duplex_takes_bodies_up_to_the_limit(
    stack: Stack, shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    """A full-duplex body is routed up to the limit of the policy. A larger one is answered with 413."""
    head = b'{"model":"auto","messages":[{"role":"system","content":"' + b"a " * (size * 512 * 1024)
    body = head + b'"},{"role":"user","content":"' + PROVE.encode() + b'"}]}'
    folder = tmp_path_factory.mktemp("duplex")
    with envoy_beside(stack, folder, lambda b: _configured(b, _ROUTING["full duplex"])) as beside:
        answer = send(beside.port, CHAT, [body[i : i + 65536] for i in range(0, len(body), 65536)])
        if size == 3:
            assert (answer.status, answer.said["x-router-tier"]) == (200, "frontier")
            tail = b',"reasoning_effort":"medium"}'
            assert arrived(stack).body == body.replace(b'"auto"', b'"frontier-1"', 1)[:-1] + tail
        else:
            assert answer.status == 413
            assert arrived(stack).body != body
        _no_trouble(beside)
