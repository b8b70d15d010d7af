"""`extproc report`: read a ledger and add it up, by cohort, tier, principal, app or team."""

import contextlib
import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal

import msgspec

from extproc.accounting import queries
from extproc.accounting.headlines import report_headlines
from extproc.accounting.outcome import Ending
from extproc.accounting.queries import FALLBACKS, NEWER_GROUPS, UNKNOWN_GROUP, By
from extproc.accounting.store import Connection, connect, name_of

_UNITS_S = {"m": 60, "h": 3600, "d": 86400}


class CohortLine(msgspec.Struct):
    """The sums of one cohort, tier, principal, app or team.

    Tokens and costs include rejected answers. Answers with unknown usage are only counted in `unknown`.
    """

    name: str
    requests: int
    attempts: int  # requests sent to an upstream
    failed_attempts: int  # attempts without an answer, after which another attempt was made
    accepted: int  # answers that no rule rejected
    judged: int  # accepted answers that a rule looked at
    degraded: int
    human: int
    failed: int
    cancelled: int
    escalated: int  # requests with a rejected answer before the last attempt
    fallback: int
    input: int
    output: int
    cached: int
    cost: float  # US dollars
    cascade_cost: float  # the part of `cost` for rejected answers
    cost_per_accepted: float | None
    saving: float  # cost of the served answers' tokens at the default tier, minus `cost`
    unknown: int  # answers without token counts, or of a tier without a price
    first_byte_s: tuple[float, float] | None  # median and 95th percentile, of served answers
    escalations: dict[str, int] = {}  # rejected answers, by reason
    fallbacks: dict[str, int] = {}  # requests, by reason
    unjudged: dict[str, int] = {}  # accepted answers that no rule looked at, by reason: an Unjudged


class ExploredSums(msgspec.Struct, frozen=True):
    """The second requests of `--explore`. They are in no other sum."""

    requests: int = 0
    accepted: int = 0
    rejected: int = 0
    cost: float = 0.0  # US dollars


class CostReport(msgspec.Struct):
    """The sums of a ledger over a time."""

    ledger: str
    since: float  # seconds since 1970
    until: float
    by: By
    total: CohortLine
    groups: list[CohortLine]
    verdicts: list[str]  # sentences on what was saved, and on what is not known
    explored: ExploredSums = ExploredSums()


def seconds_of(span: str) -> float:
    """Read "24h", "30m" or "7d". Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", span)
    if match is None:
        raise ValueError(f"--since {span}: expected a number followed by m, h or d, as in 24h")
    return float(match[1]) * _UNITS_S[match[2]]


def read_report(place: Path | str, since_s: float, by: By = "cohort") -> CostReport:
    """Add up the last `since_s` seconds. Groups with more requests come first. Raises OSError with a remedy."""
    until = time.time()
    with contextlib.closing(connect(place)) as ledger:
        lacks = by in NEWER_GROUPS and not ledger.has_column(by)
        total, groups = _read_tallies(ledger, until - since_s, UNKNOWN_GROUP if lacks else by)
        [explored] = ledger.select(queries.EXPLORED, (until - since_s,))
        sums = ExploredSums(*(explored[name] or 0 for name in ExploredSums.__struct_fields__))
    lines = sorted(
        (tally.line(name) for name, tally in groups.items()), key=lambda line: (-line.requests, line.name)
    )
    overall = total.line("total")
    verdicts = report_headlines(overall, lines)
    return CostReport(name_of(place), until - since_s, until, by, overall, lines, verdicts, sums)


class _Tally:
    """The sums of one line, while the rows of the ledger are read."""

    def __init__(self) -> None:
        self.sums, self.rejected = Counter[str](), Counter[str]()
        self.escalations, self.fallbacks, self.unjudged = Counter[str](), Counter[str](), Counter[str]()
        self.first_byte_s: list[float] = []
        self.escalated = 0

    def line(self, name: str) -> CohortLine:
        sums, rejected = self.sums, self.rejected
        both = {key: sums[key] + rejected[key] for key in ("input", "output", "cached", "unknown")}
        cost = float(sums["cost"] + rejected["cost"])
        counts = (
            "requests", "attempts", "failed_attempts", "judged", *(ending.value for ending in Ending),
        )  # fmt: skip
        return CohortLine(
            name=name,
            **{key: sums[key] for key in counts},
            **both,
            cost=cost,
            fallback=self.fallbacks.total(),
            escalated=self.escalated,
            cascade_cost=float(rejected["cost"]),
            cost_per_accepted=cost / sums[Ending.ACCEPTED] if sums[Ending.ACCEPTED] else None,
            saving=sums["default_cost"] - cost,
            first_byte_s=_median_and_p95(self.first_byte_s),
            escalations=dict(self.escalations),
            fallbacks=dict(self.fallbacks),
            unjudged=dict(self.unjudged),
        )


def _median_and_p95(values: list[float]) -> tuple[float, float] | None:
    cuts = quantiles(values, n=20, method="inclusive") if len(values) > 1 else values * 19
    return (cuts[9], cuts[18]) if cuts else None


_Groups = defaultdict[str, _Tally]


def _read_tallies(ledger: Connection, since: float, by: By | Literal["-"]) -> tuple[_Tally, _Groups]:
    """Return the tally of everything, and the tally of each value of `by`."""
    total, groups = _Tally(), _Groups(_Tally)
    _add_outcomes(ledger, since, by, total, groups)
    _add_rejections(ledger, since, by, total, groups)
    _count_escalated(ledger, since, by, total, groups)
    _add_first_bytes(ledger, since, by, total, groups)
    _add_unjudged(ledger, since, by, total, groups)
    return total, groups


def _add_outcomes(ledger: Connection, since: float, by: By | Literal["-"], total: _Tally, groups: _Groups) -> None:
    for row in ledger.select(queries.outcome_sums(by), (since,)):
        for tally in (total, groups[row["name"]]):
            tally.sums.update(_numbers(row))
            if row["reason"] in FALLBACKS:
                tally.fallbacks[row["reason"]] += row["requests"]


def _add_rejections(
    ledger: Connection, since: float, by: By | Literal["-"], total: _Tally, groups: _Groups
) -> None:
    for row in ledger.select(queries.rejection_sums(by), (since,)):
        for tally in (total, groups[row["name"]]):
            tally.rejected.update(_numbers(row))
            tally.escalations[row["reason"]] += row["rejected"]


def _count_escalated(
    ledger: Connection, since: float, by: By | Literal["-"], total: _Tally, groups: _Groups
) -> None:
    """Count requests. A request whose answers two tiers rejected counts for both tiers, and once in the total."""
    for row in ledger.select(queries.escalated_requests(by), (since,)):
        groups[row["name"]].escalated = row["escalated"]
    [row] = ledger.select(queries.ALL_ESCALATED_REQUESTS, (since,))
    total.escalated = row["escalated"]


def _add_first_bytes(
    ledger: Connection, since: float, by: By | Literal["-"], total: _Tally, groups: _Groups
) -> None:
    for row in ledger.select(queries.first_bytes(by), (since,)):
        for tally in (total, groups[row["name"]]):
            tally.first_byte_s.append(row["first_byte_s"])


def _add_unjudged(ledger: Connection, since: float, by: By | Literal["-"], total: _Tally, groups: _Groups) -> None:
    if not ledger.has_column("unjudged"):  # an older ledger
        return
    for row in ledger.select(queries.unjudged(by), (since,)):
        for tally in (total, groups[row["name"]]):
            tally.unjudged[row["why"]] += row["requests"]


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in row.keys() if key not in ("name", "reason")}  # noqa: SIM118 (a sqlite3.Row)
