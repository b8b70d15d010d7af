"""Compares a candidate with the policy that serves, by the rows of the ledger since the candidate appeared.

A conversation is a trial, because its requests are alike. Its first request counts: in all requests, and in each
cohort. It is a success if the first attempt was served and no rule rejected the answer. An escalation, a failed
attempt, an error, a case for a person and a client that leaves are failures.

The rows are read in the order in which they were written. The first test that decides is the verdict, so the rows
give the same verdict each time they are read.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from extproc.accounting.connection import Connection
from extproc.accounting.outcome import Ending
from extproc.accounting.queries import OWN_SIGNAL
from extproc.accounting.sequential import (
    Bounds,
    Counts,
    RolloutVerdict,
    bounds_of,
    group_errors,
    is_tested_at,
    more_needed,
    rulings,
)
from extproc.accounting.store import connect
from extproc.contract.names import CANDIDATE_PREFIX, Key
from extproc.contract.words import Reason, Signal

ALL = "all"
# Requests about which no intent decides are the same in both arms.
_NOT_DECIDED = (Reason.PINNED, Reason.PASSTHROUGH, Reason.BAD_REQUEST)
# Postgres has an index of the rows of candidates, and the pattern makes it usable.
_FIRST = (
    f"SELECT min(id) AS first FROM outcomes WHERE revision = ? AND id > ? AND revision LIKE '{CANDIDATE_PREFIX}%'"
)
_NOT_THESE = ", ".join(f"'{reason}'" for reason in _NOT_DECIDED)
# A hit of the cache is accepted without an attempt. It says nothing about its arm, so it does not count.
_NO_HIT = f"NOT (o.attempts = 0 AND o.ending = '{Ending.ACCEPTED}')"
_OF_ARMS = f"""
  {_NO_HIT} AND (o.revision = ? OR o.revision NOT LIKE '{CANDIDATE_PREFIX}%') AND o.reason NOT IN ({_NOT_THESE})
"""
# The candidate decides about no request of an app. A ledger of an older version has no apps.
_NO_APP = " AND o.app IS NULL"
# What happened after the answers, for each cohort of an arm.
_SIGNALS = f"""
  SELECT CASE WHEN o.revision = ? THEN 1 ELSE 0 END AS candidate, o.cohort, s.kind, s.score
  FROM signals s JOIN outcomes o ON {OWN_SIGNAL} WHERE o.id >= ? AND {_OF_ARMS}
"""
_ROWS = f"""
  SELECT o.id, o.time, o.revision, o.session, o.cohort, o.ending, o.attempts, o.cost, o.first_byte_s,
  r.cost AS rejected, CASE WHEN r.outcome IS NULL THEN 0 ELSE 1 END AS escalated
  FROM outcomes o
  LEFT JOIN (SELECT outcome, sum(cost) AS cost FROM rejections WHERE outcome > ? GROUP BY outcome) r
  ON r.outcome = o.id
  WHERE o.id > ? AND o.id <= ? AND {_OF_ARMS}
"""  # fmt: skip


class Mean:
    """A running mean with its plain interval."""

    def __init__(self) -> None:
        self._n, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, value: float | None) -> None:
        """Add a value, if it is known."""
        if value is not None:
            self._n, self._sum, self._squares = self._n + 1, self._sum + value, self._squares + value * value

    @property
    def interval(self) -> tuple[float, float] | None:
        """The mean, and half of its 95 % interval for a single look. None: fewer than two values."""
        if self._n < 2:
            return None
        mean = self._sum / self._n
        spread = self._squares - self._n * mean * mean
        variance = (spread if spread > 1e-12 * self._squares else 0.0) / (self._n - 1)  # without rounding errors
        return mean, 1.96 * math.sqrt(variance / self._n)


class Arm:
    """The requests of one arm in one group."""

    def __init__(self) -> None:
        self.requests, self.conversations, self.successes = 0, 0, 0
        self.escalated, self.re_asked = 0, 0  # requests; those after which almost the same was asked again
        self.cost, self.first_byte_s, self.rating = Mean(), Mean(), Mean()


class _Test(msgspec.Struct, frozen=True):
    """The counts at one place where the group is tested."""

    row: int
    counts: tuple[int, int, int, int]


class Group:
    """All requests, or those of one cohort."""

    def __init__(self, name: str, error: float | None) -> None:
        """`error` is that of its test. None: the arms do not have the same requests here, so it is not tested."""
        self.name, self.error = name, error
        self.candidate, self.serving = Arm(), Arm()
        self._seen: set[str] = set()
        self._waiting: list[_Test] = []

    @property
    def counts(self) -> Counts:
        """The trials and successes so far."""
        arms = self.candidate, self.serving
        return Counts(*(count for arm in arms for count in (arm.conversations, arm.successes)))

    @property
    def bounds(self) -> Bounds | None:
        """The bounds of both arms and of their difference, if the group is tested."""
        return bounds_of(self.counts, self.error) if self.error is not None else None

    def add(self, row: Mapping[str, Any], is_candidate: bool) -> None:
        """Add a request, and a trial if it is the first one of its conversation."""
        arm = self.candidate if is_candidate else self.serving
        arm.requests += 1
        arm.cost.add(row["cost"] + (row["rejected"] or 0) if row["cost"] is not None else None)
        arm.first_byte_s.add(row["first_byte_s"])
        arm.escalated += row["escalated"]
        if row["session"] is not None:
            if row["session"] in self._seen:
                return
            self._seen.add(row["session"])
        arm.conversations += 1
        arm.successes += row["ending"] == Ending.ACCEPTED and row["attempts"] == 1
        if self.error is not None and is_candidate and is_tested_at(arm.conversations):
            counts = self.counts
            self._waiting.append(_Test(row["id"], msgspec.structs.astuple(counts)))

    def decide(self, loss: float) -> Iterator[tuple[int, RolloutVerdict]]:
        """Do the tests that wait. Yield the row of the first promotion and of the first stop."""
        waiting, self._waiting = self._waiting, []
        if not waiting or self.error is None:
            return
        counts = Counts(*np.array([test.counts for test in waiting]).T)
        words = (RolloutVerdict.PROMOTE, RolloutVerdict.STOP)
        for word, holds in zip(words, rulings(counts, loss, self.error), strict=True):
            if holds.any():
                yield waiting[int(np.argmax(holds))].row, word


class Comparison:
    """The comparison so far."""

    def __init__(self, revision: str, loss: float, cohorts: Sequence[str]) -> None:
        """`revision` is that of the candidate. In `cohorts` both arms get the same requests."""
        self.revision, self.loss = revision, loss
        self.verdict, self.decided_by = RolloutVerdict.HOLD, ""
        self.since: float | None = None  # seconds since 1970
        whole, self._each = group_errors(len(cohorts))
        self._cohorts = frozenset(cohorts)
        self.groups = {ALL: Group(ALL, whole)}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of the ledger."""
        is_candidate = row["revision"] == self.revision
        if self.since is None:
            self.since = row["time"]
        cohort = row["cohort"]
        for name in (ALL, cohort) if cohort is not None else (ALL,):
            group = self.groups.get(name)
            if group is None:
                group = self.groups[name] = Group(name, self._each if name in self._cohorts else None)
            group.add(row, is_candidate)

    def decide(self) -> None:
        """Set the verdict, if the rows since the last call have one. The first verdict stays."""
        events = [(*event, name) for name, group in self.groups.items() for event in group.decide(self.loss)]
        deciding = [event for event in events if event[1] is RolloutVerdict.STOP or event[2] == ALL]
        if self.verdict is RolloutVerdict.HOLD and deciding:
            first = min(deciding, key=lambda event: (event[0], event[1] is not RolloutVerdict.STOP))
            _, self.verdict, self.decided_by = first

    def more_needed(self, share: float) -> int | None:
        """How many more conversations of the candidate decide, if it gets this share and is as good."""
        group = self.groups[ALL]
        if not 0 < share < 1 or group.error is None:
            return None
        return more_needed(group.counts, (1 - share) / share, self.loss, group.error)


class RolloutReader:
    """Reads the rows of a ledger that are new since the last call."""

    def __init__(self, place: Path | str, comparison: Comparison) -> None:
        self._place, self.comparison = place, comparison
        self._last = 0  # the id up to which every row was read
        self._began = False  # and there was a row of the candidate

    def read(self) -> Comparison:
        """Return the comparison by all rows so far. Raises OSError with a remedy.

        A row that another router is still adding may have a lower id than rows that are there. So the rows are read
        up to an id under which none can be added any more.
        """
        with contextlib.closing(connect(self._place)) as ledger:
            settled = ledger.settled_id()
            if settled is not None and settled > self._last:
                self._read_to(settled, ledger)
        return self.comparison

    def _read_to(self, settled: int, ledger: Connection) -> None:
        revision = self.comparison.revision
        if not self._began:
            [row] = ledger.fetch(_FIRST, (revision, self._last))
            if row["first"] is None or row["first"] > settled:
                self._last = settled
                return
            self._last, self._began = row["first"] - 1, True
        query = f"{_ROWS}{_without_apps(ledger)} ORDER BY o.id"
        for row in ledger.select(query, (self._last, self._last, settled, revision)):
            self.comparison.add(row)
            self._last = row["id"]
        self._last = settled
        self.comparison.decide()


def _without_apps(ledger: Connection) -> str:
    return _NO_APP if ledger.has_column("app") else ""


def add_signals(place: Path | str, comparison: Comparison) -> None:
    """Add what happened after the answers of both arms. It decides nothing. Raises OSError."""
    revision = comparison.revision
    with contextlib.closing(connect(place)) as ledger:
        [first] = ledger.fetch(_FIRST, (revision, 0))
        query = _SIGNALS + _without_apps(ledger)
        for row in ledger.select(query, (revision, first["first"] or 0, revision)):
            for name in (ALL, row["cohort"]):
                if name in comparison.groups:
                    group = comparison.groups[name]
                    arm = group.candidate if row["candidate"] else group.serving
                    arm.re_asked += row["kind"] == Signal.RE_ASKED
                    arm.rating.add(row["score"])


class BesideCount(msgspec.Struct, frozen=True):
    """Requests that the policy decided in one way, and the candidate beside it in another or in the same way."""

    cohort: str
    tier: str
    candidate_cohort: str
    candidate_tier: str
    requests: int


def read_beside(place: Path | str, revision: str) -> list[BesideCount]:
    """The decisions of a candidate beside those of this serving revision, most frequent first. Raises OSError."""
    counts: Counter[tuple[str, str, str, str]] = Counter()
    with contextlib.closing(connect(place)) as ledger:
        for row in ledger.select("SELECT decision FROM outcomes WHERE revision = ?", (revision,)):
            decision = msgspec.json.decode(row["decision"] or b"{}")
            if Key.CANDIDATE_TIER in decision:
                cohort, tier, other_cohort, other_tier = (str(decision.get(key, "")) for key in _BESIDE)
                counts[cohort, tier, other_cohort, other_tier] += 1
    return [BesideCount(*key, requests) for key, requests in counts.most_common()]


_BESIDE = (Key.COUNTED_AS, Key.TIER, Key.CANDIDATE_COHORT, Key.CANDIDATE_TIER)
