"""From the prompt alone: how much more likely the dearer tier is right. What `tier` a cohort deserves, and past it.

`cohort_gains` is what a fitted tier a cohort amounts to. `fit_stack` asks more of the prompt: neighbours, a ridge
and boosted trees on embeddings and countable facts, blended by what each predicts of rows it had not seen.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from extproc.encoder.protocols import Vectors
from extproc.evidence.measure.metrics import Floats

# In rows: what all rows say of a cohort's mean, beside its own.
_PRIOR = 20.0
_NEIGHBOURS = 100
_RIDGE = 300.0
_FOLDS = 3

Predict = Callable[[Vectors, Floats], Floats]


def cohort_gains(cohort: np.ndarray, gain: Floats, asked: np.ndarray) -> Floats:
    """The mean gain of each cohort in `asked`, shrunk to the mean of all; that mean for one never seen."""
    overall = float(gain.mean())
    names, member = np.unique(cohort, return_inverse=True)
    total = np.bincount(member, weights=gain) + _PRIOR * overall
    means = dict(zip(names.tolist(), total / (np.bincount(member) + _PRIOR), strict=True))
    return np.array([means.get(name, overall) for name in asked.tolist()], dtype=np.float64)


class Stack(msgspec.Struct, frozen=True):
    """Fitted learners and their blend."""

    learners: tuple[Any, ...]  # Predict
    blend: Floats

    def gains(self, vectors: Vectors, facts: Floats) -> Floats:
        """float64[n]: predicted gain, to rank by."""
        predicted: Floats = _table(self.learners, vectors, facts) @ self.blend
        return predicted


def fit_stack(vectors: Vectors, facts: Floats, gain: Floats, seed: int) -> Stack:
    """Fit on float32[n, d] unit vectors, float64[n, f] facts and float64[n] gains. Needs scikit-learn."""
    fold = np.random.default_rng(seed).permutation(len(gain)) % _FOLDS
    unseen = np.zeros((len(gain), len(_LEARNERS)))
    for k in range(_FOLDS):
        seen, held = fold != k, fold == k
        unseen[held] = _table(_fit(vectors[seen], facts[seen], gain[seen]), vectors[held], facts[held])
    return Stack(_fit(vectors, facts, gain), _blend(unseen, gain))


def _fit(vectors: Vectors, facts: Floats, gain: Floats) -> tuple[Predict, ...]:
    return tuple(learn(vectors, facts, gain) for learn in _LEARNERS)


def _table(learners: tuple[Any, ...], vectors: Vectors, facts: Floats) -> Floats:
    return np.stack([predict(vectors, facts) for predict in learners], axis=1)


def _blend(unseen: Floats, gain: Floats) -> Floats:
    """Weights from 0 up that predict best; a learner that adds nothing gets none."""
    from scipy import optimize

    found: Floats = optimize.nnls(unseen - unseen.mean(axis=0), gain - gain.mean())[0]
    return found if found.any() else np.ones(unseen.shape[1])


def _neighbours(vectors: Vectors, facts: Floats, gain: Floats) -> Predict:
    """Similar prompts vote, near ones more."""
    count = min(_NEIGHBOURS, len(gain))

    def predict(asked: Vectors, _: Floats) -> Floats:
        found = np.empty(len(asked))
        for begin in range(0, len(asked), 1000):
            near = asked[begin : begin + 1000] @ vectors.T
            best = np.argpartition(-near, count - 1, axis=1)[:, :count]
            weight = np.exp(10 * np.take_along_axis(near, best, axis=1))
            found[begin : begin + 1000] = (weight * gain[best]).sum(axis=1) / weight.sum(axis=1)
        return found

    return predict


def _ridge(vectors: Vectors, facts: Floats, gain: Floats) -> Predict:
    """One slope for each number, drawn to 0."""
    center, spread = facts.mean(axis=0), np.maximum(facts.std(axis=0), 1e-9)

    def columns(asked: Vectors, counted: Floats) -> Floats:
        # Both of about unit size: an embedding's numbers are of the order of 1 / sqrt(d).
        told = np.clip((counted - center) / spread, -4, 4)
        return np.hstack([asked * np.sqrt(asked.shape[1]), told])

    rows, mean = columns(vectors, facts), float(gain.mean())
    shift = rows.mean(axis=0)
    square = (rows - shift).T @ (rows - shift) + _RIDGE * np.eye(rows.shape[1])
    slopes = np.linalg.solve(square, (rows - shift).T @ (gain - mean))
    return lambda asked, counted: np.asarray((columns(asked, counted) - shift) @ slopes + mean, dtype=np.float64)


def _boosting(vectors: Vectors, facts: Floats, gain: Floats) -> Predict:
    """Small trees on facts and on the directions in which prompts differ most."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    mean = vectors.mean(axis=0)
    directions = np.linalg.eigh(np.cov((vectors - mean).T))[1][:, -50:]

    def columns(asked: Vectors, counted: Floats) -> Floats:
        return np.hstack([(asked - mean) @ directions, counted])

    trees = HistGradientBoostingRegressor(
        max_iter=150,
        learning_rate=0.04,
        max_leaf_nodes=12,
        min_samples_leaf=40,
        l2_regularization=10.0,
        random_state=0,
    ).fit(columns(vectors, facts), gain)
    return lambda asked, counted: np.asarray(trees.predict(columns(asked, counted)), dtype=np.float64)


_LEARNERS = (_neighbours, _ridge, _boosting)
