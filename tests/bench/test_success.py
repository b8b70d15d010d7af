"""Success predicted from the prompt: means of cohorts computed by hand, and a stack that finds a planted signal."""

import numpy as np
import pytest

from bench.recovery import apgr
from bench.success import cohort_gains, fit_stack


def test_cohort_means_are_shrunk_to_all_rows():
    """The overall mean, 0.5, has the weight of twenty rows. A new cohort gets the overall mean."""
    cohort, gain = np.array(["a"] * 20 + ["b"] * 20), np.array([1.0] * 20 + [0.0] * 20)
    assert cohort_gains(cohort, gain, np.array(["a", "b", "c"])) == pytest.approx([0.75, 0.25, 0.5])


@pytest.fixture(scope="module")
def planted():
    """Unit vectors and facts. One direction and one fact predict the gain of the strong model."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(900, 60)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    facts = rng.normal(size=(900, 3))
    chance = 1 / (1 + np.exp(-(12 * vectors[:, 0] + facts[:, 1])))
    return vectors, facts, (rng.random(900) < chance).astype(float)


def test_a_stack_finds_the_planted_signal_and_is_deterministic(planted):
    """On rows that it was not fitted on, it is well above random. A second fit is the same."""
    vectors, facts, gain = planted
    gains, second_gains = (
        fit_stack(vectors[:600], facts[:600], gain[:600], seed=0).gains(vectors[600:], facts[600:])
        for _ in range(2)
    )
    assert apgr(gains, np.zeros(300), gain[600:]) > 0.6
    assert gains.tolist() == second_gains.tolist()


def test_a_constant_gain_can_be_fitted(planted):
    """The strong model is always better by the same amount, so all prompts have the same gain."""
    vectors, facts, _ = planted
    gains = fit_stack(vectors[:100], facts[:100], np.ones(100), seed=0).gains(vectors[:5], facts[:5])
    assert np.ptp(gains) == pytest.approx(0, abs=1e-6)
