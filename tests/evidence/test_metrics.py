"""Metrics, compared with cases computed by hand, with scikit-learn, and on degenerate data."""

import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from extproc.evidence.measure import metrics
from extproc.evidence.measure.metrics import NOTHING, Bin, Estimate, Ratio

RNG = np.random.default_rng(7)


approx: Any = pytest.approx  # it takes the place of a number in a whole value


def array(*values):
    return np.array(values, dtype=float)


def test_auroc_counts_pairs_and_halves_ties():
    """Two of four pairs are won, one is tied and one is lost: 2.5 / 4."""
    scores, positive = array(0.9, 0.3, 0.3, 0.5), np.array([True, True, False, False])
    assert metrics.auroc(scores, positive).tolist() == [0.625]


@pytest.mark.parametrize("decimals", [1, 8])
def test_auroc_equals_that_of_scikit_learn(decimals):
    """With many ties, without ties, and with weights."""
    scores, positive = RNG.random(300).round(decimals), RNG.random(300) < 0.3
    assert metrics.auroc(scores, positive)[0] == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    weights = RNG.integers(0, 4, (3, 300)).astype(float)
    expected = [roc_auc_score(positive, scores, sample_weight=w) for w in weights]
    assert metrics.auroc(scores, positive, weights).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("positive", [[True, True], [False, False], []])
def test_auroc_of_one_class_is_nothing(positive):
    """There is no pair to compare."""
    estimate = metrics.auroc_estimate(RNG.random(len(positive)), np.array(positive, dtype=bool), seed=0)
    assert (estimate.rows, math.isnan(estimate.value), estimate.known) == (0, True, False)


def test_recall_at_a_stated_rejection():
    """One of twenty rows in scope may be rejected. The threshold is the second lowest score. Ties are kept."""
    inside = np.arange(20.0)
    assert metrics.recall_at_rejection(inside, array(-1, 0.5, 1.0, 5), rejected=0.05) == 0.5
    assert metrics.recall_at_rejection(inside, array(-1, 0.5, 1.0, 5), rejected=0.0) == 0.25
    assert metrics.recall_at_rejection(np.ones(9), np.ones(4)) == 0.0
    assert math.isnan(metrics.recall_at_rejection(inside, array()))


def test_reliability_and_calibration_error():
    """Two bins: 0.15 predicted and half right, 0.95 predicted and all right: (2 * 0.35 + 2 * 0.05) / 4."""
    probability, right = array(0.1, 0.2 - 1e-9, 0.9, 1.0), np.array([True, False, True, True])
    assert metrics.reliability(probability, right, bins=5) == [
        Bin(approx(0.15), 0.5, 2, 2.0),
        Bin(approx(0.95), 1.0, 2, 2.0),
    ]
    assert metrics.ece(probability, right, bins=5) == pytest.approx(0.2)
    assert math.isnan(metrics.ece(array(), np.array([], dtype=bool)))


@pytest.mark.parametrize(
    ("wrong", "rows", "interval"),
    [
        (0, 59, (0.0, 0.06061)),  # 1 - 0.025 ** (1 / 59)
        (5, 100, (0.016432, 0.112835)),  # Clopper and Pearson's table
        (3, 3, (0.292402, 1.0)),  # 0.025 ** (1 / 3)
        (0, 0, (0.0, 1.0)),
    ],
)
def test_exact_intervals_of_a_share(wrong, rows, interval):
    """The published values, and the closed forms at the ends."""
    assert metrics.exact_interval(wrong, rows) == pytest.approx(interval, abs=1e-5)


def test_a_ratio_is_measured_with_its_interval():
    """The interval of a mean of many values is close to the normal approximation."""
    values = RNG.random(2000)
    estimate = metrics.mean(values).estimate(seed=1)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert (estimate.value, estimate.rows) == (pytest.approx(values.mean()), 2000)
    assert (estimate.low, estimate.high) == (
        pytest.approx(estimate.value - half, abs=0.002),
        pytest.approx(estimate.value + half, abs=0.002),
    )


def test_intervals_cover_the_known_mean():
    """About 95 % of the intervals of 200 samples contain the known mean."""
    covered = 0
    for seed in range(200):
        estimate = metrics.mean(np.random.default_rng(seed).random(150)).estimate(seed)
        covered += estimate.low <= 0.5 <= estimate.high
    assert 180 <= covered <= 198


def test_the_same_seed_gives_the_same_interval():
    """Another seed gives another one."""
    ratio = metrics.mean(RNG.random(50))
    assert ratio.estimate(3) == ratio.estimate(3)
    assert ratio.estimate(3) != ratio.estimate(4)


def test_degenerate_ratios():
    """No rows give no estimate. Equal values have no width, but a share of 3 in 3 is not certain."""
    none, every = np.zeros(3, dtype=bool), np.ones(3, dtype=bool)
    assert metrics.share(every, among=none).estimate(0) is NOTHING
    assert metrics.mean(array(math.nan, math.nan)).estimate(0) is NOTHING
    assert metrics.mean(array(0.4)).estimate(0) == Estimate(0.4, 0.4, 0.4, 1)
    assert metrics.share(every, among=every).estimate(0) == Estimate(1.0, approx(0.292402), 1.0, 3)
    assert math.isnan(Ratio(array(2.0), array(0.0)).value())


def test_only_a_share_has_the_interval_of_a_share():
    """Three changes of 0 may hide changes for better or worse. Three equal prices have no width."""
    most = approx(0.707598, abs=1e-5)
    assert metrics.mean(np.zeros(3), least=-1.0).estimate(0) == Estimate(0.0, approx(-0.707598, abs=1e-5), most, 3)
    assert metrics.mean(np.zeros(3), least=None).estimate(0) == Estimate(0.0, 0.0, 0.0, 3)
    assert metrics.mean(np.ones(3), least=None).estimate(0) == Estimate(1.0, 1.0, 1.0, 3)


def test_rows_of_one_conversation_are_not_independent_evidence():
    """Twenty conversations of fifteen equal rows have the intervals of twenty rows, not of three hundred."""
    rng = np.random.default_rng(0)
    right, scores = rng.random(20) < 0.5, rng.random(20)
    many, together = np.repeat(right, 15), np.repeat(np.arange(20), 15)

    def interval(estimate):
        return estimate.low, pytest.approx(estimate.value), estimate.high

    once, again = (metrics.mean(values.astype(float)) for values in (right, many))
    assert interval(again.estimate(0, together)) == interval(once.estimate(0))
    assert again.estimate(0).high < once.estimate(0).high
    alike = metrics.mean(np.ones(300)).estimate(0, together)
    assert interval(alike) == interval(metrics.mean(np.ones(20)).estimate(0))
    assert alike.rows == 300
    areas = (
        metrics.auroc_estimate(scores, right, 0),
        metrics.auroc_estimate(np.repeat(scores, 15), many, 0, together),
    )
    assert interval(areas[1]) == interval(areas[0])


def test_a_static_mix_spends_its_budget():
    """A tier that costs more and is not better is not bought. A budget that is too small buys the cheapest tier."""
    costs, qualities = array(1, 2, 5), array(0.4, 0.3, 0.8)
    budgets = array(0.5, 1, 3, 5, 9)
    prices, shares = (np.repeat(values[:, None], len(budgets), axis=1) for values in (costs, qualities))
    quality, spent = metrics.static_mix(prices, shares, budgets)
    assert quality.tolist() == pytest.approx([0.4, 0.4, 0.6, 0.8, 0.8])
    assert spent.tolist() == [1, 1, 3, 5, 5]
    worse_above = metrics.static_mix(prices, shares[::-1], budgets)
    assert [values.tolist() for values in worse_above] == [[0.8] * 5, [1] * 5]
