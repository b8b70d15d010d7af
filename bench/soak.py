"""Ten minutes of mixed traffic, to see whether anything grows: `python -m bench.soak [--seconds 600] [--rate 50]`.

Requests have a fixed rate, regardless of how long answers take. They are JSON and streams, judged and not judged,
at tiers that answer well. Some clients leave early, some bodies are bad, and the YAML is edited every five seconds.
Each answer must have the marker of its request. The output has the resident memory and file descriptors of the
router, and the p99 latency of its clients. They are measured over the second and the last tenth of the run, because
the first tenth warms up. The exit status is 1 if a value has grown beyond its limit, if an answer was wrong, or if
a request that was to be matched was not.
A good rate is 80 % of the rate that `python -m bench.latency` reaches on the same machine.
"""

import argparse
import asyncio
import importlib
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from extproc.contract.words import Reason

# Caches are full after the warm-up. Memory that the allocator keeps beyond that is not a leak.
_MEMORY_BYTES = 32 * 1024 * 1024
_DESCRIPTORS = 8
# The allowed growth of the p99. Other load on a shared machine also changes it.
_SLOWER = 1.5
_RELOAD_S = 5.0
# The shares of clients that leave before their answer ends, and of bodies that the router refuses.
_LEAVE, _BAD = 0.05, 0.05
_BAD_BODIES = (
    b'{"model":"auto","model":"auto","messages":[]}',
    b'{"model":"auto","messages":[' + b"[]," * 100_001 + b"0]}",
    b'{"model":"auto","' + rb"\n" * 2000 + b'":1}',
)


class Reading(msgspec.Struct):
    """The state of the router, and the p99 latency of its clients, over one part of the run."""

    memory_bytes: int
    descriptors: int
    p99_s: float


class Soak:
    """One run on one stack."""

    def __init__(self, driver: Any, bench: Any) -> None:
        self.driver, self.bench = driver, bench
        self.waits: list[tuple[float, float]] = []  # (time at which a request was sent, its duration), in seconds
        self.failed = 0  # no valid answer
        self.mixed = 0  # an answer without the marker of its request
        self.undecided: Counter[str] = Counter()  # reasons of answers whose cohort did not choose the tier
        self.left = self.refused = self.reloads = 0
        self._dice = random.Random(1)

    async def run(self, seconds: float, rate: float) -> tuple[Reading, Reading]:
        """Send `rate` requests per second. Return the readings of the second and of the last tenth of the run."""
        began, running = time.monotonic(), set()
        first: tuple[int, int] | None = None
        reloading = asyncio.create_task(self._reload())
        while (now := time.monotonic() - began) < seconds:
            if first is None and now > seconds / 5:
                first = self._state()
            task = asyncio.create_task(self._ask(now))
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.sleep(max(0.0, (len(self.waits) + len(running)) / rate - (time.monotonic() - began)))
        reloading.cancel()
        await asyncio.gather(*running)
        assert first is not None
        tenth = seconds / 10
        return Reading(*first, self._p99(tenth, 2 * tenth)), Reading(*self._state(), self._p99(9 * tenth, seconds))

    async def _reload(self) -> None:
        """Edit a file of the YAML again and again. Each edit makes a new snapshot."""
        file = self.bench.stack.intents / "plain.yaml"
        usual = file.read_text()
        while True:
            await asyncio.sleep(_RELOAD_S)
            self.reloads += 1
            file.write_text(usual + f"max_output_tokens: {1000 + self.reloads}\n")

    async def _ask(self, sent: float) -> None:
        if self._dice.random() < _BAD:
            await self._ask_badly(sent)
        else:
            await self._ask_well(sent)

    async def _ask_badly(self, sent: float) -> None:
        began = time.monotonic()
        body = self._dice.choice(_BAD_BODIES)
        wire = await self.driver.post(self.bench.stack.port, self.driver.CHAT, body)
        self.waits.append((sent, time.monotonic() - began))
        self.refused += wire.status == 400
        self.failed += wire.status != 400

    async def _ask_well(self, sent: float) -> None:
        driver, bench, began = self.driver, self.bench, time.monotonic()
        request_id, cohort = driver.new_id(), self._dice.choice(["early", "buffer", "record", "plain"])
        script = {
            "id": request_id,
            "words": self._dice.choice((6, 40)),
            "small": self._dice.choice(("fine", "refuses")),
        }
        stream, leaves = self._dice.random() < 0.5, self._dice.random() < _LEAVE
        body = driver.body_of(driver.CHAT, f"{bench.prompts[cohort]} ({request_id})", stream, script)
        wire = await driver.post(
            bench.stack.port, driver.CHAT, body, {"authorization": f"Bearer {request_id}"},
            cancel_after_s=self._dice.random() * 0.05 if leaves else None,
        )  # fmt: skip
        self.waits.append((sent, time.monotonic() - began))
        if wire.fault == "cancelled":
            self.left += 1
        else:
            reading = driver.read(wire, driver.CHAT, stream)
            self.failed += wire.status != 200 or wire.fault is not None or bool(reading.problems)
            if wire.headers.get("x-router-reason") != Reason.MATCHED:
                self.undecided[wire.headers.get("x-router-reason", "no reason")] += 1
            self.mixed += wire.status == 200 and bool(reading.text) and request_id not in reading.text
        bench.upstreams.forget(request_id)

    def _state(self) -> tuple[int, int]:
        process = Path(f"/proc/{self.bench.pid}")
        resident = int((process / "status").read_text().partition("VmRSS:")[2].split()[0]) * 1024
        return resident, len(list((process / "fd").iterdir()))

    def _p99(self, start: float, end: float) -> float:
        return statistics.quantiles([seconds for sent, seconds in self.waits if start <= sent < end], n=100)[98]


def main() -> int:
    """Print the table. Return 1 if a value grew beyond its limit or an answer failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="length of the run (default 600)")
    parser.add_argument("--rate", type=float, default=50, help="requests per second (default 50)")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))
    driver = importlib.import_module("test_faults")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, driver.running_bench(Path(folder)) as bench:
        soak = Soak(driver, bench)
        start, end = asyncio.run(soak.run(args.seconds, args.rate))
    print(f"{len(soak.waits)} requests at {len(soak.waits) / args.seconds:.1f}/s")
    print(f"{soak.failed} failed, {soak.mixed} had the answer of another request")
    print(f"{soak.undecided.total()} were not routed by their cohort: {dict(soak.undecided)}")
    print(f"{soak.left} clients left, {soak.refused} bodies were refused, {soak.reloads} reloads")
    print(f"{'':<20}{'start':>10}{'end':>10}{'limit':>10}")
    rows = (
        (
            "memory, MB",
            start.memory_bytes / 1e6,
            end.memory_bytes / 1e6,
            (start.memory_bytes + _MEMORY_BYTES) / 1e6,
        ),
        ("descriptors", start.descriptors, end.descriptors, start.descriptors + _DESCRIPTORS),
        ("p99, ms", start.p99_s * 1e3, end.p99_s * 1e3, start.p99_s * 1e3 * _SLOWER),
    )
    for name, before, after, limit in rows:
        print(f"{name:<20}{before:>10.1f}{after:>10.1f}{limit:>10.1f}{'' if after <= limit else '  GREW'}")
    wrong = soak.failed or soak.mixed or soak.undecided
    return 1 if wrong or any(after > limit for _, _, after, limit in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
