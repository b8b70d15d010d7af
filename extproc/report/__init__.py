"""`extproc report`: what the ledger says, added up."""

import re
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal, get_args

import msgspec

from extproc.ledger import read_ledger
from extproc.policy import Reason

By = Literal["cohort", "tier", "principal"]

_FALLBACKS = (*(reason.value for reason in Reason if reason.is_fallback), "fail_open")
# What lines are named by.
_NAMES = {"total": "'total'"} | {by: f"coalesce(o.{by}, '-')" for by in get_args(By)}
_REJECTED_NAMES = _NAMES | {"tier": "coalesce(r.tier, '-')"}  # what a tier was paid for counts as its own
_UNITS_S = {"m": 60, "h": 3600, "d": 86400}
# An answer that may have been paid for (see extproc/outcome.py): without tokens, its usage is unknown.
_DUE = "attempts > 0 AND (status = 200 OR ending IN ('cancelled', 'human'))"
_SUMS = f"""
  count(*) AS requests, sum(attempts) AS attempts, sum(failed_attempts) AS failed_attempts,
  sum(ending = 'accepted') AS accepted, sum(ending = 'accepted' AND judged) AS judged,
  sum(ending = 'degraded') AS degraded, sum(ending = 'human') AS human, sum(ending = 'failed') AS failed,
  sum(ending = 'cancelled') AS cancelled,
  sum(reason IN ({", ".join(f"'{reason}'" for reason in _FALLBACKS)})) AS fallback,
  total(cost) AS cost, total(default_cost) AS default_cost,
  sum(coalesce(input, 0)) AS input, sum(coalesce(output, 0)) AS output, sum(coalesce(cached, 0)) AS cached,
  sum({_DUE} AND cost IS NULL) AS unknown
"""
_REJECTED = """
  count(DISTINCT r.outcome) AS escalated, total(r.cost) AS cost,
  sum(coalesce(r.input, 0)) AS input, sum(coalesce(r.output, 0)) AS output,
  sum(coalesce(r.cached, 0)) AS cached, sum(r.cost IS NULL) AS unknown
"""


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


def read_report(path: Path, since_s: float, by: By = "cohort") -> Report:
    """Add up the last `since_s` seconds. Raises OSError with a remedy, or sqlite3.Error."""
    until = time.time()
    connection = read_ledger(path)
    try:
        total, groups = (_lines(connection, until - since_s, name) for name in ("total", by))
    finally:
        connection.close()
    nothing = _line("total", None, None, [], {}, {})
    return Report(str(path), until - since_s, until, by, total[0] if total else nothing, groups)


def _lines(connection: sqlite3.Connection, since: float, by: str) -> list[Line]:
    """One line for each value of `by`, the one with most requests first."""

    def select(what: str, more: str = "") -> list[sqlite3.Row]:
        query = f"SELECT {_NAMES[by]} AS name, {what} FROM outcomes o WHERE o.time >= ? {more}"
        return connection.execute(query, (since,)).fetchall()

    def select_rejected(what: str, more: str) -> list[sqlite3.Row]:
        joined = "rejections r JOIN outcomes o ON o.id = r.outcome"
        query = f"SELECT {_REJECTED_NAMES[by]} AS name, {what} FROM {joined} WHERE o.time >= ? {more}"
        return connection.execute(query, (since,)).fetchall()

    rejected = {row["name"]: row for row in select_rejected(_REJECTED, "GROUP BY 1")}
    escalations: dict[str, dict[str, int]] = {}
    for group, reason, count in select_rejected("r.reason, count(*)", "GROUP BY 1, 2"):
        escalations.setdefault(group, {})[reason] = count
    fallbacks: dict[str, dict[str, int]] = {}
    for group, reason, count in select("o.reason, count(*)", "GROUP BY 1, 2"):
        if reason in _FALLBACKS:
            fallbacks.setdefault(group, {})[reason] = count
    first: dict[str, list[float]] = {}
    served = "AND o.ending IN ('accepted', 'degraded') AND o.first_byte_s IS NOT NULL"
    for group, seconds in select("o.first_byte_s", served):
        first.setdefault(group, []).append(seconds)
    sums = {row["name"]: row for row in select(_SUMS, "GROUP BY 1 ORDER BY requests DESC, name")}
    return [
        _line(
            name, sums.get(name), rejected.get(name), first.get(name, []), escalations.get(name, {}),
            fallbacks.get(name, {}),
        )
        for name in {**sums, **rejected}
    ]  # fmt: skip


def _line(
    name: str,
    sums: sqlite3.Row | None,
    rejected: sqlite3.Row | None,
    first: Sequence[float],
    escalations: dict[str, int],
    fallbacks: dict[str, int],
) -> Line:
    def of(row: sqlite3.Row | None, key: str) -> Any:
        return row[key] if row is not None else 0

    both = {key: of(sums, key) + of(rejected, key) for key in ("cost", "input", "output", "cached", "unknown")}
    counts = (
        "requests", "attempts", "failed_attempts", "accepted", "judged", "degraded", "human", "failed", "cancelled",
        "fallback",
    )  # fmt: skip
    cuts = quantiles(first, n=20, method="inclusive") if len(first) > 1 else [*first] * 19
    return Line(
        name=name,
        **{key: of(sums, key) for key in counts},
        **both,
        escalated=of(rejected, "escalated"),
        cascade_cost=of(rejected, "cost"),
        cost_per_accepted=both["cost"] / sums["accepted"] if sums is not None and sums["accepted"] else None,
        saving=of(sums, "default_cost") - both["cost"],
        first_byte_s=(cuts[9], cuts[18]) if cuts else None,
        escalations=escalations,
        fallbacks=fallbacks,
    )
