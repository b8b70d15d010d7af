"""Measures computed from arrays, with their 95 % intervals. Everything random is drawn from a seed.

A measure that is a ratio of sums (`Ratio`) is resampled by weights: the number of times that each row was drawn.
"""

import math
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
GroupIds = NDArray[np.int64]

RESAMPLES = 1000  # 25 draws lie beyond each end of a 95 % interval
_CHUNK_NUMBERS = 5_000_000  # counts in memory at one time: 40 MB
_MOST_CHUNK = 100  # resamples in memory at one time, if rows are few
# With more units than this, they are joined at random into blocks of equal size, and blocks are resampled (random
# groups, Wolter 2007). The interval stays right, and its own error is 1 % of its width.
MOST_UNITS = 20_000
BLOCKS = 5_000
# With more rows than this, measures that need each row's weight are resampled fewer times.
_MANY_ROWS = 50_000
_FEW_RESAMPLES = 200


class Estimate(msgspec.Struct, frozen=True):
    """A number with its 95 % interval. NaN if there was nothing to measure."""

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
    """A measure that is sum(top) / sum(bottom) over rows: a share, a mean, or dollars per success."""

    top: Floats
    bottom: Floats
    least: float | None = 0.0  # the lowest value of a row, when the highest is 1. None: values have no limits

    def rows(self, chosen: Bools) -> "Ratio":
        """The same measure over the chosen rows."""
        return Ratio(self.top[chosen], self.bottom[chosen], self.least)

    def value(self) -> float:
        """The measure, or NaN when the sum of the bottom is 0."""
        return _divide(self.top.sum(), self.bottom.sum())

    def resampled(self, seed: int, together: GroupIds | None = None) -> Floats:
        """float64[RESAMPLES]: the measure of each bootstrap resample, or NaN where its bottom is 0."""
        unit, units = units_of(len(self.top), seed, together)
        is_each = units == len(self.top)
        parts = [part if is_each else np.bincount(unit, part, units) for part in (self.top, self.bottom)]
        drawn = [(counts @ parts[0], counts @ parts[1]) for counts in _counts(units, seed, RESAMPLES)]
        top, bottom = (np.concatenate(each) for each in zip(*drawn, strict=True))
        ratios: Floats = np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom != 0)
        return ratios

    def estimate(self, seed: int, together: GroupIds | None = None) -> Estimate:
        """The measure with its interval. Rows with the same number in `together` are not independent evidence."""
        counted = self.bottom != 0
        if not counted.any():
            return NOTHING
        together = np.arange(len(counted)) if together is None else together
        # Other rows change nothing except the time that resampling takes.
        chosen = counted | (self.top != 0)
        rows = int(counted.sum())
        estimate = spread(self.value(), self.rows(chosen).resampled(seed, together[chosen]), rows)
        value = estimate.value
        if self.least is not None and estimate.low == estimate.high and value in (self.least, 0.0, 1.0):
            # All rows are equal, so resampling would claim certainty. The exact interval of a share bounds how many
            # rows could differ, each by as much as a row can.
            differing = exact_interval(0, effective_rows(self.bottom[counted], together[counted]))[1]
            low, high = value - differing * (value - self.least), value + differing * (1 - value)
            return Estimate(value, low, high, rows)
        return estimate


def share(of: Bools, among: Bools, weights: Floats | float = 1.0) -> Ratio:
    """The share of the rows `among` for which `of` is also true. `weights`: how many rows each row stands for."""
    return Ratio(np.asarray(weights * (of & among), np.float64), np.asarray(weights * among, np.float64))


def mean(
    values: Floats, among: Bools | None = None, least: float | None = 0.0, weights: Floats | float = 1.0
) -> Ratio:
    """The mean of the values that are not NaN. Values lie between `least` and 1. None: values have no limits."""
    measured = ~np.isnan(values) if among is None else ~np.isnan(values) & among
    top = np.asarray(weights * np.where(measured, values, 0.0), np.float64)
    return Ratio(top, np.asarray(weights * measured, np.float64), least)


def quantile(values: Floats, share: float, weights: Floats | None = None) -> float:
    """The value below which this share lies. `weights`: how many values each of them stands for. None: 1."""
    if weights is None or (weights == weights[:1]).all():
        return float(np.quantile(values, share))
    return float(np.quantile(values, share, weights=weights, method="inverted_cdf"))


def effective_rows(weights: Floats, together: GroupIds | None) -> float:
    """The number of independent rows of equal weight that are worth as much as these (Kish 1965).

    Rows with the same number in `together` are one. None: each row is one.
    """
    units = weights if together is None else np.bincount(np.unique(together, return_inverse=True)[1], weights)
    return float(units.sum() ** 2 / (units @ units))


def resamples(n: int, seed: int, times: int = RESAMPLES, together: GroupIds | None = None) -> Iterator[Floats]:
    """Bootstrap draws, yielded as float64[chunk, n]: how often each draw has each row.

    Measures of the same n rows see the same draws if the seed is the same. `together` is int[n]: rows with the same
    number are drawn together or not at all (a cluster bootstrap). Many rows get fewer draws.
    """
    unit, units = units_of(n, seed, together)
    for counts in _counts(units, seed, times if n <= _MANY_ROWS else min(times, _FEW_RESAMPLES), n):
        yield counts if units == n else counts[:, unit]


def units_of(n: int, seed: int, together: GroupIds | None = None) -> tuple[GroupIds, int]:
    """Return int64[n], the number of the unit that each row is resampled with, and how many units there are.

    Rows with the same number in `together` are in one unit. Above MOST_UNITS, units are joined at random.
    """
    unit = np.arange(n) if together is None else np.unique(together, return_inverse=True)[1]
    units = int(unit.max()) + 1 if n else 0
    if units <= MOST_UNITS:
        return unit, units
    block = np.random.default_rng(seed).permutation(units) % BLOCKS
    return block[unit], BLOCKS


def _counts(units: int, seed: int, times: int, columns: int = 0) -> Iterator[Floats]:
    """Yield float64[chunk, units]: how often each draw has each unit. `columns`: numbers of a draw, if more."""
    rng = np.random.default_rng(seed)
    size = max(1, min(_MOST_CHUNK, _CHUNK_NUMBERS // max(units, columns, 1)))
    for begin in range(0, times, size):
        chunk = min(size, times - begin)
        drawn = rng.integers(0, units, (chunk, units)) + np.arange(chunk)[:, None] * units
        yield np.bincount(drawn.ravel(), minlength=chunk * units).reshape(chunk, units).astype(np.float64)


def spread(value: float, resampled: Floats, rows: int) -> Estimate:
    """An estimate whose interval is the middle 95 % of the resampled values that are not NaN."""
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return Estimate(value, math.nan, math.nan, rows)
    low, high = np.quantile(resampled, (0.025, 0.975), method="inverted_cdf")  # infinite: dollars per success
    return Estimate(value, float(low), float(high), rows)


def _divide(top: float, bottom: float) -> float:
    return float(top / bottom) if bottom else math.nan


# --- in scope and out -------------------------------------------------------------------------------------------


def auroc(scores: Floats, positive: Bools, weights: Floats | None = None) -> Floats:
    """The chance that a positive row scores above a negative one, where ties count half (Mann-Whitney).

    `weights` is float64[draws, n], and the result has one value per draw. Without weights it has one value. NaN
    without both classes.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    _, level = np.unique(scores, return_inverse=True)
    levels = int(level.max()) + 1 if len(level) else 0
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(levels))
    positives, negatives = (
        np.add.reduceat(w[:, order], starts, axis=1) if levels else w
        for w in (weights * positive, weights * ~positive)
    )
    below = np.cumsum(negatives, axis=1) - negatives
    won = (positives * (below + negatives / 2)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    chance: Floats = np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
    return chance


def auroc_estimate(
    scores: Floats, positive: Bools, seed: int, together: GroupIds | None = None, weights: Floats | None = None
) -> Estimate:
    """AUROC with its interval. NaN without both classes. `together` as in `resamples`, `weights` by row."""
    weights = np.ones(len(scores)) if weights is None else weights
    value = float(auroc(scores, positive, weights[None])[0]) if len(scores) else math.nan
    if math.isnan(value):
        return NOTHING
    draws = resamples(len(scores), seed, together=together)
    return spread(value, np.concatenate([auroc(scores, positive, w * weights) for w in draws]), len(scores))


def recall_at_rejection(
    inside: Floats, outside: Floats, rejected: float = 0.05, weights: tuple[Floats, Floats] | None = None
) -> float:
    """The share of `outside` scores below the threshold that rejects at most the share `rejected` of `inside`.

    `weights`: how many rows each score of `inside` and of `outside` stands for.
    """
    if not len(inside) or not len(outside):
        return math.nan
    inner, outer = weights if weights is not None else (np.ones(len(inside)), np.ones(len(outside)))
    order = np.argsort(inside, kind="stable")
    # A score below the threshold is rejected. The threshold is the score above the ones of `inside` that may be.
    may_be = int((np.cumsum(inner[order]) <= rejected * inner.sum() + 1e-9).sum())
    threshold = inside[order[min(may_be, len(order) - 1)]]
    return float(np.average(outside < threshold, weights=outer))


# --- probabilities ----------------------------------------------------------------------------------------------


class Bin(msgspec.Struct, frozen=True):
    """Predictions of similar size: their mean, and the share of them that were right."""

    predicted: float
    right: float
    rows: int
    weight: float  # rows of the traffic that these stand for


def reliability(probability: Floats, right: Bools, bins: int = 10, weights: Floats | None = None) -> list[Bin]:
    """Predictions in bins of equal width, without the empty bins. `weights`: how many rows each row stands for."""
    weights = np.ones(len(right)) if weights is None else weights
    bin_of = np.minimum((probability * bins).astype(int), bins - 1)
    chosen = [bin_of == b for b in np.unique(bin_of)]
    filled = []
    for rows in chosen:
        predicted, is_right = (float(np.average(of[rows], weights=weights[rows])) for of in (probability, right))
        filled.append(Bin(predicted, is_right, int(rows.sum()), float(weights[rows].sum())))
    return filled


def ece(probability: Floats, right: Bools, bins: int = 10, weights: Floats | None = None) -> float:
    """Expected calibration error (Naeini et al. 2015): mean difference of predicted and right over these bins."""
    filled = reliability(probability, right, bins, weights)
    total = sum(b.weight for b in filled)
    return sum(b.weight * abs(b.predicted - b.right) for b in filled) / total if filled else math.nan


def exact_interval(wrong: float, rows: float, level: float = 0.95) -> tuple[float, float]:
    """The two-sided interval of the share wrong / rows by Clopper and Pearson. (0, 1) without rows.

    Both may have fractions, if a row stands for several. Then the interval is too wide.
    """
    tail = (1 - level) / 2
    low = 0.0 if wrong <= 0 else float(special.betaincinv(wrong, rows - wrong + 1, tail))
    high = 1.0 if wrong >= rows else float(special.betaincinv(wrong + 1, rows - wrong, 1 - tail))
    return low, high


# --- cost and its controls ---------------------------------------------------------------------------------------


def static_mix(costs: Floats, qualities: Floats, budget: Floats) -> tuple[Floats, Floats]:
    """(quality, cost): the best that a fixed random mix of tiers buys for each `budget` per request.

    `costs` and `qualities` are float64[tiers, draws], the mean of each tier. `budget` is float64[draws]. A budget
    below the cheapest tier buys the cheapest tier. The mix is chosen with hindsight, which makes it the strongest
    control of its kind.
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
            share_j = np.divide(
                budget - costs[i], costs[j] - costs[i], out=np.zeros_like(budget), where=costs[j] != costs[i]
            )
            mixed = qualities[i] + share_j * (qualities[j] - qualities[i])
            better = between & (mixed > best)
            best, spent = np.where(better, mixed, best), np.where(better, budget, spent)
    return best, spent
