"""The sums of the report: the numbers, the dimensions by which they are grouped, and the SQL for both.

SQLite and Postgres both understand the SQL. `o` is a row of `outcomes`, and `r` a row of `rejections`. Each `Sum`
is also a table of hourly sums: see `rollups`. A new dimension is one more entry in NAMES.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import msgspec

from extproc.accounting.outcome import SERVED, Ending, Unjudged
from extproc.contract.statuses import has_answer_sql
from extproc.contract.words import CACHE_HITS, NOT_A_COHORT, Reason, Undecided

# The column by which a report groups its lines.
By = Literal["cohort", "tier", "principal", "app", "team"]
# A ledger of an older version does not have these columns.
NEWER_GROUPS = ("app", "team")
# All requests, under a single name.
ALL = "all"

# The reasons for which no decision could be made.
FALLBACKS = (*(reason for reason in Reason if reason.is_fallback), Undecided.FAIL_OPEN)
# Before ledger version 4, `cohort` was the nearest one, also where its match did not count.
_FELL_BACK = f"o.reason IN ({', '.join(repr(reason.value) for reason in FALLBACKS)})"
# The cohort without its app: a client names it so in its feedback.
PLAIN_COHORT = f"CASE WHEN {_FELL_BACK} THEN o.reason ELSE coalesce(o.cohort, o.reason) END"
_WORDS = ", ".join(f"'{word}'" for word in sorted(NOT_A_COHORT))
# Two apps may have a cohort of the same name, so that of an app is APP/COHORT, as in metrics.
_COHORT = (
    f"CASE WHEN {_FELL_BACK} THEN o.reason WHEN o.cohort IN ({_WORDS}) THEN o.cohort "
    "ELSE coalesce(coalesce(o.app || '/', '') || o.cohort, o.reason) END"
)
# The SQL of the name of a line, by dimension.
NAMES: Mapping[str, str] = {by: f"coalesce(o.{by}, '-')" for by in get_args(By)} | {"cohort": _COHORT} | {ALL: "''"}
# A rejected answer belongs to the tier that gave it, not to the tier that served the request.
_REJECTED_NAMES = {**NAMES, "tier": "coalesce(r.tier, '-')"}

# The second requests of `--explore` are not traffic of clients.
FROM_CLIENTS = "(o.request IS NULL OR o.request NOT IN (SELECT id FROM explorations))"


def for_ledger(query: str, has_apps: bool) -> str:
    """Return a query on `o` for a ledger of an older version, which has no apps, or the query."""
    return query if has_apps else query.replace("o.app", "NULL")


class Window(msgspec.Struct, frozen=True):
    """The outcomes that count: those that began in a time, and whose ids are in a range."""

    since: float | None = None
    before: float | None = None
    after_id: int | None = None
    last_id: int | None = None
    by_day: bool = False  # the ledger is in Postgres, where rejected answers have a time

    def of_outcomes(self, time: str = "o.time") -> str:
        """Return the condition on `o`."""
        limits = (
            (f"{time} >= ", self.since),
            (f"{time} < ", self.before),
            ("o.id > ", self.after_id),
            ("o.id <= ", self.last_id),
        )
        return " AND ".join([*(text + repr(limit) for text, limit in limits if limit is not None), FROM_CLIENTS])

    def of_rejections(self) -> str:
        """Return the condition on `o` and `r`. The limits on `r` change no sum and save reading."""
        limits = [("r.outcome > ", self.after_id), ("r.outcome <= ", self.last_id)]
        also = [text + repr(limit) for text, limit in limits if limit is not None]
        if self.since is not None and self.by_day:
            also.append(f"(r.time >= {self.since!r} OR r.time IS NULL)")
        # With the plus SQLite begins with the few rejections, and not with all outcomes of the time.
        return " AND ".join([self.of_outcomes("o.time" if self.by_day else "+o.time"), *also])


class Sum(msgspec.Struct, frozen=True):
    """Numbers that are added up for each name and word, such as the reason of a decision."""

    table: str  # of the hourly sums
    word: str  # SQL
    columns: Mapping[str, str]  # name of a number -> SQL that adds it up
    condition: str = ""
    of_rejections: bool = False
    of_callers: bool = True  # there are hourly sums by principal, too

    @property
    def names(self) -> Mapping[str, str]:
        """The SQL of the name, by dimension."""
        names = _REJECTED_NAMES if self.of_rejections else NAMES
        return names if self.of_callers else {name: sql for name, sql in names.items() if name != "principal"}

    @property
    def numbers(self) -> str:
        """The SQL of all numbers."""
        return ", ".join(f"{sql} AS {name}" for name, sql in self.columns.items())

    @property
    def tables(self) -> str:
        """The SQL after FROM."""
        return "rejections r JOIN outcomes o ON o.id = r.outcome" if self.of_rejections else "outcomes o"

    def where(self, window: Window) -> str:
        """Return the SQL after WHERE."""
        return (window.of_rejections() if self.of_rejections else window.of_outcomes()) + self.condition

    def query(self, dimension: str, window: Window) -> str:
        """Return the query on the rows of the ledger: `name`, `word` and the numbers."""
        name = self.names[dimension]
        return (
            f"SELECT {name} AS name, {self.word} AS word, {self.numbers} FROM {self.tables} "
            f"WHERE {self.where(window)} GROUP BY 1, 2"
        )


def _ended(*endings: Ending) -> str:
    quoted = ", ".join(f"'{ending}'" for ending in endings)
    return f"o.ending IN ({quoted})"


def _count(condition: str) -> str:
    return f"sum(CASE WHEN {condition} THEN 1 ELSE 0 END)"


def _tokens(row: str) -> dict[str, str]:
    return {kind: f"sum(coalesce({row}.{kind}, 0))" for kind in ("input", "output", "cached")}


def is_abandoned(row: str = "o") -> str:
    """Whether the client left before the end of a stream, as SQL."""
    return f"{row}.ending = '{Ending.CANCELLED}' AND {row}.decision LIKE '%\"stream\":true%'"


# The same condition as `Outcome.usage_due`: without tokens, the usage of this answer is unknown.
_USAGE_DUE = f"o.attempts > 0 AND ({has_answer_sql('o.status')} OR {_ended(Ending.CANCELLED, Ending.HUMAN)})"
OUTCOME_SUMS = Sum(
    "rollup_outcomes",
    "o.reason",
    {
        "requests": "count(*)",
        "attempts": "sum(o.attempts)",
        "failed_attempts": "sum(o.failed_attempts)",
        "judged": _count(f"o.ending = '{Ending.ACCEPTED}' AND o.judged = 1"),
        **{ending.value: _count(f"o.ending = '{ending}'") for ending in Ending},
        **_tokens("o"),
        "cost": "coalesce(sum(o.cost), 0)",
        "default_cost": "coalesce(sum(o.default_cost), 0)",
        "unknown": _count(f"{_USAGE_DUE} AND o.cost IS NULL"),
    },
)
REJECTION_SUMS = Sum(
    "rollup_rejections",
    "r.reason",
    {
        "rejected": "count(*)",
        **_tokens("r"),
        "cost": "coalesce(sum(r.cost), 0)",
        "unknown": _count("r.cost IS NULL"),
    },
    of_rejections=True,
)
# Requests with a rejected answer. If two tiers gave rejected answers, it counts for both, and once for ALL.
ESCALATED = Sum("rollup_escalated", "'-'", {"escalated": "count(DISTINCT r.outcome)"}, of_rejections=True)
# Accepted answers that no rule looked at. The word says why.
UNJUDGED = Sum(
    "rollup_unjudged",
    f"coalesce(o.unjudged, '{Unjudged.UNKNOWN}')",
    {"requests": "count(*)"},
    f" AND o.judged = 0 AND o.ending = '{Ending.ACCEPTED}'",
)
_SERVED = f" AND {_ended(*SERVED)} AND o.first_byte_s IS NOT NULL"
# The buckets of a histogram of times: each is this much wider than the one before.
BUCKET_GROWTH = 1.02
# Served answers, by the bucket of the time to their first byte. Histograms of callers would have about as many rows
# as the ledger.
FIRST_BYTES = Sum(
    "rollup_first_bytes",
    f"CAST(CAST(floor(ln(greatest(o.first_byte_s, 1e-6)) / {math.log(BUCKET_GROWTH)!r}) AS BIGINT) AS TEXT)",
    {"answers": "count(*)"},
    _SERVED,
    of_callers=False,
)
# The answers that the cache served, by its word. Ledgers of older versions have none.
CACHED = Sum(
    "rollup_cache",
    "o.cache",
    {"hits": "count(*)", "saved": "coalesce(sum(o.saved), 0)"},
    f" AND o.attempts = 0 AND o.cache IN ({', '.join(repr(str(word)) for word in sorted(CACHE_HITS))})",
)
# Streams that the client left before their end.
ABANDONED = Sum("rollup_abandoned", "'-'", {"requests": "count(*)"}, f" AND {is_abandoned()}")
SUMS = (OUTCOME_SUMS, REJECTION_SUMS, ESCALATED, UNJUDGED, FIRST_BYTES, ABANDONED, CACHED)


# The narrower the slices, the fewer times are read one by one, and the more counts.
_SLICE = "CAST(o.first_byte_s * 100 AS BIGINT)"


def first_byte_counts(dimension: str, window: Window) -> str:
    """Count served answers for each `name`, by slices of time until their first byte."""
    return (
        f"SELECT {NAMES[dimension]} AS name, {_SLICE} AS slice, count(*) AS answers "
        f"FROM outcomes o WHERE {window.of_outcomes()}{_SERVED} GROUP BY 1, 2"
    )


def first_bytes_in(slices: Iterable[int], dimension: str, window: Window) -> str:
    """Select `name`, `slice` and `first_byte_s` of the served answers in these slices of time."""
    return (
        f"SELECT {NAMES[dimension]} AS name, {_SLICE} AS slice, o.first_byte_s FROM outcomes o "
        f"WHERE {window.of_outcomes()}{_SERVED} AND {_SLICE} IN ({', '.join(map(str, slices))})"
    )


# The second requests of `--explore`, in one row.
EXPLORED = f"""
  SELECT count(*) AS requests, {_count("accepted = 1")} AS accepted, {_count("accepted = 0")} AS rejected,
  coalesce(sum(cost), 0) AS cost FROM explorations WHERE time >= ?
"""


# A signal counts if its sender has also sent the request.
ANONYMOUS = "anonymous"
OWN_SIGNAL = f"s.request = o.request AND s.principal = coalesce(o.principal, '{ANONYMOUS}')"


def signal_sums(by: str) -> str:
    """For each `name` and `kind`, the number of answers with this signal, of their scores and labels."""
    return (
        f"SELECT {NAMES[by]} AS name, s.kind, count(*) AS answers, count(s.score) AS scores, "
        "coalesce(sum(s.score), 0) AS score, count(s.label) AS labels "
        f"FROM signals s JOIN outcomes o ON {OWN_SIGNAL} WHERE o.time >= ? AND {FROM_CLIENTS} GROUP BY 1, 2"
    )
