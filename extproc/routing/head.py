"""Fit the head: the chance that a text belongs to each cohort, or to none of them.

A softmax over the cohorts and the background (multinomial logistic regression). It is fitted on the utterances and
on the texts of the background, so it needs no labelled rows.
"""

from collections.abc import Mapping

import msgspec
import numpy as np

from extproc.encoder.protocols import Vectors

# Weight of the penalty on large weights. Chosen on prompts of public sources and on CLINC150 with ten utterances
# per intent: between a third and three times this value, results change little.
_PENALTY = 1e-4
# The search ends where the loss is this flat. A limit ten times as tight takes twice as long and changes little.
_FLAT, _MOST_STEPS = 1e-3, 100
# The search changes weights in this unit. Then they are about as large as the bias, which saves half of the steps.
_UNIT = 10.0
# Rows in one product, so that ten thousand cohorts need little memory for their scores.
_ROWS = 4096


class Head(msgspec.Struct, frozen=True, eq=False):
    """The fitted layer. The softmax of `weights @ vector + bias` is the chance of each class."""

    weights: Vectors  # float32[k, d]: the cohorts, in order, then the background if there is one
    bias: Vectors  # float32[k]


def fit_head(utterances: Mapping[str, Vectors], background: Vectors | None = None) -> Head:
    """Fit the head on unit vectors, `cohort -> float32[n, d]`, and on those of the background, float32[m, d].

    Each class has the same weight, for any number of texts. Deterministic.
    """
    # The import takes 0.4 s and 43 MB. A server that finds a stored fit (config/fit_file.py) does not need it.
    from scipy.optimize import minimize

    groups = [*utterances.values(), *([background] if background is not None and len(background) else [])]
    rows = np.concatenate(groups)
    member = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    centre = np.mean([group.mean(axis=0) for group in groups], axis=0, dtype=np.float32)
    problem = _Problem(rows - centre, member, len(groups))
    fitted = minimize(
        problem.loss,
        np.zeros(len(groups) * (rows.shape[1] + 1)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _MOST_STEPS, "gtol": _FLAT, "ftol": 0.0},
    )
    weights, bias = problem.split(fitted.x)
    return Head(weights, bias - weights @ centre)


class _Problem:
    """The loss of the head: the cross-entropy, summed over the means of each class, and the penalty."""

    def __init__(self, rows: Vectors, member: np.ndarray, classes: int) -> None:
        self._rows, self._member, self._classes = rows, member, classes
        self._weight = (1 / np.bincount(member, minlength=classes))[member].astype(np.float32)

    def split(self, flat: np.ndarray) -> tuple[Vectors, Vectors]:
        """Weights and bias from the values that the search changes."""
        table = flat.reshape(self._classes, -1).astype(np.float32)
        return _UNIT * table[:, :-1], table[:, -1]

    def loss(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss and its gradient."""
        weights, bias = self.split(flat)
        loss = _PENALTY * float((weights**2).sum())
        slope, bias_slope = 2 * _PENALTY * weights, np.zeros_like(bias)
        for start in range(0, len(self._rows), _ROWS):
            part = slice(start, start + _ROWS)
            rows, member, weight = self._rows[part], self._member[part], self._weight[part]
            chances = softmax(rows @ weights.T + bias)
            own = np.arange(len(rows)), member
            loss -= float((weight * np.log(np.maximum(chances[own], 1e-30))).sum())
            chances[own] -= 1
            chances *= weight[:, None]
            slope += chances.T @ rows
            bias_slope += chances.sum(axis=0)
        return loss, np.column_stack([_UNIT * slope, bias_slope]).ravel().astype(np.float64)


def softmax(scores: Vectors) -> Vectors:
    """Return the chances of scores, in the last axis."""
    exponents: Vectors = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exponents /= exponents.sum(axis=-1, keepdims=True)
    return exponents
