"""Logistic curves, and the acceptance score made of them: a planted effect is found, and noise is not."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bench import surface
from bench.logistic import fit_logistic
from bench.scorer import Judged, fit_scorer, read_answers
from extproc.evidence.measure.metrics import auroc

QUESTION = "How many apples are left of 12 after 5 are eaten?\n\nA. 5\nB. 7\nC. 17"


def test_the_curve_is_that_of_scikit_learn():
    """The same loss has the same minimum."""
    rng = np.random.default_rng(0)
    columns = rng.uniform(-1, 1, size=(400, 3))
    target = (rng.random(400) < 1 / (1 + np.exp(-2 * columns[:, 0] + columns[:, 1]))).astype(float)
    chances = fit_logistic(columns, target, np.full(3, 2.0)).chances(columns)
    scaled = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    theirs = LogisticRegression(C=0.5, tol=1e-8).fit(scaled, target).predict_proba(scaled)[:, 1]
    assert chances == pytest.approx(theirs, abs=1e-3)
    assert chances.mean() == pytest.approx(target.mean(), abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_column_or_a_target_without_variety_is_no_error(value):
    """All answers are right or all are wrong, and the fact is constant."""
    chances = fit_logistic(np.ones((20, 2)), np.full(20, value), np.ones(2)).chances(np.ones((3, 2)))
    assert chances == pytest.approx(np.full(3, value), abs=0.01)


def test_an_answer_agrees_with_its_reasoning():
    """The chosen option is the number that the reasoning ends with. With another letter it is not."""
    agreed = surface.of_answer(QUESTION, "12 minus 5 leaves 7. The answer is (B).")[-14:]
    torn = surface.of_answer(QUESTION, "12 minus 5 leaves 7. The answer is (C).")[-14:]
    # Facts 0 to 3: the choice is offered, it is mentioned, the share of its words mentioned, and its lead over the
    # others. Facts 5 to 9: it is a number, equals or is near one in the reasoning, and equals or is near the last
    # one.
    assert agreed[:4].tolist() == [1, 1, 1, 0]
    assert agreed[5:10].tolist() == [1, 1, 1, 1, 1]
    assert torn[:4].tolist() == [1, 0, 0, -1]
    assert torn[5:10].tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("text", ["", " ", "\n", "7", "The answer is (Z).", "\ud800", "-" * 5000])
def test_any_text_has_finite_facts(text):
    """The number of facts is always the same."""
    question, answer = surface.of_question(text), surface.of_answer(text, text)
    assert (question.shape, answer.shape) == ((12,), (32,))
    assert np.isfinite(question).all() and np.isfinite(answer).all()


def planted(rng: np.random.Generator, n: int) -> tuple[Judged, np.ndarray]:
    """Return answers of two cohorts. One fact raises the odds in one cohort and lowers them in the other."""
    cohort, facts = np.array(["law", "math"])[rng.integers(0, 2, n)], rng.normal(size=(n, 2))
    logits = 2 * facts[:, 0] * np.where(cohort == "law", 1, -1)
    right = (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(float)
    return Judged(cohort, facts, rng.normal(size=(n, 4)).astype(np.float32)), right


def test_the_score_learns_slopes_of_one_cohort():
    """The shared slope is near zero here. A cohort that the fit has not seen has only the shared curve."""
    rng = np.random.default_rng(1)
    judged, right = planted(rng, 2000)
    fresh, fresh_right = planted(rng, 1000)
    scorer = fit_scorer(judged, right, (10.0, 10.0, 10.0))
    assert auroc(scorer.chances(fresh), fresh_right > 0)[0] > 0.8
    again = fit_scorer(judged, right, (10.0, 10.0, 10.0))
    assert scorer.chances(fresh).tolist() == again.chances(fresh).tolist()
    strange = Judged(np.array(["art"]), fresh.facts[:1], fresh.meaning[:1])
    assert 0 < scorer.chances(strange)[0] < 1


def test_noise_is_not_learnt():
    """If no fact separates right from wrong, probabilities stay at the mean and rank no better than chance."""
    rng = np.random.default_rng(2)
    judged, _ = planted(rng, 2000)
    right = (rng.random(2000) < 0.3).astype(float)
    fresh, _ = planted(rng, 1000)
    chances = fit_scorer(judged, right).chances(fresh)
    assert chances.mean() == pytest.approx(0.3, abs=0.05)
    assert abs(auroc(chances, rng.random(1000) < 0.3)[0] - 0.5) < 0.07


def test_the_facts_that_the_score_reads():
    """One row per answer: facts of the question, facts of the answer, and whether the rules rejected it."""
    judged = read_answers(["math"] * 2, [QUESTION] * 2, ["7", "8"], [False, True], np.ones((2, 3), np.float32))
    assert (judged.facts.shape, judged.facts[:, -1].tolist(), judged.meaning.shape) == ((2, 45), [0, 1], (2, 3))
