"""Labelled rows -> each cohort's floors for a stated risk, and the probability that a match is right.

The rows are matched by fits without them (learning.py). Floors and probabilities are fitted on all of them, and are
measured by cross-fitting: the rows of each fold are judged by floors that were fitted on the other folds.
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
from extproc.evidence.fit.floor_choice import FloorChoice, choose_all
from extproc.evidence.fit.floors import FloorKind, least_rows
from extproc.evidence.fit.labelled import LabelledRows, Matches
from extproc.evidence.fit.learning import FittedCentroids
from extproc.evidence.fit.probability import fit_probability, probabilities
from extproc.evidence.measure.metrics import Bools, Floats, ece, exact_interval
from extproc.settings import Evidence, Probability


class Counts(msgspec.Struct, frozen=True):
    """Matches of held-out rows. Rows of one group count as one."""

    rows: int  # landed in the cohort
    accepted: int
    wrong: float  # of the accepted ones

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the share of accepted matches that are wrong."""
        low, high = exact_interval(self.wrong, self.accepted)
        return round(low, DIGITS), round(high, DIGITS)


class FloorFit(msgspec.Struct, frozen=True):
    """The floors of one cohort, and their effect on held-out rows."""

    name: str
    rows: int  # that land here, each of them
    before: Counts
    after: Counts
    floor: float = math.nan
    margin: float = 0.0
    evidence: Evidence | None = None  # None: nothing is written
    why: str = ""  # the reason that no floors were fitted

    def changes(self, intent: Intent) -> Mapping[str, Any]:
        """Return the new values of the intent's file by key. None removes a key.

        A margin of 0 only replaces a margin in the file. A cohort that abstains loses floors that were fitted.
        """
        if self.evidence is None:
            return {}
        if self.evidence.abstains:
            fitted = intent.evidence is not None
            old = {key: None for key in ("floor", "margin") if fitted and getattr(intent, key)}
            return {**old, "evidence": self.evidence}
        margin = {"margin": self.margin} if self.margin or intent.margin else {}
        return {"floor": self.floor, **margin, "evidence": self.evidence}


class Calibration(msgspec.Struct, frozen=True):
    """The floors of all cohorts."""

    fits: list[FloorFit]
    kind: FloorKind  # the threshold of cohorts that have their own floors
    rows: tuple[int, int]  # labelled rows that floors were fitted on: all of them, and the distinct ones
    error: float  # calibration error of the probability, on held-out rows
    why: str = ""  # the reason that nothing was fitted


def calibrate(run: Execution, learned: FittedCentroids, risk: float, date: str) -> Calibration:
    """Fit the floors of every cohort."""
    rows, names = learned.rows, [*run.snapshot.policy.cohorts]
    sizes, least = (len(rows.texts), rows.matches.distinct), least_rows(risk) or 0
    if sizes[1] < least:
        why = (
            f"floors are unchanged: a risk of {100 * risk:g} % needs {least} distinct labelled rows; has {sizes[1]}"
        )
        return Calibration([], "similarity", sizes, math.nan, why)
    choices, kind = choose_all(rows, learned.floors, risk)
    accepted, chance = _cross_fitted(rows, learned.fold, learned.floors, risk)
    curves = _curves(rows, names)
    pooled = np.isin(rows.landed, [name for name, choice in choices.items() if choice.pooled])
    pool = counts_of(rows.matches, pooled, accepted)
    fits = []
    for name in names:
        here = rows.landed == name
        before, after = (counts_of(rows.matches, here, which) for which in (rows.trusted, accepted))
        blank = Evidence(
            date=date,
            data=run.digest,
            rows=after.rows,
            encoder=learned.config.policy.encoder.name,
            centroids=centroids_digest(learned.config),
            risk=risk,
            wrong=(0.0, 1.0),
            accepted=0.0,
            probability=curves[name],
        )
        choice = choices[name]
        evidence = _evidence(blank, choice, pool if choice.pooled else after, rows.matches.subset(here))
        fits.append(
            FloorFit(name, int(here.sum()), before, after, choice.floor, choice.margin, evidence, choice.why)
        )
    return Calibration(fits, kind, sizes, ece(chance, rows.matches.right))


def counts_of(matches: Matches, among: Bools, accepted: Bools) -> Counts:
    """Count the matches `among` and those of them that are accepted."""
    taken = matches.subset(among & accepted)
    return Counts(matches.subset(among).distinct, taken.distinct, taken.wrong)


def _evidence(blank: Evidence, choice: FloorChoice, counts: Counts, own: Matches) -> Evidence:
    if not choice.fitted:
        everything = Counts(own.distinct, own.distinct, own.wrong)
        return msgspec.structs.replace(blank, wrong=everything.interval, abstains=True)
    return msgspec.structs.replace(
        blank,
        wrong=counts.interval,
        accepted=round(counts.accepted / max(counts.rows, 1), DIGITS),
        pool=counts.rows if choice.pooled else None,
    )


def _curves(rows: LabelledRows, names: list[str]) -> dict[str, Probability]:
    """The probability curve of each cohort."""
    common = fit_probability(rows.matches, None)
    return {name: fit_probability(rows.matches.subset(rows.landed == name), common) for name in names}


def _cross_fitted(
    rows: LabelledRows, fold: np.ndarray, floors: Mapping[str, float], risk: float
) -> tuple[Bools, Floats]:
    """(which matches count, the probability that each is right), by fits on the rows of the other folds."""
    accepted, chance = np.zeros(len(fold), dtype=bool), np.zeros(len(fold))
    for k in np.unique(fold):
        others = rows.subset(fold != k)
        choices, _ = choose_all(others, floors, risk)
        curves = _curves(others, [*floors])
        for name in np.unique(rows.landed[fold == k].astype(str)):
            here = (fold == k) & (rows.landed == name)
            accepted[here] = choices[name].accepted(rows.matches.subset(here))
            chance[here] = probabilities(curves[name], rows.matches.subset(here))
    return accepted, chance
