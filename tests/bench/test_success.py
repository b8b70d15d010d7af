"""Success predicted from the prompt: cohorts' means worked by hand, and a stack that finds what is planted."""

import numpy as np
import pytest

from bench.recovery import apgr
from bench.success import cohort_gains, fit_stack


def test_cohort_means_are_shrunk_to_all_rows():
    """Twenty rows' worth of the overall mean, 0.5, beside a cohort's own; it alone for one never seen."""
    cohort, gain = np.array(["a"] * 20 + ["b"] * 20), np.array([1.0] * 20 + [0.0] * 20)
    assert cohort_gains(cohort, gain, np.array(["a", "b", "c"])) == pytest.approx([0.75, 0.25, 0.5])


@pytest.fixture(scope="module")
def planted():
    """Unit vectors and facts; one direction and one fact say what the strong model is worth."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(900, 60)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    facts = rng.normal(size=(900, 3))
    chance = 1 / (1 + np.exp(-(12 * vectors[:, 0] + facts[:, 1])))
    return vectors, facts, (rng.random(900) < chance).astype(float)


def test_a_stack_finds_what_is_planted_and_is_deterministic(planted):
    """On rows it has not seen, well above random; twice the same."""
    vectors, facts, gain = planted
    found, again = (
        fit_stack(vectors[:600], facts[:600], gain[:600], seed=0).gains(vectors[600:], facts[600:])
        for _ in range(2)
    )
    assert apgr(found, np.zeros(300), gain[600:]) > 0.6
    assert found.tolist() == again.tolist()


def test_nothing_to_learn_is_no_error(planted):
    """The strong model is always better by as much: every prompt is alike."""
    vectors, facts, _ = planted
    found = fit_stack(vectors[:100], facts[:100], np.ones(100), seed=0).gains(vectors[:5], facts[:5])
    assert np.ptp(found) == pytest.approx(0, abs=1e-6)
