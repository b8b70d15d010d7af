"""Child processes on loopback: free ports, a start that waits until the process is ready, and an orderly end."""

import contextlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

# Operating systems use higher ports for outgoing connections (from 32768 on Linux). A connection could take one of
# those while a process that had it starts again.
_LISTENING_PORTS = 10_000, 32_768
_START_S = 90.0
_STOP_S = 10.0


class StackError(OSError):
    """A process of the stack failed. The message is one sentence with the cause and the path of a log."""


class PortTaken(StackError):
    """A process did not start because another process uses its port."""


def free_ports(count: int) -> list[int]:
    """Choose loopback ports that are free now. No outgoing connection takes them later."""
    ports: list[int] = []
    with contextlib.ExitStack() as open_sockets:
        while len(ports) < count:
            with contextlib.suppress(OSError):
                port = random.randrange(*_LISTENING_PORTS)
                open_sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def free_port_range(count: int) -> range:
    """Choose consecutive loopback ports that are free now."""
    while True:
        (first,) = free_ports(1)
        ports = range(first, first + count)
        if not taken(ports):
            return ports


def taken(ports: Iterable[int]) -> list[int]:
    """Return the loopback ports that another process uses now."""
    busy = []
    for port in ports:
        with socket.socket() as probe:
            # A connection that was closed a moment ago does not count: servers may bind its port, too.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                busy.append(port)
    return busy


def start(
    name: str,
    command: Sequence[str],
    ports: Iterable[int],
    ready: Callable[[], bool],
    output: Path,
    log: Path | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process and wait until it is ready.

    It listens on `ports`. Its stdout and stderr are appended to `output`. An error names the file `log`, by default
    `output`. Raises PortTaken or StackError, and ends the process first.
    """
    ports, log = list(ports), log or output
    _require_free(name, ports)
    printed_before = output.stat().st_size if output.exists() else 0
    process = spawn(command, output, env)
    deadline = time.monotonic() + _START_S
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if ready() and process.poll() is None:
                return process
            time.sleep(0.05)
    except BaseException:
        end(process)
        raise
    if process.poll() is None:
        end(process)
        raise StackError(f"{name} was not ready within {_START_S:.0f} s. Its log: {log}")
    _require_free(name, ports)
    cause = _last_line(output.read_bytes()[printed_before:]) or f"exit status {process.returncode}"
    raise StackError(f"{name} did not start: {cause}. Its log: {log}")


def spawn(command: Sequence[str], output: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process whose stdout and stderr are appended to `output`. `env` is added to the environment."""
    with output.open("ab") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=os.environ | (env or {}),
            start_new_session=True,  # Ctrl-C must not reach it: its parent ends it, in order
        )  # fmt: skip


def end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, and SIGKILL if the process still runs 10 s later."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _require_free(name: str, ports: Sequence[int]) -> None:
    if busy := taken(ports):
        numbers = " and ".join(map(str, busy))
        raise PortTaken(f"{name} did not start: another process has taken port {numbers}")


def _last_line(printed: bytes) -> str:
    """Return the last line that is not empty, without the program's name and the full stop."""
    lines = printed.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("extproc: ").rstrip(".")
