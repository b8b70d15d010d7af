"""The median and the 95th percentile of the time to the first byte.

From rows they are exact: the times are counted in slices, and only those in a few slices are read. Hourly sums have
a histogram, and then both are at most 1 % off.
"""

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from extproc.accounting.connection import Connection
from extproc.accounting.queries import (
    ALL,
    BUCKET_GROWTH,
    FIRST_BYTES,
    first_byte_counts,
    first_bytes_in,
    for_ledger,
)
from extproc.accounting.sources import Source

# Median and 95th percentile, in twentieths.
_QUANTILES = (10, 19)
_Histograms = dict[str, Counter[int]]
Quantiles = tuple[float, float]


def read_first_bytes(
    ledger: Connection, source: Source, dimension: str
) -> tuple[Quantiles | None, dict[str, Quantiles]]:
    """Return the median and the 95th percentile in seconds: of all served answers, and for each name.

    They are not known for callers if hourly sums are read.
    """
    if source.first_hour is None:
        return _from_rows(ledger, source, dimension)
    total, *_ = _from_hours(ledger, source, ALL).values() or [None]
    return total, _from_hours(ledger, source, dimension) if dimension in FIRST_BYTES.names else {}


def _from_hours(ledger: Connection, source: Source, dimension: str) -> dict[str, Quantiles]:
    histograms: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for row in source.read(ledger, FIRST_BYTES, dimension):
        histograms[row["name"]][int(row["word"])] += row["answers"]
    return {
        name: _quantiles(_Ranks(histogram), lambda bucket, _: float(BUCKET_GROWTH ** (bucket + 0.5)))
        for name, histogram in histograms.items()
    }


def _from_rows(ledger: Connection, source: Source, dimension: str) -> tuple[Quantiles | None, dict[str, Quantiles]]:
    [window] = source.windows
    histograms: defaultdict[str, Counter[int]] = defaultdict(Counter)
    total = Counter[int]()
    has_apps = ledger.has_column("app")
    for row in ledger.fetch(for_ledger(first_byte_counts(dimension, window), has_apps)):
        histograms[row["name"]][row["slice"]] = row["answers"]
        total[row["slice"]] += row["answers"]
    if not total:
        return None, {}
    ranks = {name: _Ranks(histogram) for name, histogram in histograms.items()}
    of_all = _Ranks(total)
    wanted = {name: set(each.wanted()) for name, each in ranks.items()}
    slices = set(of_all.wanted()).union(*wanted.values())
    values: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    everything: defaultdict[int, list[float]] = defaultdict(list)
    for row in ledger.select(for_ledger(first_bytes_in(sorted(slices), dimension, window), has_apps)):
        if row["slice"] in wanted[row["name"]]:
            values[row["name"], row["slice"]].append(row["first_byte_s"])
        everything[row["slice"]].append(row["first_byte_s"])
    for times in (*values.values(), *everything.values()):
        times.sort()
    return _quantiles(of_all, lambda slice_, place: everything[slice_][place]), {
        name: _quantiles(each, lambda slice_, place, name=name: values[name, slice_][place])  # type: ignore[misc]
        for name, each in ranks.items()
    }


class _Ranks:
    """Finds the bucket of each value of a histogram, if the values are in order."""

    def __init__(self, histogram: Counter[int]) -> None:
        self._buckets = sorted(histogram)
        self._ends = list(itertools.accumulate(histogram[bucket] for bucket in self._buckets))

    @property
    def count(self) -> int:
        return self._ends[-1]

    def find(self, place: int) -> tuple[int, int]:
        """Return the bucket of the value at this place, and its place in the bucket."""
        index = bisect.bisect_right(self._ends, place)
        return self._buckets[index], place - (self._ends[index - 1] if index else 0)

    def wanted(self) -> Iterable[int]:
        """Yield the buckets of the values beside the quantiles."""
        for twentieths in _QUANTILES:
            place = twentieths * (self.count - 1) // 20
            for beside in (place, min(place + 1, self.count - 1)):
                yield self.find(beside)[0]


def _quantiles(ranks: _Ranks, value_of: Callable[[int, int], float]) -> Quantiles:
    median, p95 = (_quantile(ranks, value_of, twentieths) for twentieths in _QUANTILES)
    return median, p95


def _quantile(ranks: _Ranks, value_of: Callable[[int, int], float], twentieths: int) -> float:
    """Return a quantile by linear interpolation, as `statistics.quantiles(method="inclusive")` does."""
    place, rest = divmod(twentieths * (ranks.count - 1), 20)
    low = value_of(*ranks.find(place))
    return low if rest == 0 else (low * (20 - rest) + value_of(*ranks.find(place + 1)) * rest) / 20
