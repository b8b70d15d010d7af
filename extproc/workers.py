"""Several router processes on one machine: a supervisor starts them, restarts the dead, answers for their health.

A Python process has one core's worth of requests in it, and one HTTP/2 connection of Envoy's goes to one process
whatever the kernel shares out: so every worker has a port of its own, and Envoy balances over them.
"""

import asyncio
import logging
import os
import signal
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

log = logging.getLogger(__name__)

_LOOK_S = 0.5
# A worker that dies at once is not started in a loop that eats the cores of those that live.
_BACKOFF_S = (0.1, 1.0, 5.0, 15.0)
# A worker that has lived this long has started well: the next death is a new story.
_SETTLED_S = 60.0
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
    """One process, and how often it died lately."""

    def __init__(self, command: list[str], address: str) -> None:
        self.address = address
        self.status = 0  # of the last exit
        self._command = command
        self._deaths = 0
        self._process: asyncio.subprocess.Process | None = None

    async def keep_alive(self) -> None:
        """Run it again whenever it ends, until cancelled."""
        while True:
            since = time.monotonic()
            self._process = await asyncio.create_subprocess_exec(*self._command)
            self.status = await self._process.wait()
            if self.status == 2:
                return  # the operator's mistake, which it has named: no start will mend it
            self._deaths = 0 if time.monotonic() - since > _SETTLED_S else self._deaths + 1
            pause = _BACKOFF_S[min(self._deaths, len(_BACKOFF_S) - 1)]
            log.error("worker %s ended with %d: starting it again in %g s", self.address, self.status, pause)
            await asyncio.sleep(pause)

    async def stop(self) -> None:
        """Let it drain, and wait until it has."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    async def serves(self) -> bool:
        """Whether its own health service says so."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            try:
                reply = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=_LOOK_S
                )
            except grpc.RpcError:
                return False
            return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


async def supervise(commands: dict[str, list[str]], health_listen: str) -> int:
    """Run one process per `address -> command` until SIGTERM or SIGINT. Return 0, or 2 when one found a mistake.

    The health service at `health_listen` says SERVING while at least one worker serves: Envoy looks at each by
    itself. Workers drain when we are told to stop.
    """
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    await service.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    try:
        server.add_insecure_port(health_listen)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {health_listen}: is the port taken?") from error
    await server.start()
    workers = [_Worker(command, address) for address, command in commands.items()]
    lives = [asyncio.create_task(worker.keep_alive()) for worker in workers]
    watching = asyncio.create_task(_watch(workers, service))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([stopped, *lives], return_when=asyncio.FIRST_COMPLETED)
    status = max(worker.status for worker in workers) if not stop.is_set() else 0
    watching.cancel()
    for life in lives:
        life.cancel()
    await service.enter_graceful_shutdown()
    await asyncio.gather(*(worker.stop() for worker in workers))
    await server.stop(None)
    stopped.cancel()
    return status


async def _watch(workers: list[_Worker], service: health.aio.HealthServicer) -> None:
    while True:
        serving = await asyncio.gather(*(worker.serves() for worker in workers))
        named = health_pb2.HealthCheckResponse
        await service.set("", named.SERVING if any(serving) else named.NOT_SERVING)
        await asyncio.sleep(_LOOK_S)
