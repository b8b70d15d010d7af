"""Several router processes on one machine: a supervisor starts them, restarts them and reports their health.

A Python process uses one core. The kernel cannot spread the load, because one HTTP/2 connection from Envoy goes to
one process. So every worker has its own port, and Envoy balances over the ports.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.serving.listening import bind, check_free

log = logging.getLogger(__name__)

# A worker that always ends immediately must not take CPU time from the others by constant restarts.
_BACKOFF_S = (0.1, 1.0, 5.0, 15.0)
# After this long the start has succeeded. The next failure starts with the shortest pause again.
_SETTLED_S = 60.0
_SCRAPED_PORT = "OTEL_EXPORTER_PROMETHEUS_PORT"
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """Return how many cores this process may use: at most the CPU limit of its container, and at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or "max", which means unlimited
        return count


def worker_addresses(listen: str, workers: int) -> list[str]:
    """Return an address for each worker: consecutive ports from the port of `listen`, or numbered sockets."""
    if listen.startswith("unix:"):
        return [listen, *(f"{listen}.{i}" for i in range(1, workers))]
    host, _, port = listen.rpartition(":")
    return [f"{host}:{int(port) + i}" for i in range(workers)]


def health_address(listen: str) -> str:
    """Return the default address of the health service for all workers: the port before their ports."""
    if listen.startswith("unix:"):
        return f"{listen}.health"
    host, _, port = listen.rpartition(":")
    return f"{host}:{int(port) - 1}"


def check_ports(addresses: Sequence[str], health: str) -> None:
    """Raise OSError, with the reason and a remedy, if a worker or the health service could not listen now.

    A worker would find it out later, while others load their encoder.
    """
    try:
        for address in (health, *addresses):
            check_free(address)
    except OSError as error:
        what = f"--workers {len(addresses)} needs {addresses[0]} to {addresses[-1]}, and {health} for --health"
        raise OSError(f"{error}. {what}") from error


class _Worker:
    """One process, whether it serves, and how often it ended recently."""

    def __init__(self, place: int, command: list[str], address: str, changed: Callable[[], None]) -> None:
        self.serves = False
        self.status = 0  # of the last exit
        self._command, self._address, self._changed = command, address, changed
        # Prometheus scrapes each worker on its own port. These ports are consecutive, too.
        scraped = int(os.environ.get(_SCRAPED_PORT, "9464")) + place
        self._env = os.environ | {_SCRAPED_PORT: str(scraped)}
        self._failures = 0
        self._stopping = False
        self._process: asyncio.subprocess.Process | None = None

    async def keep_alive(self) -> None:
        """Start the process again each time it ends, until cancelled."""
        while True:
            since = time.monotonic()
            await self._run()
            if self._stopping:
                return
            if self.status == 2:
                return  # a mistake of the operator, which the process has logged; a restart cannot correct it
            self._failures = 0 if time.monotonic() - since > _SETTLED_S else self._failures + 1
            pause = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
            log.error("worker %s exited with status %d: restarting it in %g s", self._address, self.status, pause)
            await asyncio.sleep(pause)

    async def _run(self) -> None:
        """Start the process, note when it serves, and wait for its end."""
        loop = asyncio.get_running_loop()
        read, write = os.pipe()
        try:
            command = [*self._command, str(write)]
            self._process = await asyncio.create_subprocess_exec(*command, pass_fds=(write,), env=self._env)
            loop.add_reader(read, self._serving, read)
            self.status = await self._process.wait()
        finally:
            loop.remove_reader(read)
            os.close(read)
            os.close(write)
            self.serves = False
            self._changed()

    def _serving(self, read: int) -> None:
        os.read(read, 1)
        self.serves = True
        self._changed()

    async def stop(self) -> None:
        """Let the process drain, and wait for its end. The pipe stays open until then: we still run.

        A process that does not serve yet has nothing to drain, and would first load its encoder.
        """
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            if self.serves:
                self._process.terminate()
            else:
                self._process.kill()
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
    runs = [asyncio.create_task(worker.keep_alive()) for worker in workers]
    reporting = asyncio.create_task(_report_health(workers, service, changed))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([stopped, *runs], return_when=asyncio.FIRST_COMPLETED)
    status = 0 if stop.is_set() else max(worker.status for worker in workers)
    reporting.cancel()
    await service.enter_graceful_shutdown()
    await asyncio.gather(*(worker.stop() for worker in workers))
    for task in (stopped, *runs):
        task.cancel()
    await asyncio.gather(reporting, stopped, *runs, return_exceptions=True)
    await server.stop(None)
    return status


async def _report_health(
    workers: list[_Worker], service: health.aio.HealthServicer, changed: asyncio.Event
) -> None:
    status = health_pb2.HealthCheckResponse
    while True:
        await changed.wait()
        changed.clear()
        await service.set("", status.SERVING if any(w.serves for w in workers) else status.NOT_SERVING)
