"""Matches that are right or wrong -> the probability that a match is right, a logistic curve."""

import numpy as np
from scipy import optimize

from extproc.evidence.fit.edits import DIGITS
from extproc.evidence.fit.labelled import Matches
from extproc.evidence.fit.logistic import logistic
from extproc.evidence.measure.metrics import Floats
from extproc.settings import Probability

# The precision of the prior: how strongly each (standardised) coefficient of one cohort's curve is shrunk towards
# the curve of all cohorts. A dozen rows outweigh it.
_PRIOR = 1.0


def fit_probability(matches: Matches, prior: Probability | None) -> Probability:
    """Fit the probability that a match is right on its similarity and its margin. Slopes are never negative.

    Coefficients are shrunk towards `prior`. Without a prior they are shrunk weakly towards 0, which keeps them
    finite if one threshold separates right from wrong.
    """
    inputs = np.stack([matches.similarity, matches.margin, np.ones(len(matches.right))], axis=1)
    # Similarities and margins spread over about a tenth: in these units coefficients are of order one.
    unit = np.array([0.1, 0.1, 1.0])
    start = np.zeros(3) if prior is None else np.array([prior.similarity, prior.margin, prior.offset]) * unit
    # Near the floors of typical cohorts the offset moves with the slopes, so only the slopes are shrunk.
    strength = np.array([_PRIOR, _PRIOR, 0.0 if len(set(matches.right.tolist())) > 1 else _PRIOR])
    if prior is None:
        strength = strength / 10
    sign = np.where(matches.right, 1.0, -1.0)

    weights = matches.weights

    def loss(coefficients: Floats) -> tuple[float, Floats]:
        logits = sign * (inputs / unit @ coefficients)
        away = coefficients - start
        slope = -(weights * sign * logistic(-logits)) @ (inputs / unit) + strength * away
        return float(weights @ np.logaddexp(0, -logits) + (strength * away**2).sum() / 2), slope

    bounds = [(0, None), (0, None), (None, None)]
    fitted = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    similarity, margin, offset = (round(float(value), DIGITS) for value in fitted / unit)
    return Probability(similarity, margin, offset)


def probabilities(curve: Probability, matches: Matches) -> Floats:
    """Return float64[n]: the probability that each match is right."""
    return np.array([curve.of(s, m) for s, m in zip(matches.similarity, matches.margin, strict=True)], dtype=float)
