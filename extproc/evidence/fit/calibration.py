"""Labelled rows -> each cohort's floors for a stated risk, and the probability that a match is right.

The rows are matched by fits without them (learning.py). Floors and probabilities are fitted on all of them, and are
measured by cross-fitting: the rows of each fold are judged by floors that were fitted on the other folds. If the
rows are of several sources, a fold is a source.
"""

import functools
import math
import operator
from collections.abc import Iterable, Mapping
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
from extproc.evidence.measure.metrics import NOTHING, Bools, Estimate, Floats, ece, exact_interval, share
from extproc.settings import Evidence, Probability

# Fewer distinct rows describe no distribution.
_LEAST_DECILES = 20


class Counts(msgspec.Struct, frozen=True):
    """Matches of held-out rows. Rows of one group count as one.

    With weights the last three members say what `accepted` and `wrong` mean for the traffic. None: no row has one.
    """

    rows: int  # landed in the cohort
    accepted: int
    wrong: float  # of the accepted ones: rows, or with weights rows of the traffic
    landed_mass: float | None = None  # rows of the traffic that landed in the cohort
    mass: float | None = None  # of these, accepted ones
    squares: float | None = None  # the sum of the squared masses of the accepted ones

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the share of accepted matches that are wrong."""
        accepted = self.effective
        low, high = exact_interval(self.wrong_share * accepted, accepted)
        return round(low, DIGITS), round(high, DIGITS)

    @property
    def effective(self) -> float:
        """The number of accepted matches of equal mass that are worth as much as these."""
        if self.mass is None or not self.squares:
            return self.accepted
        return self.mass**2 / self.squares

    @property
    def accepted_share(self) -> float:
        """The share of the traffic of this cohort that is accepted."""
        accepted, landed = self.accepted if self.mass is None else self.mass, self.landed_mass or self.rows
        return accepted / max(landed, 1e-9)

    @property
    def wrong_share(self) -> float:
        """The share of the accepted traffic that is wrong. 0 if nothing is accepted."""
        accepted = self.accepted if self.mass is None else self.mass
        return self.wrong / accepted if accepted else 0.0

    def __add__(self, other: "Counts") -> "Counts":
        """Return the counts of both."""

        def both(first: float | None, second: float | None) -> float | None:
            return None if first is None or second is None else first + second

        return Counts(
            self.rows + other.rows,
            self.accepted + other.accepted,
            self.wrong + other.wrong,
            both(self.landed_mass, other.landed_mass),
            both(self.mass, other.mass),
            both(self.squares, other.squares),
        )


def total(counts: Iterable[Counts]) -> Counts:
    """Return the sum of counts."""
    return functools.reduce(operator.add, counts)


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


class SourceFit(msgspec.Struct, frozen=True):
    """How the rows of one source fared by floors and matches that were fitted without them."""

    name: str
    after: Counts


class Calibration(msgspec.Struct, frozen=True):
    """The floors of all cohorts."""

    fits: list[FloorFit]
    kind: FloorKind  # the threshold of cohorts that have their own floors
    rows: tuple[int, int]  # labelled rows that floors were fitted on: all of them, and the distinct ones
    error: float  # calibration error of the probability, on held-out rows
    why: str = ""  # the reason that nothing was fitted
    sources: tuple[SourceFit, ...] = ()  # empty: all rows are of one source
    elsewhere: Estimate = NOTHING  # wrong share of accepted matches of a source that was left out
    weighted: bool = False


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
    source_folds = rows.source_folds
    fold = learned.fold if source_folds is None else source_folds
    accepted, chance = _cross_fitted(rows, fold, learned.floors, risk)
    elsewhere = _elsewhere(rows, accepted)
    curves = _curves(rows, names)
    pooled = np.isin(rows.landed, [name for name, choice in choices.items() if choice.pooled])
    pool = counts_of(rows.matches, pooled, accepted)
    sources = (
        ()
        if rows.sources is None
        else tuple(
            SourceFit(name, counts_of(rows.matches, rows.sources == name, accepted))
            for name in sorted({*rows.sources})
        )
    )
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
            deciles=_deciles(rows.matches.similarity[here], after.rows),
        )
        choice = choices[name]
        measured = pool if choice.pooled else after
        evidence = _evidence(blank, choice, measured, counts_of(rows.matches, here, here))
        if choice.pooled and elsewhere.known:
            wide = min(evidence.wrong[0], elsewhere.low), max(evidence.wrong[1], elsewhere.high)
            evidence = msgspec.structs.replace(evidence, wrong=tuple(round(end, DIGITS) for end in wide))
        fits.append(
            FloorFit(name, int(here.sum()), before, after, choice.floor, choice.margin, evidence, choice.why)
        )
    error = ece(chance, rows.matches.right, weights=rows.matches.masses)
    return Calibration(fits, kind, sizes, error, "", sources, elsewhere, rows.matches.mass is not None)


def _deciles(similarity: Floats, distinct: int) -> tuple[float, ...] | None:
    """The nine deciles of the similarity of a cohort's rows, or None if the rows are too few."""
    if distinct < _LEAST_DECILES:
        return None
    return tuple(round(float(cut), DIGITS) for cut in np.quantile(similarity, np.arange(1, 10) / 10))


def counts_of(matches: Matches, among: Bools, accepted: Bools) -> Counts:
    """Count the matches `among` and those of them that are accepted."""
    landed, taken = matches.subset(among), matches.subset(among & accepted)
    if matches.mass is None:
        return Counts(landed.distinct, taken.distinct, taken.wrong)
    masses, effective = taken.masses, taken.effective
    mass = float(masses.sum())
    return Counts(
        landed.distinct,
        taken.distinct,
        float(masses @ ~taken.right),
        float(landed.masses.sum()),
        mass,
        mass**2 / effective if effective else 0.0,
    )


def _elsewhere(rows: LabelledRows, accepted: Bools) -> Estimate:
    """The share of accepted matches that are wrong in a source that was left out, resampled by source.

    The interval also covers the exact one of the rows, which few sources cannot narrow.
    """
    if rows.sources is None:
        return NOTHING
    together = np.unique(rows.sources, return_inverse=True)[1]
    counts = counts_of(rows.matches, np.ones(len(accepted), dtype=bool), accepted)
    if not counts.accepted:
        return NOTHING
    wrong = share(~rows.matches.right, accepted, rows.matches.masses).estimate(0, together)
    low, high = exact_interval(counts.wrong_share * counts.effective, counts.effective)
    return Estimate(counts.wrong_share, min(low, wrong.low), max(high, wrong.high), counts.accepted)


def _evidence(blank: Evidence, choice: FloorChoice, counts: Counts, everything: Counts) -> Evidence:
    if not choice.fitted:
        return msgspec.structs.replace(blank, wrong=everything.interval, abstains=True)
    return msgspec.structs.replace(
        blank,
        wrong=counts.interval,
        accepted=round(counts.accepted_share, DIGITS),
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
            accepted[here] = choices[name].accepted(rows.subset(here))
            chance[here] = probabilities(curves[name], rows.matches.subset(here))
    return accepted, chance
