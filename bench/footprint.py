"""What the router and Envoy take, for the resource requests in deploy/k8s: `make bench-footprint`.

Sixteen connections send texts of 48 words that were never seen before, so that each costs an embedding; then one
intent is edited, which is when the router holds two snapshots. Memory is the peak of the process's resident size;
CPU is the process's user and system time over the load, for a thousand requests.
"""

import asyncio
import os
import subprocess
import tempfile
import time
from pathlib import Path

import yaml

from bench.client import Connection, body, texts
from extproc.config.load import load_config
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack

_CONNECTIONS, _REQUESTS, _WORDS = 16, 60, 48
_EDIT_S = 60.0


def main() -> None:
    tiers = load_config(Path("intents")).policy.tiers
    with (
        tempfile.TemporaryDirectory(prefix="extproc-") as folder,
        SampleUpstreams({tier.name: tier.model for tier in tiers}) as upstreams,
    ):
        stack = Stack(Path("intents"), Path(folder), upstreams)
        try:
            began = time.perf_counter()
            stack.start_router()
            ready_s = time.perf_counter() - began
            stack.start_envoy()
            assert stack.router is not None and stack.envoy is not None
            processes = {"router": stack.router, "envoy": stack.envoy}
            idle = {name: _memory_mb(process, "VmRSS") for name, process in processes.items()}
            before = {name: _cpu_s(process) for name, process in processes.items()}
            asyncio.run(_load(stack.port))
            spent = {name: _cpu_s(process) - before[name] for name, process in processes.items()}
            loaded = {name: _memory_mb(process, "VmHWM") for name, process in processes.items()}
            _edit(stack)
            print("          idle MB   peak under load   peak with an edit   CPU s per 1,000 requests")
            for name, process in processes.items():
                per_thousand = spent[name] / (_CONNECTIONS * _REQUESTS) * 1000
                print(
                    f"{name:8} {idle[name]:8.0f} {loaded[name]:17.0f} {_memory_mb(process, 'VmHWM'):19.0f}"
                    f" {per_thousand:26.1f}"
                )
            print(f"\nrouter from start to SERVING: {ready_s:.0f} s")
        finally:
            stack.stop()


async def _load(port: int) -> None:
    prompts = texts(_WORDS, fresh=True)

    async def client() -> None:
        connection = await Connection.open(port)
        for _ in range(_REQUESTS):
            await connection.post(body("auto", next(prompts)))

    await asyncio.gather(*(client() for _ in range(_CONNECTIONS)))


def _edit(stack: Stack) -> None:
    """Say an utterance of an intent once more in other words, and wait until the router serves it."""
    path = stack.intents / "summary.yaml"
    intent = yaml.safe_load(path.read_text())
    intent["utterances"].append(f"please, {intent['utterances'][0]}")
    path.write_text(yaml.safe_dump(intent))
    deadline = time.monotonic() + _EDIT_S
    while "reloaded" not in stack.log("router.log"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the edit was not taken:\n{stack.log('router.log')[-1000:]}")
        time.sleep(0.1)


def _memory_mb(process: subprocess.Popen[bytes], field: str) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) / 1024


def _cpu_s(process: subprocess.Popen[bytes]) -> float:
    """User and system time; the fields are counted from behind the command's name, which may hold spaces."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
