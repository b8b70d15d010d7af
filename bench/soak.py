"""Ten minutes of mixed traffic: does anything grow? `python -m bench.soak [--seconds 600] [--rate 50]`.

JSON and streams, judged and not, at tiers that answer well, so many requests a second whatever the answers take.
Prints the router's resident memory and file descriptors and the p99 latency of its clients, over the first and the
last tenth after a warm-up of one tenth. The exit status is 1 if any has grown beyond its bound, or if an answer was
not a 200. For the rate, take 80 % of what `python -m bench.latency` reaches on the machine at hand.
"""

import argparse
import asyncio
import importlib
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

# Caches are full after the warm-up; what an allocator keeps back besides is no leak.
_MEMORY_BYTES = 32 * 1024 * 1024
_DESCRIPTORS = 8
# Of the p99: a shared machine has its own moods.
_SLOWER = 1.5


class Reading(msgspec.Struct):
    """The state of the router, and what its clients waited, over one stretch."""

    memory_bytes: int
    descriptors: int
    p99_s: float


class Soak:
    """One run against one stack."""

    def __init__(self, driver: Any, bench: Any) -> None:
        self.driver, self.bench = driver, bench
        self.waits: list[tuple[float, float]] = []  # when a request was sent, and what it took
        self.refused = 0
        self._dice = random.Random(1)

    async def run(self, seconds: float, rate: float) -> tuple[Reading, Reading]:
        """Ask `rate` times a second; the readings of the second and of the last tenth."""
        began, asking = time.monotonic(), set()
        first: tuple[int, int] | None = None
        while (now := time.monotonic() - began) < seconds:
            if first is None and now > seconds / 5:
                first = self._state()
            task = asyncio.create_task(self._ask(now))
            asking.add(task)
            task.add_done_callback(asking.discard)
            await asyncio.sleep(max(0.0, (len(self.waits) + len(asking)) / rate - (time.monotonic() - began)))
        await asyncio.gather(*asking)
        assert first is not None
        tenth = seconds / 10
        return Reading(*first, self._p99(tenth, 2 * tenth)), Reading(*self._state(), self._p99(9 * tenth, seconds))

    async def _ask(self, sent: float) -> None:
        driver, bench, began = self.driver, self.bench, time.monotonic()
        request_id, cohort = driver.new_id(), self._dice.choice(["early", "buffer", "record", "plain"])
        script = {
            "id": request_id,
            "words": self._dice.choice((6, 40)),
            "small": self._dice.choice(("fine", "refuses")),
        }
        body = driver.body_of(
            driver.CHAT, f"{bench.prompts[cohort]} ({request_id})", self._dice.random() < 0.5, script
        )
        wire = await driver.post(bench.stack.port, driver.CHAT, body, {"authorization": f"Bearer {request_id}"})
        self.waits.append((sent, time.monotonic() - began))
        self.refused += wire.status != 200 or wire.fault is not None
        bench.upstreams.forget(request_id)

    def _state(self) -> tuple[int, int]:
        process = Path(f"/proc/{self.bench.pid}")
        resident = int((process / "status").read_text().partition("VmRSS:")[2].split()[0]) * 1024
        return resident, len(list((process / "fd").iterdir()))

    def _p99(self, start: float, end: float) -> float:
        return statistics.quantiles([took for sent, took in self.waits if start <= sent < end], n=100)[98]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=50, help="requests a second")
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))
    driver = importlib.import_module("test_faults")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, driver.running_bench(Path(folder)) as bench:
        soak = Soak(driver, bench)
        start, end = asyncio.run(soak.run(given.seconds, given.rate))
    print(f"{len(soak.waits)} requests at {len(soak.waits) / given.seconds:.1f}/s, {soak.refused} without a 200")
    print(f"{'':<20}{'start':>10}{'end':>10}{'bound':>10}")
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
    for name, was, now, bound in rows:
        print(f"{name:<20}{was:>10.1f}{now:>10.1f}{bound:>10.1f}{'' if now <= bound else '  GREW'}")
    return 1 if soak.refused or any(now > bound for _, _, now, bound in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
