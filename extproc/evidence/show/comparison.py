"""A comparison and the verdicts of the gate, as text for a terminal."""

import math
import textwrap
from collections.abc import Iterator

from extproc.evidence.measure.comparison import COST, Cell, Comparison
from extproc.evidence.measure.gate import GateReport, GateVerdict
from extproc.evidence.show.estimate import percent


def comparison_text(comparison: Comparison, texts: dict[int, str] | None, examples: int = 3) -> Iterator[str]:
    """The comparison. `texts` has the person's text by line, if the user asked to see it."""
    share = 100 * len(comparison.flips) / max(comparison.rows, 1)
    yield f"{len(comparison.flips):,} of {comparison.rows:,} rows flip ({share:.1f} %)"
    if comparison.estimated:
        yield "no outcomes were recorded: cost is that of the input alone, with tokens estimated as the router does"
    if comparison.unrecorded:
        yield (
            f"{comparison.unrecorded:,} rows have no recorded answer of the tier that serves them now: "
            "their quality and cost are not compared"
        )
    yield ""
    yield f"{'cohort':<22}{'measure':<14}{'rows':>6}{'old':>11}{'new':>11}  change [95 %]"
    yield from map(_cell_line, comparison.cells)
    kinds = flip_kinds(comparison)
    if kinds:
        yield f"\n{'flips by cohort':<22}{'rows':>6}  old -> new"
    for (group, old, new), lines in kinds[:20]:
        shown = ", ".join(map(str, lines[:examples])) + (", ..." if len(lines) > examples else "")
        yield f"{group[:21]:<22}{len(lines):>6}  {old} -> {new}  (line {shown})"
        if texts is not None:
            yield from (f"{'':<30}{texts.get(line, '')[:80]!r}" for line in lines[:examples])


def flip_kinds(comparison: Comparison) -> list[tuple[tuple[str, str, str], list[int]]]:
    """((cohort, old, new), lines of the file) of the rows that flip, the most frequent kind first."""
    kinds: dict[tuple[str, str, str], list[int]] = {}
    for flip in comparison.flips:
        kinds.setdefault((flip.group, flip.old, flip.new), []).append(flip.line)
    return sorted(kinds.items(), key=lambda item: -len(item[1]))


def change_text(cell: Cell) -> str:
    """The change with its interval, such as "-3.9 [-4.7, -3.1] points"."""
    if not cell.differing:
        return "the same"
    if cell.measure == COST:
        return f"{percent(cell.change, '+')} %" if not math.isnan(cell.change.value) else "-"
    return f"{percent(cell.change, '+')} points"


def worse_word(verdict: GateVerdict) -> str:
    """The words of the gate on a cell that is worse than allowed."""
    return "regressed" if verdict.regressed else "unclear, may be random"


def _cell_line(cell: Cell) -> str:
    if cell.measure == COST:
        values = f"{1000 * cell.old:>11.5f}{1000 * cell.new:>11.5f}"
    else:
        values = f"{100 * cell.old:>11.1f}{100 * cell.new:>11.1f}"
    measure = "$ per 1,000" if cell.measure == COST else f"{cell.measure} %"
    return f"{cell.group[:21]:<22}{measure:<14}{cell.rows:>6}{values}  {change_text(cell)}"


def gate_text(report: GateReport) -> Iterator[str]:
    """The verdict of the gate, the measures behind it (worst first), and what the rows could have shown."""
    yield str(report.headline)
    for verdict in report.verdicts:
        yield f"{_cell_line(verdict.cell)}  {worse_word(verdict)} (p {verdict.cell.chance:.1g})"
    for lowered in report.unseen:
        hidden = "" if lowered.by_chance else f", a drop of up to {100 * lowered.hidden:.1f} points could go unseen"
        yield (
            f"{lowered.group[:21]:<22}{lowered.rows:,} rows lowered, {lowered.recorded:,} of them with recorded "
            f"answers{hidden}"
        )
    powers = [f"{each.group} {_drop(each.drop)} ({each.rows:,} rows)" for each in report.power]
    if powers:
        listed = f"least drop that these rows could have shown: {'; '.join(powers)}"
        yield from textwrap.wrap(listed, 116, subsequent_indent="  ")
    else:
        yield "least drop that these rows could have shown: none, as no row has a label or a recorded answer"


def _drop(drop: float | None) -> str:
    return "none, as the rows are too few" if drop is None else f"{100 * drop:.1f} points"
