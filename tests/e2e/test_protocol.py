"""The external-processing protocol, message by message, with a script in place of Envoy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from extproc.pb import ext_proc_pb2 as pb
from tests.e2e.processor import (
    BUFFERED,
    FULL_DUPLEX,
    NONE,
    OPTIONS,
    STREAMED,
    Stream,
    body_message,
    ext_proc,
    headers_message,
)  # fmt: skip
from tests.e2e.traffic import CHAT, EXTRACT, MODELS, PROVE, body_of, eventually, write_small_intents

_PATH = {"request.path": CHAT, "request.method": "POST"}
_HEADERS = {":path": CHAT, ":method": "POST", "content-type": "application/json"}
_BODY = msgspec.json.encode(body_of(CHAT, PROVE))
_ROUTED = (
    b'{"model":"qwen3-32b",' + _BODY.split(b",", 1)[1][:-1] + b',"chat_template_kwargs":{"enable_thinking":true}}'
)


@pytest.fixture
def channel(stack: Stack) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{stack.router_port}", OPTIONS) as channel:
        yield channel


def _plain(reply: pb.ProcessingResponse) -> dict[str, Any]:
    return json_format.MessageToDict(reply, preserving_proto_field_name=True)


def _kinds(replies: list[pb.ProcessingResponse]) -> list[str]:
    return [str(reply.WhichOneof("response")) for reply in replies]


_PASSES: dict[str, dict[str, Any]] = {kind: {kind: {}} for kind in (
    "request_headers", "request_body", "request_trailers", "response_headers", "response_body", "response_trailers",
)}  # fmt: skip


def _assert_routed(reply: pb.ProcessingResponse, kind: str, tier: str) -> None:
    """The header is in raw_value and overwrites, the route is chosen again, and content-length is absent."""
    common = getattr(reply, kind).response
    (option,) = common.header_mutation.set_headers
    wanted = pb.HeaderValueOption(
        header=pb.HeaderValue(key="x-router-cluster", raw_value=tier.encode()),
        append_action=pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )
    assert (option, common.clear_route_cache) == (wanted, True)
    metadata = json_format.MessageToDict(reply.dynamic_metadata)
    first = metadata["semantic_router.ladder"]["priority_groups"][0]
    assert first["clusters"] == [{"cluster_name": tier, "weight": 1.0}]
    assert (metadata["semantic_router"]["tier"], metadata["semantic_router"]["cluster"]) == (tier, tier)


def _still_routes(channel: grpc.Channel) -> None:
    with ext_proc(channel) as stream:
        stream.say(body_message(_BODY, True, BUFFERED, _PATH))
        assert _kinds(stream.finish()) == ["request_body"]


def test_health_says_serving(channel: grpc.Channel) -> None:
    """The health service reports SERVING for the whole server."""
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_one_message_with_attributes(channel: grpc.Channel) -> None:
    """In the rendered mode the message has the whole body and the path. One reply has everything."""
    with ext_proc(channel) as stream:
        stream.say(body_message(_BODY, True, BUFFERED, _PATH))
        (reply,) = stream.finish()
    _assert_routed(reply, "request_body", "large")
    assert reply.request_body.response.body_mutation == pb.BodyMutation(body=_ROUTED)


def test_a_get_ends_with_its_headers(channel: grpc.Channel) -> None:
    """Headers with end of stream get a reply immediately, because no body follows."""
    for mode in (BUFFERED, STREAMED, FULL_DUPLEX, NONE):
        with ext_proc(channel) as stream:
            stream.say(headers_message({":path": "/v1/models", ":method": "GET"}, mode, end=True))
            assert list(map(_plain, stream.replies(1))) == [_PASSES["request_headers"]]
            assert stream.finish() == []


def test_an_empty_chunked_post(channel: grpc.Channel) -> None:
    """An empty body with end of stream is not parsed, and passes unrouted."""
    with ext_proc(channel) as stream:
        stream.say(headers_message(_HEADERS, BUFFERED))
        stream.say(body_message(b"", end=True))
        headers, body = stream.finish()
    assert _plain(headers) == _PASSES["request_headers"]
    assert not body.request_body.response.HasField("body_mutation")
    decision: Any = body.dynamic_metadata["semantic_router"]
    assert decision["reason"] == "unreadable"


def test_headers_then_a_buffered_body(channel: grpc.Channel) -> None:
    """If the headers come first, they have the path, and the reply to the body routes."""
    with ext_proc(channel) as stream:
        stream.say(headers_message(_HEADERS, BUFFERED))
        assert list(map(_plain, stream.replies(1))) == [_PASSES["request_headers"]]
        stream.say(body_message(_BODY, end=True))
        (reply,) = stream.finish()
    _assert_routed(reply, "request_body", "large")
    assert reply.request_body.response.body_mutation == pb.BodyMutation(body=_ROUTED)


@pytest.mark.parametrize("field", ["value", "raw_value"])
def test_headers_in_either_field_are_read(channel: grpc.Channel, field: str) -> None:
    """Envoy sets `value` or `raw_value`, depending on its configuration. Both are read."""
    message = headers_message({}, BUFFERED)
    for name, value in _HEADERS.items():
        given: Any = {"key": name, field: value if field == "value" else value.encode()}
        message.request_headers.headers.headers.add(**given)
    with ext_proc(channel) as stream:
        stream.say(message)
        stream.say(body_message(_BODY, end=True))
        _assert_routed(stream.finish()[1], "request_body", "large")


@pytest.mark.parametrize("kind", ["response_headers", "response_body", "response_trailers"])
def test_a_stream_may_begin_with_the_response(channel: grpc.Channel, kind: str) -> None:
    """Envoy answered before the router saw the request. The response passes without request state."""
    message = pb.ProcessingRequest()
    getattr(message, kind).SetInParent()
    with ext_proc(channel) as stream:
        stream.say(message)
        assert list(map(_plain, stream.finish())) == [_PASSES[kind]]


def test_streamed_bodies_get_one_reply_each(channel: grpc.Channel) -> None:
    """In STREAMED mode every piece gets its own reply, also the empty last one. Nothing is changed."""
    with ext_proc(channel) as stream:
        stream.say(headers_message(_HEADERS, STREAMED))
        for piece in (_BODY[:10], _BODY[10:30], _BODY[30:]):
            stream.say(body_message(piece))
        stream.say(body_message(b"", end=True))
        passing = [_PASSES["request_headers"], *[_PASSES["request_body"]] * 4]
        assert list(map(_plain, stream.finish())) == passing


@pytest.mark.parametrize("ending", ["last piece", "empty piece", "trailers"])
def test_full_duplex_is_answered_at_the_end_of_the_body(channel: grpc.Channel, ending: str) -> None:
    """The headers wait for the end of the body. Then come the route, the whole body, streamed, and the trailers."""
    with ext_proc(channel) as stream:
        stream.say(headers_message(_HEADERS, FULL_DUPLEX))
        stream.say(body_message(_BODY[:10]))
        stream.say(body_message(_BODY[10:30]))
        stream.say(body_message(_BODY[30:], end=ending == "last piece"))
        if ending == "empty piece":
            stream.say(body_message(b"", end=True))
        if ending == "trailers":
            trailers = pb.ProcessingRequest()
            trailers.request_trailers.SetInParent()
            stream.say(trailers)
        replies = stream.finish()
    kinds = ["request_headers", "request_body", *(["request_trailers"] if ending == "trailers" else [])]
    assert _kinds(replies) == kinds
    _assert_routed(replies[0], "request_headers", "large")
    streamed = pb.StreamedBodyResponse(body=_ROUTED, end_of_stream=ending != "trailers")
    assert replies[1].request_body.response.body_mutation == pb.BodyMutation(streamed_response=streamed)


def test_trailers_after_a_buffered_body(channel: grpc.Channel) -> None:
    """A body without end of stream, then trailers. Each gets a reply, and the one to the body has the route."""
    trailers = pb.ProcessingRequest()
    trailers.request_trailers.SetInParent()
    with ext_proc(channel) as stream:
        stream.say(headers_message(_HEADERS, BUFFERED))
        stream.say(body_message(_BODY))
        stream.say(trailers)
        replies = stream.finish()
    assert _kinds(replies) == ["request_headers", "request_body", "request_trailers"]
    _assert_routed(replies[1], "request_body", "large")


def test_response_phases_pass(channel: grpc.Channel) -> None:
    """Messages about the response pass, with one reply of the same kind for each."""
    with ext_proc(channel) as stream:
        stream.say(body_message(_BODY, True, BUFFERED, _PATH))
        for kind in ("response_headers", "response_body", "response_trailers"):
            message = pb.ProcessingRequest()
            getattr(message, kind).SetInParent()
            stream.say(message)
        replies = stream.finish()
    assert [_plain(reply) for reply in replies[1:]] == [
        _PASSES["response_headers"], _PASSES["response_body"], _PASSES["response_trailers"],
    ]  # fmt: skip


def test_a_full_duplex_response_is_given_back_piece_by_piece(channel: grpc.Channel) -> None:
    """A response body that is not sent back is lost. Every piece returns unchanged in `streamed_response`."""
    with ext_proc(channel) as stream:
        stream.say(headers_message({":path": "/v1/models", ":method": "GET"}, NONE, True, FULL_DUPLEX))
        for piece, end in ((b"data: 1\n\n", False), (b"", True)):
            message = pb.ProcessingRequest()
            message.response_body.body = piece
            message.response_body.end_of_stream = end
            stream.say(message)
        replies = stream.finish()[1:]
    assert [reply.response_body.response.body_mutation.streamed_response for reply in replies] == [
        pb.StreamedBodyResponse(body=b"data: 1\n\n"), pb.StreamedBodyResponse(end_of_stream=True),
    ]  # fmt: skip


@pytest.mark.parametrize("unknown", [b"", b"\xa2\x06\x02hi", b"\x62\x00"], ids=["empty", "field 100", "field 12"])
def test_messages_of_an_unknown_kind_do_no_harm(channel: grpc.Channel, unknown: bytes) -> None:
    """A message of a newer kind is skipped, and the next one is answered."""
    with ext_proc(channel) as stream:
        stream.say(body_message(_BODY, True, BUFFERED, _PATH))
        stream.say(unknown)
        stream.say(headers_message(_HEADERS, end=True))
        assert _kinds(stream.finish()) == ["request_body", "request_headers"]
    with ext_proc(channel) as stream:
        stream.say(unknown)
        assert stream.finish() == []


def test_unknown_fields_are_ignored(channel: grpc.Channel) -> None:
    """A message of a known kind is read as usual, if it has newer fields."""
    with ext_proc(channel) as stream:
        stream.say(body_message(_BODY, True, BUFFERED, _PATH).SerializeToString() + b"\xa2\x06\x02hi")
        (reply,) = stream.finish()
    _assert_routed(reply, "request_body", "large")


def test_eight_megabytes_fit_in_one_message(channel: grpc.Channel) -> None:
    """The largest body that Envoy lets through is routed."""
    room = 8 * 1024 * 1024 - len(_BODY) - 40
    system = {"role": "system", "content": "a" * room}
    body = msgspec.json.encode({"model": "auto", "messages": [system, {"role": "user", "content": PROVE}]})
    with ext_proc(channel) as stream:
        stream.say(body_message(body, True, BUFFERED, _PATH))
        (reply,) = stream.finish()
    _assert_routed(reply, "request_body", "frontier")  # the tier with the largest context
    assert len(reply.request_body.response.body_mutation.body) > len(body)


def test_more_than_the_limit_is_refused_and_nothing_else_suffers(channel: grpc.Channel) -> None:
    """A message above the server's limit ends only its own stream."""
    with ext_proc(channel) as stream:
        stream.say(body_message(b"a" * 65 * 1024 * 1024, True, BUFFERED, _PATH))
        with pytest.raises(grpc.RpcError) as raised:
            stream.finish()
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    _still_routes(channel)


@pytest.mark.parametrize("mode", [BUFFERED, FULL_DUPLEX], ids=["buffered", "full duplex"])
def test_streams_that_are_cancelled_leave_the_server_healthy(
    stack: Stack, channel: grpc.Channel, mode: int
) -> None:
    """Envoy resets a stream at the end of nearly every request. That is not an error."""
    before = len(stack.log("router.log"))
    streams = [Stream(channel) for _ in range(20)]
    for i, stream in enumerate(streams):
        stream.say(headers_message(_HEADERS, mode))
        stream.say(body_message(msgspec.json.encode(body_of(CHAT, f"{EXTRACT} {mode} {i}")), end=i % 2 == 0))
    for stream in streams:
        stream.close()
    eventually(lambda: all(stream.call.done() for stream in streams), "the streams are over")
    _still_routes(channel)
    assert stack.log("router.log")[before:] == ""


def test_many_streams_at_once_are_each_answered(channel: grpc.Channel) -> None:
    """Each of fifty exchanges on one connection gets its own reply."""
    prompts = {f"{PROVE} {i}": f"{PROVE} {i}".encode() for i in range(50)}
    streams = {prompt: Stream(channel) for prompt in prompts}
    for prompt, stream in streams.items():
        stream.say(body_message(msgspec.json.encode(body_of(CHAT, prompt)), True, BUFFERED, _PATH))
    for prompt, stream in streams.items():
        (reply,) = stream.finish()
        assert prompts[prompt] + b'"' in reply.request_body.response.body_mutation.body


def test_streams_that_outlive_a_stop_are_no_errors(tmp_path: Path) -> None:
    """They are cut when the time of a request is over. The log has only the lines of the stop."""
    intents = write_small_intents(tmp_path / "written")
    with (intents / "policy.yaml").open("a") as policy:
        policy.write("\ntimeouts: {attempt_s: 1, request_s: 1}\n")
    with SampleUpstreams(MODELS) as upstreams:
        stack = Stack(intents, tmp_path, upstreams)
        try:
            stack.start_router()
            assert stack.router is not None
            with grpc.insecure_channel(f"127.0.0.1:{stack.router_port}", OPTIONS) as channel:
                streams = [Stream(channel) for _ in range(20)]
                for stream in streams:
                    stream.say(headers_message(_HEADERS, BUFFERED))
                assert [_kinds(stream.replies(1)) for stream in streams] == [["request_headers"]] * 20
                stack.router.terminate()
                assert stack.router.wait(60) == 0
        finally:
            stack.stop()
    _, _, after = stack.log("router.log").partition("draining\n")
    assert [line.partition(" INFO ")[2] for line in after.splitlines()] == ["stopped"]
