"""The results of `extproc calibrate`, as text for a terminal."""

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
    """The kinds of centroids that were tried, the choice, and its measures on rows that no fit used."""
    if not learned.trials:
        yield from textwrap.wrap(learned.why, 116)
        return
    yield f"centroids, each tried on {learned.rows:,} labelled rows that it was not fitted on, % [95 %]"
    yield f"{'':<28}{'accuracy':<21}{'AUROC':<21}{'right and accepted':<21}gain"
    first = learned.trials[0]
    for trial in learned.trials:
        measured = (percent(trial.accuracy), percent(trial.auroc), percent(trial.routed))
        gain = percent(trial.gain, "+") if trial is not first else ""
        name = trial.kind if trial.encoder == first.encoder else f"{trial.kind}, adapted"
        yield f"{name:<28}{''.join(f'{m:<21}' for m in measured)}{gain}".rstrip()
    yield learned.why
    if learned.astray:
        yield f"with these centroids, {learned.astray} utterances are nearest to another cohort than their own"
    before, after = rows.subset(split.report), split.rows.subset(split.report)
    inside = np.array([label is not None for label in before.labels], dtype=bool)
    for name, values in {
        "accuracy": [share(each.matches.right, inside).estimate(seed) for each in (before, after)],
        "AUROC": [auroc_estimate(each.matches.similarity, inside, seed) for each in (before, after)],
    }.items():
        if learned.chosen is not None:
            yield f"on {len(before.texts):,} other rows: {name} {percent(values[1])}, before {percent(values[0])}"


def calibration_text(calibration: Calibration, risk: float, present: Mapping[str, Cohort]) -> Iterator[str]:
    """The fitted floors beside the present ones, with their measures on rows that the fit did not use."""
    fits = calibration.fits
    fitted, others = (sum(fit.rows[i] for fit in fits) for i in (0, 1))
    yield (
        f"floors of the {calibration.kind} for a risk of {100 * risk:g} %: fitted on {fitted:,} labelled rows, "
        f"measured on {others:,} others"
    )
    shared, separate = (100 * error for error in calibration.error)
    if not math.isnan(separate):
        yield (
            f"calibration error of the probability: {separate:.1f} percentage points; {shared:.1f} with one curve "
            "for all cohorts"
        )
    yield ""
    yield (
        f"{'cohort':<22}{'rows':>6}{'floor':>8}{'before':>8}{'margin':>8}{'before':>8}{'accepted %':>12}"
        f"{'before':>7}  {'wrong % [95 %]':<20}before"
    )
    calibrated = [fit for fit in fits if fit.evidence is not None]
    for fit in calibrated:
        cohort = present[fit.name]
        floors = f"{fit.floor:>8.4f}{cohort.floor:>8.4f}{fit.margin:>8.4f}{cohort.margin:>8.4f}"
        yield f"{fit.name[:21]:<22}{sum(fit.rows):>6}{floors}{_measured(fit.after, fit.before)}"
    if calibrated:
        after, before = (
            [sum(getattr(f, when)[i] for f in calibrated) for i in (0, 1, 2)] for when in ("after", "before")
        )
        total = sum(sum(fit.rows) for fit in calibrated)
        yield f"{'together':<22}{total:>6}{'':>32}{_measured(after, before)}"
    for fit in fits:
        if fit.evidence is None:
            yield f"{fit.name[:21]:<22}uncalibrated: {fit.why}"


def _measured(after: Sequence[int], before: Sequence[int]) -> str:
    """The shares accepted and wrong. `after` and `before` are (rows, accepted, wrong)."""
    low, high = (100 * end for end in exact_interval(after[2], after[1]))
    wrong = [f"{100 * wrong / accepted:.1f}" if accepted else "-" for _, accepted, wrong in (after, before)]
    accepted = [100 * accepted / max(rows, 1) for rows, accepted, _ in (after, before)]
    return f"{accepted[0]:>12.1f}{accepted[1]:>7.1f}  {f'{wrong[0]} [{low:.1f}, {high:.1f}]':<20}{wrong[1]}"


# --- choice of tiers and settings ---------------------------------------------------------------------------------


def choice_text(choice: TierChoice) -> Iterator[str]:
    """The choice beside the present settings and the controls, measured on rows that it was not made on."""
    yield f"{choice.target}: chosen on {choice.rows[0]:,} rows with outcomes, measured on {choice.rows[1]:,} others"
    yield ""
    yield (
        f"{'cohort':<22}{'rows':>6}  {'chosen':<34}{'quality % [95 %]':<21}{'before':>6}{'$/1,000':>10}"
        f"{'before':>9}"
    )
    for setting in choice.cohorts:
        if setting.plan is not None:
            quality, dollars = setting.after
            before = f"{100 * setting.before[0].value:>6.1f}{dollars.value:>10.4f}{setting.before[1].value:>9.4f}"
            chosen = f"{plan_text(setting.plan):<34}{percent(quality):<21}"
            yield f"{setting.name[:21]:<22}{sum(setting.rows):>6}  {chosen}{before}"
    for setting in choice.cohorts:
        if setting.plan is None:
            kept = f"unchanged, quality {percent(setting.before[0])}"
            yield f"{setting.name[:21]:<22}{sum(setting.rows):>6}  {kept}{': ' if setting.why else ''}{setting.why}"
    if choice.lines:
        yield ""
        yield from line_table(choice.lines)


def plan_text(plan: Plan) -> str:
    """A plan as text, for example "small, below 0.412 large, cap 800" or "small, logprob below -0.3 large"."""
    option = plan.option
    parts = [option.first]
    if option.up is not None:
        signal = "logprob " if option.signal == "logprob" else ""
        below = f"{signal}below {plan.least:g} {option.up}"
        parts.append(f"rejected {option.up}" if option.level is None else below)
    if plan.cap is not None:
        parts.append(f"cap {plan.cap}")
    return ", ".join(parts)
