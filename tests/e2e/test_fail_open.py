"""With the router dead, stuck or draining, traffic goes to the default tier, with a model name that it knows."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.demo.stack import Stack, running
from tests.e2e.processor import FULL_DUPLEX, body_message, ext_proc, headers_message
from tests.e2e.test_doors import message_of
from tests.e2e.traffic import (
    APIS,
    CHAT,
    EXTRACT,
    EXTRACTED,
    FAILED_OPEN,
    MESSAGES,
    MODELS,
    PROVE,
    PROVED,
    Flow,
    arrived,
    ask,
    body_of,
    contract_headers,
    eventually,
    send,
)  # fmt: skip

COUNT = "/v1/messages/count_tokens"
_AUTO = '{"model":"auto","messages":[]}'
_NOT_REPLACED = {
    "no JSON": b"no JSON", "array": b"[]", "number": b"7", "not UTF-8": b"\xff\xfe", "deep": b"[" * 100_000,
    "UTF-16": _AUTO.encode("utf-16"), "escaped name": rb'{"model":"\u0061uto","x":NaN}',
    "twice": b'{"model":"auto","model":"auto","messages":[]}',
}  # fmt: skip
_REPLACED = {
    "escaped": rb'{"\u006dodel":"\u0061uto","messages":[]}', "spaces": b' { "model" : "auto" , "messages" : [] } ',
    "in a text": msgspec.json.encode(body_of(CHAT, 'say "model":"auto"')),
    "deeper": b'{"model":"auto","messages":[],"metadata":{"model":"auto"}}', "none": b'{"messages":[]}',
}  # fmt: skip
# The upstream gets these unchanged, apart from the name.
_ODD = {
    "byte order mark": b"\xef\xbb\xbf" + _AUTO.encode(), "NaN": b'{"x": NaN, "model" : "auto"}',
    "trailing": _AUTO.encode() + b"x", "bytes in a text": b'{"model":"auto","user":"\xff"}',
    "half of a pair": rb'{"model":"auto","user":"\ud800"}', "truncated": b'{"model":"auto","messages":[',
    "array of objects": b'[{"model":"auto"}]', "a model of the upstream": b'{"model" : "qwen3-32b", "x": NaN}',
    "another model": b'{"model":"gpt-4o","x":NaN}', "no text": b'{"model":7,"x":NaN}',
    "twice": b'{"model":"gpt-4o","model":"auto","messages":[]}',
}  # fmt: skip


@pytest.fixture(scope="module")
def expendable(small_intents: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose router may be killed. Its policy opens one path."""
    intents = tmp_path_factory.mktemp("expendable") / "intents"
    shutil.copytree(small_intents, intents)
    with (intents / "policy.yaml").open("a") as policy:
        policy.write("passthrough: [{path: /v1/embeddings, methods: [POST]}]\n")
    with running(intents) as stack:
        yield stack


@pytest.fixture
def serving(expendable: Stack) -> Stack:
    """The expendable stack with a router that serves. A new one is started if needed."""
    assert expendable.router is not None
    if expendable.router.poll() is not None:
        expendable.start_router()
    eventually(lambda: ask(expendable.port, PROVE).said == PROVED, "the router routes")
    return expendable


@pytest.fixture(scope="class")
def dead(expendable: Stack) -> Stack:
    """The expendable stack with its router killed."""
    assert expendable.router is not None
    expendable.router.kill()
    expendable.router.wait(10)
    return expendable


def test_a_router_that_stands_still_costs_no_request(serving: Stack) -> None:
    """While the process is stopped, the default tier answers requests. After that they are routed again."""
    assert serving.router is not None
    os.kill(serving.router.pid, signal.SIGSTOP)
    try:
        for path in APIS * 2:
            answer = ask(serving.port, EXTRACT, path)
            received = arrived(serving)
            assert (answer.status, answer.said, received.tier) == (200, FAILED_OPEN, "large")
            assert msgspec.json.decode(received.body) == body_of(path, EXTRACT, MODELS["large"])
    finally:
        os.kill(serving.router.pid, signal.SIGCONT)
    eventually(lambda: ask(serving.port, EXTRACT).said == EXTRACTED, "routing comes back")


def test_requests_in_flight_when_the_router_is_killed_are_answered(serving: Stack) -> None:
    """No request is lost between the kill and the moment when Envoy notices it."""
    assert serving.router is not None
    with Flow(serving.port, PROVE) as flow:
        flow.flows_on()
        serving.router.kill()
        flow.flows_on(20)
    assert flow.failures() == []
    assert {tuple(answer.said.items()) for answer in flow.answers} == {
        tuple(PROVED.items()), tuple(FAILED_OPEN.items())
    }  # fmt: skip


class TestDeadRouter:
    """The router was killed."""

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    @pytest.mark.parametrize("path", APIS)
    def test_the_default_tier_serves(self, dead: Stack, path: str, stream: bool) -> None:
        """Every API gets its answer from the default tier. Only the name of the model changes."""
        answer = ask(dead.port, EXTRACT, path, stream=stream)
        received = arrived(dead)
        assert (answer.status, answer.said, received.tier) == (200, FAILED_OPEN, "large")
        assert msgspec.json.decode(received.body) == body_of(path, EXTRACT, MODELS["large"]) | {"stream": stream}
        assert contract_headers(received) == {}
        assert b"qwen3-32b here" in answer.body or b'"qwen3-32b ' in answer.body

    @pytest.mark.parametrize("model", ["gpt-4o", "claude-x", "qwen3-8b", "frontier-1", ""])
    def test_whatever_model_was_asked_for(self, dead: Stack, model: str) -> None:
        """The default tier is never asked for a model that it does not have."""
        answer = ask(dead.port, EXTRACT, model=model)
        assert (answer.status, answer.said) == (200, FAILED_OPEN)
        assert msgspec.json.decode(arrived(dead).body)["model"] == MODELS["large"]

    @pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
    def test_a_large_body_too(self, dead: Stack, chunked: bool) -> None:
        """Five megabytes are served, too."""
        body = msgspec.json.encode(body_of(CHAT, "x" * 5 * 1024 * 1024))
        pieces = [body[i : i + 65536] for i in range(0, len(body), 65536)]
        answer = send(dead.port, CHAT, pieces if chunked else body)
        received = arrived(dead)
        assert (answer.status, answer.said) == (200, FAILED_OPEN)
        assert msgspec.json.decode(received.body) == body_of(CHAT, "x" * 5 * 1024 * 1024, MODELS["large"])
        # The filter that sets the model comes after the buffer filter, where a length would be wrong.
        assert received.headers.get("content-length", str(len(received.body))) == str(len(received.body))

    @pytest.mark.parametrize("body", _NOT_REPLACED.values(), ids=_NOT_REPLACED)
    @pytest.mark.parametrize("path", [CHAT, MESSAGES, COUNT])
    def test_a_name_that_only_the_router_knows_goes_nowhere(self, dead: Stack, path: str, body: bytes) -> None:
        """Envoy cannot replace the model of this body. The client may try again, because the router may be back."""
        before = len(dead.upstreams.received)
        answer = send(dead.port, path, body, {"content-type": "text/plain"})
        assert (answer.status, len(dead.upstreams.received)) == (503, before)
        assert "the model of this body cannot be replaced" in message_of(answer, path)

    @pytest.mark.parametrize("body", _REPLACED.values(), ids=_REPLACED)
    def test_an_odd_body_that_envoy_can_read_is_served(self, dead: Stack, body: bytes) -> None:
        """Text that looks like our name is not a name."""
        answer = send(dead.port, CHAT, body)
        assert (answer.status, answer.said) == (200, FAILED_OPEN)
        assert msgspec.json.decode(arrived(dead).body)["model"] == MODELS["large"]

    @pytest.mark.parametrize("body", _ODD.values(), ids=_ODD)
    def test_an_odd_body_is_the_upstreams_to_refuse(self, dead: Stack, body: bytes) -> None:
        """It gets no name that only the router knows. Each byte that is not ours stays."""
        send(dead.port, CHAT, body)
        assert arrived(dead).body == body.replace(b'"auto"', b'"qwen3-32b"')

    def test_an_empty_body_is_the_upstreams_to_refuse(self, dead: Stack) -> None:
        answer = send(dead.port, CHAT, b"")
        plain = send(dead.plain_port, CHAT, b"", {"x-plain-cluster": "large"})
        assert arrived(dead).body == b""
        assert (answer.status, answer.body) == (plain.status, plain.body)

    @pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
    def test_an_opened_path_gets_no_such_name_either(self, dead: Stack, content_type: str) -> None:
        """A model of the upstream passes."""
        ours, theirs = (b'{"model": "%s", "input": "auto"}' % name for name in (b"auto", b"text-embedding-3-small"))
        before = len(dead.upstreams.received)
        answer = send(dead.port, "/v1/embeddings", ours, {"content-type": content_type})
        assert (answer.status, len(dead.upstreams.received)) == (400, before)
        assert message_of(answer).startswith("no upstream of this path knows the model")
        send(dead.port, "/v1/embeddings", theirs, {"content-type": content_type})
        assert arrived(dead).body == theirs

    def test_other_paths_do_not_notice(self, dead: Stack) -> None:
        """Requests that never needed the router do not change."""
        answer = send(dead.port, "/v1/models", method="GET")
        assert (answer.status, answer.said) == (200, {})
        assert send(dead.port, "/v1/nothing", b"{}").status == 404

    @pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
    def test_the_content_type_does_not_matter(self, dead: Stack, content_type: str) -> None:
        """The model is replaced for every type that the client names, and the upstream gets JSON."""
        body = msgspec.json.encode(body_of(CHAT, EXTRACT))
        answer = send(dead.port, CHAT, body, {"content-type": content_type})
        received = arrived(dead)
        assert (answer.status, answer.said) == (200, FAILED_OPEN)
        assert msgspec.json.decode(received.body) == body_of(CHAT, EXTRACT, MODELS["large"])
        assert received.headers["content-type"] == "application/json"

    def test_spoofed_headers_are_still_stripped(self, dead: Stack) -> None:
        """A client cannot send the contract's headers, even if the router is dead."""
        body = msgspec.json.encode(body_of(CHAT, EXTRACT))
        answer = send(dead.port, CHAT, body, {"x-router-cluster": "frontier", "x-router-tier": "evil"})
        received = arrived(dead)
        assert (answer.status, answer.said, received.tier) == (200, FAILED_OPEN, "large")
        assert contract_headers(received) == {}


def test_after_a_restart_routing_comes_back(serving: Stack) -> None:
    """Envoy finds the new process without help."""
    answer = ask(serving.port, EXTRACT)
    assert (answer.said, arrived(serving).tier) == (EXTRACTED, "small")


def test_sigterm_drains(serving: Stack) -> None:
    """Health reports not serving first, a stream in flight finishes, no request is lost, and the exit code is 0."""
    router, target = serving.router, f"127.0.0.1:{serving.router_port}"
    assert router is not None
    with Flow(serving.port, PROVE) as flow, grpc.insecure_channel(target) as channel:
        flow.flows_on()
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        with ext_proc(channel) as stream:
            stream.say(headers_message({":path": CHAT, ":method": "POST"}, FULL_DUPLEX))
            stream.say(body_message(msgspec.json.encode(body_of(CHAT, EXTRACT))[:20]))

            router.terminate()
            assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watched.cancel()
            assert router.poll() is None

            stream.say(body_message(msgspec.json.encode(body_of(CHAT, EXTRACT))[20:], end=True))
            assert [reply.WhichOneof("response") for reply in stream.replies(2)] == [
                "request_headers",
                "request_body",
            ]
        flow.flows_on()
    assert router.wait(30) == 0
    assert flow.failures() == []
    assert "Traceback" not in serving.log("router.log")
