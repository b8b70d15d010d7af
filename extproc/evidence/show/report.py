"""What was found, as text for a terminal: compact, in lines of at most 116 characters where names allow."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from extproc.evidence.fit.calibration import Calibration, Ground, Labelled
from extproc.evidence.fit.choice import Choice
from extproc.evidence.fit.learning import Learned
from extproc.evidence.fit.options import Plan
from extproc.evidence.measure.comparison import COST, Cell, Comparison, GateVerdict
from extproc.evidence.measure.controls import ControlLine
from extproc.evidence.measure.evaluation import Evaluation, Group
from extproc.evidence.measure.metrics import Estimate, auroc_estimate, exact_interval, share
from extproc.evidence.perturb.robustness import Robustness
from extproc.routing.policy import Cohort

# Cohorts and confusions shown in a terminal; the JSON has them all.
_MOST_GROUPS = 40
_MOST_CONFUSIONS = 8


def evaluation_text(report: Evaluation) -> str:
    """The report in lines of at most 116 characters."""
    return "\n".join(_lines(report))


def _lines(report: Evaluation) -> Iterator[str]:
    d = report.data
    yield (
        f"traffic   {d['traffic']}: {d['rows']:,} rows, {d['labelled']:,} labelled ({d['out_of_scope']:,} out of "
        f"scope), {d['with_outcomes']:,} with outcomes; {d['skipped']} skipped"
    )
    yield (
        f"intents   revision {d['revision']}, {d['cohorts']} cohorts, {d['calibrated']} calibrated; "
        f"sealed {d['sealed']}"
    )
    for note in report.notes:
        yield from textwrap.wrap(f"note      {note}", 116, subsequent_indent=" " * 10)
    if d["labelled"]:
        yield ""
        yield from _matching(report)
    yield ""
    yield from _serving(report)
    if report.lines:
        yield ""
        yield from _controls(report)
    if report.latency_s:
        yield ""
        yield f"{'path':<40}{'rows':>7}{'p50 s':>9}{'p95 s':>9}"
        for path, (rows, p50, p95) in report.latency_s.items():
            yield f"{path:<40}{rows:>7}{p50:>9.2f}{p95:>9.2f}"
    if report.robustness is not None:
        yield ""
        yield from robustness_text(report.robustness)


def robustness_text(found: Robustness) -> Iterator[str]:
    """What flipped, by kind of change, and the words of the gadgets."""
    bounded = any(effect.held.known for effect in found.effects)
    yield (
        f"{'changed, % [95 %]':<30}{'rows':>5}  {'flipped':<20}{'to a dearer tier':<20}{'above':>6}"
        f"{'held' if bounded else '':>6}{'cheaper':>9}  routed right"
    )
    for e in found.effects:
        held = _number(e.held, 100) if bounded else ""
        moved = f"{_number(e.above, 100):>6}{held:>6}{_number(e.downgraded, 100):>9}"
        right = f"{_number(e.right, 100)} ({100 * e.change.value:+.1f})" if e.right.known else "-"
        yield f"{e.kind[:29]:<30}{e.rows:>5}  {percent(e.flipped):<20}{percent(e.upgraded):<20}{moved}  {right}"
    yield from (f"{e.kind}: {e.gadget!r}" for e in found.effects if e.gadget)
    for note in found.notes:
        yield from textwrap.wrap(f"note      {note}", 116, subsequent_indent=" " * 10)


def _matching(report: Evaluation) -> Iterator[str]:
    if report.auroc.known:
        yield (
            f"out of scope: recall {percent(report.scope_recall)}, at 5 % rejected in scope "
            f"{100 * report.scope_recall_at_5:.1f}; AUROC of {report.score} {percent(report.auroc)}"
        )
    if report.reliability:
        yield f"calibration error of the probability: {100 * report.calibration_error:.1f} points"
    yield ""
    yield (
        f"{'matching, % [95 %]':<22}{'rows':>6}  {'nearest is right':<21}{'accepted':<21}{'wrong of accepted':<21}"
        "fallback"
    )
    for group in _shown(report):
        cells = (group.accuracy, group.accepted, group.wrong, group.fallback)
        yield f"{group.name[:21]:<22}{group.rows:>6}  " + "".join(f"{percent(e):<21}" for e in cells).rstrip()
    yield from _left_out(report)
    wrong = [(a, b, rows) for a, b, rows in report.confusion if a != b and (a, b) != ("out of scope", "fallback")]
    wrong = [pair for pair in wrong if pair[1] != "fallback"] + [pair for pair in wrong if pair[1] == "fallback"]
    told = "; ".join(f"{a} -> {b} {rows}" for a, b, rows in wrong[:_MOST_CONFUSIONS])
    yield from textwrap.wrap(f"most confused: {told}", 116) if wrong else ()


def _serving(report: Evaluation) -> Iterator[str]:
    yield f"{'serving':<22}{'rows':>6}  {'first tier, %':<34}{'escalated %':>11}  reasons"
    for group in _shown(report):
        tiers = _shares(group.tiers, group.rows)
        yield (
            f"{group.name[:21]:<22}{group.rows:>6}  {tiers[:33]:<34}{_number(group.escalated, 100):>11}  "
            f"{_shares(group.reasons, group.rows)}"
        )[:116]
    if report.overall.rejections:
        told = ", ".join(f"{reason} {rows}" for reason, rows in report.overall.rejections.items())
        yield f"rejected because: {told}; corrected by climbing: {percent(report.overall.corrected)} %"


def _controls(report: Evaluation) -> Iterator[str]:
    yield from line_table(report.lines)
    measured = [g for g in _shown(report)[1:] if g.quality.known]
    if len(measured) < 2:
        return
    yield ""
    yield f"{'quality by cohort':<24}{'quality % [95 %]':<22}{'$/1,000':>9}{'$/success':>11}"
    for g in measured:
        per_success = f"{g.per_success.value:>11.6f}" if g.per_success.known else f"{'-':>11}"
        yield f"{g.name[:23]:<24}{percent(g.quality):<22}{g.per_1000.value:>9.4f}{per_success}"


def line_table(lines: Sequence[ControlLine]) -> Iterator[str]:
    """What is configured beside its controls."""
    yield f"{'quality and cost':<24}{'quality % [95 %]':<22}{'$/1,000':>9}{'$/success':>11}   configured, less this"
    for line in lines:
        behind = "" if line.behind is None else f"{percent(line.behind, '+')} points{_verdict(line.behind)}"
        dollars = f"{line.per_1000.value:>9.4f}{line.per_success.value:>11.6f}"
        yield f"{line.name:<24}{percent(line.quality):<22}{dollars}   {behind}".rstrip()


def _shown(report: Evaluation) -> list[Group]:
    return [report.overall, *report.groups[:_MOST_GROUPS]]


def _left_out(report: Evaluation) -> Iterator[str]:
    if len(report.groups) > _MOST_GROUPS:
        yield f"... and {len(report.groups) - _MOST_GROUPS} more cohorts: --json or --out has them all"


def _shares(counts: dict[str, int], rows: int) -> str:
    return ", ".join(f"{name} {100 * count / max(rows, 1):.0f}" for name, count in counts.items())


def _verdict(difference: Estimate) -> str:
    if difference.low > 0:
        return ", above"
    return ", below" if difference.high < 0 else ""


def percent(estimate: Estimate, sign: str = "") -> str:
    """An estimate of a share in per cent, with its interval; "-" where there is nothing to measure."""
    if not estimate.known:
        return "-"
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _number(estimate: Estimate, times: float) -> str:
    return f"{times * estimate.value:.1f}" if estimate.known else "-"


# --- calibration ------------------------------------------------------------------------------------------------


def learned_text(learned: Learned, rows: Labelled, ground: Ground, seed: int) -> Iterator[str]:
    """The ways of making centroids that were tried, the choice, and what it does on rows that nothing had seen."""
    if not learned.tried:
        yield from textwrap.wrap(learned.why, 116)
        return
    yield f"centroids, tried on {learned.rows:,} labelled rows that each was fitted without, % [95 %]"
    yield f"{'':<28}{'accuracy':<21}{'AUROC':<21}{'right and above':<21}gain"
    for way in learned.tried:
        measured = (percent(way.accuracy), percent(way.auroc), percent(way.routed))
        first = learned.tried[0]
        gain = percent(way.gain, "+") if way is not first else ""
        name = way.kind if way.encoder == first.encoder else f"{way.kind}, adapted"
        yield f"{name:<28}{''.join(f'{m:<21}' for m in measured)}{gain}".rstrip()
    yield learned.why
    if learned.astray:
        yield f"{learned.astray} utterances are then nearest to another cohort than their own"
    was, now = rows.some(ground.report), ground.rows.some(ground.report)
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


def choice_text(found: Choice) -> Iterator[str]:
    """What was chosen beside what it replaces, and beside the controls, on the rows that it was not chosen on."""
    yield (f"{found.target}: chosen on {found.rows[0]:,} rows with outcomes, reported on {found.rows[1]:,} others")
    yield ""
    yield f"{'cohort':<22}{'rows':>6}  {'chosen':<34}{'quality % [95 %]':<21}{'was':>5}{'$/1,000':>10}{'was':>9}"
    for setting in found.settings:
        if setting.plan is not None:
            quality, dollars = setting.after
            was = f"{100 * setting.before[0].value:>5.1f}{dollars.value:>10.4f}{setting.before[1].value:>9.4f}"
            told = f"{plan_text(setting.plan):<34}{percent(quality):<21}"
            yield f"{setting.name[:21]:<22}{sum(setting.rows):>6}  {told}{was}"
    for setting in found.settings:
        if setting.plan is None:
            kept = f"as it is, {percent(setting.before[0])}"
            yield f"{setting.name[:21]:<22}{sum(setting.rows):>6}  {kept}{': ' if setting.why else ''}{setting.why}"
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


# --- comparison and gate ------------------------------------------------------------------------------------------


def comparison_text(found: Comparison, texts: dict[int, str] | None, examples: int = 3) -> Iterator[str]:
    """The comparison; `texts` (line -> words of the person) only where the user asked to see them."""
    share = 100 * len(found.flips) / max(found.rows, 1)
    yield f"{len(found.flips):,} of {found.rows:,} rows flip ({share:.1f} %)"
    if found.estimated:
        yield "no outcomes recorded: cost is that of the input alone, tokens estimated as the router does"
    if found.unrecorded:
        yield (
            f"{found.unrecorded:,} rows have no recorded answer of the tier that serves them now: "
            "their quality and cost are not compared"
        )
    yield ""
    yield f"{'cohort':<22}{'measure':<14}{'rows':>6}{'old':>11}{'new':>11}  change [95 %]"
    yield from map(_cell_line, found.cells)
    kinds: dict[tuple[str, str, str], list[int]] = {}
    for flip in found.flips:
        kinds.setdefault((flip.group, flip.old, flip.new), []).append(flip.line)
    if kinds:
        yield f"\n{'flips of':<22}{'rows':>6}  from -> to"
    for (group, was, now), lines in sorted(kinds.items(), key=lambda item: -len(item[1]))[:20]:
        shown = ", ".join(map(str, lines[:examples])) + (", ..." if len(lines) > examples else "")
        yield f"{group[:21]:<22}{len(lines):>6}  {was} -> {now}  (line {shown})"
        if texts is not None:
            yield from (f"{'':<30}{texts.get(line, '')[:80]!r}" for line in lines[:examples])


def _cell_line(cell: Cell) -> str:
    if cell.measure == COST:
        values = f"{1000 * cell.old:>11.5f}{1000 * cell.new:>11.5f}"
        change = f"{percent(cell.change, '+')} %" if not math.isnan(cell.change.value) else "-"
    else:
        values, change = f"{100 * cell.old:>11.1f}{100 * cell.new:>11.1f}", f"{percent(cell.change, '+')} points"
    measure = "$ per 1,000" if cell.measure == COST else f"{cell.measure} %"
    return f"{cell.group[:21]:<22}{measure:<14}{cell.rows:>6}{values}  {change if cell.differing else 'the same'}"


def gate_text(verdicts: list[GateVerdict], max_quality_drop: float, max_cost_rise: float) -> Iterator[str]:
    """The gate's verdict, worst first; nothing worse than allowed is one line."""
    limits = f"quality may drop {100 * max_quality_drop:g} points, cost may rise {100 * max_cost_rise:g} %"
    regressed = [verdict for verdict in verdicts if verdict.regressed]
    if not verdicts:
        yield f"passed: no cohort is worse than allowed ({limits})"
        return
    yield f"{'FAILED' if regressed else 'passed'}: {len(regressed)} regressions ({limits})"
    for verdict in sorted(verdicts, key=lambda r: (not r.regressed, r.cell.chance)):
        word = "regressed" if verdict.regressed else "unclear: chance explains it"
        yield f"{_cell_line(verdict.cell)}  {word} (p {verdict.cell.chance:.1g})"
