"""What passes between Envoy and an exchange, as plain values: one `Event` in, `Reply` values out."""

from typing import Any, Literal

import msgspec

Kind = Literal[
    "request_headers",
    "request_body",
    "request_trailers",
    "response_headers",
    "response_body",
    "response_trailers",
]
BodyMode = Literal["NONE", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED", "GRPC"]


class Event(msgspec.Struct, frozen=True):
    """One message of Envoy's."""

    kind: Kind
    end: bool = False  # nothing follows in this direction, but trailers may
    body: bytes = b""
    headers: dict[str, str] = {}


class Opening(msgspec.Struct, frozen=True):
    """What the first message of a stream tells about the exchange."""

    headers: dict[str, str]  # of the request, where known: the message's own, or the attributes asked for
    request_body_mode: BodyMode
    response_body_mode: BodyMode
    metadata: dict[str, dict[str, Any]] = {}  # namespace -> values, as forwarded
    attempt: int = 1  # which attempt upstream this is, from 1
    tier: str | None = None  # where that attempt went
    body_before_reply: bool = False  # a STREAMED body comes without waiting for our reply to the headers


class Reply(msgspec.Struct, frozen=True):
    """The answer to one message."""

    kind: Kind
    headers: dict[str, str] | None = None  # to set, with the route chosen again
    body: bytes | None = None  # to put in place of what came
    remove: tuple[str, ...] = ()  # headers to take away
    metadata: dict[str, Any] | None = None  # namespace -> values
    streamed: bool = False  # the body's mode is FULL_DUPLEX_STREAMED
    end: bool = False  # of the streamed body
    status: int | None = None  # answer the client with this and `body` instead, whatever the kind
