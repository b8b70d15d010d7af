"""Progress of a long command on stderr: one line that changes on a terminal, and one line a minute elsewhere."""

import sys
import time
from typing import TextIO

_LINE_EVERY_S = 60.0


class Progress:
    """Shows how far a command is. `show` may be called often."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """`stream`: stderr, unless a test gives another one."""
        self._stream = stream
        self._last_s = time.monotonic()

    def show(self, done: int, total: int, began: float, what: str) -> None:
        """Show that `done` of `total` are done. `began` is a time of the monotonic clock, `what` a plural noun."""
        stream, now_s = self._stream or sys.stderr, time.monotonic()
        left_s = (now_s - began) * (total - done) / max(done, 1)
        line = f"{done:,} of {total:,} {what}, {left_s:.0f} s left"
        if stream.isatty():
            print(f"\r{line}   ", end="\r\033[K" if done == total else "", file=stream, flush=True)
        elif now_s - self._last_s >= _LINE_EVERY_S and 0 < done < total:
            self._last_s = now_s
            print(line, file=stream, flush=True)
