"""The mean log-probability of an answer as a sign of a wrong one: which tokens to use, and which level.

The method is that of cascades by confidence (for example Gupta et al. 2024): the cheap model's certainty decides
whether a better model is asked. Only a level is fitted, which takes few rows.
"""

import math
from collections.abc import Sequence

import numpy as np

from extproc.api.observation import Observation
from extproc.evidence.measure.metrics import Bools, Floats, quantile

# Numbers of first tokens to try, in this order. A stream is buffered for 200 characters, about 50 tokens.
FIRST_TOKENS = (16, 32)
# The first tokens suffice if their AUROC is shown to be at most this much below that of all tokens.
_MOST_LOST = 0.02
# With fewer answers that are longer than the first tokens, nothing is known about them.
_LEAST_LONGER = 30
# A rule about log-probabilities is fitted if at least this share of a cohort's answers has them.
_LEAST_RECORDED = 0.9
_SIGMA = 1.645  # one-sided 95 %

Means = dict[int | None, Floats]  # first tokens (None: all) -> float64[answer], NaN without log-probabilities


def mean_logprobs(observations: Sequence[Observation | None]) -> Means:
    """Return the mean log-probability of each answer, over all its tokens and over its first ones."""
    means: Means = {}
    for first in (None, *FIRST_TOKENS):
        parts = [answer.logprobs[:first] if answer is not None else () for answer in observations]
        means[first] = np.array([sum(part) / len(part) if part else math.nan for part in parts])
    return means


def count_tokens(observations: Sequence[Observation | None]) -> Floats:
    """Return float64[answer]: how many tokens have a log-probability."""
    return np.array([len(answer.logprobs) if answer is not None else 0 for answer in observations], dtype=float)


def mostly_recorded(means: Floats) -> bool:
    """Return whether enough of these answers have log-probabilities to fit a level."""
    return bool(len(means)) and float((~np.isnan(means)).mean()) >= _LEAST_RECORDED


def tokens_that_suffice(means: Means, tokens: Floats, right: Bools) -> int | None:
    """Return the least number of first tokens that rank the answers as well as all tokens. None: all are needed.

    Only answers with more tokens count, because the others have the same mean.
    """
    whole = means[None]
    for first in FIRST_TOKENS:
        rows = ~np.isnan(whole) & (tokens > first)
        if rows.sum() < _LEAST_LONGER:
            continue
        gain, error = auroc_gain(means[first][rows], whole[rows], right[rows])
        if gain - _SIGMA * error > -_MOST_LOST:
            return first
    return None


def ranks_better(scores: Floats, others: Floats, right: Bools) -> bool:
    """Return whether `scores` are shown, at 95 %, to rank right answers above wrong ones better than `others`."""
    rows = ~np.isnan(scores) & ~np.isnan(others)
    gain, error = auroc_gain(scores[rows], others[rows], right[rows])
    return gain > _SIGMA * error


def auroc_gain(scores: Floats, others: Floats, right: Bools) -> tuple[float, float]:
    """Return (AUROC of `scores` minus that of `others`, its standard error) on the same answers.

    The method is that of DeLong et al. (1988). (NaN, NaN) without two right and two wrong answers.
    """
    if min(right.sum(), (~right).sum()) < 2:
        return math.nan, math.nan
    both = scores, others
    above = [_won(values[right], values[~right]) for values in both]
    below = [1 - _won(values[~right], values[right]) for values in both]
    variance = sum(float((first - second).var(ddof=1)) / len(first) for first, second in (above, below))
    return float(above[0].mean() - above[1].mean()), math.sqrt(variance)


def _won(values: Floats, against: Floats) -> Floats:
    """Return, for each value, the share of the other values that are lower. Equal ones count half."""
    ordered = np.sort(against)
    lower, upto = np.searchsorted(ordered, values, side="left"), np.searchsorted(ordered, values, side="right")
    share: Floats = (lower + upto) / (2 * len(ordered))
    return share


def level_at(means: Floats, share: float, weights: Floats | None = None) -> float:
    """Return the level below which about this share of the answers lies, with the digits that the YAML has.

    `weights`: how many answers each of them stands for. None: 1.
    """
    present = ~np.isnan(means)
    return min(0.0, float(f"{quantile(means[present], share, None if weights is None else weights[present]):.4g}"))
