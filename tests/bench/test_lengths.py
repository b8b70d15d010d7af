"""The choice of a tier with a cap: what a cap costs and cuts, and what equal quality costs."""

import numpy as np
import pytest

from bench.lengths import (
    TIER,
    WAYS,
    CappedTier,
    Lengths,
    cost_at,
    lines,
    points_of,
    served,
)


def lengths(n: int = 400, wrong_tokens: float = 1000.0) -> Lengths:
    """A cheap model that is right on two thirds, and a dear one that is always right. Wrong answers are long."""
    right = np.stack([np.arange(n) % 3 > 0, np.ones(n)], axis=1).astype(float)
    tokens = np.where(right > 0, 100.0 + np.arange(n)[:, None] % 7, wrong_tokens)
    price = np.array([1e-6, 1e-5])
    return Lengths("made", ["small", "large"], np.full(n, "all"), right, np.zeros((n, 2)), tokens, price)


def test_a_cut_answer_is_wrong_and_costs_its_cap():
    data = lengths(3)
    right, cost = served(data, CappedTier(0, 100.0))
    assert right.tolist() == [0.0, 0.0, 0.0], "the first is wrong, and two are longer than the cap"
    assert cost.tolist() == pytest.approx([1e-4, 1e-4, 1e-4])
    right, cost = served(data, CappedTier(0, 150.0, then=1))
    assert right.tolist() == [1.0, 1.0, 1.0]
    assert cost.tolist() == pytest.approx([150e-6 + 1e-3, 101e-6, 102e-6])


def test_equal_quality_is_a_mix_of_two_points_or_unreachable():
    quality, cost = np.array([[0.4], [0.8]]), np.array([[1.0], [3.0]])
    assert cost_at(quality, cost, np.array([0.6])) == pytest.approx([2.0])
    assert cost_at(quality, cost, np.array([0.3])) == pytest.approx([1.0])
    assert np.isnan(cost_at(quality, cost, np.array([0.9]))).all()


def test_caps_pay_where_wrong_answers_are_long_and_only_there():
    """With long wrong answers a cap saves, and a cut answer that goes to the next tier makes all of them right."""
    draws = np.ones(400) / 400
    for wrong_tokens, pays in ((1000.0, True), (50.0, False)):
        data = lengths(wrong_tokens=wrong_tokens)
        costs = {}
        for name in (TIER, "tier and cap together", "tier and cap, next tier if cut"):
            right, cost = points_of(data, WAYS[name], seed=0)
            costs[name] = float(cost_at((right @ draws)[:, None], (cost @ draws)[:, None], np.array([0.8]))[0])
        assert (costs["tier and cap together"] < 0.95 * costs[TIER]) is pays
        assert (costs["tier and cap, next tier if cut"] < 0.95 * costs[TIER]) is pays


def test_the_table_has_a_line_for_each_way():
    text = "\n".join(lines(lengths(), seed=0, resamples=20))
    for name in ("static mix of the tiers", *WAYS):
        assert text.count(f"\n{name} ") == 1 + (name != TIER)
