"""Columns of numbers -> probabilities: a logistic curve with standardised columns."""

import msgspec
import numpy as np

from extproc.evidence.fit.logistic import fit_weights, logistic, spread_of
from extproc.evidence.measure.metrics import Floats

# Columns are clipped to this many standard deviations from their mean, so that one odd row does not decide.
_MOST_DEVIATIONS = 4.0


class Logistic(msgspec.Struct, frozen=True):
    """A fitted curve. Its columns are standardised with the mean and the spread of the rows fitted on."""

    center: Floats
    scale: Floats
    weights: Floats
    offset: float

    def chances(self, columns: Floats) -> Floats:
        """Return float64[n]: the probability of each row of float64[n, d]."""
        return logistic(_standardised(columns, self.center, self.scale) @ self.weights + self.offset)


def fit_logistic(columns: Floats, target: Floats, ridge: Floats) -> Logistic:
    """Fit `target` (0 to 1) on float64[n, d]. `ridge`: float64[d], how strongly each weight is shrunk towards 0.

    The offset is not shrunk: on the rows fitted on, the mean probability is the mean target. Deterministic.
    """
    center, scale = spread_of(columns)
    return Logistic(center, scale, *fit_weights(_standardised(columns, center, scale), target, ridge))


def _standardised(columns: Floats, center: Floats, scale: Floats) -> Floats:
    """Return the columns in standard deviations from their means, clipped."""
    deviations: Floats = np.clip((columns - center) / scale, -_MOST_DEVIATIONS, _MOST_DEVIATIONS)
    return deviations
