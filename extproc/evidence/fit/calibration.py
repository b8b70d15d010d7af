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
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from scipy import optimize

from extproc.config.compile import centroids_digest, utterances_digest
from extproc.config.load import Config
from extproc.config.schema import Intent
from extproc.evidence.execution import Execution
from extproc.evidence.measure.metrics import Bools, Floats, ece, exact_interval
from extproc.routing.index import Match
from extproc.routing.policy import Cohort
from extproc.settings import Evidence, Probability

FIT_SHARE = 0.6
# Where there are so many rows that centroids are fitted, too, these are taken from FIT_SHARE, a half of it.
LEARN_SHARE = 0.3
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


class Labelled(msgspec.Struct, frozen=True, eq=False):
    """The labelled rows that have a match, an entry a row."""

    texts: list[str]
    labels: np.ndarray  # a cohort's name; None: out of scope, or of no cohort that there is
    place: Floats  # by the text's hash, from 0 to 1: which part it belongs to
    landed: np.ndarray  # the name of the nearest cohort
    matches: Matches

    def some(self, chosen: Bools) -> "Labelled":
        """Some of the rows."""
        texts = [text for text, one in zip(self.texts, chosen, strict=True) if one]
        labels, place, landed = self.labels[chosen], self.place[chosen], self.landed[chosen]
        return Labelled(texts, labels, place, landed, self.matches.rows(chosen))

    def landing(self, found: Sequence[Match]) -> "Labelled":
        """The same rows where other centroids put them."""
        landed = np.array([match.cohort for match in found], dtype=object)
        table = np.array([(match.similarity, match.margin) for match in found], dtype=np.float64).reshape(-1, 2)
        right = np.array([a == b for a, b in zip(landed, self.labels, strict=True)], dtype=bool)
        matches = Matches(table[:, 0], table[:, 1], right)
        return msgspec.structs.replace(self, landed=landed, matches=matches)


class Ground(msgspec.Struct, frozen=True, eq=False):
    """What floors are fitted for, and on."""

    rows: Labelled  # where the centroids put them that will serve
    fit: Bools  # which of them are fitted on: none that those centroids were fitted or chosen on
    report: Bools  # which of them are reported on
    part: float  # of all labelled rows that are fitted on
    config: Config  # with the encoder and centroids that will serve


class Fit(msgspec.Struct, frozen=True):
    """What calibration found for one cohort."""

    name: str
    rows: tuple[int, int]  # that land here: fitted on, reported on
    before: tuple[int, int, int]  # of the rows reported on, those that landed here, were accepted, and were wrong
    after: tuple[int, int, int]  # likewise with what was fitted
    floor: float = math.nan
    margin: float = 0.0
    evidence: Evidence | None = None  # None: too little data, or too many mistakes
    why: str = ""  # there is no evidence

    def changes(self, intent: Intent) -> Mapping[str, Any]:
        """key -> value of the intent's file; a margin of zero only where one was written."""
        if self.evidence is None:
            return {}
        margin = {"margin": self.margin} if self.margin or intent.margin else {}
        return {"floor": self.floor, **margin, "evidence": self.evidence}


class Calibration(msgspec.Struct, frozen=True):
    """What calibration found."""

    fits: list[Fit]
    kind: Kind  # which threshold was fitted
    error: tuple[float, float]  # calibration error on the rows reported on: all cohorts one curve, each its own


def calibrate(run: Execution, before: Labelled, ground: Ground, risk: float, date: str) -> Calibration:
    """Fit every cohort; `before` is where rows land with the centroids of now."""
    matches, landed = ground.rows.matches, ground.rows.landed
    pooled = fit_probability(matches.rows(ground.fit), None)
    cohorts = [*run.snapshot.policy.cohorts.values()]
    parts = [
        (matches.rows((landed == c.name) & ground.fit), matches.rows((landed == c.name) & ground.report))
        for c in cohorts
    ]
    kind = best_kind([fitted for fitted, _ in parts], risk)
    curves = [fit_probability(fitted, pooled) for fitted, _ in parts]
    fits = []
    for cohort, part, curve in zip(cohorts, parts, curves, strict=True):
        was = before.matches.rows((before.landed == cohort.name) & ground.report)
        blank = _blank(run, ground, curve, risk, date)
        fits.append(_fit(cohort, part, _counts(was, cohort.floor, cohort.margin), blank, kind, ground.part))
    right = np.concatenate([held.right for _, held in parts])
    one = np.concatenate([_chances(pooled, held) for _, held in parts])
    own = np.concatenate([_chances(curve, held) for curve, (_, held) in zip(curves, parts, strict=True)])
    return Calibration(fits, kind, (ece(one, right), ece(own, right)))


def labelled(run: Execution, seed: int) -> Labelled:
    """The labelled rows that have a match. Raises ValueError when there is none."""
    texts, labels, found = [], [], []
    for one, known in zip(run.routed, run.known, strict=True):
        match, signals = one.decision.match, one.signals
        if match is None or signals is None or known.intent is msgspec.UNSET:
            continue
        texts.append(signals.ask.text)
        labels.append(known.intent if known.intent in run.snapshot.policy.cohorts else None)
        found.append(match)
    if not texts:
        some = any(known.intent is not msgspec.UNSET for known in run.known)
        remedy = "`extproc eval` says why" if some else "give rows an `intent` (docs/evidence.md)"
        raise ValueError(f"no labelled row has a match: {remedy}")
    nothing = Matches(np.empty(0), np.empty(0), np.empty(0, dtype=bool))
    place = np.array([place_of(text, seed) for text in texts])
    return Labelled(texts, np.array(labels, dtype=object), place, np.empty(0), nothing).landing(found)


def ground_of_now(run: Execution, rows: Labelled) -> Ground:
    """The centroids that serve now, and all rows that they were not fitted on."""
    fitted = run.config.fitted
    seen = np.zeros(len(rows.texts), dtype=bool)
    if fitted is not None and centroids_digest(run.config) != utterances_digest(run.config):
        seen = np.array([place_of(text, fitted.header.seed) < LEARN_SHARE for text in rows.texts], dtype=bool)
    fit, report = (rows.place < FIT_SHARE) & ~seen, (rows.place >= FIT_SHARE) & ~seen
    return Ground(rows, fit, report, FIT_SHARE, run.config)


def place_of(text: str, seed: int) -> float:
    """From 0 to 1: the part of a text, by its words and the seed alone; repeated texts are never on both sides."""
    words = " ".join(text.lower().split()).encode()
    digest = hashlib.blake2b(words, key=str(seed).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


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
    cohort: Cohort,
    parts: tuple[Matches, Matches],
    before: tuple[int, int, int],
    blank: Evidence,
    kind: Kind,
    part: float,
) -> Fit:
    fit, held = parts
    sizes = len(fit.right), len(held.right)
    found = choose_floors(fit, blank.risk, kind)
    if found is None:
        why = _why(fit, sum(sizes), blank.risk, kind, part)
        return Fit(cohort.name, sizes, before, before, cohort.floor, cohort.margin, None, why)
    rows, accepted, wrong = after = _counts(held, *found)
    low, high = exact_interval(wrong, accepted)
    evidence = msgspec.structs.replace(
        blank,
        rows=sum(sizes),
        wrong=(round(low, _DIGITS), round(high, _DIGITS)),
        accepted=round(accepted / max(rows, 1), _DIGITS),
    )
    return Fit(cohort.name, sizes, before, after, *found, evidence)


def _blank(run: Execution, ground: Ground, curve: Probability, risk: float, date: str) -> Evidence:
    """The evidence, but for what came of the fit."""
    return Evidence(
        date=date,
        data=run.digest,
        rows=0,
        encoder=ground.config.policy.encoder.name,
        centroids=centroids_digest(ground.config),
        risk=risk,
        wrong=(0.0, 1.0),
        accepted=0.0,
        probability=curve,
    )


def _counts(matches: Matches, floor: float, margin: float) -> tuple[int, int, int]:
    accepted = matches.accepted(floor, margin)
    return len(accepted), int(accepted.sum()), int((accepted & ~matches.right).sum())


def _why(fit: Matches, rows: int, risk: float, kind: Kind, part: float) -> str:
    """Why there are no floors, and what would help."""
    least = least_rows(risk)
    if least is None or len(fit.right) < least:
        return f"needs about {math.ceil((least or 0) / part)} labelled rows that land here; has {rows}"
    scores = fit.similarity if kind == "similarity" else fit.margin
    share = float((~fit.right[scores >= np.median(scores)]).mean())
    more = least_rows(risk, share)
    found = f"{100 * share:.0f} % are wrong even of the surer half"
    if more is None:
        return f"{found}: reword its utterances, or those it is confused with"
    return f"{found}: needs about {math.ceil(2 * more / part)} labelled rows; has {rows}"
