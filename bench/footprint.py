"""Memory and CPU of the router and Envoy, for the resource requests in deploy/k8s: `make bench-footprint`.

Four connections send texts of 48 words. Every text is new, so each needs an embedding. Then one intent is
edited, and the router has two snapshots in memory for a time. Memory is the peak resident size of the process. CPU
is its user and system time under load, per 1,000 requests.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from bench.client import Connection, body, texts, unexpected
from bench.load import interpreter
from extproc.config.load import load_config
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack

_CONNECTIONS, _REQUESTS, _WORDS = 4, 240, 48
_EDIT_S = 60.0


def main() -> int:
    """Print the table. Return 1 if an answer was not expected."""
    argparse.ArgumentParser(description=__doc__).parse_args()
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
            assert stack.router is not None
            started_s = _cpu_s(stack.router)
            stack.start_envoy()
            assert stack.router is not None and stack.envoy is not None
            processes = {"router": stack.router, "envoy": stack.envoy}
            idle = {name: _memory_mb(process, "VmRSS") for name, process in processes.items()}
            before = {name: _cpu_s(process) for name, process in processes.items()}
            wrong = asyncio.run(_load(stack.port))
            used_s = {name: _cpu_s(process) - before[name] for name, process in processes.items()}
            loaded = {name: _memory_mb(process, "VmHWM") for name, process in processes.items()}
            _edit(stack)
            print("          idle MB   peak under load   peak with an edit   CPU s per 1,000 requests")
            for name, process in processes.items():
                per_thousand = used_s[name] / (_CONNECTIONS * _REQUESTS) * 1000
                print(
                    f"{name:8} {idle[name]:8.0f} {loaded[name]:17.0f} {_memory_mb(process, 'VmHWM'):19.0f}"
                    f" {per_thousand:26.1f}"
                )
            print(f"\nrouter from start to SERVING: {ready_s:.1f} s, {started_s:.1f} s of CPU. {interpreter()}")
            if wrong:
                print(wrong)
            return 1 if wrong else 0
        finally:
            stack.stop()


async def _load(port: int) -> str:
    """Send all requests. Return the answers that were not expected, as text."""
    prompts = texts(_WORDS, fresh=True)

    async def client() -> Connection:
        connection = await Connection.open(port)
        for _ in range(_REQUESTS):
            await connection.post(body("auto", next(prompts)))
        return connection

    return unexpected(await asyncio.gather(*(client() for _ in range(_CONNECTIONS))))


def _edit(stack: Stack) -> None:
    """Add an utterance to an intent, and wait until the router serves the new snapshot."""
    path = stack.intents / "summary.yaml"
    intent = yaml.safe_load(path.read_text())
    intent["utterances"].append(f"please, {intent['utterances'][0]}")
    path.write_text(yaml.safe_dump(intent))
    deadline = time.monotonic() + _EDIT_S
    while "reloaded" not in stack.log("router.log"):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"the router did not reload within {_EDIT_S:g} s:\n{stack.log('router.log')[-1000:]}"
            )
        time.sleep(0.1)


def _memory_mb(process: subprocess.Popen[bytes], field: str) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) / 1024


def _cpu_s(process: subprocess.Popen[bytes]) -> float:
    """User and system time. Fields are counted after the name of the command, which may contain spaces."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
