"""Labelled rows -> each cohort's floors for a stated risk, and the probability that a match is right.

Floors and probabilities are fitted on one part of the rows and reported on another (partition.py). The exact 95 %
interval of the share of wrong matches on the reported rows shows what this one fit achieved.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from extproc.config.compile import centroids_digest
from extproc.config.schema import Intent
from extproc.evidence.execution import Execution
from extproc.evidence.fit.edits import DIGITS
from extproc.evidence.fit.floors import FloorKind, best_kind, choose_floors, least_rows
from extproc.evidence.fit.labelled import CalibrationSplit, LabelledRows, Matches
from extproc.evidence.fit.probability import fit_probability, probabilities
from extproc.evidence.measure.metrics import ece, exact_interval
from extproc.routing.policy import Cohort
from extproc.settings import Evidence, Probability


class FloorFit(msgspec.Struct, frozen=True):
    """The floors of one cohort, and their effect on the rows reported on."""

    name: str
    rows: tuple[int, int]  # rows that land here: fitted on, reported on
    before: tuple[int, int, int]  # of the rows reported on: landed here, were accepted, were accepted and wrong
    after: tuple[int, int, int]  # the same with the fitted centroids and floors
    floor: float = math.nan
    margin: float = 0.0
    evidence: Evidence | None = None  # None: no floors were fitted
    why: str = ""  # the reason that no floors were fitted

    def changes(self, intent: Intent) -> Mapping[str, Any]:
        """Return the new values of the intent's file by key. A margin of 0 only replaces a margin in the file."""
        if self.evidence is None:
            return {}
        margin = {"margin": self.margin} if self.margin or intent.margin else {}
        return {"floor": self.floor, **margin, "evidence": self.evidence}


class Calibration(msgspec.Struct, frozen=True):
    """The floors of all cohorts."""

    fits: list[FloorFit]
    kind: FloorKind  # the threshold that was fitted
    error: tuple[float, float]  # calibration error on the rows reported on: one curve for all cohorts, one for each


def calibrate(run: Execution, before: LabelledRows, split: CalibrationSplit, risk: float, date: str) -> Calibration:
    """Fit the floors of every cohort. `before` has the matches with the current centroids."""
    matches, landed = split.rows.matches, split.rows.landed
    pooled = fit_probability(matches.subset(split.fit), None)
    cohorts = [*run.snapshot.policy.cohorts.values()]
    parts = [
        (matches.subset((landed == c.name) & split.fit), matches.subset((landed == c.name) & split.report))
        for c in cohorts
    ]
    kind = best_kind([fit for fit, _ in parts], risk)
    curves = [fit_probability(fit, pooled) for fit, _ in parts]
    fits = []
    for cohort, part, curve in zip(cohorts, parts, curves, strict=True):
        landed_before = before.matches.subset((before.landed == cohort.name) & split.report)
        counts = _counts(landed_before, cohort.floor, cohort.margin)
        blank = _blank_evidence(run, split, curve, risk, date)
        fits.append(_fit_floors(cohort, part, counts, blank, kind, split.fit_share))
    right = np.concatenate([held_out.right for _, held_out in parts])
    by_pooled = np.concatenate([probabilities(pooled, held_out) for _, held_out in parts])
    by_cohort = np.concatenate(
        [probabilities(curve, held_out) for curve, (_, held_out) in zip(curves, parts, strict=True)]
    )
    return Calibration(fits, kind, (ece(by_pooled, right), ece(by_cohort, right)))


def _fit_floors(
    cohort: Cohort,
    parts: tuple[Matches, Matches],
    before: tuple[int, int, int],
    blank: Evidence,
    kind: FloorKind,
    fit_share: float,
) -> FloorFit:
    fit, held_out = parts
    sizes = len(fit.right), len(held_out.right)
    floors = choose_floors(fit, blank.risk, kind)
    if floors is None:
        why = _why_no_floors(fit, sum(sizes), blank.risk, kind, fit_share)
        return FloorFit(cohort.name, sizes, before, before, cohort.floor, cohort.margin, None, why)
    rows, accepted, wrong = after = _counts(held_out, *floors)
    low, high = exact_interval(wrong, accepted)
    evidence = msgspec.structs.replace(
        blank,
        rows=sum(sizes),
        wrong=(round(low, DIGITS), round(high, DIGITS)),
        accepted=round(accepted / max(rows, 1), DIGITS),
    )
    return FloorFit(cohort.name, sizes, before, after, *floors, evidence)


def _blank_evidence(
    run: Execution, split: CalibrationSplit, curve: Probability, risk: float, date: str
) -> Evidence:
    """Return the evidence without the results of the fit."""
    return Evidence(
        date=date,
        data=run.digest,
        rows=0,
        encoder=split.config.policy.encoder.name,
        centroids=centroids_digest(split.config),
        risk=risk,
        wrong=(0.0, 1.0),
        accepted=0.0,
        probability=curve,
    )


def _counts(matches: Matches, floor: float, margin: float) -> tuple[int, int, int]:
    """Return how many matches there are, how many are accepted, and how many of those are wrong."""
    accepted = matches.accepted(floor, margin)
    return len(accepted), int(accepted.sum()), int((accepted & ~matches.right).sum())


def _why_no_floors(fit: Matches, rows: int, risk: float, kind: FloorKind, fit_share: float) -> str:
    """Return why there are no floors, and what to do about it."""
    least = least_rows(risk)
    if least is None or len(fit.right) < least:
        return f"needs about {math.ceil((least or 0) / fit_share)} labelled rows that land here; has {rows}"
    scores = fit.similarity if kind == "similarity" else fit.margin
    wrong = float((~fit.right[scores >= np.median(scores)]).mean())
    reason = f"{100 * wrong:.0f} % of the surer half of its matches are wrong"
    more = least_rows(risk, wrong)
    if more is None:
        return f"{reason}: reword its utterances, or those of cohorts that it is confused with"
    return f"{reason}: needs about {math.ceil(2 * more / fit_share)} labelled rows; has {rows}"
