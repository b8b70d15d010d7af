"""The events that stop a server process."""

import asyncio
import logging
import signal

log = logging.getLogger(__name__)


def stop_event(ready_fd: int | None) -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set, and the end of the supervisor if there is one."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    if ready_fd is not None:
        _stop_without(ready_fd, stop)
    return stop


def _stop_without(supervisor: int, stop: asyncio.Event) -> None:
    """Set `stop` when the read end of the pipe closes: a supervisor that was killed cannot send a signal."""
    loop = asyncio.get_running_loop()

    def gone() -> None:
        loop.remove_reader(supervisor)
        log.error("stopping, because the supervisor process has ended and no longer restarts or stops this worker")
        stop.set()

    loop.add_reader(supervisor, gone)  # there is never anything to read: the error of a closed pipe wakes us
