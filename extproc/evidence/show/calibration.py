"""The results of `extproc calibrate`, as text for a terminal."""

import math
import textwrap
from collections.abc import Iterator, Mapping

from extproc.evidence.fit.calibration import Calibration, Counts, total
from extproc.evidence.fit.choice import CohortChoice, TierChoice
from extproc.evidence.fit.labelled import LabelledRows
from extproc.evidence.fit.learning import FittedCentroids
from extproc.evidence.fit.plans import NEVER
from extproc.evidence.fit.scored_table import Plan
from extproc.evidence.measure.notes import REPETITIONS
from extproc.evidence.show.controls import line_table
from extproc.evidence.show.estimate import percent
from extproc.routing.policy import Cohort
from extproc.settings import Evidence

ABSTAINING = (
    "the settings of a cohort that abstains do not apply to its requests; `abstain: off` in its file applies them"
)


def learned_text(learned: FittedCentroids, rows: LabelledRows) -> Iterator[str]:
    """The rows, the ways of matching that were tried, and the choice."""
    for sentence in matching_about(learned, rows):
        yield from textwrap.wrap(sentence, 116)
    if not learned.trials:
        return
    first = learned.trials[0]
    yield f"{'':<28}{'accuracy':<21}{'AUROC':<21}{'right and accepted':<21}gain"
    for trial in learned.trials:
        measured = (percent(trial.accuracy), percent(trial.auroc), percent(trial.routed))
        gain = percent(trial.gain, "+") if trial is not first else ""
        name = trial.kind if trial.encoder == first.encoder else f"{trial.kind}, adapted"
        yield f"{name:<28}{''.join(f'{m:<21}' for m in measured)}{gain}".rstrip()
    yield learned.why
    if learned.astray:
        yield f"then {learned.astray} utterances are nearest to another cohort than their own"


def matching_about(learned: FittedCentroids, rows: LabelledRows) -> Iterator[str]:
    """Sentences on the rows, and on the table of the ways of matching, or why there is none."""
    count, distinct = len(rows.texts), rows.matches.distinct
    if rows.drawn_from:
        yield f"{count:,} of {rows.drawn_from:,} labelled rows were drawn at random, because a fit needs no more"
    if distinct < count:
        yield f"{count:,} labelled rows count as {distinct:,}: {REPETITIONS}"
    if not learned.trials:
        yield learned.why
        return
    rows_tried = f"{learned.trials[0].accuracy.rows:,} labelled rows in scope"
    yield f"matching, each way tried on {rows_tried} that it was not fitted on, % [95 %]"


def calibration_text(calibration: Calibration, risk: float, present: Mapping[str, Cohort]) -> Iterator[str]:
    """The fitted floors beside the present ones, with their measures on rows that the fit did not use."""
    yield from floors_about(calibration, risk)
    if calibration.why:
        return
    yield ""
    yield (
        f"{'cohort':<22}{'rows':>6}{'floor':>8}{'before':>8}{'margin':>8}{'before':>8}{'accepted %':>12}"
        f"{'before':>7}  {'wrong % [95 %]':<20}before"
    )
    own, pooled, abstaining = (
        [fit for fit in calibration.fits if fit.evidence is not None and kind_of(fit.evidence) == kind]
        for kind in ("own", "pool", "abstains")
    )
    for fit in (*own, *pooled):
        cohort = present[fit.name]
        floors = f"{fit.floor:>8.4f}{cohort.floor:>8.4f}{fit.margin:>8.4f}{cohort.margin:>8.4f}"
        mark = "  pool" if fit in pooled else ""
        yield f"{fit.name[:21]:<22}{fit.after.rows:>6}{floors}{_measured(fit.after, fit.before)}{mark}"
    for name, fits in (("the pool", pooled), ("together", calibration.fits)):
        if fits and not (name == "together" and len(pooled) == len(fits)):  # the same line
            after, before = (total([getattr(fit, when) for fit in fits]) for when in ("after", "before"))
            yield f"{name:<22}{after.rows:>6}{'':>32}{_measured(after, before)}"
    for fit in abstaining:
        yield f"{fit.name[:21]:<22}{fit.after.rows:>6}  abstains: {fit.why}"
    if abstaining:
        yield ABSTAINING
    yield ""
    yield from _source_lines(calibration)


def floors_about(calibration: Calibration, risk: float) -> Iterator[str]:
    """Sentences on the table of floors, or why there is none."""
    if calibration.why:
        yield calibration.why
        return
    count, distinct = calibration.rows
    yield (
        f"floors for a risk of {100 * risk:g} %, fitted on {distinct:,} distinct rows (of {count:,}); the measures "
        f"are by fits without the {'source of the row' if calibration.sources else 'row'}"
        f"{', and shares are of the traffic, by `weight`' if calibration.weighted else ''}"
    )
    if any(fit.evidence is not None and kind_of(fit.evidence) == "pool" for fit in calibration.fits):
        yield "pool: a cohort whose own rows are too few or too much alike shares the margin of the pool"
    if not math.isnan(calibration.error):
        yield f"calibration error of the probability: {100 * calibration.error:.1f} percentage points"


def kind_of(evidence: Evidence) -> str:
    """Whether a cohort has floors of its "own", shares those of a "pool", or "abstains"."""
    if evidence.abstains:
        return "abstains"
    return "own" if evidence.pool is None else "pool"


def _source_lines(calibration: Calibration) -> Iterator[str]:
    """The figures of each source, and those to expect on other sources."""
    if calibration.sources:
        wrong = "wrong % [95 %], by matches and floors without this source"
        yield f"{'source':<22}{'rows':>6}{'accepted %':>12}  {wrong}"
    for source in calibration.sources:
        yield f"{source.name[:21]:<22}{source.after.rows:>6}{_shares(source.after)}"
    for sentence in source_note(calibration):
        yield from textwrap.wrap(sentence, 116)


def source_note(calibration: Calibration) -> Iterator[str]:
    """A sentence on what to expect on other sources."""
    if not calibration.sources:
        yield (
            "all rows are of one source, so these figures hold for rows like them. To see what holds for others, "
            "label rows of several sources (apps, customers, data sets) and give each row its `source`"
        )
        return
    new = calibration.elsewhere
    if new.known:
        yield (
            f"on a new source like these: {percent(new)} % of the accepted are wrong; the interval is over "
            f"{len(calibration.sources)} sources"
        )


def _shares(counts: Counts) -> str:
    low, high = (100 * end for end in counts.interval)
    wrong = f"{100 * counts.wrong_share:.1f} [{low:.1f}, {high:.1f}]" if counts.accepted else "-"
    return f"{100 * counts.accepted_share:>12.1f}  {wrong}"


def _measured(after: Counts, before: Counts) -> str:
    """The shares accepted and wrong."""
    low, high = (100 * end for end in after.interval)
    wrong = [f"{100 * c.wrong_share:.1f}" if c.accepted else "-" for c in (after, before)]
    accepted = [100 * c.accepted_share for c in (after, before)]
    return f"{accepted[0]:>12.1f}{accepted[1]:>7.1f}  {f'{wrong[0]} [{low:.1f}, {high:.1f}]':<20}{wrong[1]}"


# --- choice of tiers and settings ---------------------------------------------------------------------------------


def choice_text(choice: TierChoice) -> Iterator[str]:
    """The choice beside the present settings and the controls, measured on rows that it was not made on."""
    fitted, reported = choice.rows
    yield f"{choice.target}: chosen on {fitted:,} distinct rows with outcomes, measured on {reported:,} others"
    yield ""
    plans = [plan_text(setting.plan) for setting in choice.cohorts if setting.plan is not None]
    width = max([32, *map(len, plans)]) + 2
    yield (
        f"{'cohort':<22}{'rows':>6}  {'chosen':<{width}}{'quality % [95 %]':<21}{'before':>6}{'$/1,000':>10}"
        f"{'before':>9}"
    )
    for setting in choice.cohorts:
        if setting.plan is not None:
            quality, dollars = setting.after
            before = f"{100 * setting.before[0].value:>6.1f}{dollars.value:>10.4f}{setting.before[1].value:>9.4f}"
            chosen = f"{plan_text(setting.plan):<{width}}{percent(quality):<21}"
            yield f"{setting.name[:21]:<22}{sum(setting.rows):>6}  {chosen}{before}"
    for setting in choice.cohorts:
        if setting.plan is None:
            yield f"{setting.name[:21]:<22}{sum(setting.rows):>6}  {kept_text(setting)}"
    if choice.lines:
        yield ""
        yield from line_table(choice.lines)


def kept_text(setting: CohortChoice) -> str:
    """The quality of a cohort that keeps its settings, and the reason."""
    quality = setting.before[0]
    known = f", quality {percent(quality)}" if quality.known else ""
    return f"unchanged{known}{': ' if setting.why else ''}{setting.why}"


def plan_text(plan: Plan) -> str:
    """A plan as text, for example "small, below 0.412 large, cap 800" or "small, logprob below -0.3 large"."""
    option = plan.option
    parts = [option.first]
    if option.up is not None:
        signal = "logprob " if option.signal == "logprob" else ""
        below = f"{signal}below {plan.least:g} {option.up}"
        if plan.by_prompt:
            below = f"{option.up} by the prompt from {plan.least:+g}"
        if plan.by_gain:
            by_prompt = f", by the prompt from {plan.direct:+g}" if plan.direct < NEVER else ""
            below = f"{option.up} by prompt and answer from {plan.least:+g}{by_prompt}"
        parts.append(f"rejected {option.up}" if option.level is None else below)
    if plan.cap is not None:
        parts.append(f"cap {plan.cap}")
    return ", ".join(parts)
