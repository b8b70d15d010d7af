"""The messages between Envoy and an exchange, as plain values: one `Event` in, `Reply` values out."""

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
    """One message from Envoy."""

    kind: Kind
    end: bool = False  # the last message of this direction, apart from trailers
    body: bytes = b""
    headers: dict[str, str] = {}


class Opening(msgspec.Struct, frozen=True):
    """The facts about an exchange that the first message of its stream contains."""

    headers: dict[str, str]  # of the request, if known: from the message or from requested attributes
    request_body_mode: BodyMode
    response_body_mode: BodyMode
    metadata: dict[str, dict[str, Any]] = {}  # namespace -> values that Envoy forwards
    attempt: int = 1  # number of this attempt at an upstream, from 1
    tier: str | None = None  # the tier of this attempt; None: not known
    body_before_reply: bool = False  # Envoy sends a STREAMED body before it has our reply to the headers
    counts_tokens: bool = False  # Envoy itself counts the tokens of the answer
    reads_endings: bool = False  # Envoy itself reads how the answer ends


class Reply(msgspec.Struct, frozen=True):
    """The answer to one message."""

    kind: Kind
    headers: dict[str, str] | None = None  # headers to set; Envoy then chooses the route again
    body: bytes | None = None  # replaces the body of the message
    remove: tuple[str, ...] = ()  # names of headers to remove
    metadata: dict[str, Any] | None = None  # namespace -> values to set
    streamed: bool = False  # the mode of the body is FULL_DUPLEX_STREAMED
    end: bool = False  # this is the end of the streamed body
    status: int | None = None  # for any kind: answer the client with this status and `body`
