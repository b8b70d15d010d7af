"""Reads server-sent events from pieces that were cut at any byte."""

from collections.abc import Iterator

from extproc.api.repair import BOM

# Limit of the lines of one answer. A long answer has a million. A few compressed kilobytes may have many more.
MAX_LINES = 1 << 21


class MalformedAnswer(Exception):
    """The rest of an answer cannot be read. The message is one word or phrase for the reason, such as "html"."""


class EventStream:
    """Assembles server-sent events by the WHATWG rules, in time linear in the number of bytes."""

    def __init__(self, max_frame_bytes: int) -> None:
        self._max = max_frame_bytes
        self._line = bytearray()  # a line whose end has not arrived
        self._data: list[bytes] = []
        self._size = 0  # bytes of the frame so far, without `_line`
        self._event = ""
        self._after_cr = False
        self._first = True
        self._lines = 0

    def feed(self, piece: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield (event, data) of each frame that `piece` ends. Raises MalformedAnswer if a frame is too large."""
        if self._first and b"\n\n" in piece:  # the first frame may begin with a byte order mark
            end = piece.index(b"\n\n") + 2
            yield from self._feed_lines(piece[:end])
            piece = piece[end:]
        if self._first or self._line or self._data or self._event or self._after_cr or b"\r" in piece:
            yield from self._feed_lines(piece)
            return
        *frames, rest = piece.split(b"\n\n")
        for frame in frames:
            if frame.startswith(b"data: ") and b"\n" not in frame:  # as nearly all are
                if len(frame) >= self._max:  # with the end of its line
                    raise MalformedAnswer("frame too large")
                yield "", frame[6:]
            else:
                yield from self._feed_lines(frame + b"\n\n")
        yield from self._feed_lines(rest)

    def _feed_lines(self, piece: bytes) -> Iterator[tuple[str, bytes]]:
        if not piece:
            return
        skip = self._after_cr and piece.startswith(b"\n")  # CR LF, cut between the two
        self._after_cr = piece.endswith(b"\r")
        for line in piece[skip:].splitlines(keepends=True):  # bytes: CR, LF and CR LF only
            body = line.rstrip(b"\r\n")
            self._line += body
            self._lines += 1
            if self._size + len(self._line) > self._max:
                raise MalformedAnswer("frame too large")
            if self._lines > MAX_LINES:
                raise MalformedAnswer("answer too large")
            if len(body) == len(line):
                return
            frame = self._take(bytes(self._line))
            self._line.clear()
            if frame is not None:
                yield frame

    @property
    def pending(self) -> bytes:
        """The data of a frame that has not ended; b"" at the end of a frame."""
        line = bytes(self._line)
        return b"\n".join([*self._data, b"" if line.startswith(b":") else line]).strip()

    def _take(self, line: bytes) -> tuple[str, bytes] | None:
        if self._first:
            self._first, line = False, line.removeprefix(BOM)
        if not line:
            frame = (self._event, b"\n".join(self._data)) if self._data else None
            self._event, self._data, self._size = "", [], 0
            return frame
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(line) + 1
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        return None  # comments and other fields are not used
