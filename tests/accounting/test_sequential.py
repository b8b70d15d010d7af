"""The sequential test: its bounds hold at all times together, and its verdicts are wrong as seldom as it says."""

import itertools

import numpy as np
import pytest

from extproc.accounting.sequential import (
    ERROR,
    Counts,
    bounds_of,
    confidence_bounds,
    group_errors,
    is_tested_at,
    more_needed,
    rulings,
)


def test_the_bounds_are_those_of_the_martingale() -> None:
    """There, the martingale has just reached 1/error. It is the mean likelihood ratio over Beta(1/2, 1/2)."""
    won, trials, error = 37, 50, 0.01
    shares = (np.arange(200_000) + 0.5) / 200_000
    weights = 1 / np.sqrt(shares * (1 - shares))
    weights /= weights.sum()
    for bound in confidence_bounds(won, trials, error):
        ratio = won * np.log(shares / bound) + (trials - won) * np.log((1 - shares) / (1 - bound))
        assert np.sum(weights * np.exp(ratio)) == pytest.approx(1 / error, rel=0.01)


def test_without_trials_nothing_is_known_and_arrays_are_as_single_counts() -> None:
    assert [float(bound) for bound in confidence_bounds(0, 0, 0.05)] == pytest.approx([0, 1])
    lower, upper = confidence_bounds(np.array([0, 9, 9]), np.array([9, 9, 10]), 0.05)
    assert lower[0] == pytest.approx(0, abs=1e-9) and upper[1] == pytest.approx(1, abs=1e-9)
    assert [lower[2], upper[2]] == pytest.approx([float(bound) for bound in confidence_bounds(9, 10, 0.05)])


def test_the_true_share_leaves_the_bounds_of_few_sequences_at_any_time() -> None:
    """With intervals for one look, most of these sequences would leave them."""
    rng, share, error = np.random.default_rng(5), 0.9, 0.1
    left = 0
    for _ in range(200):
        won = np.cumsum(rng.random(1000) < share)
        lower, upper = confidence_bounds(won, np.arange(1, 1001), error)
        left += bool(((lower > share) | (upper < share)).any())
    assert left / 200 <= error


@pytest.mark.parametrize(
    ("counts", "loss", "expected"),
    [
        (Counts(9, 0, 9, 9), 0.02, (False, True)),  # nothing accepted against everything
        (Counts(8, 0, 8, 8), 0.02, (False, False)),  # too few to know
        (Counts(9000, 8100, 90000, 81000), 0.02, (True, False)),
        (Counts(9000, 8100, 90000, 81000), 0.005, (False, False)),
        (Counts(90000, 80100, 900000, 810000), 0.02, (True, False)),  # surely lower, and tolerated
        (Counts(90000, 78000, 900000, 810000), 0.02, (False, True)),
    ],
)
def test_the_verdict_follows_from_the_bounds(counts: Counts, loss: float, expected: tuple[bool, bool]) -> None:
    promoted, stopped = rulings(counts, loss, ERROR / 2)
    assert (bool(promoted), bool(stopped)) == expected


def test_the_bounds_of_the_difference_come_from_both_arms() -> None:
    bounds = bounds_of(Counts(100, 80, 1000, 900), 0.05)
    assert bounds.lower == bounds.candidate[0] - bounds.serving[1]
    assert bounds.upper == bounds.candidate[1] - bounds.serving[0]
    assert bounds.lower < -0.1 < bounds.upper


def test_all_tests_together_have_the_stated_error() -> None:
    whole, each = group_errors(7)
    assert whole + 7 * each == pytest.approx(ERROR)
    assert group_errors(0)[0] == ERROR


def test_tests_become_rarer() -> None:
    places = [n for n in range(1, 10_001) if is_tested_at(n)]
    assert places[:50] == list(range(1, 51))
    assert len(places) < 200
    assert max(b / a for a, b in itertools.pairwise(places[49:])) < 1.06


def test_the_power_is_the_number_that_then_promotes() -> None:
    seen = Counts(200, 180, 800, 720)
    more = more_needed(seen, 4.0, 0.02, 0.025)
    assert more is not None
    for part, expected in ((0.98, False), (1.02, True)):
        candidate = round((200 + part * more) / 10) * 10
        then = Counts(candidate, candidate * 9 // 10, candidate * 4, candidate * 36 // 10)
        assert bool(rulings(then, 0.02, 0.025)[0]) is expected
    assert more_needed(seen, 4.0, 0.0001, 0.025) is None
