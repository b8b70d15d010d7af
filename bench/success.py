"""Predictions from the prompt alone: how much more likely is the more expensive tier to be right?

`cohort_gains` predicts the mean of the cohort, as a fitted tier per cohort does. `fit_stack` uses more of the
prompt: neighbours, ridge regression and boosted trees on embeddings and countable facts. Their blend depends on how
well each one predicts rows that it was not fitted on. `served_gains` is what `extproc calibrate --target` fits and
the router serves.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from extproc.encoder.protocols import Vectors
from extproc.evidence.fit.prompt_gains import Prompts, Rows, fit_answer_trees, fit_columns, fit_trees, gains_by
from extproc.evidence.measure.metrics import Floats
from extproc.routing.ask import find_ask
from extproc.routing.prompt_facts import prompt_facts
from extproc.routing.prompt_gain import LEAST_COST

# The weight of the overall mean in a cohort's mean, in rows.
_PRIOR = 20.0
_NEIGHBOURS = 100
_RIDGE = 300.0
_FOLDS = 3

Predict = Callable[[Vectors, Floats], Floats]


def cohort_gains(cohort: np.ndarray, gain: Floats, wanted: np.ndarray) -> Floats:
    """The mean gain of each cohort in `wanted`, shrunk to the overall mean. The overall mean for a new cohort."""
    overall = float(gain.mean())
    names, member = np.unique(cohort, return_inverse=True)
    total = np.bincount(member, weights=gain) + _PRIOR * overall
    means = dict(zip(names.tolist(), total / (np.bincount(member) + _PRIOR), strict=True))
    return np.array([means.get(name, overall) for name in wanted.tolist()], dtype=np.float64)


class Stack(msgspec.Struct, frozen=True):
    """Fitted learners and their blend."""

    learners: tuple[Any, ...]  # Predict
    blend: Floats

    def gains(self, vectors: Vectors, facts: Floats) -> Floats:
        """float64[n]: predicted gains, to rank by."""
        predicted: Floats = _table(self.learners, vectors, facts) @ self.blend
        return predicted


def fit_stack(vectors: Vectors, facts: Floats, gain: Floats, seed: int) -> Stack:
    """Fit on float32[n, d] unit vectors, float64[n, f] facts and float64[n] gains. Needs scikit-learn."""
    fold = np.random.default_rng(seed).permutation(len(gain)) % _FOLDS
    unseen = np.zeros((len(gain), len(_LEARNERS)))
    for k in range(_FOLDS):
        fitted, held_out = fold != k, fold == k
        learners = _fit(vectors[fitted], facts[fitted], gain[fitted])
        unseen[held_out] = _table(learners, vectors[held_out], facts[held_out])
    return Stack(_fit(vectors, facts, gain), _blend(unseen, gain))


def _fit(vectors: Vectors, facts: Floats, gain: Floats) -> tuple[Predict, ...]:
    return tuple(learn(vectors, facts, gain) for learn in _LEARNERS)


def _table(learners: tuple[Any, ...], vectors: Vectors, facts: Floats) -> Floats:
    return np.stack([predict(vectors, facts) for predict in learners], axis=1)


def _blend(unseen: Floats, gain: Floats) -> Floats:
    """Non-negative weights that predict best. A learner that adds nothing gets 0."""
    from scipy import optimize

    weights: Floats = optimize.nnls(unseen - unseen.mean(axis=0), gain - gain.mean())[0]
    return weights if weights.any() else np.ones(unseen.shape[1])


class Columns(msgspec.Struct, frozen=True):
    """Scales the columns of a fit, and of later prompts in the same way."""

    center: Floats
    spread: Floats

    def of(self, vectors: Vectors, facts: Floats) -> Floats:
        """float64[n, d + f]: both parts at about unit size. The numbers of an embedding are about 1 / sqrt(d)."""
        scaled = np.clip((facts - self.center) / self.spread, -4, 4)
        return np.hstack([vectors * np.sqrt(vectors.shape[1]), scaled])


def scale(facts: Floats) -> Columns:
    """The columns for these facts."""
    return Columns(facts.mean(axis=0), np.maximum(facts.std(axis=0), 1e-9))


def _neighbours(vectors: Vectors, facts: Floats, gain: Floats) -> Predict:
    """A weighted mean over similar prompts. Nearer prompts weigh more."""
    count = min(_NEIGHBOURS, len(gain))

    def predict(prompts: Vectors, _: Floats) -> Floats:
        gains = np.empty(len(prompts))
        for begin in range(0, len(prompts), 1000):
            similarity = prompts[begin : begin + 1000] @ vectors.T
            nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
            weight = np.exp(10 * np.take_along_axis(similarity, nearest, axis=1))
            gains[begin : begin + 1000] = (weight * gain[nearest]).sum(axis=1) / weight.sum(axis=1)
        return gains

    return predict


def _ridge(vectors: Vectors, facts: Floats, gain: Floats) -> Predict:
    """Ridge regression: one slope for each number, shrunk to 0."""
    columns = scale(facts)
    rows, mean = columns.of(vectors, facts), float(gain.mean())
    shift = rows.mean(axis=0)
    square = (rows - shift).T @ (rows - shift) + _RIDGE * np.eye(rows.shape[1])
    slopes = np.linalg.solve(square, (rows - shift).T @ (gain - mean))
    return lambda prompts, prompt_facts: np.asarray(
        (columns.of(prompts, prompt_facts) - shift) @ slopes + mean, dtype=np.float64
    )


def boosted_trees(vectors: Vectors, facts: Floats, gain: Floats) -> Predict:
    """Boosted small trees on facts and on the 50 directions in which prompts differ most."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    mean = vectors.mean(axis=0)
    directions = np.linalg.eigh(np.cov((vectors - mean).T))[1][:, -50:]

    def columns(prompts: Vectors, prompt_facts: Floats) -> Floats:
        return np.hstack([(prompts - mean) @ directions, prompt_facts])

    trees = HistGradientBoostingRegressor(
        max_iter=150,
        learning_rate=0.04,
        max_leaf_nodes=12,
        min_samples_leaf=40,
        l2_regularization=10.0,
        random_state=0,
    ).fit(columns(vectors, facts), gain)
    return lambda prompts, prompt_facts: np.asarray(trees.predict(columns(prompts, prompt_facts)), dtype=np.float64)


class Answered(msgspec.Struct, frozen=True):
    """Answers of the cheaper tier as `extproc calibrate --target` reads them, one row each."""

    facts: Floats  # `score_facts`
    cost: Floats  # [row, 2]: dollars of both tiers


class Asked(msgspec.Struct, frozen=True):
    """Prompts as `extproc calibrate --target` reads them, one row each."""

    vectors: Vectors
    facts: Vectors  # `prompt_facts`
    cohort: np.ndarray
    success: Floats  # [row, 2]: of the cheaper tier, and of the costlier one
    extra: Floats  # dollars of the costlier tier minus those of the cheaper one


def served_gains(fit: Asked, new: Asked, seed: int) -> Floats:
    """Predicted gains at the mean extra cost, by the trees that serve, fitted on one part."""
    gain, cost = served_parts(fit, new, seed)
    return gain / cost


def served_parts(fit: Asked, new: Asked, seed: int) -> tuple[Floats, Floats]:
    """(predicted gains, predicted extra cost where 1 is the mean of the fit), by the trees that serve."""
    prompts = Prompts(fit.vectors, fit.facts, fit.vectors.shape[1])
    columns = fit_columns(prompts, np.ones(len(fit.vectors), dtype=bool))
    rows = columns.of(fit.vectors, fit.facts)
    trees = fit_trees(rows, fit.success, fit.extra, fit.cohort, ("small", "large"), seed)
    known = np.isin(new.cohort, list(trees.rates))  # other cohorts have the means of all rows
    gain, cost = np.full(len(known), trees.gain.base), np.ones(len(known))
    if known.any():
        rates = np.stack([trees.rates[str(name)] for name in new.cohort[known]])
        rows = np.hstack([columns.of(new.vectors[known], new.facts[known]), rates])
        gain[known], cost[known] = trees.gain.values(rows), np.maximum(trees.cost.values(rows), LEAST_COST)
    return gain, cost


def served_answers(fit: tuple[Asked, Answered], new: tuple[Asked, Answered], seed: int) -> Floats:
    """Predicted gains for the mean extra cost, given the cheaper tier's answer, by the trees that serve.

    All cohorts of `new` are in `fit`.
    """
    (asked, answered), (new_asked, _) = fit, new
    prompts = Prompts(asked.vectors, asked.facts, asked.vectors.shape[1])
    columns = fit_columns(prompts, np.ones(len(asked.vectors), dtype=bool))
    rows, new_rows = (
        np.hstack([columns.of(a.vectors, a.facts), b.facts]).astype(np.float32) for a, b in (fit, new)
    )
    trees = fit_answer_trees(Rows(rows, asked.success, answered.cost, asked.cohort), ("small", "large"), seed)
    return gains_by(trees, new_rows, new_asked.cohort)


def asked_facts(prompts: Sequence[str]) -> Vectors:
    """float32[n, facts], as the router reads them from a request of one turn."""
    return np.stack([prompt_facts(find_ask([_Turn((prompt,))])) for prompt in prompts])


class _Turn(msgspec.Struct, frozen=True):
    texts: tuple[str, ...]
    role: str = "user"
    tool_result: bool = False


_LEARNERS = (_neighbours, _ridge, boosted_trees)
