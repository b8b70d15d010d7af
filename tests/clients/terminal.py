"""A terminal for agents that draw a screen. The tests only look at the requests."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# Questions of a program to its terminal, and the answers of a plain one: where the cursor is, and which kind it is.
_ANSWERS = {b"\x1b[6n": b"\x1b[1;1R", b"\x1b[c": b"\x1b[?62;c"}
_ROWS, _COLUMNS = 50, 160


@contextlib.contextmanager
def in_terminal(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> Iterator[None]:
    """Run a program in a terminal during the block."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    process = subprocess.Popen(
        command, cwd=folder, env={**env, "TERM": "xterm-256color"}, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    reader = threading.Thread(target=_read, args=(ours,), daemon=True)
    reader.start()
    try:
        yield
    finally:
        process.kill()
        process.wait()
        reader.join(10)
        os.close(ours)


def _read(terminal: int) -> None:
    """Read what the program draws, until it ends, and answer its questions."""
    with contextlib.suppress(OSError):
        while drawn := os.read(terminal, 65536):
            for question, answer in _ANSWERS.items():
                if question in drawn:
                    os.write(terminal, answer)
