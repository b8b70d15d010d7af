"""`extproc report`: what the ledger says, added up."""

import contextlib
import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal, get_args

import msgspec

from extproc.accounting.outcome import SERVED, Ending
from extproc.accounting.store import Connection, connect, name_of
from extproc.contract.words import Reason, Undecided

By = Literal["cohort", "tier", "principal"]

_FALLBACKS = (*(reason for reason in Reason if reason.is_fallback), Undecided.FAIL_OPEN)
# What lines are named by.
_NAMES = {by: f"coalesce(o.{by}, '-')" for by in get_args(By)}
_REJECTED_NAMES = _NAMES | {"tier": "coalesce(r.tier, '-')"}  # what a tier was paid for counts as its own
_UNITS_S = {"m": 60, "h": 3600, "d": 86400}


def _ended(*endings: Ending) -> str:
    quoted = ", ".join(f"'{ending}'" for ending in endings)
    return f"o.ending IN ({quoted})"


# An answer that may have been paid for (see accounting/outcome.py): without tokens, its usage is unknown.
_DUE = f"o.attempts > 0 AND (o.status = 200 OR {_ended(Ending.CANCELLED, Ending.HUMAN)})"


def _count(condition: str) -> str:
    return f"sum(CASE WHEN {condition} THEN 1 ELSE 0 END)"


_TOKENS = ", ".join(f"sum(coalesce({{0}}.{kind}, 0)) AS {kind}" for kind in ("input", "output", "cached"))
_SUMS = f"""
  count(*) AS requests, sum(o.attempts) AS attempts, sum(o.failed_attempts) AS failed_attempts,
  {_count(f"o.ending = '{Ending.ACCEPTED}' AND o.judged = 1")} AS judged,
  {", ".join(_count(f"o.ending = '{ending}'") + f" AS {ending}" for ending in Ending)},
  {_TOKENS.format("o")}, coalesce(sum(o.cost), 0) AS cost, coalesce(sum(o.default_cost), 0) AS default_cost,
  {_count(f"{_DUE} AND o.cost IS NULL")} AS unknown
"""
_REJECTED = f"""
  count(*) AS rejected, {_TOKENS.format("r")}, coalesce(sum(r.cost), 0) AS cost,
  {_count("r.cost IS NULL")} AS unknown
"""
_REJECTIONS = "rejections r JOIN outcomes o ON o.id = r.outcome WHERE o.time >= ?"


class Line(msgspec.Struct):
    """One group's sums. Tokens and costs hold rejected answers too; what is unknown is in no sum but its own."""

    name: str
    requests: int
    attempts: int  # everything that was sent to an upstream
    failed_attempts: int  # of them, those that brought no answer and were tried again
    accepted: int  # answers that no rule rejected
    judged: int  # of them, those that a rule looked at
    degraded: int
    human: int
    failed: int
    cancelled: int
    escalated: int  # requests with a rejected answer on the way
    fallback: int
    input: int
    output: int
    cached: int
    cost: float  # US dollars
    cascade_cost: float  # of it, for answers that were rejected
    cost_per_accepted: float | None
    saving: float  # against the default tier, at the same tokens
    unknown: int  # answers that told no tokens, or of a tier that had no price
    first_byte_s: tuple[float, float] | None  # p50 and p95, of answers that were served
    escalations: dict[str, int] = {}  # by reason
    fallbacks: dict[str, int] = {}


class Report(msgspec.Struct):
    """A ledger's sums over a time."""

    ledger: str
    since: float  # seconds since 1970
    until: float
    by: By
    total: Line
    groups: list[Line]


def seconds_of(span: str) -> float:
    """Read "24h", "30m" or "7d". Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", span)
    if found is None:
        raise ValueError(f"--since {span}: give a number and m, h or d, as in 24h")
    return float(found[1]) * _UNITS_S[found[2]]


def read_report(place: Path | str, since_s: float, by: By = "cohort") -> Report:
    """Add up the last `since_s` seconds. Raises OSError with a remedy."""
    until = time.time()
    with contextlib.closing(connect(place)) as ledger:
        total, groups = _tallies(ledger, until - since_s, by)
    lines = sorted(
        (tally.line(name) for name, tally in groups.items()), key=lambda line: (-line.requests, line.name)
    )
    return Report(name_of(place), until - since_s, until, by, total.line("total"), lines)


class _Tally:
    """What is added up for one line, each row of the ledger read once."""

    def __init__(self) -> None:
        self.sums, self.rejected = Counter[str](), Counter[str]()
        self.escalations, self.fallbacks = Counter[str](), Counter[str]()
        self.first_byte_s: list[float] = []
        self.escalated = 0

    def line(self, name: str) -> Line:
        sums, rejected = self.sums, self.rejected
        both = {key: sums[key] + rejected[key] for key in ("input", "output", "cached", "unknown")}
        cost = float(sums["cost"] + rejected["cost"])
        counts = (
            "requests", "attempts", "failed_attempts", "judged", *(ending.value for ending in Ending),
        )  # fmt: skip
        first = self.first_byte_s
        cuts = quantiles(first, n=20, method="inclusive") if len(first) > 1 else [*first] * 19
        return Line(
            name=name,
            **{key: sums[key] for key in counts},
            **both,
            cost=cost,
            fallback=self.fallbacks.total(),
            escalated=self.escalated,
            cascade_cost=float(rejected["cost"]),
            cost_per_accepted=cost / sums[Ending.ACCEPTED] if sums[Ending.ACCEPTED] else None,
            saving=sums["default_cost"] - cost,
            first_byte_s=(cuts[9], cuts[18]) if cuts else None,
            escalations=dict(self.escalations),
            fallbacks=dict(self.fallbacks),
        )


def _tallies(ledger: Connection, since: float, by: By) -> tuple[_Tally, dict[str, _Tally]]:
    """The whole, and each value of `by`."""
    total, groups = _Tally(), defaultdict[str, _Tally](_Tally)
    name, rejected_name = _NAMES[by], _REJECTED_NAMES[by]
    outcomes = "outcomes o WHERE o.time >= ?"
    served = f"{_ended(*SERVED)} AND o.first_byte_s IS NOT NULL"

    for row in ledger.select(f"SELECT {name} AS name, o.reason, {_SUMS} FROM {outcomes} GROUP BY 1, 2", (since,)):
        for tally in (total, groups[row["name"]]):
            tally.sums.update(_numbers(row))
            if row["reason"] in _FALLBACKS:
                tally.fallbacks[row["reason"]] += row["requests"]
    query = f"SELECT {rejected_name} AS name, r.reason, {_REJECTED} FROM {_REJECTIONS} GROUP BY 1, 2"
    for row in ledger.select(query, (since,)):
        for tally in (total, groups[row["name"]]):
            tally.rejected.update(_numbers(row))
            tally.escalations[row["reason"]] += row["rejected"]
    # A request whose answers were rejected at two tiers escalated at each, and is one in the whole.
    distinct = f"count(DISTINCT r.outcome) AS escalated FROM {_REJECTIONS}"
    for row in ledger.select(f"SELECT {rejected_name} AS name, {distinct} GROUP BY 1", (since,)):
        groups[row["name"]].escalated = row["escalated"]
    [row] = ledger.select(f"SELECT {distinct}", (since,))
    total.escalated = row["escalated"]
    for row in ledger.select(f"SELECT {name} AS name, o.first_byte_s FROM {outcomes} AND {served}", (since,)):
        groups[row["name"]].first_byte_s.append(row["first_byte_s"])
    for tally in groups.values():
        tally.first_byte_s.sort()
        total.first_byte_s += tally.first_byte_s
    return total, groups


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in row.keys() if key not in ("name", "reason")}  # noqa: SIM118 (a sqlite3.Row)
