"""Matches that are right or wrong -> the floors that accept the most matches at a stated risk.

The floors are conformal. A threshold accepts some of the `n` rows that it is fitted on, and some of those are
wrong. Among all thresholds with (wrong + 1) / accepted * n / (n + 1) <= risk, the one that accepts the most is
chosen. This is selection with conformal p-values and the rule of Benjamini and Hochberg (Jin and Candes 2023). For
any model and any traffic, the share of wrong matches among accepted ones is at most `risk` on average over fits.

Rows with weights stand for traffic that they were drawn from. Then `n`, `accepted` and `wrong` are sums of weights,
and the row that is added is worth as much as one effective row (weighted conformal p-values, Jin and Candes 2025).
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from extproc.evidence.fit.edits import DIGITS
from extproc.evidence.fit.labelled import Matches

FloorKind = Literal["similarity", "margin"]
_ROUNDING = 1e-9  # sums of weights are not exact


def choose_floors(matches: Matches, risk: float, kind: FloorKind) -> tuple[float, float] | None:
    """Return the (floor, margin) that accept the most matches at this risk, or None if no threshold keeps it.

    Only the threshold named by `kind` is fitted. The other one accepts every value among these matches. Matches of
    one group count as one (`Matches.weights`).
    """
    scale = 10**DIGITS
    similarity, margin = (np.floor(v * scale) / scale for v in (matches.similarity, matches.margin))
    scores, weights = similarity if kind == "similarity" else margin, matches.weights
    n = weights.sum()
    order = np.argsort(-scores, kind="stable")
    accepted = np.cumsum(weights[order])
    wrong = np.cumsum((weights * ~matches.right)[order])
    within = (wrong + 1) / accepted * n / (n + 1) <= risk + _ROUNDING
    within[:-1] &= np.diff(scores[order]) != 0  # equal scores are accepted together
    if not within.any():
        return None
    threshold = float(scores[order[np.flatnonzero(within)[-1]]])
    return (threshold, 0.0) if kind == "similarity" else (float(similarity.min()), max(0.0, threshold))


def best_kind(cohorts: Sequence[Matches], risk: float) -> FloorKind:
    """Return the kind of threshold that accepts more matches over all cohorts.

    All cohorts share one choice, so that choosing costs no confidence.
    """

    def accepted(kind: FloorKind) -> float:
        fitted = [(matches, choose_floors(matches, risk, kind)) for matches in cohorts]
        return sum(float(m.masses @ m.accepted(*floors)) for m, floors in fitted if floors is not None)

    return "margin" if accepted("margin") > accepted("similarity") else "similarity"


def least_rows(risk: float, wrong_share: float = 0.0) -> int | None:
    """Return the least number of rows to fit on that shows this risk if the share `wrong_share` of them is wrong.

    None: no number of rows shows it.
    """
    return math.ceil(1 / (risk - wrong_share)) if wrong_share < risk else None
