"""The parts that the pages of `eval`, `calibrate` and `gate` share."""

import re
from collections.abc import Iterable, Sequence
from html import escape

from extproc.evidence.measure.controls import ROUTED, ControlLine
from extproc.evidence.measure.headlines import Headline
from extproc.evidence.measure.metrics import Estimate
from extproc.evidence.show.estimate import percent
from extproc.style import scroll_region

_CODE = re.compile(r"`([^`]*)`")


def verdict_lines(verdicts: Sequence[Headline]) -> Iterable[str]:
    """The verdicts as HTML, each a line with its word in front."""
    for verdict in verdicts:
        yield f'<p class="verdict"><b>{escape(verdict.word)}</b> {prose(verdict.sentence)}</p>'


def line_table_html(lines: Sequence[ControlLine]) -> str:
    """The configuration and its controls as a table."""
    rows = []
    for line in lines:
        row_class = ' class="configured"' if line.name == ROUTED else ""
        behind = estimate_cell(line.behind, "+") if line.behind is not None else ""
        dollars = f"{line.per_1000.value:.4f} <i>[{line.per_1000.low:.4f}, {line.per_1000.high:.4f}]</i>"
        success = f"{1000 * line.per_success.value:.4f}" if line.per_success.known else "-"
        rows.append(f"<tr{row_class}><td>{escape(line.name)}</td><td>{estimate_cell(line.quality)}</td><td>{dollars}</td>"
                    f"<td>{success}</td><td>{behind}</td></tr>")  # fmt: skip
    header = ("", "quality, %", "$ per 1,000", "$ per 1,000 successes", "configured minus this, points")
    return figure_table(header, rows)


def figure_table(header: Sequence[str], rows: Sequence[str], kind: str = "figures") -> str:
    """A table of rows that are HTML already."""
    titles = [name.replace(" %", "&nbsp;%") for name in header]
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return (
        f'{scroll_region("Table")}<table class="{kind}"><thead><tr>{head}</tr></thead>{"".join(rows)}</table></div>'
    )


def estimate_cell(estimate: Estimate, sign: str = "") -> str:
    """A share in per cent, with its interval in a lighter colour."""
    value, _, interval = percent(estimate, sign).partition(" ")
    return f"{value} <i>{interval}</i>" if interval else value


def prose(text: str) -> str:
    """A sentence as HTML. A name between backticks is code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def points(share: float | None) -> str:
    """A share in percentage points, or "none"."""
    return "none" if share is None else f"{100 * share:.1f}"
