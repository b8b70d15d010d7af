"""Many exchanges at once, with random verdicts, clients that leave, and a server that stalls and is killed.

Every answer is held against what its tier sent for that very request. Short here; `bench/faults.py` is the same
for as long as one likes.
"""

import asyncio
import os
import random
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from faulty_upstream import (
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
    running_faulty,
    text_of,
)  # fmt: skip
from traffic import eventually

from extproc.stack import Stack

_RULES = "tier: small\naccept: [complete, non_empty, no_refusal]\nescalate: {to: large, share: 1}"
COHORTS = {
    "early": _RULES,
    "buffer": f"{_RULES}\nstream: buffer",
    "record": f"{_RULES}\nstream: record",
    "plain": "tier: small",
}
POLICY = "escalations: {per_minute: 1000000, burst: 1000000}\ntimeouts: {attempt_s: 40, request_s: 80}\n"
# By these the first tier answers well, badly, or not at all; cut streams must be seen as such.
_SMALL = (
    *("fine",) * 4, "paced", "trickled", "slow_headers", *("refuses",) * 3, "empty_content", "html_as_asked",
    "error_in_200", "truncated_json", "cut_midway", "ended_midway", "reset_before_headers", "reset_midway",
    "status_500", "status_429", "error_event_midway",
)  # fmt: skip
_LARGE = (*("fine",) * 12, "paced", "status_503", "cut_midway")
_WELL = {"fine", "paced", "trickled", "slow_headers"}
_STALL_S = 2.0


class Counts(msgspec.Struct):
    """What became of all exchanges."""

    calm: Counter[str]  # with the server up
    troubled: Counter[str]  # asked, at least for a moment, while it was not
    wrong: list[str] = []  # wrong, mixed, or cut and looking complete
    unexplained: list[str] = []  # errors though every tier answered well, with the server up
    stalls: int = 0
    kills: int = 0

    def __str__(self) -> str:
        total = sum(self.calm.values()) + sum(self.troubled.values())
        lines = [f"{total} exchanges", f"{'':<58}{'server up':>10}{'in trouble':>12}"]
        for name in sorted(self.calm.keys() | self.troubled.keys()):
            lines.append(f"  {name:<56}{self.calm[name]:>10}{self.troubled[name]:>12}")
        lines.append(f"server stalled for 2 s: {self.stalls}; killed and restarted: {self.kills}")
        lines.append(f"wrong, mixed, or truncated and looking complete: {len(self.wrong)}")
        lines.append(f"errors without a cause: {len(self.unexplained)}")
        return "\n".join([*lines, *self.wrong[:5], *self.unexplained[:5]])


class Load:
    """One run."""

    def __init__(self, stack: Stack, prompts: dict[str, str], seed: int = 7) -> None:
        self.stack, self.prompts = stack, prompts
        self.upstreams: FaultyUpstreams = stack.upstreams  # type: ignore[assignment]
        self.counts = Counts(Counter(), Counter())
        self._random = random.Random(seed)
        self._over = False
        self._troubled_s = time.monotonic()  # until when the server's own trouble excuses an error

    async def run(self, seconds: float, clients: int) -> Counts:
        """Load with its share of trouble: at least `seconds`, and until the server is back after each kill."""
        asking = [asyncio.create_task(self._client()) for _ in range(clients)]
        try:
            began = time.monotonic()
            for _ in range(1000):
                await asyncio.sleep(min(4.0, seconds / 5))
                await asyncio.to_thread(self._stall)
                await asyncio.sleep(min(4.0, seconds / 5))
                await asyncio.to_thread(self._kill)
                await asyncio.sleep(min(30.0, seconds / 5))
                if time.monotonic() - began >= seconds:
                    break
        finally:
            self._over = True
            done, pending = await asyncio.wait(asking, timeout=120)
            for task in pending:
                task.cancel()
        assert not pending
        for task in done:
            task.result()
        return self.counts

    def _stall(self) -> None:
        assert self.stack.router is not None
        self._troubled_s = float("inf")
        os.kill(self.stack.router.pid, signal.SIGSTOP)
        try:
            time.sleep(_STALL_S)
        finally:
            os.kill(self.stack.router.pid, signal.SIGCONT)
        self.counts.stalls += 1
        self._troubled_s = time.monotonic() + 5

    def _kill(self) -> None:
        assert self.stack.router is not None
        self._troubled_s = float("inf")
        self.stack.router.kill()
        self.stack.router.wait(10)
        self.stack.start_router()
        self.counts.kills += 1
        self._troubled_s = time.monotonic() + 5

    async def _client(self) -> None:
        while not self._over:
            await self._one()
            await asyncio.sleep(self._random.random() * 0.2)

    async def _one(self) -> None:
        pick = self._random
        request_id, cohort, stream = new_id(), pick.choice(list(COHORTS)), pick.random() < 0.6
        path = pick.choice((CHAT, CHAT, CHAT, MESSAGES, RESPONSES))
        words = pick.choice((6, 6, 40, 120))
        small, large = pick.choice(_SMALL), pick.choice(_LARGE)
        if small == "trickled":
            words = 6
        script = {"id": request_id, "small": small, "large": large, "words": words}
        body = body_of(path, f"{self.prompts[cohort]} ({request_id})", stream, script)
        leaves = pick.random() < 0.1
        began = time.monotonic()
        wire = await post(
            self.stack.port, path, body, {"authorization": f"Bearer {pick.randrange(50)}"},
            cancel_after_s=pick.random() * 0.3 if leaves else None,
        )  # fmt: skip
        # An error is excused by trouble at any time while it was asked.
        troubled = began < self._troubled_s
        self._count(wire, request_id, cohort, path, stream, words, script, troubled)
        self.upstreams.forget(request_id)

    def _count(
        self, wire: Wire, request_id: str, cohort: str, path: str, stream: bool, words: int, script: dict[str, Any],
        troubled: bool,
    ) -> None:  # fmt: skip
        outcomes = self.counts.troubled if troubled else self.counts.calm
        if wire.fault == "cancelled":
            outcomes["the client left"] += 1
            return
        sent = {
            tier: [bytes(body) for body in self.upstreams.sent.get((request_id, tier), [])]
            for tier in ("small", "large")
        }
        about = f"{script} {'sse' if stream else 'json'} {path}: {wire.status} {wire.fault} {wire.body[-120:]!r}"
        reading = read(wire, path, stream)
        if not reading.problems:
            tier = next((tier for tier, bodies in sent.items() if wire.body in bodies), None)
            if tier is None:
                self.counts.wrong.append(f"no tier sent this: {about}")
            elif wire.headers.get("x-router-tier", tier) != tier:
                self.counts.wrong.append(f"another tier's name on it: {about}")
            elif reading.text == text_of(tier, request_id, words) and script[tier] in _WELL:
                way = "" if wire.headers.get("x-router-reason") == "matched" else ", unrouted"
                climbed = ", climbed" if wire.headers.get("x-router-attempts") == "2" else ""
                outcomes[f"answered by {tier}{way}{climbed}"] += 1
            elif request_id in reading.text or not reading.text:
                judged = tier == "small" and (
                    cohort == "early" or cohort == "buffer" or (cohort == "record" and not stream)
                )
                kept = wire.headers.get("x-cascade-verdict") == "degraded"
                why = (
                    "nothing above could answer" if kept else "the judge was away" if judged else "nobody judges it"
                )
                outcomes[f"a weak answer, as sent: {why}"] += 1
            else:
                self.counts.wrong.append(f"not this request's: {about}")
            return
        if wire.status == 200 and not any(b.startswith(wire.body) for bodies in sent.values() for b in bodies):
            self.counts.wrong.append(f"bytes that nobody sent: {about}")
            return
        how = f"status {wire.status}" if wire.status != 200 else "as its tier sent it"
        outcomes[f"visibly broken, {how}"] += 1
        if wire.fault == "hang" or (not troubled and {script["small"], script["large"]} <= _WELL):
            self.counts.unexplained.append(f"{reading.problems} {about}")


def checked(stack: Stack, prompts: dict[str, str], counts: Counts) -> None:
    """What has to hold after any run."""
    assert counts.wrong == []
    assert counts.unexplained == []
    assert stack.envoy is not None and stack.envoy.poll() is None
    assert urllib.request.urlopen(f"{stack.admin_url}/ready", timeout=10).status == 200

    def climbs() -> bool:
        wire, reading = ask(stack, prompts["early"], {"id": new_id(), "small": "refuses"}, True)
        return not reading.problems and wire.headers.get("x-router-attempts") == "2"

    eventually(climbs, "the cascade works as before", 60)


def run(folder: Path, seconds: float, clients: int) -> Counts:
    """Start everything, load it, check it."""
    with running_faulty(folder, COHORTS, POLICY) as (stack, prompts):
        counts = asyncio.run(Load(stack, prompts).run(seconds, clients))
        print(counts)
        checked(stack, prompts, counts)
    return counts


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, dict[str, str]]]:
    with running_faulty(tmp_path_factory.mktemp("load"), COHORTS, POLICY) as running:
        yield running


def test_no_answer_is_wrong_mixed_or_cut(
    loaded: tuple[Stack, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A hundred exchanges at a time, a stall, a kill and a restart; Envoy lives and the cascade works on."""
    stack, prompts = loaded
    counts = asyncio.run(Load(stack, prompts).run(15, 100))
    with capsys.disabled():
        print(f"\n\nLoad and faults: {counts}\n")
    checked(stack, prompts, counts)
    assert counts.stalls == counts.kills == 1
    assert counts.calm["answered by small"] > 20
    assert counts.calm["answered by large, climbed"] > 20
    assert counts.calm["the client left"] > 5


def test_a_router_that_is_told_to_stop_lets_its_streams_end(loaded: tuple[Stack, dict[str, str]]) -> None:
    """A restart in order cuts no answer: held or let go, judged or recorded."""
    stack, prompts = loaded
    assert stack.router is not None
    upstreams: FaultyUpstreams = stack.upstreams  # type: ignore[assignment]

    async def restart() -> list[tuple[str, Wire]]:
        flights = []
        for cohort in COHORTS:
            request_id = new_id()
            script = {"id": request_id, "small": "gated_midway", "words": 160}
            body = body_of(CHAT, prompts[cohort], True, script)
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
    assert "Traceback" not in stack.log("router.log")
