"""What `extproc calibrate` fitted and chose, as text for a terminal."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from extproc.evidence.fit.calibration import Calibration
from extproc.evidence.fit.choice import TierChoice
from extproc.evidence.fit.labelled import CalibrationSplit, LabelledRows
from extproc.evidence.fit.learning import FittedCentroids
from extproc.evidence.fit.plans import Plan
from extproc.evidence.measure.metrics import auroc_estimate, exact_interval, share
from extproc.evidence.show.controls import line_table
from extproc.evidence.show.estimate import percent
from extproc.routing.policy import Cohort


def learned_text(learned: FittedCentroids, rows: LabelledRows, split: CalibrationSplit, seed: int) -> Iterator[str]:
    """The ways of making centroids that were tried, the choice, and what it does on rows that nothing had seen."""
    if not learned.trials:
        yield from textwrap.wrap(learned.why, 116)
        return
    yield f"centroids, tried on {learned.rows:,} labelled rows that each was fitted without, % [95 %]"
    yield f"{'':<28}{'accuracy':<21}{'AUROC':<21}{'right and above':<21}gain"
    for way in learned.trials:
        measured = (percent(way.accuracy), percent(way.auroc), percent(way.routed))
        first = learned.trials[0]
        gain = percent(way.gain, "+") if way is not first else ""
        name = way.kind if way.encoder == first.encoder else f"{way.kind}, adapted"
        yield f"{name:<28}{''.join(f'{m:<21}' for m in measured)}{gain}".rstrip()
    yield learned.why
    if learned.astray:
        yield f"{learned.astray} utterances are then nearest to another cohort than their own"
    was, now = rows.subset(split.report), split.rows.subset(split.report)
    inside = np.array([label is not None for label in was.labels], dtype=bool)
    for name, values in {
        "accuracy": [share(each.matches.right, inside).estimate(seed) for each in (was, now)],
        "AUROC": [auroc_estimate(each.matches.similarity, inside, seed) for each in (was, now)],
    }.items():
        if learned.chosen is not None:
            yield f"on {len(was.texts):,} rows reported on: {name} {percent(values[1])}, was {percent(values[0])}"


def calibration_text(found: Calibration, risk: float, present: Mapping[str, Cohort]) -> Iterator[str]:
    """What was fitted beside what it replaces, on the rows that the fit had not seen."""
    fitted, held = (sum(fit.rows[i] for fit in found.fits) for i in (0, 1))
    yield f"fitted on {fitted:,} labelled rows, reported on {held:,} others; risk {100 * risk:g} %, by {found.kind}"
    one, own = (100 * error for error in found.error)
    if not math.isnan(own):
        yield f"calibration error of the probability: {own:.1f} points, {one:.1f} with one curve for all cohorts"
    yield ""
    yield (
        f"{'cohort':<22}{'rows':>6}{'floor':>8}{'was':>8}{'margin':>8}{'was':>8}{'accepted %':>12}{'was':>7}"
        f"  {'wrong % [95 %]':<20}was"
    )
    calibrated = [fit for fit in found.fits if fit.evidence is not None]
    for fit in calibrated:
        was = present[fit.name]
        floors = f"{fit.floor:>8.4f}{was.floor:>8.4f}{fit.margin:>8.4f}{was.margin:>8.4f}"
        yield f"{fit.name[:21]:<22}{sum(fit.rows):>6}{floors}{_on_others(fit.after, fit.before)}"
    if calibrated:
        after, before = (
            [sum(getattr(f, when)[i] for f in calibrated) for i in (0, 1, 2)] for when in ("after", "before")
        )
        total = sum(sum(fit.rows) for fit in calibrated)
        yield f"{'together':<22}{total:>6}{'':>32}{_on_others(after, before)}"
    for fit in found.fits:
        if fit.evidence is None:
            yield f"{fit.name[:21]:<22}uncalibrated: {fit.why}"


def _on_others(after: Sequence[int], before: Sequence[int]) -> str:
    low, high = (100 * end for end in exact_interval(after[2], after[1]))
    shares = [f"{100 * wrong / accepted:.1f}" if accepted else "-" for _, accepted, wrong in (after, before)]
    accepted = [100 * accepted / max(rows, 1) for rows, accepted, _ in (after, before)]
    return f"{accepted[0]:>12.1f}{accepted[1]:>7.1f}  {f'{shares[0]} [{low:.1f}, {high:.1f}]':<20}{shares[1]}"


# --- choice of tiers and settings ---------------------------------------------------------------------------------


def choice_text(found: TierChoice) -> Iterator[str]:
    """What was chosen beside what it replaces, and beside the controls, on the rows that it was not chosen on."""
    yield (f"{found.target}: chosen on {found.rows[0]:,} rows with outcomes, reported on {found.rows[1]:,} others")
    yield ""
    yield f"{'cohort':<22}{'rows':>6}  {'chosen':<34}{'quality % [95 %]':<21}{'was':>5}{'$/1,000':>10}{'was':>9}"
    for choice in found.cohorts:
        if choice.plan is not None:
            quality, dollars = choice.after
            was = f"{100 * choice.before[0].value:>5.1f}{dollars.value:>10.4f}{choice.before[1].value:>9.4f}"
            told = f"{plan_text(choice.plan):<34}{percent(quality):<21}"
            yield f"{choice.name[:21]:<22}{sum(choice.rows):>6}  {told}{was}"
    for choice in found.cohorts:
        if choice.plan is None:
            kept = f"as it is, {percent(choice.before[0])}"
            yield f"{choice.name[:21]:<22}{sum(choice.rows):>6}  {kept}{': ' if choice.why else ''}{choice.why}"
    if found.lines:
        yield ""
        yield from line_table(found.lines)


def plan_text(plan: Plan) -> str:
    """A plan in a few words: "small, below 0.412 large, at most 800 tokens"."""
    option = plan.option
    told = [option.first]
    if option.up is not None:
        told.append(f"rejected {option.up}" if option.level is None else f"below {plan.least:g} {option.up}")
    if plan.cap is not None:
        told.append(f"cap {plan.cap}")
    return ", ".join(told)
