"""`extproc report`: read a ledger and add it up, by cohort, tier, principal, app or team."""

import contextlib
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import msgspec

from extproc.accounting import queries
from extproc.accounting.connection import Connection
from extproc.accounting.first_bytes import read_first_bytes
from extproc.accounting.headlines import report_headlines
from extproc.accounting.outcome import Ending
from extproc.accounting.queries import ALL, FALLBACKS, NEWER_GROUPS, By, Sum
from extproc.accounting.sources import Source, source_of
from extproc.accounting.store import connect, name_of
from extproc.contract.words import CacheWord, Signal

_UNITS_S = {"m": 60, "h": 3600, "d": 86400}
_MOST_S = 36_500 * 86400.0  # a hundred years


class SignalSums(msgspec.Struct, frozen=True):
    """What happened after the answers."""

    re_asked: int = 0  # answers after which the conversation asked almost the same again
    edited: int = 0  # answers whose ask was changed and sent again
    repeated: int = 0  # answers whose ask was sent again unchanged
    abandoned: int = 0  # streams that the client left
    rated: int = 0
    rating: float | None = None  # mean of the ratings, 0 to 1
    labelled: int = 0  # answers for which a client named the right cohort

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return self == SignalSums()


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
    signals: SignalSums = SignalSums()
    unjudged: dict[str, int] = {}  # accepted answers that no rule looked at, by reason: an Unjudged


class ExploredSums(msgspec.Struct, frozen=True):
    """The second requests of `--explore`. They are in no other sum."""

    requests: int = 0
    accepted: int = 0
    rejected: int = 0
    cost: float = 0.0  # US dollars


class CacheSums(msgspec.Struct, frozen=True):
    """The requests that the cache answered. They are in the other sums, too, with a cost of 0."""

    hits: int = 0
    semantic: int = 0  # hits of another wording
    saved: float = 0.0  # US dollars, at the prices of the tiers that gave the answers


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
    cached: CacheSums = CacheSums()


def seconds_of(span: str) -> float:
    """Read "24h", "30m" or "7d". Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", span)
    if match is None:
        raise ValueError(f"--since {span}: expected a number followed by m, h or d, as in 24h")
    return min(float(match[1]) * _UNITS_S[match[2]], _MOST_S)


def read_report(place: Path | str, since_s: float, by: By = "cohort") -> CostReport:
    """Add up the last `since_s` seconds. Groups with more requests come first. Raises OSError with a remedy."""
    until = time.time()
    since = until - since_s
    with contextlib.closing(connect(place)) as ledger, ledger.snapshot():
        known = by not in NEWER_GROUPS or ledger.has_column(by)
        source = source_of(ledger, since)
        total, groups = _read_tallies(ledger, source, by if known else ALL)
        [explored] = ledger.fetch(queries.EXPLORED, (since,))
        sums = ExploredSums(*(explored[name] or 0 for name in ExploredSums.__struct_fields__))
        cached = CacheSums()
        if ledger.has_column("saved"):
            cached = _cached(ledger, source)
    lines = sorted(
        (tally.line(name or "-") for name, tally in groups.items()), key=lambda line: (-line.requests, line.name)
    )
    overall = total.line("total")
    verdicts = report_headlines(overall, lines)
    return CostReport(name_of(place), since, until, by, overall, lines, verdicts, sums, cached)


def _cached(ledger: Connection, source: Source) -> CacheSums:
    hits: Counter[str] = Counter()
    saved = 0.0
    for row in source.read(ledger, queries.CACHED, ALL):
        hits[row["word"]] += int(row["hits"])
        saved += float(row["saved"])
    return CacheSums(hits.total(), hits[CacheWord.SEMANTIC], saved)


class _Tally:
    """The sums of one line, while the sums of the ledger are read."""

    def __init__(self) -> None:
        self.sums, self.rejected = Counter[str](), Counter[str]()
        self.escalations, self.fallbacks, self.unjudged = Counter[str](), Counter[str](), Counter[str]()
        self.first_byte_s: tuple[float, float] | None = None
        self.signals = Counter[str]()
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
            first_byte_s=self.first_byte_s,
            escalations=dict(self.escalations),
            fallbacks=dict(self.fallbacks),
            unjudged=dict(self.unjudged),
            signals=self._signals(),
        )

    def _signals(self) -> SignalSums:
        sums = self.signals
        return SignalSums(
            re_asked=sums[Signal.RE_ASKED],
            edited=sums[Signal.EDITED],
            repeated=sums[Signal.REPEATED],
            abandoned=sums[Signal.ABANDONED],
            rated=sums["scores"],
            rating=sums["score"] / sums["scores"] if sums["scores"] else None,
            labelled=sums["labels"],
        )


_Groups = defaultdict[str, _Tally]
_Sums = tuple[str, str, dict[str, float]]


def _read_tallies(ledger: Connection, source: Source, by: str) -> tuple[_Tally, _Groups]:
    """Return the tally of everything, and the tally of each value of `by`."""
    total, groups = _Tally(), _Groups(_Tally)

    def read(each: Sum, dimension: str = by) -> Iterable[_Sums]:
        for row in source.read(ledger, each, dimension):
            yield row["name"], row["word"], {name: row[name] for name in each.columns}

    for name, reason, sums in read(queries.OUTCOME_SUMS):
        for tally in (total, groups[name]):
            tally.sums.update(sums)
            if reason in FALLBACKS:
                tally.fallbacks[reason] += int(sums["requests"])
    for name, reason, sums in read(queries.REJECTION_SUMS):
        for tally in (total, groups[name]):
            tally.rejected.update(sums)
            tally.escalations[reason] += int(sums["rejected"])
    for name, _, sums in read(queries.ESCALATED):
        groups[name].escalated += int(sums["escalated"])
    # A request whose answers two tiers rejected counts for both tiers, and once in the total.
    total.escalated = sum(int(sums["escalated"]) for _, _, sums in read(queries.ESCALATED, ALL))
    if ledger.has_column("unjudged"):  # an older ledger has not
        for name, why, sums in read(queries.UNJUDGED):
            for tally in (total, groups[name]):
                tally.unjudged[why] += int(sums["requests"])
    _add_signals(ledger, source, by, total, groups)
    total.first_byte_s, quantiles = read_first_bytes(ledger, source, by)
    for name, first_byte_s in quantiles.items():
        groups[name].first_byte_s = first_byte_s
    return total, groups


def _add_signals(ledger: Connection, source: Source, by: str, total: _Tally, groups: _Groups) -> None:
    for row in ledger.fetch(queries.for_ledger(queries.signal_sums(by), ledger.has_column("app")), (source.since,)):
        counts = {row["kind"]: row["answers"]} | {name: row[name] for name in ("scores", "score", "labels")}
        for tally in (total, groups[row["name"]]):
            tally.signals.update(counts)
    if not ledger.has_column("decision"):  # an older ledger
        return
    for row in source.read(ledger, queries.ABANDONED, by):
        for tally in (total, groups[row["name"]]):
            tally.signals[Signal.ABANDONED] += int(row["requests"])
