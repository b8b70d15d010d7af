"""Envoy's external-processing protocol <-> plain values. Every quirk of Envoy's that shows on the wire is here.

Events are what Envoy tells us, one a message; a `Reply` answers one message and is of the same kind. The rules
that Envoy (1.40) holds us to, each of which a test pins:

- a header value goes in `raw_value` alone, with overwrite said explicitly: the default appends;
- the route is chosen again only if `clear_route_cache` comes together with a header mutation;
- `content-length` is never ours to set: Envoy's buffer filter does it;
- a FULL_DUPLEX_STREAMED body is answered with `streamed_response` and nothing else.
"""

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Value

from extproc.contract.names import ATTEMPT_ATTRIBUTE, HEADER_ATTRIBUTE, PATH_ATTRIBUTE, TIER_ATTRIBUTE
from extproc.messages import BodyMode, Event, Opening, Reply
from extproc.pb import ext_proc_pb2 as pb

# Served under Envoy's name: our descriptors live in a package of their own.
SERVICE, METHOD = "envoy.service.ext_proc.v3.ExternalProcessor", "Process"
# The one key under which attributes come, whatever the filter is called.
_ATTRIBUTES = "envoy.filters.http.ext_proc"
_HEADER_BEFORE, _HEADER_AFTER = HEADER_ATTRIBUTE.split("{}")

decode_request = pb.ProcessingRequest.FromString
encode_response = pb.ProcessingResponse.SerializeToString


def read_opening(message: pb.ProcessingRequest) -> Opening:
    """Read the first message of a stream."""
    fields = message.attributes[_ATTRIBUTES].fields if _ATTRIBUTES in message.attributes else {}
    headers = {
        name.removeprefix(_HEADER_BEFORE).removesuffix(_HEADER_AFTER): value.string_value
        for name, value in fields.items()
        if name.startswith(_HEADER_BEFORE)
    }
    if PATH_ATTRIBUTE in fields:  # under the name that the header itself would have
        headers[":path"] = fields[PATH_ATTRIBUTE].string_value
    if message.WhichOneof("request") == "request_headers":
        headers |= _headers(message.request_headers.headers)
    modes = message.protocol_config
    said = message.HasField("protocol_config")  # an Envoy that does not say uses the usual mode
    attempt = fields[ATTEMPT_ATTRIBUTE].number_value if ATTEMPT_ATTRIBUTE in fields else 1
    return Opening(
        headers,
        _mode(modes.request_body_mode) if said else "BUFFERED",
        _mode(modes.response_body_mode) if said else "BUFFERED",
        {
            namespace: {name: _plain(value) for name, value in struct.fields.items()}
            for namespace, struct in message.metadata_context.filter_metadata.items()
        },
        int(attempt) if math.isfinite(attempt) else 1,
        fields[TIER_ATTRIBUTE].string_value if TIER_ATTRIBUTE in fields else None,
        modes.send_body_without_waiting_for_header_response,
    )


def read_event(message: pb.ProcessingRequest) -> Event | None:
    """Read any message; None for a kind that we do not know."""
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
    """Turn a reply into the message that Envoy expects."""
    response = pb.ProcessingResponse()
    if reply.status is not None:
        immediate = response.immediate_response
        immediate.status.code = reply.status
        immediate.body = reply.body or b""
        _set_headers(immediate.headers, reply.headers)
        if reply.metadata is not None:
            response.dynamic_metadata.update(reply.metadata)
        return response
    part = getattr(response, reply.kind)
    part.SetInParent()  # an empty reply still has to say its kind
    if reply.metadata is not None:
        response.dynamic_metadata.update(reply.metadata)
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


def _set_headers(mutation: pb.HeaderMutation, headers: Mapping[str, str] | None) -> None:
    for name, value in (headers or {}).items():
        option = mutation.set_headers.add()
        option.append_action = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        option.header.key = name
        option.header.raw_value = value.encode()


def _plain(value: Value) -> Any:
    """A protobuf Struct's value as Python's."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {name: _plain(member) for name, member in value.struct_value.fields.items()}
    if kind == "list_value":
        return [_plain(member) for member in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


def _headers(headers: pb.HeaderMap) -> dict[str, str]:
    """Names in lower case; repeated ones joined, as HTTP reads them; both value fields are looked at."""
    read: dict[str, str] = {}
    for header in headers.headers:
        value = header.raw_value.decode("utf-8", "replace") or header.value
        name = header.key.lower()
        read[name] = f"{read[name]}, {value}" if name in read else value
    return read


def _mode(number: int) -> BodyMode:
    try:
        name: BodyMode = pb.ProcessingMode.BodySendMode.Name(number)  # type: ignore[assignment]
    except ValueError:
        return "BUFFERED"
    return name
