"""An evaluation as text for a terminal, in lines of at most 116 characters unless names are long."""

import textwrap
from collections.abc import Iterator

from extproc.evidence.measure.columns import OUT_OF_SCOPE
from extproc.evidence.measure.evaluation import Evaluation, Group
from extproc.evidence.measure.headlines import DEFAULT_RISK
from extproc.evidence.measure.labels import TierMatrix
from extproc.evidence.measure.metrics import Estimate
from extproc.evidence.measure.switching import SwitchLine
from extproc.evidence.show.controls import line_table
from extproc.evidence.show.estimate import number, percent
from extproc.evidence.show.robustness import robustness_text
from extproc.evidence.show.verdicts import verdict_text

# Cohorts and confusions that a terminal shows. The JSON has all of them.
_MOST_GROUPS = 40
_MOST_CONFUSIONS = 8
_MOST_DISAGREEMENTS = 40
# A column of words is at least this wide.
_LEAST_WIDTH = 40


def evaluation_text(evaluation: Evaluation) -> str:
    """The whole evaluation."""
    return "\n".join(_lines(evaluation))


def _lines(evaluation: Evaluation) -> Iterator[str]:
    d = evaluation.data
    yield from verdict_text(evaluation.verdicts)
    yield ""
    yield (
        f"traffic   {d['traffic']}: {d['rows']:,} rows, {d['labelled']:,} labelled (of these {d['out_of_scope']:,} "
        f"out of scope), {d['with_any_outcome']:,} with outcomes; {d['skipped']} lines skipped"
    )
    yield (f"intents   revision {d['revision']}, {d['cohorts']} cohorts, {d['calibrated']} of them calibrated")
    for note in evaluation.notes:
        yield from textwrap.wrap(f"note      {note}", 116, subsequent_indent=" " * 10)
    if d["labelled"]:
        yield ""
        yield from _matching(evaluation)
    yield ""
    yield from _serving(evaluation)
    yield from _controls(evaluation)
    if evaluation.latency_s:
        yield ""
        yield f"{'latency by path':<40}{'rows':>7}{'p50 s':>9}{'p95 s':>9}"
        for path, (rows, p50, p95) in evaluation.latency_s.items():
            yield f"{path:<40}{rows:>7}{p50:>9.2f}{p95:>9.2f}"
    if evaluation.switching:
        yield ""
        yield from _switching(evaluation.switching)
    if evaluation.robustness is not None:
        yield ""
        yield from robustness_text(evaluation.robustness)


def _matching(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.auroc.known:
        yield f"out of scope: {percent(evaluation.scope_recall)} % of these rows are recognised as out of scope,"
        yield (
            f"              {100 * evaluation.scope_recall_at_5:.1f} % with one threshold that rejects 5 % of the "
            "rows in scope;"
        )
        yield f"              AUROC of the {evaluation.score} {percent(evaluation.auroc)} %"
    if evaluation.reliability:
        yield f"calibration error of the probability: {100 * evaluation.calibration_error:.1f} percentage points"
    if evaluation.auroc.known or evaluation.reliability:
        yield ""
    yield from _tier_matrix(evaluation.tiers)
    risk = 100 * (evaluation.data["risk"] or DEFAULT_RISK)
    yield "matching, % [95 %]. accepted: of the rows with the label. wrong: of the trusted matches with the cohort,"
    yield f"                    where ! marks more than the risk of {risk:g} %. fallback: of the rows"
    yield f"{'label':<20}{'rows':>6}  {'nearest is right':<21}{'accepted':<21}{'wrong':<30}fallback"
    for group in _shown(evaluation):
        cells = f"{percent(group.accuracy):<21}{percent(group.accepted):<21}{_wrong_cell(group.wrong, risk):<30}"
        yield f"{group.name[:19]:<20}{group.rows:>6}  {cells}{number(group.fallback, 100)}"
    yield from _left_out(evaluation)
    right = {(OUT_OF_SCOPE, "fallback")}
    wrong = [(a, b, rows) for a, b, rows in evaluation.confusion if a != b and (a, b) not in right]
    wrong = [pair for pair in wrong if pair[1] != "fallback"] + [pair for pair in wrong if pair[1] == "fallback"]
    confusions = "; ".join(f"{a} -> {b} {rows}" for a, b, rows in wrong[:_MOST_CONFUSIONS])
    yield from textwrap.wrap(f"most confused (label -> match, rows): {confusions}", 116) if wrong else ()
    if evaluation.disagreements:
        yield "labels that a confident match contradicts (line: label, match):"
        rows = evaluation.disagreements[:_MOST_DISAGREEMENTS]
        listed = "; ".join(f"{row.line}: {row.label}, {row.cohort}" for row in rows)
        yield from textwrap.wrap(listed, 116, initial_indent="  ", subsequent_indent="  ")


def _wrong_cell(wrong: Estimate, risk: float) -> str:
    """The share of wrong matches, what it is a share of, and a mark if it is above the risk in per cent."""
    if not wrong.known:
        return "-"
    return f"{percent(wrong)} of {wrong.rows:,}{' !' if 100 * wrong.low > risk else ''}"


def _tier_matrix(tiers: TierMatrix) -> Iterator[str]:
    """Rows: the tier that the label needs. Columns: the tier of the first attempt."""
    if not tiers.cells:
        return
    counts = {(needed, chosen): rows for needed, chosen, rows in tiers.cells}
    chosen = [name for name in tiers.names if any(name == cell[1] for cell in tiers.cells)]
    yield f"{'tier needed -> chosen':<22}" + "".join(f"{name[:13]:>14}" for name in chosen)
    for needed in dict.fromkeys(name for name, _, _ in tiers.cells):
        yield f"{needed[:21]:<22}" + "".join(f"{counts.get((needed, name), 0):>14,}" for name in chosen)
    yield f"right tier: {percent(tiers.right)} % of {tiers.right.rows:,} labelled rows"
    if tiers.below.known:
        needing = f"{tiers.below.rows:,} rows that need more than the cheapest tier"
        yield f"sent too low: {percent(tiers.below)} % of {needing}"
    yield ""


def _serving(evaluation: Evaluation) -> Iterator[str]:
    yield f"{'serving':<22}{'rows':>6}  {'first tier, % of rows':<32}{'escalated %':>11}  reasons, % of rows"
    for group in _shown(evaluation):
        tiers = f"{_shares(group.tiers, group.rows):<32}{number(group.escalated, 100):>11}  "
        line = f"{group.name[:21]:<22}{group.rows:>6}  {tiers}"
        words = textwrap.wrap(_shares(group.reasons, group.rows), max(116 - len(line), _LEAST_WIDTH))
        yield f"\n{'':<{len(line)}}".join([line + "".join(words[:1]), *words[1:]])
    if evaluation.overall.rejections:
        counts = ", ".join(f"{reason} {rows}" for reason, rows in evaluation.overall.rejections.items())
        yield f"rejected answers by reason: {counts}"
        better = percent(evaluation.overall.corrected)
        yield f"better after the escalation: {better} % of the escalated rows with both qualities recorded"


def _controls(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.lines:
        yield ""
        yield from line_table(evaluation.lines)
        if evaluation.estimated:
            yield "doubly robust estimates: answers were recorded by chance, and their propensities are known"
    if evaluation.paired:
        yield ""
        yield f"the {evaluation.paired[0].quality.rows:,} rows that have every answer; other rows may differ"
        yield from line_table(evaluation.paired)
    if not evaluation.lines:
        return
    measured = [g for g in _shown(evaluation)[1:] if g.quality.known]
    if len(measured) < 2:
        return
    yield ""
    yield f"{'quality by cohort':<24}{'quality % [95 %]':<22}{'$/1,000':>9}{'$/success':>11}"
    for g in measured:
        per_success = f"{g.per_success.value:>11.6f}" if g.per_success.known else f"{'-':>11}"
        yield f"{g.name[:23]:<24}{percent(g.quality):<22}{g.per_1000.value:>9.4f}{per_success}"


def _switching(lines: list[SwitchLine]) -> Iterator[str]:
    yield f"{'conversations':<24}{'rows':>6}{'switches':>10}{'prompts $':>13}{'outputs $':>13}{'quality %':>11}"
    for line in lines:
        quality = f"{100 * line.quality:.1f}" if line.quality is not None else "-"
        counts = f"{line.name:<24}{line.rows:>6}{line.switches:>10}"
        yield f"{counts}{line.prompts:>13.6f}{line.outputs:>13.6f}{quality:>11}"


def _shown(evaluation: Evaluation) -> list[Group]:
    return [evaluation.overall, *evaluation.groups[:_MOST_GROUPS]]


def _left_out(evaluation: Evaluation) -> Iterator[str]:
    if len(evaluation.groups) > _MOST_GROUPS:
        yield f"... and {len(evaluation.groups) - _MOST_GROUPS} more cohorts: --json and --out show all of them"


def _shares(counts: dict[str, int], rows: int) -> str:
    return ", ".join(f"{name} {100 * count / max(rows, 1):.0f}" for name, count in counts.items())
