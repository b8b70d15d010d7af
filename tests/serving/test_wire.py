"""Envoy's messages <-> plain values. A mistake in any of these rules of the protocol would cost a request."""

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.contract.names import ATTEMPT_ATTRIBUTE, HEADER_ATTRIBUTE, TIER_ATTRIBUTE, Namespace
from extproc.contract.records import ladder_of
from extproc.messages import Event, Kind, Opening, Reply
from extproc.pb import ext_proc_pb2 as pb
from extproc.serving.wire import decode_request, encode_response, read_event, read_opening, write_reply

KINDS: tuple[Kind, ...] = (
    "request_headers",
    "request_body",
    "request_trailers",
    "response_headers",
    "response_body",
    "response_trailers",
)
OVERWRITE = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


def header_map(*headers: pb.HeaderValue) -> pb.HeaderMap:
    return pb.HeaderMap(headers=headers)


def request_of(kind: str, value: Any) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(**{kind: value})


def with_attributes(namespace: str = "envoy.filters.http.ext_proc", **values: Any) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest(request_body=pb.HttpBody(body=b"{}"))
    message.attributes[namespace].update({name.replace("__", "."): value for name, value in values.items()})
    return message


# Reading


def test_both_value_fields_of_a_header_are_read():
    """Envoy's configuration decides which of the two it fills. Names may have any case."""
    headers = header_map(
        pb.HeaderValue(key=":path", value="/v1/messages"),
        pb.HeaderValue(key="X-User-Tier", raw_value=b"gold"),
        pb.HeaderValue(key="empty"),
        pb.HeaderValue(key="latin", raw_value=b"caf\xe9"),
    )
    message = pb.ProcessingRequest(request_headers=pb.HttpHeaders(headers=headers, end_of_stream=True))
    read = {":path": "/v1/messages", "x-user-tier": "gold", "empty": "", "latin": "caf\ufffd"}
    assert read_event(message) == Event("request_headers", True, headers=read)
    assert read_opening(message).headers == read


def test_a_header_that_is_not_utf_8_costs_no_decision():
    """A client may send any bytes in a header. The rest of the message is kept."""
    name = HEADER_ATTRIBUTE.format("x-user")
    body = pb.HttpBody(body=b"\xff" * 300, end_of_stream=True)
    message = pb.ProcessingRequest(
        request_body=body, protocol_config=pb.ProtocolConfiguration(request_body_mode="BUFFERED")
    )
    message.attributes["envoy.filters.http.ext_proc"].update({name: "Jos#", ATTEMPT_ATTRIBUTE: 2})
    read = decode_request(message.SerializeToString().replace(b"Jos#", b"Jos\xe9"))
    assert read_opening(read) == Opening({"x-user": "Jos\ufffd"}, "BUFFERED", "NONE", attempt=2)
    assert read_event(read) == Event("request_body", True, b"\xff" * 300)


def test_a_message_that_is_damaged_is_refused():
    message = with_attributes(a="Jos#").SerializeToString().replace(b"Jos#", b"Jos\xe9")
    for damaged in (message[:-1], message + b"\x0b", message + b"\xff" * 12, message + b"\x0d\x00"):
        with pytest.raises(DecodeError):
            decode_request(damaged)


def test_a_header_that_is_repeated_is_joined():
    """As HTTP defines, so that the first value cannot hide the second."""
    headers = header_map(pb.HeaderValue(key="a", value="1"), pb.HeaderValue(key="A", raw_value=b"2"))
    message = pb.ProcessingRequest(response_headers=pb.HttpHeaders(headers=headers))
    assert read_event(message) == Event("response_headers", False, headers={"a": "1, 2"})


@pytest.mark.parametrize("kind", ["request_body", "response_body"])
def test_bodies_are_read_with_their_end(kind):
    """A body may hold any bytes, and its last chunk is marked as the last."""
    message = request_of(kind, pb.HttpBody(body=b"\x00\xff", end_of_stream=True))
    assert read_event(message) == Event(kind, True, b"\x00\xff")
    assert read_event(request_of(kind, pb.HttpBody())) == Event(kind, False, b"")


@pytest.mark.parametrize("kind", ["request_trailers", "response_trailers"])
def test_trailers_end_their_direction(kind):
    """They come after the last chunk of the body, which was not marked as the last."""
    trailers = pb.HttpTrailers(trailers=header_map(pb.HeaderValue(key="grpc-status", raw_value=b"0")))
    assert read_event(request_of(kind, trailers)) == Event(kind, True, headers={"grpc-status": "0"})


def test_a_message_of_an_unknown_kind_is_not_an_event():
    """A newer Envoy may send one. Its fields are skipped."""
    newer = b"\xa2\x06\x02\x08\x01"  # field 100
    assert read_event(decode_request(newer)) is None


def test_attributes_replace_headers_that_were_not_sent():
    """They come under one key, regardless of the name of the filter. The path gets the name of its header."""
    message = with_attributes(
        request__path="/v1/messages?beta=true",
        request__method="POST",
        **{"request.headers['x-user-tier']": "gold"},
    )
    expected = {":path": "/v1/messages?beta=true", "x-user-tier": "gold"}
    assert read_opening(message).headers == expected


def test_unexpected_attributes_are_ignored():
    """Other names, types and namespaces change nothing."""
    message = with_attributes(
        request__size=12, request__headers="CelMap value", source__address="1.2.3.4", x=None, y=[1], z={"a": True}
    )
    message.attributes["other.filter"].update({"request.path": "/elsewhere"})
    assert read_opening(message) == Opening({}, "BUFFERED", "BUFFERED")


def test_a_headers_message_wins_over_attributes():
    """Its headers are the ones that Envoy forwards."""
    message = with_attributes(request__path="/attribute")
    message.request_headers.headers.CopyFrom(header_map(pb.HeaderValue(key=":path", raw_value=b"/header")))
    assert read_opening(message).headers == {":path": "/header"}


def test_response_headers_are_not_request_headers():
    """A stream may start with response headers. The request is then unknown."""
    headers = header_map(pb.HeaderValue(key=":status", raw_value=b"403"))
    message = pb.ProcessingRequest(response_headers=pb.HttpHeaders(headers=headers))
    assert read_opening(message) == Opening({}, "BUFFERED", "BUFFERED")


@pytest.mark.parametrize(
    ("request_mode", "response_mode", "expected"),
    [
        (0, 0, ("NONE", "NONE")),
        (1, 2, ("STREAMED", "BUFFERED")),
        (3, 4, ("BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED")),
        (5, 99, ("GRPC", "BUFFERED")),
    ],
)
def test_the_body_modes_are_read_from_the_first_message(request_mode, response_mode, expected):
    """A mode that only a newer Envoy has is read as the usual one."""
    modes = pb.ProtocolConfiguration(request_body_mode=request_mode, response_body_mode=response_mode)
    opening = read_opening(pb.ProcessingRequest(request_body=pb.HttpBody(), protocol_config=modes))
    assert (opening.request_body_mode, opening.response_body_mode) == expected


def test_an_envoy_that_sends_no_modes_uses_the_usual_one():
    """Absent is not NONE, although NONE is the default value in protobuf."""
    assert read_opening(pb.ProcessingRequest(request_body=pb.HttpBody())) == Opening({}, "BUFFERED", "BUFFERED")


def test_metadata_and_attempt_come_as_plain_values():
    """A verifier reads the router's decision from them: nested values, lists and nulls."""
    message = with_attributes(upstream__request_attempt_count=2, **{TIER_ATTRIBUTE: "large"})
    value: Any = {"a": "b", "n": 2.0, "yes": True, "none": None, "list": [1.0, {"c": []}]}
    message.metadata_context.filter_metadata["semantic_router"].update(value)
    opening = read_opening(message)
    assert (opening.metadata, opening.attempt, opening.tier) == ({"semantic_router": value}, 2, "large")


# Writing


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_reply_has_its_kind(kind):
    """Envoy treats a reply without a kind, or of another kind, as a protocol error."""
    response = write_reply(Reply(kind))
    assert response.WhichOneof("response") == kind
    assert pb.ProcessingResponse.FromString(encode_response(response)).WhichOneof("response") == kind
    assert len(encode_response(response)) == 2  # the kind, and nothing in it


def test_a_header_is_written_raw_and_overwrites():
    """Only `raw_value` is set. Without the overwrite, Envoy would append the value to the client's header."""
    response = write_reply(Reply("request_body", headers={"x-router-cluster": "small-ü"}))
    option = pb.HeaderValueOption(
        header=pb.HeaderValue(key="x-router-cluster", raw_value="small-ü".encode()), append_action=OVERWRITE
    )
    common = pb.CommonResponse(header_mutation=pb.HeaderMutation(set_headers=[option]), clear_route_cache=True)
    assert response == pb.ProcessingResponse(request_body=pb.BodyResponse(response=common))


@pytest.mark.parametrize("kind", ["request_headers", "request_body"])
@pytest.mark.parametrize("headers", [None, {}, {"a": "1"}, {"a": "1", "b": "2"}])
@pytest.mark.parametrize("body", [None, b"", b"{}"])
def test_the_route_is_chosen_again_exactly_when_a_header_changes(kind, headers, body):
    """Alone, `clear_route_cache` would be ignored, or would discard the route without a need."""
    common = getattr(write_reply(Reply(kind, headers=headers, body=body)), kind).response
    assert common.clear_route_cache == bool(common.header_mutation.set_headers) == bool(headers)


@pytest.mark.parametrize("body", [b"", b"{}", b"\x00\xff"])
def test_a_new_body_comes_without_a_content_length(body):
    """The buffer filter after us sets it. Ours would be wrong if another filter also edits the body."""
    response = write_reply(Reply("request_body", headers={"x-router-cluster": "small"}, body=body))
    common = response.request_body.response
    assert (common.body_mutation.WhichOneof("mutation"), common.body_mutation.body) == ("body", body)
    assert [option.header.key for option in common.header_mutation.set_headers] == ["x-router-cluster"]
    assert b"content-length" not in encode_response(response)


def test_an_unchanged_body_is_not_written():
    """None changes nothing. An empty body would replace it."""
    assert not write_reply(Reply("request_body")).request_body.response.HasField("body_mutation")


@pytest.mark.parametrize(("body", "end"), [(b"chunk", False), (b"last", True), (b"", True), (None, True)])
@pytest.mark.parametrize("kind", ["request_body", "response_body"])
def test_a_full_duplex_chunk_is_a_streamed_response_and_nothing_else(kind, body, end):
    """Even for an empty last chunk, because Envoy waits for the reply."""
    mutation = getattr(write_reply(Reply(kind, body=body, streamed=True, end=end)), kind).response.body_mutation
    chunk = pb.StreamedBodyResponse(body=body or b"", end_of_stream=end)
    assert mutation == pb.BodyMutation(streamed_response=chunk)


@pytest.mark.parametrize("kind", ["request_trailers", "response_trailers"])
def test_trailers_are_answered_with_unchanged_trailers(kind):
    trailers: dict[str, Any] = {kind: pb.TrailersResponse()}
    assert write_reply(Reply(kind)) == pb.ProcessingResponse(**trailers)


def test_metadata_keeps_its_values():
    """Text, numbers, booleans, lists and objects are kept under their namespace."""
    metadata = {"semantic_router": {"reason": "matched", "similarity": 0.5, "calibrated": False, "l": [{"a": "b"}]}}
    response = write_reply(Reply("request_body", metadata=metadata))
    fields = response.dynamic_metadata.fields["semantic_router"].struct_value
    assert dict(fields.fields["l"].list_value.values[0].struct_value.items()) == {"a": "b"}
    assert (fields["reason"], fields["similarity"], fields["calibrated"]) == ("matched", 0.5, False)


_SCALARS = st.text(max_size=3) | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False)
_PLAIN = st.recursive(
    _SCALARS, lambda item: st.lists(item, max_size=3) | st.dictionaries(st.text(max_size=3), item, max_size=3)
)


@settings(max_examples=30, deadline=None)
@given(
    metadata=st.dictionaries(
        st.text(max_size=3), st.dictionaries(st.text(max_size=3), _PLAIN, max_size=4), max_size=3
    )
)
def test_metadata_is_written_as_protobuf_writes_it(metadata):
    """An empty object or list is there, too."""
    expected = Struct()
    expected.update(metadata)
    assert write_reply(Reply("request_body", metadata=metadata)).dynamic_metadata == expected


@pytest.mark.parametrize("value", [None, b"bytes", ("a", "tuple"), {"a", "set"}])
def test_a_value_that_metadata_cannot_hold_is_an_error(value):
    """A record leaves it out, or writes it in another type."""
    with pytest.raises(TypeError, match=f"metadata cannot hold a value of the type {type(value).__name__}"):
        write_reply(Reply("request_body", metadata={"semantic_router": {"a": [value]}}))


@pytest.mark.parametrize("clusters", [(), ("small",), ("small", "large"), ("größe", ""), tuple("abcdefgh") * 3])
@pytest.mark.parametrize("repeats", [(), (1,), (2, 0, 3)])
def test_a_ladder_is_written_as_any_other_metadata(clusters, repeats):
    """The second time, too, after the first message was changed."""
    ladder = ladder_of(clusters, repeats)
    expected = Struct()
    expected.update({Namespace.LADDER: ladder, "semantic_router": {"tier": "small"}})
    reply = Reply("request_body", metadata={Namespace.LADDER: ladder, "semantic_router": {"tier": "small"}})
    for _ in range(2):
        written = write_reply(reply).dynamic_metadata
        assert written == expected
        written.fields[Namespace.LADDER].struct_value.Clear()


def test_trailers_carry_metadata_too():
    """A value that is known only at the end of a stream may have no later message to go with."""
    response = write_reply(Reply("response_trailers", metadata={"n": {"b": "c"}}))
    assert response.WhichOneof("response") == "response_trailers"
    assert response.dynamic_metadata.fields["n"].struct_value.fields["b"].string_value == "c"


def test_no_metadata_is_not_written():
    """Empty metadata would only cost bytes."""
    assert not write_reply(Reply("request_body", headers={"a": "b"})).HasField("dynamic_metadata")


def test_a_reply_with_a_status_answers_the_client():
    """Regardless of its kind. A case for a person uses it: the reply replaces the answer of the upstream."""
    reply = Reply("response_body", headers={"a": "1"}, body=b"{}", metadata={"n": {"b": "c"}}, status=422)
    option = pb.HeaderValueOption(header=pb.HeaderValue(key="a", raw_value=b"1"), append_action=OVERWRITE)
    answer = pb.ImmediateResponse(
        status=pb.HttpStatus(code=422),
        headers=pb.HeaderMutation(set_headers=[option]),
        body=b"{}",
        details="semantic_router",
    )
    expected = pb.ProcessingResponse(immediate_response=answer)
    expected.dynamic_metadata.update({"n": {"b": "c"}})
    assert write_reply(reply) == expected


def test_other_replies_never_change_the_mode_or_answer_the_client():
    """The operator chooses the modes, and the upstream gives the answers."""
    for kind in KINDS:
        response = write_reply(Reply(kind, headers={"a": "b"}, body=b"{}", metadata={"n": {}}))
        assert not response.HasField("mode_override")
        assert response.WhichOneof("response") == kind


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_attempt_number_that_is_not_finite_means_the_first(number):
    """A mistake in another filter must not cost the exchange."""
    assert read_opening(with_attributes(upstream__request_attempt_count=number)).attempt == 1
