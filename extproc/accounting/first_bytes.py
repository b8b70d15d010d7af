"""The median and the 95th percentile of the time to the first byte.

From rows they are exact. Hourly sums have a histogram, and then both are at most 1 % off.
"""

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable

from extproc.accounting.connection import Connection
from extproc.accounting.queries import BUCKET_GROWTH, FIRST_BYTES, first_byte_ranks
from extproc.accounting.sources import Source

# In twentieths.
_MEDIAN, _P95 = 10, 19


def read_first_bytes(ledger: Connection, source: Source, dimension: str) -> dict[str, tuple[float, float]]:
    """Return the median and the 95th percentile in seconds, for each name that has served answers."""
    if source.first_hour is None:
        return _from_rows(ledger, source, dimension)
    histograms: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for row in source.read(ledger, FIRST_BYTES, dimension):
        histograms[row["name"]][int(row["word"])] += row["answers"]
    return {name: _of_histogram(histogram) for name, histogram in histograms.items()}


def _from_rows(ledger: Connection, source: Source, dimension: str) -> dict[str, tuple[float, float]]:
    counts: dict[str, int] = {}
    values: defaultdict[str, dict[int, float]] = defaultdict(dict)
    [window] = source.windows
    for row in ledger.fetch(first_byte_ranks(dimension, window)):
        counts[row["name"]] = row["n"]
        values[row["name"]][row["place"]] = row["first_byte_s"]
    return {name: _quantiles(count, values[name].__getitem__) for name, count in counts.items()}


def _of_histogram(histogram: Counter[int]) -> tuple[float, float]:
    buckets = sorted(histogram)
    ends = list(itertools.accumulate(histogram[bucket] for bucket in buckets))

    def value_at(place: int) -> float:
        index = bisect.bisect_right(ends, place)
        return float(BUCKET_GROWTH ** (buckets[index] + 0.5))

    return _quantiles(histogram.total(), value_at)


def _quantiles(count: int, value_at: Callable[[int], float]) -> tuple[float, float]:
    return _quantile(count, value_at, _MEDIAN), _quantile(count, value_at, _P95)


def _quantile(count: int, value_at: Callable[[int], float], twentieths: int) -> float:
    """Return a quantile by linear interpolation, as `statistics.quantiles(method="inclusive")` does."""
    place, rest = divmod(twentieths * (count - 1), 20)
    low = value_at(place)
    return low if rest == 0 else (low * (20 - rest) + value_at(place + 1) * rest) / 20
