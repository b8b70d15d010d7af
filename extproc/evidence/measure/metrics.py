"""Numbers from arrays, and how sure they are. Pure; every draw is seeded.

Measures that are ratios of sums (`Ratio`) are resampled by weights: a bootstrap draw is how often each row came.
"""

import math
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Places = NDArray[np.int64]

RESAMPLES = 1000  # the ends of a 95 % interval then rest on 25 draws each
_CHUNK = 100  # of resamples held in memory at once


class Estimate(msgspec.Struct, frozen=True):
    """A number with its 95 % interval; NaN where there is nothing to measure."""

    value: float
    low: float
    high: float
    rows: int = 0

    @property
    def known(self) -> bool:
        """Whether there was anything to measure."""
        return not math.isnan(self.value)


NOTHING = Estimate(math.nan, math.nan, math.nan)


class Ratio(msgspec.Struct, frozen=True):
    """A measure that is sum(top) / sum(bottom) over rows: a share, a mean, dollars a success."""

    top: Floats
    bottom: Floats
    least: float | None = 0.0  # that a row's value can be; the most is 1. None: it may be anything, as dollars are

    def rows(self, chosen: Bools) -> "Ratio":
        """The same over some of the rows."""
        return Ratio(self.top[chosen], self.bottom[chosen], self.least)

    def value(self) -> float:
        """The measure; NaN when the bottom is 0."""
        return _divide(self.top.sum(), self.bottom.sum())

    def resampled(self, seed: int, together: Places | None = None) -> Floats:
        """The measure of each bootstrap resample, NaN where a resample has nothing to measure."""
        tops, bottoms = [], []
        for weights in resamples(len(self.top), seed, together=together):
            tops.append(weights @ self.top)
            bottoms.append(weights @ self.bottom)
        top, bottom = np.concatenate(tops), np.concatenate(bottoms)
        return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom != 0)

    def estimate(self, seed: int, together: Places | None = None) -> Estimate:
        """The measure with its interval; rows of one number in `together` are no evidence apart."""
        counted = self.bottom != 0
        if not counted.any():
            return NOTHING
        together = np.arange(len(counted)) if together is None else together
        # Rows outside the measure change nothing but the time it takes.
        chosen = counted | (self.top != 0)
        n, apart = int(counted.sum()), len(np.unique(together[counted]))
        found = spread(self.value(), self.rows(chosen).resampled(seed, together[chosen]), n)
        if self.least is not None and found.low == found.high and found.value in (self.least, 0.0, 1.0):
            # All alike: resampling them would claim certainty. The exact interval of a share does not: so many may
            # be otherwise, by as much as a row can be.
            others = exact_interval(0, apart)[1]
            return Estimate(
                found.value,
                found.value - others * (found.value - self.least),
                found.value + others * (1 - found.value),
                n,
            )
        return found


def share(of: Bools, among: Bools) -> Ratio:
    """The share of the rows `among` that are also `of`."""
    return Ratio((of & among).astype(float), among.astype(float))


def mean(values: Floats, among: Bools | None = None, least: float | None = 0.0) -> Ratio:
    """The mean of the values that are not NaN; none is below `least`, or above 1 (None: no such limits)."""
    known = ~np.isnan(values) if among is None else ~np.isnan(values) & among
    return Ratio(np.where(known, values, 0.0), known.astype(float), least)


def resamples(n: int, seed: int, times: int = RESAMPLES, together: Places | None = None) -> Iterator[Floats]:
    """Bootstrap draws as float64[some, n] counts; with one seed all measures of n rows see the same draws.

    `together`: int[n], equal for rows that are drawn together or not at all (a cluster bootstrap).
    """
    rng = np.random.default_rng(seed)
    place = np.arange(n) if together is None else np.unique(together, return_inverse=True)[1]
    units = int(place.max()) + 1 if n else 0
    for begin in range(0, times, _CHUNK):
        some = min(_CHUNK, times - begin)
        drawn = rng.integers(0, units, (some, units)) + np.arange(some)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=some * units).reshape(some, units).astype(np.float64)
        yield counts if units == n else counts[:, place]


def spread(value: float, again: Floats, rows: int) -> Estimate:
    """An estimate whose interval is the middle 95 % of resampled values."""
    again = again[~np.isnan(again)]
    if not len(again):
        return Estimate(value, math.nan, math.nan, rows)
    low, high = np.quantile(again, (0.025, 0.975), method="inverted_cdf")  # dollars a success may be infinite
    return Estimate(value, float(low), float(high), rows)


def _divide(top: float, bottom: float) -> float:
    return float(top / bottom) if bottom else math.nan


# --- in scope and out -------------------------------------------------------------------------------------------


def auroc(scores: Floats, positive: Bools, weights: Floats | None = None) -> Floats:
    """The chance that a positive scores above a negative, ties half (Mann-Whitney); NaN with one class only.

    `weights`: float64[draws, n] counts give one value a draw; without them there is one.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    _, place = np.unique(scores, return_inverse=True)
    levels = int(place.max()) + 1 if len(place) else 0
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(levels))
    up, down = (weights * side for side in (positive, ~positive))
    ups, downs = (np.add.reduceat(w[:, order], starts, axis=1) if levels else w for w in (up, down))
    below = np.cumsum(downs, axis=1) - downs
    won = (ups * (below + downs / 2)).sum(axis=1)
    pairs = ups.sum(axis=1) * downs.sum(axis=1)
    chance: Floats = np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
    return chance


def auroc_estimate(scores: Floats, positive: Bools, seed: int, together: Places | None = None) -> Estimate:
    """AUROC with its interval, likewise; NaN with one class only."""
    value = float(auroc(scores, positive)[0]) if len(scores) else math.nan
    if math.isnan(value):
        return NOTHING
    again = np.concatenate([auroc(scores, positive, w) for w in resamples(len(scores), seed, together=together)])
    return spread(value, again, len(scores))


def recall_at_rejection(inside: Floats, outside: Floats, rejected: float = 0.05) -> float:
    """The share of `outside` scores below the threshold that rejects at most the share `rejected` of `inside`."""
    if not len(inside) or not len(outside):
        return math.nan
    ordered = np.sort(inside)
    # A score is rejected when it lies below the threshold: this many of `inside` may.
    threshold = ordered[min(math.floor(rejected * len(ordered) + 1e-9), len(ordered) - 1)]
    return float((outside < threshold).mean())


# --- probabilities ----------------------------------------------------------------------------------------------


class Bin(msgspec.Struct, frozen=True):
    """Predictions of about one size: their mean, and how often they were right."""

    predicted: float
    right: float
    rows: int


def reliability(probability: Floats, right: Bools, bins: int = 10) -> list[Bin]:
    """Predictions in bins of equal width; empty bins are left out."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    return [
        Bin(float(probability[place == b].mean()), float(right[place == b].mean()), int((place == b).sum()))
        for b in np.unique(place)
    ]


def ece(probability: Floats, right: Bools, bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015): mean distance of predicted and right, over those bins."""
    if not len(probability):
        return math.nan
    found = reliability(probability, right, bins)
    return sum(b.rows * abs(b.predicted - b.right) for b in found) / len(probability)


def exact_interval(wrong: int, rows: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share, two-sided; (0, 1) without rows."""
    tail = (1 - level) / 2
    low = 0.0 if wrong == 0 else float(stats.beta.ppf(tail, wrong, rows - wrong + 1))
    high = 1.0 if wrong >= rows else float(stats.beta.ppf(1 - tail, wrong + 1, rows - wrong))
    return low, high


# --- cost and its controls ---------------------------------------------------------------------------------------


def static_mix(costs: Floats, qualities: Floats, budget: Floats) -> tuple[Floats, Floats]:
    """The best quality that a fixed random mix of tiers buys for each `budget` a request, and what it spends of it.

    `costs`, `qualities`: float64[tiers, draws], the mean of each tier. A budget below the cheapest tier buys the
    cheapest. The mix is chosen with hindsight: the control is the strongest of its kind.
    """
    cheapest = costs.argmin(axis=0)
    draws = np.arange(costs.shape[1])
    best: Floats = qualities[cheapest, draws]
    spent: Floats = costs[cheapest, draws]
    for i in range(len(costs)):
        alone = (costs[i] <= budget) & (qualities[i] > best)
        best, spent = np.where(alone, qualities[i], best), np.where(alone, costs[i], spent)
        for j in range(len(costs)):
            between = (costs[i] <= budget) & (budget < costs[j])
            part = np.divide(
                budget - costs[i], costs[j] - costs[i], out=np.zeros_like(budget), where=costs[j] != costs[i]
            )
            mixed = qualities[i] + part * (qualities[j] - qualities[i])
            mixing = between & (mixed > best)
            best, spent = np.where(mixing, mixed, best), np.where(mixing, budget, spent)
    return best, spent
