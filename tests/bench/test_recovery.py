"""The recovered quality gap, compared with cases computed by hand."""

import math

import numpy as np
import pytest

from bench import recovery


def array(*values):
    return np.array(values, dtype=float)


def test_the_curve_of_four_requests():
    """The strong model is better at two of four requests. One call, by the best score, recovers half."""
    weak, strong = array(0, 0, 1, 0), array(1, 1, 1, 0)
    scores = array(0.9, 0.2, 0.5, 0.1)
    calls, gap = recovery.recovered(scores, weak, strong)
    assert (calls.tolist(), gap.tolist()) == ([0, 0.25, 0.5, 0.75, 1], [0, 0.5, 0.5, 1, 1])
    assert recovery.apgr(scores, weak, strong) == pytest.approx(0.25 * (0.25 + 0.5 + 0.75 + 1))
    assert recovery.cpt(scores, weak, strong, 0.5) == 0.25
    assert recovery.cpt(scores, weak, strong, 0.8) == pytest.approx(0.5 + 0.25 * 0.6)


def test_equal_scores_are_random_and_no_gap_gives_nan():
    """Equal scores recover the gap in proportion to the calls."""
    weak, strong = array(0, 0, 1, 0), array(1, 1, 1, 0)
    assert recovery.apgr(np.zeros(4), weak, strong) == 0.5
    assert recovery.cpt(np.zeros(4), weak, strong, 0.8) == pytest.approx(0.8)
    assert math.isnan(recovery.apgr(array(1, 2), array(1, 0), array(0, 1)))
