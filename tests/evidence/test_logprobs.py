"""Levels of the mean log-probability: by hand, and on simulated answers."""

import numpy as np
import pytest

from extproc.api.observation import Observation
from extproc.evidence.fit.logprobs import (
    auroc_gain,
    count_tokens,
    level_at,
    mean_logprobs,
    mostly_recorded,
    ranks_better,
    tokens_that_suffice,
)
from extproc.evidence.measure.metrics import auroc


def answer(*logprobs):
    return Observation(text="Yes.", finish="stop", n_choices=1, complete=True, logprobs=logprobs)


def test_means_by_hand():
    """A mean is over all tokens, or over the first ones. An answer without log-probabilities has none."""
    answers = [answer(-0.5, -1.5), answer(*(-1.0,) * 16, *(-4.0,) * 16), answer(), None]
    means = mean_logprobs(answers)
    assert {first: values.tolist()[:2] for first, values in means.items()} == {
        None: [-1.0, -2.5], 16: [-1.0, -1.0], 32: [-1.0, -2.5],
    }  # fmt: skip
    assert np.isnan(means[None][2:]).all() and count_tokens(answers).tolist() == [2, 32, 0, 0]
    assert (
        not mostly_recorded(means[None]) and mostly_recorded(means[None][:2]) and not mostly_recorded(np.zeros(0))
    )


def test_a_level_rejects_its_share():
    """The level is a quantile. It keeps four digits, because sure models differ in the fifth."""
    values = -np.arange(1.0, 101.0) * 1.23456e-5
    level = level_at(values, 0.3)
    assert (values < level).sum() == 30 and level == -8.679e-4
    assert level_at(np.array([-0.0, -0.0]), 0.5) == 0.0


def test_the_difference_of_two_aurocs_by_hand():
    """Three of four pairs against two of four. A score has no advantage over itself."""
    right = np.array([True, True, False, False])
    scores, others = np.array([3.0, 1.0, 2.0, 0.0]), np.array([2.0, 0.0, 1.0, 0.0])
    gain, error = auroc_gain(scores, others, right)
    assert gain == pytest.approx(auroc(scores, right)[0] - auroc(others, right)[0]) and error > 0
    assert auroc_gain(scores, scores, right) == (0.0, 0.0)
    assert np.isnan(auroc_gain(scores, others, np.ones(4, dtype=bool))).all()


def test_the_standard_error_is_that_of_repeated_samples():
    """The stated error agrees with the spread over many samples of one population."""
    gains, errors = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        right = rng.random(300) < 0.6
        shared = rng.normal(size=300) + right
        gain, error = auroc_gain(shared + rng.normal(size=300), shared + 2 * rng.normal(size=300), right)
        gains.append(gain)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.15)


def longer_answers(count=400, tokens=40, told_early=True, seed=0):
    """Return (means, tokens, right). The doubt about wrong answers is in all tokens, or in the last ones."""
    rng = np.random.default_rng(seed)
    right = rng.random(count) < 0.6
    doubt = np.where(right, 0.0, 1.0)[:, None] * (np.arange(tokens) >= (0 if told_early else 32))
    logprobs = -rng.exponential(0.3 + doubt)
    observations = [answer(*row) for row in logprobs]
    return mean_logprobs(observations), count_tokens(observations), right


def test_first_tokens_are_used_where_they_suffice():
    """They must be shown to rank as well as all tokens, on answers that are longer."""
    assert tokens_that_suffice(*longer_answers()) == 16
    assert tokens_that_suffice(*longer_answers(told_early=False)) is None
    assert tokens_that_suffice(*longer_answers(tokens=12)) is None
    assert tokens_that_suffice(*longer_answers(count=25)) is None


def test_a_score_must_be_shown_to_rank_better():
    """An equal score is not better, and one with half the noise is."""
    rng = np.random.default_rng(1)
    right = rng.random(400) < 0.6
    means = right + rng.normal(size=400)
    assert not ranks_better(means, means, right)
    assert ranks_better(right + rng.normal(size=400) / 2, means, right)
    assert not ranks_better(rng.normal(size=400), means, right)
