"""Take log-probabilities that only we asked for out of an answer again, whole or streamed."""

import re
from typing import Any

import msgspec

from extproc.api.request import Api

# A frame longer than this goes on as it is: it is no longer ours to hold.
_MAX_FRAME_BYTES = 8 << 20
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")


def without_logprobs(api: Api, answer: bytes) -> bytes:
    """The JSON of an answer, or of one event, with every `logprobs` emptied; what is not JSON stays as it is."""
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
    """The same for server-sent events, whose frames may come in any pieces."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._rest = b""

    def feed(self, chunk: bytes, end: bool) -> bytes:
        """Every whole frame so far; at the end all that is left."""
        pieces, at = [], 0
        held = self._rest + chunk
        # A separator may stand across the seam; what was searched before need not be searched again.
        for blank in _BLANK_LINE.finditer(held, max(len(self._rest) - 3, 0)):
            pieces.append(self._frame(held[at : blank.end()]))
            at = blank.end()
        self._rest = held[at:]
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
