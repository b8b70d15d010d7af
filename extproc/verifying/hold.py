"""The hold on one answer: a state machine that buffers its messages and releases them in order.

`TRANSITIONS` is the whole machine. Envoy's body mode decides how messages are released:

- FULL_DUPLEX_STREAMED: Envoy keeps no bytes, so the replies return every byte.
- STREAMED: Envoy keeps each message until its reply, so each message has exactly one reply.
- Any other mode: Envoy itself buffers the body and sends it as one message.
"""

from enum import StrEnum

import msgspec

from extproc.api.content_encoding import body_without_logprobs, decoded, encoding_of, stripper
from extproc.api.paths import Api
from extproc.api.strip import StreamStripper
from extproc.messages import BodyMode, Event, Kind, Reply

# Limit of the bytes that are buffered of one stream.
MAX_BUFFERED_BYTES = 4 * 1024 * 1024


class State(StrEnum):
    """A state decides whether a message is released, buffered or dropped when it arrives."""

    START = "start"  # released; the headers have not arrived
    HOLDING = "holding"  # buffered
    PASSING = "passing"  # released
    DROPPING = "dropping"  # dropped; the client has another answer


class Step(StrEnum):
    """A step moves a hold to another state."""

    HOLD = "hold"  # the headers arrived, and the answer is held
    PASS = "pass"  # the headers arrived, and the answer is not held
    RELEASE = "release"  # the buffered messages are released
    DROP = "drop"  # the buffered messages are dropped


TRANSITIONS = {
    (State.START, Step.HOLD): State.HOLDING,
    (State.START, Step.PASS): State.PASSING,
    (State.HOLDING, Step.RELEASE): State.PASSING,
    (State.HOLDING, Step.DROP): State.DROPPING,
}


class Hold:
    """Buffers, releases or drops the messages of one answer. A step not in `TRANSITIONS` raises KeyError."""

    def __init__(self, mode: BodyMode, body_before_reply: bool = False, strip: Api | None = None) -> None:
        """`strip` names the API of the answer if log-probabilities are to be removed from it."""
        self.state = State.START
        self._duplex = mode == "FULL_DUPLEX_STREAMED"
        self.streamed = self._duplex or mode == "STREAMED"
        # Without this, Envoy waits for the reply to the headers before it sends the body.
        self._can_hold_stream = self._duplex or body_before_reply
        self._strip = strip
        self._stripper = StreamStripper(strip) if strip is not None else None
        self._encoding = ""  # of the answer. Empty: its bytes are plain
        self._buffered: list[Event] = []
        self._buffered_bytes = 0
        self._unanswered: list[bytes] = []  # in STREAMED: the bodies of replies that wait for the end of a frame

    def begin(self, headers: Event, hold_stream: bool) -> None:
        """Hold the answer that begins with these headers. A stream is held only if `hold_stream` and possible."""
        self._read_encoding(headers)
        hold = not self.streamed or headers.end or (hold_stream and self._can_hold_stream)
        self._move(Step.HOLD if hold else Step.PASS)

    def skip(self, headers: Event) -> None:
        """Do not hold the answer that begins with these headers."""
        self._read_encoding(headers)
        self._move(Step.PASS)

    def _read_encoding(self, headers: Event) -> None:
        self._encoding = encoding_of(headers.headers.get("content-encoding"))
        if self._strip is not None:
            self._stripper = stripper(self._strip, self._encoding)

    def take(self, event: Event) -> list[Reply]:
        """Take the next message, and return the replies that are released by it."""
        if self.state is State.DROPPING:
            return []
        if self.state is not State.HOLDING or not self._is_held(event):
            return self._pass(event)
        if not self.streamed and self._strip is not None:
            stripped = body_without_logprobs(self._strip, event.body, self._encoding)
            event = msgspec.structs.replace(event, body=stripped)
        self._buffered.append(event)
        self._buffered_bytes += len(event.body)
        return []

    def release(self) -> list[Reply]:
        """End the hold, and return the replies to all buffered messages."""
        self._move(Step.RELEASE)
        events, self._buffered = self._buffered, []
        return [reply for event in events for reply in self._replies(event)]

    def drop(self) -> Kind:
        """End the hold without the buffered messages, and return the kind of the first one."""
        self._move(Step.DROP)
        kind = self._buffered[0].kind
        self._buffered.clear()
        return kind

    @property
    def full(self) -> bool:
        """Whether more bytes are buffered than the limit allows."""
        return self._buffered_bytes > MAX_BUFFERED_BYTES

    @property
    def can_let_go(self) -> bool:
        """Whether Envoy can send the rest of the answer without us, unchanged and whole.

        In STREAMED it has kept the messages without a reply. It passes them on only if one of them has bytes.
        """
        return self.streamed and not self._duplex and self._strip is None

    @property
    def has_bytes(self) -> bool:
        """Whether bytes were buffered."""
        return self._buffered_bytes > 0

    def content(self) -> bytes | None:
        """Return the buffered part of the answer as a client would read it, or None if it cannot be decoded."""
        body = decoded(b"".join(event.body for event in self._buffered), self._encoding)
        if body is None or not self.streamed or self._strip is None:
            return body
        return StreamStripper(self._strip).feed(body, True)

    def is_last(self, event: Event) -> bool:
        """Whether the answer ends with this message."""
        return _ends(event) or (event.kind == "response_body" and not self.streamed)

    def _move(self, step: Step) -> None:
        self.state = TRANSITIONS[self.state, step]

    def _is_held(self, event: Event) -> bool:
        """If Envoy buffers the body, it waits for the replies to the headers and the trailers."""
        return self.streamed or event.kind == "response_body" or (event.kind == "response_headers" and event.end)

    def _replies(self, event: Event) -> list[Reply]:
        """Reply to a message that was buffered."""
        if self.streamed or self._strip is None or event.kind != "response_body":
            return self._pass(event)
        # The body is shorter than the length that the upstream declared. Envoy then sends it in chunks.
        return [Reply("response_body", body=event.body, remove=("content-length",))]

    def _pass(self, event: Event) -> list[Reply]:
        if not self.streamed or event.kind == "response_headers":
            return [Reply(event.kind)]
        return self._pass_duplex(event) if self._duplex else self._pass_streamed(event)

    def _pass_duplex(self, event: Event) -> list[Reply]:
        if event.kind == "response_trailers":
            rest = self._stripper.feed(b"", end=True) if self._stripper is not None else b""
            last = [Reply("response_body", body=rest, streamed=True)] if rest else []
            return [*last, Reply("response_trailers")]
        body = event.body if self._stripper is None else self._stripper.feed(event.body, event.end)
        return [Reply("response_body", body=body, streamed=True, end=event.end)]

    def _pass_streamed(self, event: Event) -> list[Reply]:
        """Reply to messages when the frame at their end is complete.

        Envoy sends on the messages without a reply if our process ends. Half a frame from us and half from Envoy
        would not fit together.
        """
        if self._stripper is None:
            return [Reply(event.kind)]
        if event.kind == "response_body":
            self._unanswered.append(b"")
        if self._unanswered:
            self._unanswered[-1] += self._stripper.feed(event.body, _ends(event))
        if self._stripper.inside_frame and not _ends(event):
            return []
        bodies, self._unanswered = self._unanswered, []
        replies = [Reply("response_body", body=body) for body in bodies]
        return [*replies, Reply(event.kind)] if event.kind == "response_trailers" else replies


def _ends(event: Event) -> bool:
    return event.end or event.kind == "response_trailers"
