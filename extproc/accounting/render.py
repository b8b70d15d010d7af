"""Show a report: tables in a terminal, or an HTML page."""

import time
from collections.abc import Callable
from html import escape

from extproc.accounting.report import CohortLine, CostReport
from extproc.style import html_page, html_table, html_text, verdict_line

_NOTES = (
    "accepted: served, and no rule rejected the answer. (judged): accepted answers that a rule looked at.",
    "degraded: served, though rejected or not fully judged, or queued for a person. cancelled: the client left.",
    "escalated: requests with a rejected answer before the last attempt. first byte: median (95th percentile).",
    "cost: US dollars at the prices of that time, with rejected answers. cascade: the cost of rejected answers.",
    "saving: the cost of the served answers' tokens at the default tier, minus cost.",
    "unknown: answers without token counts (a stream without usage, or a cut answer). No sum includes them.",
)
_SIGNAL_NOTES = (
    "re-asked, edited, repeated: the client asked again. abandoned: it left a stream. rating: mean, 1 is good.",
)


def _outcomes(line: CohortLine) -> dict[str, str]:
    first = "-" if line.first_byte_s is None else "{:.2f} ({:.2f})".format(*line.first_byte_s)
    return {
        "requests": f"{line.requests:,}",
        "attempts": f"{line.attempts:,}",
        "accepted (judged)": f"{line.accepted:,} ({line.judged:,})",
        "degraded": f"{line.degraded + line.human:,}",
        "failed": f"{line.failed:,}",
        "cancelled": f"{line.cancelled:,}",
        "escalated": f"{line.escalated:,}",
        "fallback": f"{line.fallback:,}",
        "first byte s (p95)": first,
    }


def _costs(line: CohortLine) -> dict[str, str]:
    per = "-" if line.cost_per_accepted is None else f"{line.cost_per_accepted * 1000:,.4f}"
    return {
        "tokens in": f"{line.input:,}",
        "cached": f"{line.cached:,}",
        "out": f"{line.output:,}",
        "unknown": f"{line.unknown:,}",
        "$ cost": f"{line.cost:,.4f}",
        "$ cascade": f"{line.cascade_cost:,.4f}",
        "$ per 1,000 accepted": per,
        "$ saving": f"{line.saving:+,.4f}",
    }


def _signals(line: CohortLine) -> dict[str, str]:
    signals = line.signals
    return {
        "re-asked": f"{signals.re_asked:,}",
        "edited": f"{signals.edited:,}",
        "repeated": f"{signals.repeated:,}",
        "abandoned": f"{signals.abandoned:,}",
        "rated": f"{signals.rated:,}",
        "rating": "-" if signals.rating is None else f"{signals.rating:.2f}",
        "labelled": f"{signals.labelled:,}",
    }


TextTable = list[dict[str, str]]


def _tables(report: CostReport) -> list[TextTable]:
    """Return the tables of cells by column name. The last row of each is the total.

    Without a signal, the third table is left out.
    """
    lines = [*report.groups, report.total]
    columns: list[Callable[[CohortLine], dict[str, str]]] = [_outcomes, _costs]
    if not report.total.signals.is_empty:
        columns.append(_signals)
    return [[{report.by: line.name} | cells(line) for line in lines] for cells in columns]


def _reasons(report: CostReport) -> list[str]:
    """Return one sentence for each group and event: the reasons for escalations, fallbacks, unjudged answers."""
    sentences = []
    for line in report.groups:
        for event, reasons in (
            ("escalated", line.escalations),
            ("fell back", line.fallbacks),
            ("was not judged", line.unjudged),
        ):
            counts = ", ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items(), key=lambda r: -r[1]))
            sentences += [f"{line.name} {event}: {counts}"] if counts else []
    return sentences + _cached(report) + _explored(report)


def _cached(report: CostReport) -> list[str]:
    """Return the sentence on the cache, if it answered a request."""
    sums = report.cached
    if not sums.hits:
        return []
    share = 100 * sums.hits / report.total.requests
    return [
        f"cache: {sums.hits:,} hits ({share:.1f} % of the requests), {sums.semantic:,} of them of other words; "
        f"${sums.saved:,.4f} saved at the prices of the tiers that gave these answers"
    ]


def _explored(report: CostReport) -> list[str]:
    """Return the sentence on the second requests of `--explore`, if there are any."""
    sums = report.explored
    if not sums.requests:
        return []
    return [
        f"explored: {sums.requests:,} second requests, {sums.accepted:,} accepted, {sums.rejected:,} rejected, "
        f"${sums.cost:,.4f}, in no line above"
    ]


def _notes(report: CostReport) -> list[str]:
    """Return the meaning of the columns that are shown."""
    return [*_NOTES, *([] if report.total.signals.is_empty else _SIGNAL_NOTES)]


def _title(report: CostReport) -> str:
    since, until = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(t)) for t in (report.since, report.until))
    return f"{report.ledger}, {since} to {until} UTC, by {report.by}"


def text_of(report: CostReport) -> str:
    """Return the report as text for a terminal."""
    parts = [[_title(report)], report.verdicts]
    for rows in _tables(report):
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
        form = "  ".join(f"{{:{'<' if name == report.by else '>'}{width}}}" for name, width in widths.items())
        *lines, total = (form.format(*row.values()) for row in rows)
        parts.append([form.format(*widths), *lines, "-" * len(total), total])
    parts += [_reasons(report), _notes(report)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def html_of(report: CostReport) -> str:
    """Return the same report as one HTML page that loads nothing else."""
    title = _title(report)
    parts = [f"<h1>{escape(title)}</h1>", *html_verdicts(report), *html_tables(report), html_notes(report)]
    return html_page(title, "".join(parts))


def html_verdicts(report: CostReport) -> list[str]:
    """Return the verdicts as HTML, each with its word in front."""
    parts = (sentence.partition(": ") for sentence in report.verdicts)
    return [f"{verdict_line(sentence, word)}\n" for word, _, sentence in parts]


def html_notes(report: CostReport) -> str:
    """Return the meaning of the columns as HTML."""
    return f"<p>{escape(' '.join(_notes(report)))}</p>"


def html_tables(report: CostReport) -> list[str]:
    """Return both tables and the reasons as HTML. The last row of a table is the total."""
    reasons = "".join(f"<li>{html_text(sentence)}</li>\n" for sentence in _reasons(report))
    labels = ("Requests", "Cost", "After the answers")
    tables = [html_of_rows(rows, "sums", label) for rows, label in zip(_tables(report), labels, strict=False)]
    return [*tables, f"<ul>{reasons}</ul>\n" if reasons else ""]


def html_of_rows(rows: TextTable, kind: str = "", label: str = "") -> str:
    """Return a table of plain text as HTML. `label` is for screen readers."""
    cells = [[html_text(cell) for cell in row.values()] for row in rows]
    return html_table([escape(name) for name in rows[0]], cells, kind, label)
