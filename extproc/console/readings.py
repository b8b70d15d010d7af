"""Readings of a ledger for the console. They hold no text of users. All raise OSError with a remedy."""

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from extproc.accounting import queries
from extproc.accounting.queries import FROM_CLIENTS, NAMES, OWN_SIGNAL, PLAIN_COHORT, for_ledger
from extproc.accounting.report import CacheSums
from extproc.accounting.sources import source_of
from extproc.accounting.store import connect
from extproc.contract.words import CacheWord, Signal

NEWEST = 50
# The newest requests whose words of the cache are counted.
NEWEST_WORDS = 10_000
_POOR = 0.5
_LISTED = 20

# Which requests are listed. The others are names of endings.
Shown = Literal["all", "escalated", "degraded", "human", "failed", "cancelled", "disliked"]
_CORRECTED = f"s.label <> {PLAIN_COHORT}"
_ESCALATED = "EXISTS (SELECT 1 FROM rejections r WHERE r.outcome = o.id)"
_DISLIKED = (
    f"EXISTS (SELECT 1 FROM signals s WHERE s.kind = '{Signal.FEEDBACK}' AND {OWN_SIGNAL} "
    f"AND (s.score < {_POOR} OR {_CORRECTED}))"
)


def newest_requests(ledger: Path | str, shown: Shown = "all", cohort: str = "") -> list[Mapping[str, Any]]:
    """Return the newest rows, the newest first: of all requests or of some, and of a cohort if one is given."""
    conditions = {"all": "1 = 1", "escalated": _ESCALATED, "disliked": _DISLIKED}
    where, values = conditions.get(shown, "o.ending = ?"), [] if shown in conditions else [str(shown)]
    if cohort:
        where, values = f"{where} AND ? IN ({NAMES['cohort']}, {PLAIN_COHORT})", [*values, cohort]
    query = (
        "SELECT o.time, o.request, o.cohort, o.tier, o.reason, o.ending, o.status, o.attempts, o.cost, "
        f"o.duration_s FROM outcomes o WHERE {where} ORDER BY o.time DESC LIMIT {NEWEST}"
    )
    with contextlib.closing(connect(ledger)) as rows:
        return list(rows.select(for_ledger(query, rows.has_column("app")), values))


class CacheReading(msgspec.Struct, frozen=True):
    """The cache in a time."""

    by_cohort: Mapping[str, CacheSums] = {}
    requests: Mapping[str, int] = {}  # of each cohort, with those that a tier answered
    words: Counter[str] = Counter()  # of the newest requests, of any time

    @property
    def looks(self) -> int:
        """The requests that have a word."""
        return self.words.total()

    def of(self, cohort: str) -> CacheSums:
        """The sums of a cohort."""
        return self.by_cohort.get(cohort, CacheSums())


def read_cache(place: Path | str, since_s: float) -> CacheReading:
    """Add up the hits of the last `since_s` seconds by cohort."""
    by_cohort, requests = dict[str, CacheSums](), Counter[str]()
    with contextlib.closing(connect(place)) as ledger, ledger.snapshot():
        source = source_of(ledger, time.time() - since_s)
        for row in source.read(ledger, queries.OUTCOME_SUMS, "cohort"):
            requests[row["name"]] += int(row["requests"])
        if not ledger.has_column("saved"):  # an older ledger
            return CacheReading(requests=requests)
        for row in source.read(ledger, queries.CACHED, "cohort"):
            sums, hits = by_cohort.get(row["name"], CacheSums()), int(row["hits"])
            other_words = hits if row["word"] == CacheWord.SEMANTIC else 0
            by_cohort[row["name"]] = CacheSums(
                sums.hits + hits, sums.semantic + other_words, sums.saved + float(row["saved"])
            )
        newest = f"SELECT cache FROM outcomes ORDER BY time DESC LIMIT {NEWEST_WORDS}"
        query = f"SELECT n.cache AS word, count(*) AS n FROM ({newest}) n WHERE n.cache IS NOT NULL GROUP BY 1"
        words = Counter({row["word"]: int(row["n"]) for row in ledger.fetch(query)})
    return CacheReading(by_cohort, requests, words)


_LABELLED = f"""
  FROM signals s JOIN outcomes o ON {OWN_SIGNAL}
  WHERE s.kind = '{Signal.FEEDBACK}' AND o.time >= ? AND {FROM_CLIENTS}
"""


def corrections(place: Path | str, since_s: float) -> Sequence[Mapping[str, Any]]:
    """Count the answers for which a client named another cohort: `name`, `label`, `answers`."""
    query = (
        f"SELECT {NAMES['cohort']} AS name, s.label AS label, count(*) AS answers {_LABELLED} AND {_CORRECTED} "
        f"GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT {_LISTED}"
    )
    return _rows(place, query, since_s)


def poor_ratings(place: Path | str, since_s: float) -> Sequence[Mapping[str, Any]]:
    """Return the newest bad ratings: `time`, `request`, `cohort`, `tier`, `score` and `label`."""
    query = (
        f"SELECT s.time, o.request, {NAMES['cohort']} AS cohort, o.tier, s.score, s.label {_LABELLED} "
        f"AND s.score < {_POOR} ORDER BY s.time DESC LIMIT {_LISTED}"
    )
    return _rows(place, query, since_s)


def _rows(place: Path | str, query: str, since_s: float) -> Sequence[Mapping[str, Any]]:
    with contextlib.closing(connect(place)) as ledger:
        return ledger.fetch(for_ledger(query, ledger.has_column("app")), (time.time() - since_s,))
