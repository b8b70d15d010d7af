"""Labelled rows -> each cohort's floors for a stated risk, and the probability that a match is right.

Fitted on one part of the rows, reported on the other; a text's part depends on nothing but its hash and the seed.

The floors are conformal: of the thresholds at which (wrong + 1) / accepted * n / (n + 1) is at most `risk` over
the n rows fitted on, the one that accepts most. That is selection with conformal p-values and the rule of Benjamini
and Hochberg (Jin and Candes 2023): whatever the model and the traffic, the share of wrong matches among accepted
ones is at most `risk` on average over fits. What one fit achieved is said by the exact 95 % interval on the rows
reported on.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from scipy import optimize

from extproc.offline.execution import Execution
from extproc.offline.metrics import Bools, Floats, ece, exact_interval
from extproc.settings import Evidence, Probability
from extproc.snapshot import centroids_digest

FIT_SHARE = 0.6
# A cohort's own curve is drawn to that of all cohorts as by so much precision in each (standardised) coefficient:
# a dozen rows outweigh it.
_PRIOR = 1.0
_DIGITS = 4  # of the numbers in the YAML; scores are rounded before thresholds are tried


Kind = Literal["similarity", "margin"]


class Matches(msgspec.Struct, frozen=True):
    """Labelled rows by their match, an entry a row."""

    similarity: Floats
    margin: Floats
    right: Bools  # the nearest cohort is the label's; never for rows out of scope

    def rows(self, chosen: Bools) -> "Matches":
        """Some of them."""
        return Matches(self.similarity[chosen], self.margin[chosen], self.right[chosen])

    def accepted(self, floor: float, margin: float) -> Bools:
        """Those that a policy with these floors would trust."""
        return (self.similarity >= floor) & (self.margin >= margin)


class Fit(msgspec.Struct, frozen=True):
    """What calibration found for one cohort."""

    name: str
    rows: tuple[int, int]  # that landed here: fitted on, reported on
    before: tuple[int, int]  # of the rows reported on, accepted by the present floors, and wrong of those
    after: tuple[int, int]  # likewise by the fitted ones
    floor: float = math.nan
    margin: float = 0.0
    evidence: Evidence | None = None  # None: too little data, or too many mistakes
    why: str = ""  # there is no evidence


class Calibration(msgspec.Struct, frozen=True):
    """What calibration found."""

    fits: list[Fit]
    kind: Kind  # which threshold was fitted
    error: tuple[float, float]  # calibration error on the rows reported on: all cohorts one curve, each its own
    rows: int  # labelled, with a match


def calibrate(run: Execution, risk: float, date: str, seed: int) -> Calibration:
    """Fit every cohort. Raises ValueError when nothing is labelled."""
    names, matches, fit = _labelled(run, seed)
    if not len(names):
        raise ValueError("no labelled row has a match: give rows an `intent` (docs/evidence.md)")
    pooled = fit_probability(matches.rows(fit), None)
    cohorts = [*run.snapshot.policy.cohorts]
    parts = [(matches.rows((names == name) & fit), matches.rows((names == name) & ~fit)) for name in cohorts]
    kind = best_kind([fitted for fitted, _ in parts], risk)
    curves = [fit_probability(fitted, pooled) for fitted, _ in parts]
    fits = [_fit(run, *of, risk, kind, date) for of in zip(cohorts, parts, curves, strict=True)]
    right = np.concatenate([held.right for _, held in parts])
    one = np.concatenate([_chances(pooled, held) for _, held in parts])
    own = np.concatenate([_chances(curve, held) for curve, (_, held) in zip(curves, parts, strict=True)])
    return Calibration(fits, kind, (ece(one, right), ece(own, right)), len(names))


def _labelled(run: Execution, seed: int) -> tuple[np.ndarray, Matches, Bools]:
    """(nearest cohorts, matches, which rows are fitted on) of the labelled rows that have a match."""
    names, values, right, fit = [], [], [], []
    for one, known in zip(run.routed, run.known, strict=True):
        match, signals = one.decision.match, one.signals
        if match is None or signals is None or known.intent is msgspec.UNSET:
            continue
        names.append(match.cohort)
        values.append((match.similarity, match.margin))
        right.append(match.cohort == known.intent)
        fit.append(is_fitted(signals.ask.text, seed))
    table = np.array(values, dtype=np.float64).reshape(-1, 2)
    matches = Matches(table[:, 0], table[:, 1], np.array(right, dtype=bool))
    return np.array(names, dtype=object), matches, np.array(fit, dtype=bool)


def is_fitted(text: str, seed: int) -> bool:
    """Whether a text belongs to the part that is fitted on; the same text always does or never."""
    digest = hashlib.blake2b(
        " ".join(text.lower().split()).encode(), key=str(seed).encode(), digest_size=8
    ).digest()
    return int.from_bytes(digest, "big") / 2**64 < FIT_SHARE


# --- probability ------------------------------------------------------------------------------------------------


def fit_probability(matches: Matches, prior: Probability | None) -> Probability:
    """The logistic curve of rightness on similarity and margin, slopes from 0 up, drawn towards `prior`.

    Without a prior it is drawn to 0, which keeps it finite where one threshold tells right from wrong.
    """
    inputs = np.stack([matches.similarity, matches.margin, np.ones(len(matches.right))], axis=1)
    # Similarities and margins spread over about a tenth: in such units coefficients are of order one.
    unit = np.array([0.1, 0.1, 1.0])
    start = np.zeros(3) if prior is None else np.array([prior.similarity, prior.margin, prior.offset]) * unit
    # At the floors of typical cohorts the offset moves with the slopes; only slopes are drawn.
    pull = np.array([_PRIOR, _PRIOR, 0.0 if len(set(matches.right.tolist())) > 1 else _PRIOR])
    if prior is None:
        pull = pull / 10
    sign = np.where(matches.right, 1.0, -1.0)

    def loss(coefficients: Floats) -> tuple[float, Floats]:
        logits = sign * (inputs / unit @ coefficients)
        away = coefficients - start
        slope = -(sign * _logistic(-logits)) @ (inputs / unit) + pull * away
        return float(np.logaddexp(0, -logits).sum() + (pull * away**2).sum() / 2), slope

    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None), (0, None), (None, None)])
    similarity, margin, offset = (round(float(value), _DIGITS) for value in found.x / unit)
    return Probability(similarity, margin, offset)


def _logistic(values: Floats) -> Floats:
    chance: Floats = 1 / (1 + np.exp(-np.clip(values, -700, 700)))
    return chance


def _chances(curve: Probability, matches: Matches) -> Floats:
    return np.array([curve.of(s, m) for s, m in zip(matches.similarity, matches.margin, strict=True)], dtype=float)


# --- floors -----------------------------------------------------------------------------------------------------


def choose_floors(matches: Matches, risk: float, kind: Kind) -> tuple[float, float] | None:
    """(floor, margin) that accept most of the matches at this risk; None if no threshold does.

    One of the two is fitted; the other lets pass what lies where rows were seen.
    """
    scale = 10**_DIGITS
    similarity, margin = (np.floor(v * scale) / scale for v in (matches.similarity, matches.margin))
    scores = similarity if kind == "similarity" else margin
    n = len(scores)
    order = np.argsort(-scores, kind="stable")
    accepted = np.arange(1, n + 1)
    wrong = np.cumsum(~matches.right[order])
    held = (wrong + 1) / accepted * n / (n + 1) <= risk
    held[:-1] &= np.diff(scores[order]) != 0  # equal scores are accepted together
    if not held.any():
        return None
    threshold = float(scores[order[np.flatnonzero(held)[-1]]])
    return (threshold, 0.0) if kind == "similarity" else (float(similarity.min()), max(0.0, threshold))


def best_kind(cohorts: Sequence[Matches], risk: float) -> Kind:
    """Which threshold accepts more over all cohorts: one choice for all, so that it costs no confidence."""

    def accepted(kind: Kind) -> int:
        found = [(matches, choose_floors(matches, risk, kind)) for matches in cohorts]
        return sum(int(matches.accepted(*floors).sum()) for matches, floors in found if floors is not None)

    return "margin" if accepted("margin") > accepted("similarity") else "similarity"


def least_rows(risk: float, wrong_share: float = 0.0) -> int | None:
    """How many rows to fit on show this risk if such a share of them is wrong; None when no number does."""
    return math.ceil(1 / (risk - wrong_share)) if wrong_share < risk else None


# --- one cohort -------------------------------------------------------------------------------------------------


def _fit(
    run: Execution,
    name: str,
    parts: tuple[Matches, Matches],
    curve: Probability,
    risk: float,
    kind: Kind,
    date: str,
) -> Fit:
    cohort, (fit, held) = run.snapshot.policy.cohorts[name], parts
    sizes = len(fit.right), len(held.right)
    before = _counts(held, held.accepted(cohort.floor, cohort.margin))
    found = choose_floors(fit, risk, kind)
    if found is None:
        return Fit(
            name, sizes, before, before, cohort.floor, cohort.margin, None, _why(fit, sum(sizes), risk, kind)
        )
    floor, margin = found
    accepted, wrong = _counts(held, held.accepted(floor, margin))
    low, high = exact_interval(wrong, accepted)
    evidence = Evidence(
        date=date,
        data=run.digest,
        rows=sum(sizes),
        encoder=run.snapshot.encoder.model,
        centroids=centroids_digest(run.config),
        risk=risk,
        wrong=(round(low, _DIGITS), round(high, _DIGITS)),
        accepted=round(accepted / max(sizes[1], 1), _DIGITS),
        probability=curve,
    )
    return Fit(name, sizes, before, (accepted, wrong), floor, margin, evidence)


def _counts(matches: Matches, accepted: Bools) -> tuple[int, int]:
    return int(accepted.sum()), int((accepted & ~matches.right).sum())


def _why(fit: Matches, rows: int, risk: float, kind: Kind) -> str:
    """Why there are no floors, and what would help."""
    least = least_rows(risk)
    if least is None or len(fit.right) < least:
        return f"needs about {_in_all(least or 0)} labelled rows that land here; has {rows}"
    scores = fit.similarity if kind == "similarity" else fit.margin
    share = float((~fit.right[scores >= np.median(scores)]).mean())
    more = least_rows(risk, share)
    found = f"{100 * share:.0f} % are wrong even of the surer half"
    if more is None:
        return f"{found}: reword its utterances, or those it is confused with"
    return f"{found}: needs about {_in_all(2 * more)} labelled rows; has {rows}"


def _in_all(fitted: int) -> int:
    return math.ceil(fitted / FIT_SHARE)
