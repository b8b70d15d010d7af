"""A sequential test of two arms, which may be looked at as often as one likes.

Each arm has a confidence sequence for its share of successes: an interval that contains the true share at every
time, with the stated probability. It is the set of shares that the mixture martingale of the Bernoulli distribution
does not reject (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021). By Ville's inequality, the martingale of
the true share ever reaches 1/error with a probability of at most `error`. The mixture is Beta(1/2, 1/2).
"""

import math
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# A count, or an array of counts.
CountLike = int | npt.NDArray[Any]

# The probability that a rollout is ever promoted wrongly, and the probability that it is ever stopped wrongly.
ERROR = 0.05
# Halvings of an interval in [0, 1]. The result is exact to 2e-8, and never too narrow.
_HALVINGS = 26
# After this many trials of the candidate, a test follows only when they have grown by this share.
_EACH, _GROWTH = 50, 1.04
_MOST_NEEDED = 10_000_000


class RolloutVerdict(StrEnum):
    """The result of comparing a candidate with the policy that serves."""

    PROMOTE = "promote"  # its accepted share is not lower by more than the tolerated loss
    STOP = "stop"  # its accepted share is lower
    HOLD = "hold"  # not known yet


class Counts(msgspec.Struct, frozen=True):
    """Trials and successes of both arms: numbers, or arrays of the same length."""

    candidate: CountLike = 0
    candidate_successes: CountLike = 0
    serving: CountLike = 0
    serving_successes: CountLike = 0


class Bounds(msgspec.Struct, frozen=True):
    """The confidence bounds of both arms' shares of successes, and of candidate minus serving."""

    candidate: tuple[Floats, Floats]
    serving: tuple[Floats, Floats]

    @property
    def lower(self) -> Floats:
        """The lower bound of candidate minus serving."""
        return self.candidate[0] - self.serving[1]

    @property
    def upper(self) -> Floats:
        """The upper bound of candidate minus serving."""
        return self.candidate[1] - self.serving[0]


def group_errors(cohorts: int) -> tuple[float, float]:
    """Split ERROR over the test of all requests and that of each cohort. All requests get half of it."""
    return (ERROR / 2, ERROR / 2 / cohorts) if cohorts else (ERROR, ERROR)


def confidence_bounds(successes: CountLike, trials: CountLike, error: float) -> tuple[Floats, Floats]:
    """The bounds of a share that hold at all times together with a probability of at least 1 - error."""
    won, lost = np.asarray(successes, np.float64), np.asarray(trials, np.float64) - successes
    # The logarithm of the likelihood below which the martingale has reached 1/error. B(1/2, 1/2) is pi.
    limit = _log_beta(won + 0.5, lost + 0.5) - math.log(math.pi / error)
    mean = won / np.maximum(won + lost, 1)
    mean = np.where(won + lost > 0, mean, 0.5)
    return _edge(won, lost, limit, mean, np.zeros_like(mean)), _edge(won, lost, limit, mean, np.ones_like(mean))


def _edge(won: Floats, lost: Floats, limit: Floats, inside: Floats, outside: Floats) -> Floats:
    """The border of the shares that are not rejected, between a share inside and one outside."""
    for _ in range(_HALVINGS):
        share = (inside + outside) / 2
        share = np.clip(share, 1e-15, 1 - 1e-15)
        holds = won * np.log(share) + lost * np.log1p(-share) > limit
        inside, outside = np.where(holds, share, inside), np.where(holds, outside, share)
    return outside


_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


def _log_beta(a: Floats, b: Floats) -> Floats:
    result: Floats = _log_gamma(a) + _log_gamma(b) - _log_gamma(np.add(a, b))
    return result


def bounds_of(counts: Counts, error: float) -> Bounds:
    """The bounds of both arms. All of them hold at all times together, with a probability of at least 1 - error."""
    candidate = confidence_bounds(counts.candidate_successes, counts.candidate, error / 2)
    return Bounds(candidate, confidence_bounds(counts.serving_successes, counts.serving, error / 2))


def rulings(counts: Counts, loss: float, error: float) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Whether the candidate is promoted, and whether it is stopped, for each of the counts.

    It is promoted when the lower bound of candidate minus serving is above -loss. It is stopped when the upper
    bound is below 0 and the observed difference is below -loss. So a loss that is tolerated does not stop it.
    """
    bounds = bounds_of(counts, error)
    difference = _share(counts.candidate_successes, counts.candidate)
    difference = difference - _share(counts.serving_successes, counts.serving)
    return np.asarray(bounds.lower > -loss), np.asarray((bounds.upper < 0) & (difference < -loss))


def _share(successes: CountLike, trials: CountLike) -> Floats:
    return np.asarray(np.asarray(successes, np.float64) / np.maximum(trials, 1))


def is_tested_at(trials: int) -> bool:
    """Whether a test follows the trial of the candidate with this number.

    The rows of a ledger are tested at the same places each time, so they always give the same verdict.
    """
    if trials <= _EACH:
        return True
    step = int(math.log(trials / _EACH) / math.log(_GROWTH))
    return any(math.ceil(_EACH * _GROWTH**near) == trials for near in (step, step + 1))


def more_needed(counts: Counts, serving_per_candidate: float, loss: float, error: float) -> int | None:
    """How many more trials of the candidate promote it if both arms have the share of successes seen so far.

    None: more than ten million.
    """
    trials, successes = counts.candidate + counts.serving, counts.candidate_successes + counts.serving_successes
    share = float((successes + 0.5) / (trials + 1))

    def is_enough(more: int) -> bool:
        candidate, serving = counts.candidate + more, counts.serving + more * serving_per_candidate
        expected = Counts(candidate, candidate * share, serving, serving * share)  # type: ignore[arg-type]
        return bool(rulings(expected, loss, error)[0])

    enough = 1
    while not is_enough(enough):
        enough *= 2
        if enough > _MOST_NEEDED:
            return None
    low, high = enough // 2, enough
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
