"""Reads an upstream's answer into an `Observation`: four APIs, JSON or SSE, cut at any byte.

`AnswerReader` is the only mutable object of an exchange's answer. The result depends on the bytes so far, never on
how they were cut. An ending that was not seen is never reported.
"""

from typing import Any

import msgspec

from extproc.api.content_encoding import Decoder, can_decode, encoding_of
from extproc.api.gathered import GatheredAnswer
from extproc.api.observation import Framing, Observation, ToolCall
from extproc.api.paths import Api
from extproc.api.plain_chunk import read_plain_chunk
from extproc.api.repair import BOM, TooManyRepairs, without_halves
from extproc.api.shapes import READERS, error_code, is_error
from extproc.api.sse import EventStream, MalformedAnswer

# Limit of one frame, or of one JSON answer. It is generous because a `response.completed` event repeats the whole
# answer with its logprobs, about 3 KB a token at top_logprobs 20.
MAX_FRAME_BYTES = 8 << 20
# Limit of the text and tool arguments that are kept of a stream, with a fixed charge per item.
MAX_KEPT_CHARS = 16 << 20
# Limit of the frames of one stream. The longest answers have a few hundred thousand, with one for each token.
MAX_FRAMES = 1 << 19
# Limit of white space before an answer, which some servers send to keep the connection alive.
MAX_BLANK_BYTES = 4096

_JSON_TYPES = ("application/json", "text/json")
# After this many other frames in a row, the rest of an answer is not expected to have plain chunks.
_MISSES = 8
# The APIs whose streams end with [DONE], and what may be left when a stream ends without an open frame.
_DONE_APIS = ("chat", "completions")
_CLEAN_ENDS = (b"", b"[DONE]", b"data: [DONE]", b"data:[DONE]")
_FIELDS = (b"data", b"event", b"id", b"retry", b":")


def _sniff(head: bytes, content_type: str, whole: bool) -> Framing | None:
    """Detect JSON or SSE by the first bytes; None while there are too few. Raises MalformedAnswer for neither."""
    start = head.removeprefix(BOM).lstrip(b" \t\r\n")
    if len(head) - len(start) > MAX_BLANK_BYTES:
        raise MalformedAnswer("blank")
    if start[:1] in (b"{", b"["):
        return "json"
    if len(start) < 6 and not whole:
        return None
    if not start:
        raise MalformedAnswer("empty")
    if start.startswith((b"\x1f\x8b", b"\x28\xb5")):  # gzip, zstd
        raise MalformedAnswer("compressed")
    if start.startswith(b"<"):
        raise MalformedAnswer("html")
    if content_type == "text/event-stream" or start.startswith(_FIELDS):
        return "sse"
    raise MalformedAnswer("not json")


def _decode(data: bytes) -> Any:
    """Decode the JSON of an answer. Half of a surrogate pair counts as one odd character, as it does for clients.

    A server writes halves when a token ends within a character.
    """
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        whole = without_halves(data)
        if whole == data:
            raise
        return msgspec.json.decode(whole)


class AnswerReader:
    """Reads one answer piece by piece; `observation()` may be called at any time."""

    def __init__(
        self,
        api: Api,
        content_type: str | None = None,
        content_encoding: str | None = None,
        *,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        max_kept_chars: int = MAX_KEPT_CHARS,
    ) -> None:
        self.frames = 0
        self._read = READERS[api]
        self._api = api
        self._type = (content_type or "").partition(";")[0].strip().lower()
        self._max = max_frame_bytes
        self._answer = GatheredAnswer(max_kept_chars)
        self._events = EventStream(max_frame_bytes)
        self._misses = 0 if api == "chat" else _MISSES  # frames in a row that were not plain chunks
        self._body = bytearray()  # the whole JSON, or what arrived before the framing was known
        self._framing: Framing | None = None
        self._ended = False
        self._malformed: str | None = None
        self._decoder: Decoder | None = None  # None: the bytes are plain
        if encoding := encoding_of(content_encoding):
            self._decoder = Decoder()
            self._malformed = None if can_decode(encoding) else "compressed"

    @property
    def text_chars(self) -> int:
        """Number of characters of answer text so far. Unlike `observation()`, costs nothing."""
        return self._answer.text_chars

    @property
    def done(self) -> bool:
        """Whether the protocol's own ending was seen. Nothing after it is read."""
        return self._answer.done

    @property
    def beyond_text(self) -> tuple[Any, ...]:
        """What was read apart from text. If it is the same later, only text, reasoning and arguments were added."""
        return *self._answer.beyond_text, self._framing, self._malformed, self._ended

    def feed(self, piece: bytes) -> None:
        """Read the next bytes. Bytes after the ending, or after a malformed part, are ignored."""
        if not self._ended:
            self._guarded(piece)

    def finish(self) -> None:
        """Note that no more bytes will come, also if the answer is not complete."""
        if not self._ended:
            self._guarded(None)
            self._ended = True

    def _guarded(self, piece: bytes | None) -> None:
        if self._malformed is not None or self._answer.done:
            return
        try:
            self._end() if piece is None else self._read_piece(piece)
        except MalformedAnswer as error:
            self._malformed = str(error)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TooManyRepairs):
            self._malformed = "not json"
        if self._malformed is not None:
            self._body.clear()

    def _read_piece(self, piece: bytes) -> None:
        if self._decoder is None:
            self._advance(piece)
            return
        for decoded in self._decoder.feed(piece):
            self._advance(decoded)
            if self._answer.done:
                return

    def _advance(self, piece: bytes) -> None:
        if self._framing is None:
            self._body += piece
            self._open(whole=False)
        elif self._framing == "sse":
            self._take_events(piece)
        else:
            self._body += piece
        if self._framing == "json" and len(self._body) > self._max:
            raise MalformedAnswer("frame too large")

    def _open(self, whole: bool) -> None:
        self._framing = _sniff(bytes(self._body), self._type, whole)
        if self._framing == "sse":
            first_events = bytes(self._body)
            self._body.clear()
            self._take_events(first_events)

    def _take_events(self, piece: bytes) -> None:
        for event, data in self._events.feed(piece):
            if self._answer.done:
                return
            self.frames += 1
            if self.frames > MAX_FRAMES:
                raise MalformedAnswer("answer too large")
            if data.strip() == b"[DONE]":
                self._answer.done = self._api in _DONE_APIS
            elif data and (
                event != "ping" or self._api != "messages"
            ):  # its clients do not read the data of a ping
                self._take(event, data)

    def _end(self) -> None:
        if self._framing is None:
            self._open(whole=True)
        if self._framing == "json":
            self.frames, self._answer.whole = 1, True
            self._take("", bytes(self._body).removeprefix(BOM))
            if not self._answer.finishes and self._answer.error is None:
                raise MalformedAnswer("unknown shape")
            self._answer.done = self._answer.error is None
            self._body.clear()
        elif self._framing == "sse" and self._api in _DONE_APIS and self._events.pending in _CLEAN_ENDS:
            # Some servers close the stream after the finish reason.
            finishes = self._answer.finishes.values()
            self._answer.done = bool(finishes) and None not in finishes

    def _take(self, event: str, data: bytes) -> None:
        if self._misses < _MISSES and not event and not self._answer.whole:
            if read_plain_chunk(self._answer, data):
                self._misses = 0
                return
            self._misses += 1
        frame = _decode(data)
        if not isinstance(frame, dict):
            raise MalformedAnswer("unknown shape")
        if event and "type" not in frame:
            frame["type"] = event  # the messages and responses APIs usually name the event in both places
        if is_error(event, frame):
            self._answer.error = error_code(frame)
        else:
            self._read(self._answer, frame)

    def observation(self) -> Observation:
        """Return what was read so far. Joins all text, so call it only when there is something to decide."""
        answer = self._answer
        all_finished = bool(answer.finishes) and (answer.whole or None not in answer.finishes.values())
        filtered = "content_filter" if "content_filter" in answer.finishes.values() else None
        answer.text = ["".join(answer.text)]
        for _, pieces in answer.tools.values():  # as for the text, so that a later look does not join them again
            pieces[:] = ["".join(pieces)] if pieces else []
        empty = "{}" if self._api == "messages" else ""  # a messages stream sends nothing for a call without input
        return Observation(
            text=answer.text[0],
            refusal="".join(answer.refusal) or filtered,
            finish=answer.finish,
            tool_calls=tuple(
                ToolCall("".join(names), "".join(pieces) or empty)
                for _, (names, pieces) in sorted(answer.tools.items())
            ),
            other_output=answer.other_output,
            logprobs=tuple(answer.logprobs),
            reasoning_chars=answer.reasoning_chars,
            usage=answer.usage,
            model=answer.model,
            n_choices=len(answer.finishes),
            framing=self._framing,
            mislabelled=_contradicts(self._type, self._framing),
            frames=self.frames,
            complete=answer.done and all_finished and answer.error is None and self._malformed is None,
            ended=self._ended,
            error=answer.error,
            malformed=self._malformed,
        )


def _contradicts(content_type: str, framing: Framing | None) -> bool:
    if not content_type or framing is None:
        return False
    if framing == "sse":
        return content_type != "text/event-stream"
    return not (content_type in _JSON_TYPES or content_type.endswith("+json"))
