"""Removes log-probabilities from an answer, for clients that did not ask for them."""

import re
from typing import Any

import msgspec

from extproc.api.paths import Api
from extproc.api.structure import has_at_most

# A longer frame is passed on unchanged, so that it does not fill the memory.
_MAX_FRAME_BYTES = 8 << 20
# So are JSON texts with more arrays and objects, or more commas. A long answer has a tenth of them.
_MAX_CONTAINERS, _MAX_COMMAS = 1_000_000, 4_000_000
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")


def without_logprobs(api: Api, answer: bytes) -> bytes:
    """Return the JSON of an answer or of one event with every `logprobs` emptied; return other bytes unchanged."""
    if not has_at_most(answer, _MAX_CONTAINERS, _MAX_COMMAS):
        return answer
    try:
        value = msgspec.json.decode(answer)
        return msgspec.json.encode(_emptied(value, [] if api == "responses" else None))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return answer


def _emptied(value: Any, empty: Any) -> Any:
    if isinstance(value, dict):
        return {k: empty if k == "logprobs" else _emptied(v, empty) for k, v in value.items()}
    return [_emptied(v, empty) for v in value] if isinstance(value, list) else value


class StreamStripper:
    """Removes log-probabilities from server-sent events that arrive cut at any byte."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._rest = b""

    def feed(self, chunk: bytes, end: bool) -> bytes:
        """Return all frames that are whole, and at the `end` all bytes that are left."""
        pieces, at = [], 0
        buffered = self._rest + chunk
        # A separator may begin at the end of the last chunk. Bytes before it were searched already.
        for blank in _BLANK_LINE.finditer(buffered, max(len(self._rest) - 3, 0)):
            pieces.append(self._frame(buffered[at : blank.end()]))
            at = blank.end()
        self._rest = buffered[at:]
        if end or len(self._rest) > _MAX_FRAME_BYTES:
            pieces.append(self._rest)
            self._rest = b""
        return b"".join(pieces)

    @property
    def inside_frame(self) -> bool:
        """Whether the last chunk ended in the middle of a frame."""
        return bool(self._rest)

    def _frame(self, frame: bytes) -> bytes:
        if b"logprobs" not in frame:
            return frame
        lines = frame.splitlines(keepends=True)
        return b"".join(self._line(line) for line in lines)

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:"):
            return line
        data = line[5:].strip()
        return line.replace(data, without_logprobs(self._api, data), 1) if data else line
