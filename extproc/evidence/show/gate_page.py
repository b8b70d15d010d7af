"""The verdict of the gate and its comparison as one HTML page. It has line numbers, and no text of a request."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from extproc.evidence.measure.comparison import COST, Cell, Comparison
from extproc.evidence.measure.gate import GateReport
from extproc.evidence.show.comparison import change_text, flip_kinds, worse_word
from extproc.evidence.show.html_parts import points, verdict_lines
from extproc.style import html_page, html_table, html_text, soft_line

# The page lists at most this many kinds of flips, each with this many lines of the file.
_MOST_FLIPS, _MOST_LINES = 40, 8
_CELL_HEADER = ["cohort", "measure", "rows", "old", "new", "change [95&nbsp;%]"]


def gate_html(report: GateReport, comparison: Comparison, about: Sequence[str], title: str) -> str:
    """The whole page. `about` are lines on the two configurations."""
    parts = [
        f"<h1>{html_text(title)}</h1>",
        *verdict_lines([report.headline]),
        *map(soft_line, about),
        *_worse(report),
        *_unseen(report),
        *_power(report),
        *_compared(comparison),
        *_flips(comparison),
        "<h2>How to read this</h2><ul>",
        "<li>Brackets are paired 95 % bootstrap intervals over conversations.</li>",
        "<li>A row counts under its label. Without one it counts under the cohort that the old configuration "
        "matched.</li>",
        "<li>p: the chance of a change this bad if the new configuration is as good as the old one.</li></ul>",
    ]
    return html_page(title, "".join(parts))


def _worse(report: GateReport) -> Iterator[str]:
    if report.verdicts:
        yield "<h2>Worse than allowed</h2>"
        rows = [[*_cells(v.cell), worse_word(v), f"{v.cell.chance:.1g}"] for v in report.verdicts]
        yield html_table([*_CELL_HEADER, "verdict", "p"], rows, label="Worse than allowed")


def _unseen(report: GateReport) -> Iterator[str]:
    if report.unseen:
        yield "<h2>Lowered, and not seen</h2>"
        rows = [
            [html_text(each.group), f"{each.rows:,}", f"{each.recorded:,}", f"{100 * each.hidden:.1f}"]
            for each in report.unseen
        ]
        header = ["cohort", "rows lowered", "with recorded answers", "largest drop that could go unseen, points"]
        yield html_table(header, rows, label="Lowered")


def _power(report: GateReport) -> Iterator[str]:
    yield "<h2>The least drop that these rows could have shown</h2>"
    if report.power:
        rows = [[html_text(each.group), each.measure, f"{each.rows:,}", points(each.drop)] for each in report.power]
        yield html_table(["cohort", "measure", "rows", "drop, points"], rows, label="Power")
    else:
        yield soft_line("None, as no row has a label or a recorded answer.")


def _compared(comparison: Comparison) -> Iterator[str]:
    yield "<h2>Old and new</h2>"
    if comparison.estimated:
        yield soft_line("No outcomes were recorded, so the cost is that of the input alone.")
    if comparison.unrecorded:
        yield soft_line(
            f"{comparison.unrecorded:,} rows have no recorded answer of the tier that serves them now. Their "
            "quality and cost are not compared."
        )
    yield html_table(_CELL_HEADER, [_cells(cell) for cell in comparison.cells], label="Old and new")


def _cells(cell: Cell) -> list[str]:
    factor, digits = (1000, 5) if cell.measure == COST else (100, 1)
    measure = "$ per 1,000" if cell.measure == COST else f"{cell.measure}, %"
    values = (f"{factor * value:.{digits}f}" for value in (cell.old, cell.new))
    return [html_text(cell.group), measure, f"{cell.rows:,}", *values, escape(change_text(cell))]


def _flips(comparison: Comparison) -> Iterable[str]:
    share = 100 * len(comparison.flips) / max(comparison.rows, 1)
    yield "<h2>Rows that flip</h2>"
    yield soft_line(f"{len(comparison.flips):,} of {comparison.rows:,} rows ({share:.1f} %).")
    rows = []
    for (group, old, new), lines in flip_kinds(comparison)[:_MOST_FLIPS]:
        shown = ", ".join(map(str, lines[:_MOST_LINES])) + (", ..." if len(lines) > _MOST_LINES else "")
        rows.append([html_text(group), f"{len(lines):,}", html_text(old), html_text(new), shown])
    if rows:
        yield html_table(["cohort", "rows", "old", "new", "lines of the file"], rows, "words", "Flips")
