"""Envoy's external-processing protocol <-> plain values. All of Envoy's peculiarities on the wire are handled here.

An `Event` is one message from Envoy. A `Reply` answers one message and has the same kind. Envoy 1.40 has these
rules, and a test pins each of them:

- A header value is written in `raw_value` only, with an explicit overwrite, because the default appends.
- Envoy chooses the route again only if `clear_route_cache` comes together with a header mutation.
- We never set `content-length`. Envoy's buffer filter sets it.
- The reply to a FULL_DUPLEX_STREAMED body is a `streamed_response` and nothing else.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
from google.protobuf.struct_pb2 import Struct, Value

from extproc.contract.names import (
    ANSWERED,
    ATTEMPT_ATTRIBUTE,
    COUNTS_TOKENS,
    HEADER_ATTRIBUTE,
    HOST_ATTRIBUTE,
    PATH_ATTRIBUTE,
    READS_ENDINGS,
    TIER_ATTRIBUTE,
    HeaderName,
    Namespace,
)
from extproc.messages import BodyMode, Event, Opening, Reply
from extproc.pb import ext_proc_pb2 as pb
from extproc.protobuf import decode

# Envoy's name for the service. Our descriptors are in a different protobuf package.
SERVICE, METHOD = "envoy.service.ext_proc.v3.ExternalProcessor", "Process"
# Envoy sends attributes under this key, regardless of the name of the filter.
_ATTRIBUTES = "envoy.filters.http.ext_proc"
_HEADER_BEFORE, _HEADER_AFTER = HEADER_ATTRIBUTE.split("{}")

_pack = msgspec.msgpack.Encoder().encode
encode_response = pb.ProcessingResponse.SerializeToString


def decode_request(message: bytes) -> pb.ProcessingRequest:
    """Decode a message of Envoy. Headers of clients in it may have any bytes."""
    return decode(pb.ProcessingRequest, message)


def read_opening(message: pb.ProcessingRequest, stream: Mapping[str, str] = {}) -> Opening:  # it is only read
    """Read the first message of a stream. `stream` is the metadata of the gRPC stream."""
    fields = message.attributes[_ATTRIBUTES].fields if _ATTRIBUTES in message.attributes else {}
    headers = {
        name.removeprefix(_HEADER_BEFORE).removesuffix(_HEADER_AFTER): fields[name].string_value
        for name in fields  # `items()` of a protobuf map is in Python, and slower
        if name.startswith(_HEADER_BEFORE)
    }
    if PATH_ATTRIBUTE in fields:  # under the name of the header
        headers[":path"] = fields[PATH_ATTRIBUTE].string_value
    if HOST_ATTRIBUTE in fields:
        headers[":authority"] = fields[HOST_ATTRIBUTE].string_value
    if message.WhichOneof("request") == "request_headers":
        headers |= _headers(message.request_headers.headers)
    modes = message.protocol_config
    has_modes = message.HasField("protocol_config")  # an Envoy that sends no modes uses the usual one
    attempt = fields[ATTEMPT_ATTRIBUTE].number_value if ATTEMPT_ATTRIBUTE in fields else 1
    return Opening(
        headers,
        _mode(modes.request_body_mode) if has_modes else "BUFFERED",
        _mode(modes.response_body_mode) if has_modes else "BUFFERED",
        {
            namespace: {name: _python_value(value) for name, value in struct.fields.items()}
            for namespace, struct in message.metadata_context.filter_metadata.items()
        },
        int(attempt) if math.isfinite(attempt) else 1,
        fields[TIER_ATTRIBUTE].string_value if TIER_ATTRIBUTE in fields else None,
        modes.send_body_without_waiting_for_header_response,
        stream.get(HeaderName.COUNTS) == COUNTS_TOKENS,
        stream.get(HeaderName.ENDINGS) == READS_ENDINGS,
    )


def read_event(message: pb.ProcessingRequest) -> Event | None:
    """Read any message. None for an unknown kind, which a newer Envoy may send."""
    kind = message.WhichOneof("request")
    if kind is None:
        return None
    part = getattr(message, kind)
    if kind.endswith("_headers"):
        return Event(kind, part.end_of_stream, headers=_headers(part.headers))
    if kind.endswith("_body"):
        return Event(kind, part.end_of_stream, part.body)
    return Event(kind, True, headers=_headers(part.trailers))


def write_reply(reply: Reply) -> pb.ProcessingResponse:
    """Write a reply as the message that Envoy expects."""
    response = pb.ProcessingResponse()
    if reply.status is not None:
        immediate = response.immediate_response
        immediate.status.code = reply.status
        immediate.body = reply.body or b""
        immediate.details = ANSWERED
        _set_headers(immediate.headers, reply.headers)
        if reply.metadata is not None:
            _set_metadata(response.dynamic_metadata, reply.metadata)
        return response
    part = getattr(response, reply.kind)
    part.SetInParent()  # sets the kind of an empty reply, too
    if reply.metadata is not None:
        _set_metadata(response.dynamic_metadata, reply.metadata)
    if reply.kind.endswith("_trailers"):
        return response
    if reply.streamed:
        streamed = part.response.body_mutation.streamed_response
        streamed.body = reply.body or b""
        streamed.end_of_stream = reply.end
    elif reply.body is not None:
        part.response.body_mutation.body = reply.body
    if reply.remove:
        part.response.header_mutation.remove_headers.extend(reply.remove)
    if reply.headers:
        _set_headers(part.response.header_mutation, reply.headers)
        part.response.clear_route_cache = True
    return response


def _set_metadata(target: Struct, metadata: Mapping[str, Any]) -> None:
    fields = target.fields
    for namespace, values in metadata.items():
        if namespace == Namespace.LADDER:
            fields[namespace].struct_value.CopyFrom(_ladder(_pack(values)))
        else:
            _set_members(fields[namespace].struct_value, values)


@lru_cache(256)
def _ladder(packed: bytes) -> Struct:
    """The Struct of a ladder, as msgpack. A policy has few ladders, and writing one takes 15 us."""
    ladder = Struct()
    _set_members(ladder, msgspec.msgpack.decode(packed))
    return ladder


def _set_members(target: Struct, members: Mapping[str, Any]) -> None:
    """Write plain values. protobuf's own conversion (`Struct.update`) takes almost twice as long."""
    if not members:
        target.SetInParent()  # nothing below sets it
    fields = target.fields
    for name, value in members.items():
        _set_value(fields[name], value)


def _set_value(target: Value, value: Any) -> None:
    kind = type(value)
    if kind is str:
        target.string_value = value
    elif kind is float or kind is int:
        target.number_value = value
    elif kind is bool:
        target.bool_value = value
    elif kind is dict:
        _set_members(target.struct_value, value)
    elif kind is list:
        if not value:
            target.list_value.SetInParent()
        values = target.list_value.values
        for item in value:
            _set_value(values.add(), item)
    else:
        raise TypeError(f"metadata cannot hold a value of the type {kind.__name__}")


def _set_headers(mutation: pb.HeaderMutation, headers: Mapping[str, str] | None) -> None:
    for name, value in (headers or {}).items():
        option = mutation.set_headers.add()
        option.append_action = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        option.header.key = name
        option.header.raw_value = value.encode()


def _python_value(value: Value) -> Any:
    """Return the Python value of a member of a protobuf Struct."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {name: _python_value(member) for name, member in value.struct_value.fields.items()}
    if kind == "list_value":
        return [_python_value(member) for member in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


def _headers(headers: pb.HeaderMap) -> dict[str, str]:
    """Read both value fields. Names become lower case, and repeated headers are joined with a comma, as in HTTP."""
    values: dict[str, str] = {}
    for header in headers.headers:
        value = header.raw_value.decode("utf-8", "replace") or header.value
        name = header.key.lower()
        values[name] = f"{values[name]}, {value}" if name in values else value
    return values


def _mode(number: int) -> BodyMode:
    try:
        name: BodyMode = pb.ProcessingMode.BodySendMode.Name(number)  # type: ignore[assignment]
    except ValueError:
        return "BUFFERED"
    return name
