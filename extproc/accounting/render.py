"""Show a report: two tables in a terminal, or an HTML page."""

import time
from collections.abc import Callable
from html import escape

from extproc.accounting.report import CohortLine, CostReport

_NOTES = (
    "accepted: served, and no rule rejected the answer. (judged): accepted answers that a rule looked at.",
    "degraded: served, though rejected or not fully judged, or queued for a person. cancelled: the client left.",
    "escalated: requests with a rejected answer before the last attempt. first byte: median (95th percentile).",
    "cost: US dollars at the prices of that time, with rejected answers. cascade: the cost of rejected answers.",
    "saving: the cost of the served answers' tokens at the default tier, minus cost.",
    "unknown: answers without token counts (a stream without usage, or a cut answer). No sum includes them.",
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


TextTable = list[dict[str, str]]


def _tables(report: CostReport) -> list[TextTable]:
    """Return two tables of cells by column name. The last row of each is the total."""
    lines = [*report.groups, report.total]
    columns: tuple[Callable[[CohortLine], dict[str, str]], ...] = (_outcomes, _costs)
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
    parts += [_reasons(report), list(_NOTES)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def html_of(report: CostReport) -> str:
    """Return the same report as one HTML page that loads nothing else."""
    tables = ""
    for rows in _tables(report):
        head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
        cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row.values()) for row in rows)
        tables += f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n'
        tables += "".join(f"<tr>{row}</tr>\n" for row in cells) + "</tbody></table></div>\n"
    reasons = "".join(f"<li>{escape(sentence)}</li>\n" for sentence in _reasons(report))
    title = escape(_title(report))
    verdicts = "".join(f'<p class="verdict">{escape(sentence)}</p>\n' for sentence in report.verdicts)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>{title}</title><style>
body {{ font: 14px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 24px 16px; color: #222; }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere; }}
.verdict {{ font-size: 1.05rem; font-weight: 600; color: #222; max-width: 60em; margin: .4em 0; }}
.scroll {{ overflow-x: auto; margin: 1.5em 0; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
th:first-child, td:first-child {{ position: sticky; left: 0; background: #fff; }}
tr:last-child td {{ font-weight: 600; border-top: 2px solid #222; }}
p {{ max-width: 60em; color: #555; }}
</style></head><body>
<h1>{title}</h1>
{verdicts}{tables}<ul>{reasons}</ul>
<p>{escape(" ".join(_NOTES))}</p>
</body></html>
"""
