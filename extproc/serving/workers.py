"""Several router processes on one machine: a supervisor starts them, restarts the dead, answers for their health.

A Python process has one core's worth of requests in it, and one HTTP/2 connection of Envoy's goes to one process
whatever the kernel shares out: so every worker has a port of its own, and Envoy balances over them.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.serving.listening import bind

log = logging.getLogger(__name__)

# A worker that dies at once is not started in a loop that eats the cores of those that live.
_BACKOFF_S = (0.1, 1.0, 5.0, 15.0)
# A worker that has lived this long has started well: the next death is a new story.
_SETTLED_S = 60.0
_SCRAPED_PORT = "OTEL_EXPORTER_PROMETHEUS_PORT"
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """The cores that this process may use: a container's share where it has one, and at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or "max": no share set
        return count


def worker_addresses(listen: str, workers: int) -> list[str]:
    """Where each worker listens: consecutive ports from that of `listen`, or sockets with a number behind."""
    if listen.startswith("unix:"):
        return [listen, *(f"{listen}.{i}" for i in range(1, workers))]
    host, _, port = listen.rpartition(":")
    return [f"{host}:{int(port) + i}" for i in range(workers)]


def health_address(listen: str) -> str:
    """Where the health of all workers is told, unless another place is given: the port before theirs."""
    if listen.startswith("unix:"):
        return f"{listen}.health"
    host, _, port = listen.rpartition(":")
    return f"{host}:{int(port) - 1}"


class _Worker:
    """One process, whether it serves, and how often it died lately."""

    def __init__(self, place: int, command: list[str], address: str, changed: Callable[[], None]) -> None:
        self.serves = False
        self.status = 0  # of the last exit
        self._command, self._address, self._changed = command, address, changed
        # Each is scraped by itself, on consecutive ports, too.
        scraped = int(os.environ.get(_SCRAPED_PORT, "9464")) + place
        self._env = os.environ | {_SCRAPED_PORT: str(scraped)}
        self._deaths = 0
        self._stopping = False
        self._process: asyncio.subprocess.Process | None = None

    async def keep_alive(self) -> None:
        """Run it again whenever it ends, until cancelled."""
        while True:
            since = time.monotonic()
            await self._live()
            if self._stopping:
                return
            if self.status == 2:
                return  # the operator's mistake, which it has named: no start will mend it
            self._deaths = 0 if time.monotonic() - since > _SETTLED_S else self._deaths + 1
            pause = _BACKOFF_S[min(self._deaths, len(_BACKOFF_S) - 1)]
            log.error("worker %s ended with %d: starting it again in %g s", self._address, self.status, pause)
            await asyncio.sleep(pause)

    async def _live(self) -> None:
        """Start it, hear when it serves, and wait for its end."""
        loop = asyncio.get_running_loop()
        read, write = os.pipe()
        try:
            command = [*self._command, str(write)]
            self._process = await asyncio.create_subprocess_exec(*command, pass_fds=(write,), env=self._env)
            loop.add_reader(read, self._tell, read)
            self.status = await self._process.wait()
        finally:
            loop.remove_reader(read)
            os.close(read)
            os.close(write)
            self.serves = False
            self._changed()

    def _tell(self, read: int) -> None:
        os.read(read, 1)
        self.serves = True
        self._changed()

    async def stop(self) -> None:
        """Let it drain, and wait until it has; its pipe stays open so long, or it would think that we are gone."""
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()


async def supervise(commands: dict[str, list[str]], health_listen: str) -> int:
    """Run one process per `address -> command` until SIGTERM or SIGINT. Return 0, or 2 when one found a mistake.

    Every command gets one more argument: the file descriptor where the process writes a byte when it serves.

    The health service at `health_listen` says SERVING while at least one worker serves: Envoy looks at each by
    itself. Workers drain when we are told to stop.
    """
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    bind(server, health_listen, None)
    await server.start()
    changed = asyncio.Event()
    changed.set()
    workers = [_Worker(i, command, address, changed.set) for i, (address, command) in enumerate(commands.items())]
    lives = [asyncio.create_task(worker.keep_alive()) for worker in workers]
    telling = asyncio.create_task(_tell_health(workers, service, changed))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([stopped, *lives], return_when=asyncio.FIRST_COMPLETED)
    status = 0 if stop.is_set() else max(worker.status for worker in workers)
    telling.cancel()
    await service.enter_graceful_shutdown()
    await asyncio.gather(*(worker.stop() for worker in workers))
    for task in (stopped, *lives):
        task.cancel()
    await asyncio.gather(telling, stopped, *lives, return_exceptions=True)
    await server.stop(None)
    return status


async def _tell_health(workers: list[_Worker], service: health.aio.HealthServicer, changed: asyncio.Event) -> None:
    status = health_pb2.HealthCheckResponse
    while True:
        await changed.wait()
        changed.clear()
        await service.set("", status.SERVING if any(w.serves for w in workers) else status.NOT_SERVING)
