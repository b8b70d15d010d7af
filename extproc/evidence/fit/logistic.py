"""Chances from columns of numbers: logistic regression with a ridge, by SciPy."""

import msgspec
import numpy as np
from scipy import optimize

from extproc.evidence.measure.metrics import Floats

# What a column may be away from its mean, in standard deviations: one odd row must not decide.
_FAR = 4.0


class Logistic(msgspec.Struct, frozen=True):
    """A fitted curve; its columns are standardised by what it was fitted on."""

    center: Floats
    scale: Floats
    weights: Floats
    offset: float

    def chances(self, columns: Floats) -> Floats:
        """float64[n]: the chance of each row of float64[n, d]."""
        return logistic(standardised(columns, self.center, self.scale) @ self.weights + self.offset)


def fit_logistic(columns: Floats, target: Floats, ridge: Floats) -> Logistic:
    """Fit `target` (from 0 to 1) on float64[n, d]; `ridge`: float64[d], how much each weight is drawn to 0.

    The offset is free: on the rows fitted on, the mean chance is the mean target. Deterministic.
    """
    center, scale = spread_of(columns)
    return Logistic(center, scale, *fit_weights(standardised(columns, center, scale), target, ridge))


def fit_weights(rows: Floats, target: Floats, ridge: Floats) -> tuple[Floats, float]:
    """(weights, offset) of columns as they are."""

    def loss(coefficients: Floats) -> tuple[float, Floats]:
        weights, offset = coefficients[:-1], coefficients[-1]
        logits = rows @ weights + offset
        miss = logistic(logits) - target
        value = np.logaddexp(0, logits).sum() - target @ logits + ridge @ weights**2 / 2
        return float(value), np.append(rows.T @ miss + ridge * weights, miss.sum())

    found = optimize.minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B",
                              options={"maxiter": 200}).x  # fmt: skip
    return found[:-1], float(found[-1])


def spread_of(columns: Floats) -> tuple[Floats, Floats]:
    """(mean, standard deviation) of each column; 1 for one that never changes."""
    spread = columns.std(axis=0)
    return columns.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)


def standardised(columns: Floats, center: Floats, scale: Floats) -> Floats:
    """Columns in standard deviations from their means, bounded."""
    away: Floats = np.clip((columns - center) / scale, -_FAR, _FAR)
    return away


def logistic(values: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    chance: Floats = 1 / (1 + np.exp(-np.clip(values, -500, 500)))
    return chance
