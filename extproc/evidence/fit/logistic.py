"""Logistic regression with a ridge penalty, fitted by SciPy."""

import numpy as np
from scipy import optimize

from extproc.evidence.measure.metrics import Floats


def fit_weights(rows: Floats, target: Floats, ridge: Floats, masses: Floats | None = None) -> tuple[Floats, float]:
    """Fit `target` (0 to 1) on float64[n, d] and return (weights, offset). Deterministic.

    `ridge`: float64[d], how strongly each weight is shrunk towards 0. The offset is not shrunk. `masses`: how many
    rows each row stands for, which are scaled to a mean of 1. None: 1.
    """
    mass = np.ones(len(rows)) if masses is None else masses / masses.mean()

    def loss(coefficients: Floats) -> tuple[float, Floats]:
        weights, offset = coefficients[:-1], coefficients[-1]
        logits = rows @ weights + offset
        miss = mass * (logistic(logits) - target)
        value = mass @ np.logaddexp(0, logits) - (mass * target) @ logits + ridge @ weights**2 / 2
        return float(value), np.append(rows.T @ miss + ridge * weights, miss.sum())

    start, options = np.zeros(rows.shape[1] + 1), {"maxiter": 200}
    fitted = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    return fitted[:-1], float(fitted[-1])


def spread_of(columns: Floats) -> tuple[Floats, Floats]:
    """Return the (mean, standard deviation) of each column. The deviation of a constant column is 1."""
    deviation = columns.std(axis=0)
    return columns.mean(axis=0), np.where(deviation > 1e-9, deviation, 1.0)


def logistic(values: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow."""
    chance: Floats = 1 / (1 + np.exp(-np.clip(values, -500, 500)))
    return chance
