"""The fault matrix: the clients' outcomes while one of our parts, or its surroundings, fails under steady traffic.

There is one row for each fault. Traffic is JSON and streams, judged and not, in three APIs. The tiers answer well,
badly or not at all. Every answer is compared with the answer that its tier sent to that very request. The runs are
short here. `bench/faults.py` runs the same for any time.
"""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from bench.collector import Collector
from extproc.demo.processes import end, free_ports
from extproc.demo.stack import Stack
from tests.conftest import SUMMARY
from tests.e2e.faulty_upstream import (
    CHAT,
    MESSAGES,
    RESPONSES,
    FaultyUpstreams,
    Wire,
    ask,
    body_of,
    new_id,
    post,
    read,
    text_of,
    write_intents,
)  # fmt: skip
from tests.e2e.processor import BUFFERED, headers_message
from tests.e2e.traffic import eventually

_RULES = "tier: small\naccept: [complete, non_empty, no_refusal]\nescalate: {to: large, share: 1}"
COHORTS = {
    "early": _RULES,
    "certain": _RULES.replace("complete, ", ""),
    "buffer": f"{_RULES}\nstream: buffer",
    "record": f"{_RULES}\nstream: record",
    "person": "tier: small\naccept: [complete, non_empty, no_refusal]\nescalate: {to: human}",
    "plain": "tier: small",
}
# A shared machine meets this deadline, and a slow encoder does not.
DEADLINE_MS = 2000
POLICY = "escalations: {{per_minute: 1000000, burst: 1000000}}\ntimeouts: {{attempt_s: 40, request_s: 80}}\n" \
         "human: {{queue: 'redis://127.0.0.1:{redis}/0'}}\n"  # fmt: skip
# With these the first tier answers well, badly or not at all. A client must notice that a stream was cut.
_SMALL = (
    *("fine",) * 5, "paced", "trickled", "slow_headers", *("refuses",) * 3, "empty_content", "html_as_asked",
    "error_in_200", "truncated_json", "cut_midway", "ended_midway", "reset_before_headers", "reset_midway",
    "status_500", "status_429", "error_event_midway",
)  # fmt: skip
_LARGE = (*("fine",) * 12, "paced", "status_503", "cut_midway")
_WELL = {"fine", "paced", "trickled", "slow_headers"}
_IDLE_STREAMS = 1000
# Between two runs of a fault Envoy must find the server again, and answers must be judged.
_BETWEEN_S = 4
PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"


class Row(msgspec.Struct):
    """The outcomes of the exchanges during one fault."""

    fault: str
    routed: int = 0  # a valid answer from the tier of the decision
    unrouted: int = 0  # a valid answer of the default tier, without a decision
    unjudged: int = 0  # a weak answer as its tier sent it: not judged, or the judge was down
    aside: int = 0  # queued for a person
    error: int = 0  # the upstream's own error, passed on
    left: int = 0  # the client hung up
    broken: int = 0  # an error, although every tier answered well
    wrong: int = 0  # not the bytes for this request, or a cut answer that looks complete
    reasons: Counter[str] = msgspec.field(default_factory=Counter)  # x-router-reason of the answers
    notes: list[str] = []

    @property
    def sent(self) -> int:
        """The number of all exchanges."""
        return sum(getattr(self, name) for name in COLUMNS[1:])


COLUMNS = ("sent", "routed", "unrouted", "unjudged", "aside", "error", "left", "broken", "wrong")


def table(rows: list[Row]) -> str:
    """Return the matrix as text."""
    lines = [f"{'fault':<34}" + "".join(f"{name:>10}" for name in COLUMNS)]
    lines += [f"{row.fault:<34}" + "".join(f"{getattr(row, name):>10}" for name in COLUMNS) for row in rows]
    return "\n".join([*lines, *(f"  {row.fault}: {note}" for row in rows for note in row.notes[:3])])


class Bench:
    """All running processes, and methods that make one of them fail."""

    def __init__(self, folder: Path, upstreams: FaultyUpstreams, collector: Collector) -> None:
        self.folder, self.upstreams, self.collector = folder, upstreams, collector
        (self.redis_port,) = free_ports(1)
        self.redis: subprocess.Popen[bytes] | None = None
        self.leave = 0.05  # the share of clients that hang up
        self.word = folder / "encoder"
        self.word.write_text("")
        self.prompts = write_intents(folder / "written", COHORTS, POLICY.format(redis=self.redis_port), DEADLINE_MS)
        self.stack = Stack(folder / "written", folder, upstreams)  # type: ignore[arg-type]
        self.stack.program = [sys.executable, str(Path(__file__).parent / "faulty_router.py")]

    def start_router(self) -> None:
        self.stack.start_router({
            "FAULTY_ENCODER": str(self.word),
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self.collector.address}",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        })  # fmt: skip

    def start_redis(self) -> None:
        binary = shutil.which("redis-server")
        if binary is not None:  # without a Redis the queue is down in every row
            command = [
                binary,
                "--port",
                str(self.redis_port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ]
            with (self.folder / "redis.log").open("ab") as out:
                self.redis = subprocess.Popen(command, stdout=out, stderr=out, cwd=self.folder)

    @property
    def pid(self) -> int:
        assert self.stack.router is not None
        return self.stack.router.pid

    def serves(self) -> bool:
        """Return whether a request is routed and a weak answer is escalated."""
        wire, reading = ask(self.stack, self.prompts["early"], {"id": new_id(), "small": "refuses"}, True)
        return not reading.problems and wire.headers.get("x-router-attempts") == "2"

    # --- faults: each lasts as long as its block, and is repaired at the end ----------------------------------

    @asynccontextmanager
    async def nothing(self) -> AsyncIterator[None]:
        yield

    def killed(self) -> AbstractAsyncContextManager[None]:
        return _over_and_over(self._kill)

    async def _kill(self, over: asyncio.Event) -> None:
        assert self.stack.router is not None
        self.stack.router.kill()
        await _whichever_is_sooner(over, 2)
        await asyncio.to_thread(self.stack.router.wait, 10)
        await asyncio.to_thread(self.start_router)

    @asynccontextmanager
    async def stopped(self) -> AsyncIterator[None]:
        os.kill(self.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(2)
        finally:
            os.kill(self.pid, signal.SIGCONT)
        yield

    def restarted(self) -> AbstractAsyncContextManager[None]:
        return _over_and_over(self._restart)

    async def _restart(self, _: asyncio.Event) -> None:
        assert self.stack.router is not None
        self.stack.router.terminate()
        assert await asyncio.to_thread(self.stack.router.wait, 100) == 0
        await asyncio.to_thread(self.start_router)

    @asynccontextmanager
    async def reloading(self) -> AsyncIterator[None]:
        """Write good and bad files alternately, each for long enough to be noticed."""
        file = self.stack.intents / "plain.yaml"
        good = file.read_text()
        for version in (f"{good}max_output_tokens: 99\n", "intent: [", good, f"{good}escalade: {{}}\n"):
            file.write_text(version)
            await asyncio.sleep(1.2)
        yield
        file.write_text(good)

    @asynccontextmanager
    async def encoder(self, word: str) -> AsyncIterator[None]:
        self.word.write_text(word)
        yield
        self.word.write_text("")

    @asynccontextmanager
    async def collector_down(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self.collector.__exit__)
        yield

    @asynccontextmanager
    async def redis_down(self) -> AsyncIterator[None]:
        if self.redis is not None:
            await asyncio.to_thread(end, self.redis)
        yield

    @asynccontextmanager
    async def idle_streams(self) -> AsyncIterator[None]:
        """Open a thousand streams to the server that send headers and then nothing."""
        message = headers_message({":path": CHAT, ":method": "POST"}, body_mode=BUFFERED)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.stack.router_port}") as channel:
            calls: list[Any] = [channel.stream_stream(PROCESS)() for _ in range(_IDLE_STREAMS)]
            await asyncio.gather(*(call.write(message.SerializeToString()) for call in calls))
            await asyncio.gather(*(call.read() for call in calls))  # each is open and has its first reply
            yield
            assert not any(call.done() for call in calls)
            for call in calls:
                call.cancel()

    @asynccontextmanager
    async def leaving(self) -> AsyncIterator[None]:
        self.leave = 0.7
        yield
        self.leave = 0.05


@asynccontextmanager
async def _over_and_over(act: Callable[[asyncio.Event], Awaitable[None]]) -> AsyncIterator[None]:
    """Run this once, and again until the block ends. It learns when that is."""
    over = asyncio.Event()

    async def acting() -> None:
        while True:
            await act(over)
            await _whichever_is_sooner(over, _BETWEEN_S)
            if over.is_set():
                return

    task = asyncio.create_task(acting())
    yield
    over.set()
    await task


async def _whichever_is_sooner(over: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), seconds)


class Traffic:
    """Clients that send requests while one row is filled."""

    def __init__(self, bench: Bench, fault: str, seed: int) -> None:
        self.bench, self.row = bench, Row(fault)
        self._random = random.Random(seed)
        self._over = False

    async def during(self, fault: AbstractAsyncContextManager[None], seconds: float, clients: int) -> Row:
        """Send requests before, during and after the fault, which lasts `seconds` longer than it needs."""
        asking = [asyncio.create_task(self._client()) for _ in range(clients)]
        try:
            await asyncio.sleep(seconds / 4)
            async with fault:
                await asyncio.sleep(seconds / 2)
            await asyncio.sleep(seconds / 4)
        finally:
            self._over = True
            done, pending = await asyncio.wait(asking, timeout=120)
            for task in pending:
                task.cancel()
        assert not pending
        for task in done:
            task.result()
        return self.row

    async def _client(self) -> None:
        while not self._over:
            await self._one()
            await asyncio.sleep(self._random.random() * 0.2)

    async def _one(self) -> None:
        pick, bench = self._random, self.bench
        request_id, cohort, stream = new_id(), pick.choice(list(COHORTS)), pick.random() < 0.6
        path = pick.choice((CHAT, CHAT, CHAT, MESSAGES, RESPONSES))
        small, large = pick.choice(_SMALL), pick.choice(_LARGE)
        words = 6 if small == "trickled" else pick.choice((6, 6, 40, 120))
        script = {"id": request_id, "small": small, "large": large, "words": words}
        body = body_of(path, f"{bench.prompts[cohort]} ({request_id})", stream, script)
        leaves = pick.random() < bench.leave
        wire = await post(
            bench.stack.port, path, body, {"authorization": f"Bearer {pick.randrange(50)}"},
            cancel_after_s=pick.random() * 0.3 if leaves else None,
        )  # fmt: skip
        column = self._column(wire, request_id, path, stream, script)
        setattr(self.row, column, getattr(self.row, column) + 1)
        self.row.reasons[wire.headers.get("x-router-reason", "")] += 1
        if column in ("broken", "wrong"):
            self.row.notes.append(
                f"{column}: {script} {cohort} {'sse' if stream else 'json'} {path}: {wire.status} {wire.fault} "
                f"{wire.body[-120:]!r} {wire.headers}"
            )
        bench.upstreams.forget(request_id)

    def _column(self, wire: Wire, request_id: str, path: str, stream: bool, script: dict[str, Any]) -> str:
        """Return the column of an answer, from the bytes that each tier sent for it."""
        if wire.fault == "cancelled":
            return "left"
        sent = {
            tier: [bytes(body) for body in self.bench.upstreams.sent.get((request_id, tier), [])]
            for tier in ("small", "large", "frontier")
        }
        reading = read(wire, path, stream)
        if not reading.problems:
            tier = next((tier for tier, bodies in sent.items() if wire.body in bodies), None)
            if tier is None or wire.headers.get("x-router-tier", tier) != tier:
                return "wrong"
            if reading.text == text_of(tier, request_id, script["words"]) and script.get(tier, "fine") in _WELL:
                return "routed" if wire.headers.get("x-router-reason") == "matched" else "unrouted"
            return "unjudged" if request_id in reading.text or not reading.text else "wrong"
        if wire.headers.get("x-cascade-verdict") == "human" and wire.status == 422 and b"human_review" in wire.body:
            return "aside"
        if wire.status == 200 and not any(b.startswith(wire.body) for bodies in sent.values() for b in bodies):
            return "wrong"  # bytes that no tier sent
        return "broken" if wire.fault == "hang" or {script["small"], script["large"]} <= _WELL else "error"


# Fault -> a condition that shows that it happened, so that no row is empty.
FAULTS: dict[str, tuple[Callable[[Bench], AbstractAsyncContextManager[None]], Callable[[Bench, Row], bool]]] = {
    "none": (Bench.nothing, lambda _, row: row.routed > 0 and row.aside > 0),
    "server killed": (Bench.killed, lambda _, row: row.reasons["fail_open"] > 0),
    "server stopped for 2 s": (Bench.stopped, lambda _, row: row.routed > 0),
    "server restarted by SIGTERM": (Bench.restarted, lambda _, row: row.reasons["fail_open"] > 0),
    "good and bad configurations": (Bench.reloading, lambda b, _: b.stack.log("router.log").count("refused") >= 1),
    "encoder raises": (lambda b: b.encoder("raise"), lambda _, row: row.reasons["encoder_error"] > 0),
    "encoder past its deadline": (lambda b: b.encoder("slow"), lambda _, row: row.reasons["deadline"] > 0),
    "1,000 idle streams": (Bench.idle_streams, lambda _, row: row.routed > 0),
    "clients leave": (Bench.leaving, lambda _, row: row.left > 0),
    "review queue down": (Bench.redis_down, lambda b, row: "could not be queued" in b.stack.log("router.log")),
    "OTLP collector down": (Bench.collector_down, lambda _, row: row.routed > 0),
}


def fill(
    folder: Path, seconds: float, clients: int, show: Callable[[Row], None] = lambda _: None,
    faults: Sequence[str] = tuple(FAULTS), start_envoy: Callable[[Stack], None] | None = None,
) -> list[Row]:  # fmt: skip
    """Run every fault for `seconds`, one after the other on one stack, and check the conditions."""
    rows = []
    with running_bench(folder, start_envoy) as bench:
        for seed, name in enumerate(faults):
            fault, seen = FAULTS[name]
            row = asyncio.run(Traffic(bench, name, seed).during(fault(bench), seconds, clients))
            show(row)
            rows.append(row)
            assert seen(bench, row), f"{name}: the fault was not felt: {row}"
            eventually(bench.serves, f"routing and the cascade are back after: {name}", 60)
        assert bench.stack.envoy is not None and bench.stack.envoy.poll() is None
        assert urllib.request.urlopen(f"{bench.stack.admin_url}/ready", timeout=10).status == 200
    return rows


def lost(rows: list[Row]) -> dict[str, list[str]]:
    """Return the outcomes that no client should see, by fault."""
    return {r.fault: r.notes for r in rows if r.wrong or r.broken}


@contextlib.contextmanager
def running_bench(folder: Path, start_envoy: Callable[[Stack], None] | None = None) -> Iterator[Bench]:
    """Start scripted upstreams, a collector, a review queue, router and Envoy, and stop all at the end.

    `start_envoy` starts another Envoy than that of `extproc envoy`.
    """
    with FaultyUpstreams() as upstreams, Collector() as collector:
        bench = Bench(folder, upstreams, collector)
        try:
            bench.start_redis()
            bench.start_router()
            if start_envoy is not None:
                start_envoy(bench.stack)
            else:
                bench.stack.start_envoy(otlp=collector.address)
            yield bench
        finally:
            bench.stack.stop()
            if bench.redis is not None:
                end(bench.redis)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return fill(tmp_path_factory.mktemp("faults"), 4, 20)


def test_no_fault_costs_a_client_its_answer(
    rows: list[Row], record_property: Callable[[str, object], None]
) -> None:
    """Each client gets a valid answer or the upstream's error. None is lost, mixed up or silently truncated."""
    record_property(SUMMARY, f"Faults under traffic:\n{table(rows)}")
    assert lost(rows) == {}


def test_a_router_that_is_told_to_stop_lets_its_streams_end(tmp_path: Path) -> None:
    """An orderly restart cuts no answer: buffered or released, judged or recorded."""
    with running_bench(tmp_path) as bench:
        stack, upstreams = bench.stack, bench.upstreams
        assert stack.router is not None

        async def restart() -> list[tuple[str, Wire]]:
            flights = []
            for cohort in COHORTS:
                request_id = new_id()
                script = {"id": request_id, "small": "gated_midway", "words": 160}
                body = body_of(CHAT, bench.prompts[cohort], True, script)
                flights.append((request_id, asyncio.create_task(post(stack.port, CHAT, body))))
            for _ in range(1200):
                if all(upstreams.sent.get((request_id, "small"), [b""])[0] for request_id, _ in flights):
                    break
                await asyncio.sleep(0.05)
            assert stack.router is not None
            stack.router.terminate()
            await asyncio.sleep(2)
            for request_id, _ in flights:
                upstreams.release(request_id)
            return [(request_id, await task) for request_id, task in flights]

        for request_id, wire in asyncio.run(restart()):
            reading = read(wire, CHAT, True)
            assert (reading.problems, reading.text) == ([], text_of("small", request_id, 160))
            assert wire.body == bytes(upstreams.sent[request_id, "small"][0])
        assert stack.router.wait(60) == 0
        assert "an exchange failed" not in stack.log("router.log")
