"""The cost of the ledger: CPU of the router and of Envoy per request, with and without it: `make bench-ledger`.

Two routers, each behind its own Envoy, alternate in rounds of one run. One pair has a ledger. The other has neither
the access log to our server nor the filter that reads token counts. One connection sends the same text, so that no
embedding hides the difference. Answers are whole chat answers. Each round waits until the log has been written, so
that its cost is included.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.client import Connection, body, texts, unexpected
from bench.load import interpreter
from extproc.accounting.report import read_report
from extproc.config.load import load_config
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack

_ROUNDS, _REQUESTS = 8, 400
_WORDS = 48
# Envoy sends its log every second. Then the router writes it.
_SETTLE_S = 1.5


def without_ledger(bootstrap: dict[str, Any]) -> dict[str, Any]:
    """The rendered bootstrap without the parts that the ledger needs."""
    manager = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    usage = "envoy.filters.http.ai_protocol_manager"
    manager["access_log"] = [
        log for log in manager["access_log"] if log["name"] != "envoy.access_loggers.http_grpc"
    ]
    manager["http_filters"] = [f for f in manager["http_filters"] if f["name"] != usage]
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        route.get("typed_per_filter_config", {}).pop(usage, None)
    return bootstrap


def cpu_s(pid: int) -> float:
    """User and system time that a process and its threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def send(connection: Connection, prompt: bytes) -> None:
    """Send one round of requests."""
    for _ in range(_REQUESTS):
        await connection.post(prompt)


async def measure(stacks: dict[str, Stack]) -> tuple[dict[str, dict[str, float]], str]:
    """CPU seconds by stack and process, summed over all rounds, and the answers that were not expected."""
    prompt = body("auto", next(texts(_WORDS, fresh=False)))
    used_s = {name: {"router": 0.0, "envoy": 0.0} for name in stacks}
    connections = {name: await Connection.open(stack.port) for name, stack in stacks.items()}
    for connection in connections.values():
        await send(connection, prompt)
    await asyncio.sleep(_SETTLE_S)
    for _ in range(_ROUNDS):
        for name, stack in stacks.items():
            assert stack.router is not None and stack.envoy is not None
            pids = {"router": stack.router.pid, "envoy": stack.envoy.pid}
            before = {process: cpu_s(pid) for process, pid in pids.items()}
            await send(connections[name], prompt)
            await asyncio.sleep(_SETTLE_S)
            for process, pid in pids.items():
                used_s[name][process] += cpu_s(pid) - before[process]
    return used_s, unexpected(connections.values())


def main() -> int:
    """Print the table. Return 1 if an answer was not expected or an outcome is missing."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    intents = Path("intents")
    tiers = load_config(intents).policy.tiers
    with tempfile.TemporaryDirectory() as folder, SampleUpstreams({t.name: t.model for t in tiers}) as upstreams:
        stacks = {name: Stack(intents, Path(folder) / name, upstreams) for name in ("without", "with")}
        ledger = Path(folder) / "ledger.sqlite"
        try:
            stacks["without"].start_router()
            stacks["without"].start_envoy(without_ledger(stacks["without"].bootstrap()))
            stacks["with"].start_router(options=["--ledger", str(ledger)])
            stacks["with"].start_envoy()
            used_s, wrong = asyncio.run(measure(stacks))
            time.sleep(_SETTLE_S)
            outcomes = read_report(ledger, 3600).total.requests
        finally:
            for stack in stacks.values():
                stack.stop()
    requests = (_ROUNDS + 1) * _REQUESTS
    print(f"{outcomes:,} outcomes in the ledger for {requests:,} requests. Router: {interpreter()}.\n")
    print("CPU per request, us   without   with   added")
    for process in ("router", "envoy"):
        without, with_it = (used_s[name][process] / (_ROUNDS * _REQUESTS) * 1e6 for name in ("without", "with"))
        print(f"{process:<20}{without:>9.0f}{with_it:>7.0f}{with_it - without:>8.0f}")
    if wrong:
        print(wrong)
    return 1 if wrong or outcomes != requests else 0


if __name__ == "__main__":
    sys.exit(main())
