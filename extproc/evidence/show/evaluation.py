"""An evaluation as text for a terminal: compact, in lines of at most 116 characters where names allow."""

import textwrap
from collections.abc import Iterator

from extproc.evidence.measure.evaluation import Evaluation, Group
from extproc.evidence.show.controls import line_table
from extproc.evidence.show.estimate import number, percent
from extproc.evidence.show.robustness import robustness_text

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
            f"{group.name[:21]:<22}{group.rows:>6}  {tiers[:33]:<34}{number(group.escalated, 100):>11}  "
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


def _shown(report: Evaluation) -> list[Group]:
    return [report.overall, *report.groups[:_MOST_GROUPS]]


def _left_out(report: Evaluation) -> Iterator[str]:
    if len(report.groups) > _MOST_GROUPS:
        yield f"... and {len(report.groups) - _MOST_GROUPS} more cohorts: --json or --out has them all"


def _shares(counts: dict[str, int], rows: int) -> str:
    return ", ".join(f"{name} {100 * count / max(rows, 1):.0f}" for name, count in counts.items())
