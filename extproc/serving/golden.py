"""Replays a file of labelled prompts while the router has nothing to do, and reports decisions that flip.

A row flips when its decision is not the one in the file. The rows are routed by the snapshot and the encoder that
serve, after every reload and once an hour. They are counted in no metric of traffic, and no row waits in front of a
client.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from extproc.contract.words import NOT_A_COHORT, Reason
from extproc.encoder.batcher import Batcher
from extproc.encoder.protocols import Vectors
from extproc.routing.router import Router
from extproc.routing.snapshot import Snapshot

log = logging.getLogger(__name__)

_EVERY_S = 3600.0
# How often it looks for a new snapshot, and for an encoder without work.
_LOOK_S, _IDLE_S = 1.0, 0.02
# A client's text that arrives in this time waits for one golden text at most.
_PATIENCE_S = 30.0
_PRINCIPAL = "golden"
# A log line names at most this many flips.
_MOST_NAMED = 10


class GoldenRow(msgspec.Struct, frozen=True):
    """One prompt, and the decision that it should have."""

    line: int  # in the file
    body: bytes
    headers: dict[str, str]
    cohort: str | None  # None: out of scope


class Flip(msgspec.Struct, frozen=True):
    """A row whose decision is not the one in the file."""

    line: int
    expected: str
    found: str  # a cohort, or the word of NOT_A_COHORT for the reason

    def __str__(self) -> str:
        return f"line {self.line}: expected {self.expected}, found {self.found}"


class _IdleEncoder:
    """The encoder of the router, for texts that can wait until no client waits."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    async def embed(self, text: str, deadline_s: float, principal: str = "") -> Vectors:
        del deadline_s, principal
        while self._batcher.load.queue:
            await asyncio.sleep(_IDLE_S)
        return await self._batcher.embed(text, _PATIENCE_S, _PRINCIPAL)


async def replay(snapshot: Snapshot, batcher: Batcher, rows: Sequence[GoldenRow]) -> list[Flip]:
    """Route every row, and return those that flip. The candidate of the snapshot has no share in them."""
    router = Router(msgspec.structs.replace(snapshot, rollout=None), _IdleEncoder(batcher))
    flips = []
    for row in rows:
        decision = (await router.route(row.body, row.headers)).decision
        await asyncio.sleep(_IDLE_S)
        if decision.reason in (Reason.DEADLINE, Reason.ENCODER):
            continue  # no decision about the text
        found = decision.counted_as
        if found != row.cohort and not (row.cohort is None and found in NOT_A_COHORT):
            flips.append(Flip(row.line, row.cohort or Reason.OUT_OF_SCOPE, found))
    return flips


async def follow_golden(
    router: Router, batcher: Batcher, read: Callable[[], Sequence[GoldenRow]], report: Callable[[int, int], None]
) -> None:
    """Until cancelled: replay the rows, and call `report` with the number of flips and of rows."""
    replayed: Snapshot | None = None
    next_at, logged = 0.0, ""
    while True:
        if router.snapshot is not replayed or time.monotonic() >= next_at:
            replayed, next_at = router.snapshot, time.monotonic() + _EVERY_S
            try:
                rows = await asyncio.to_thread(read)
                flips = await replay(replayed, batcher, rows)
            except (OSError, ValueError) as error:
                log.error("the golden rows cannot be read, and the last result stays: %s", error)
            else:
                report(len(flips), len(rows))
                logged = _log(flips, len(rows), logged)
        await asyncio.sleep(_LOOK_S)


def _log(flips: Sequence[Flip], rows: int, logged: str) -> str:
    """Log a result that is new, and return it."""
    more = f"; and {len(flips) - _MOST_NAMED} more" if len(flips) > _MOST_NAMED else ""
    result = "; ".join(map(str, flips[:_MOST_NAMED])) + more
    if result != logged:
        if flips:
            log.warning("golden: %d of %d decisions are not the recorded ones: %s", len(flips), rows, result)
        else:
            log.info("golden: all %d decisions are the recorded ones again", rows)
    return result
