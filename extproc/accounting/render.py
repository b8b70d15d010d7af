"""A report for people: two tables for a terminal, or a page."""

import time
from collections.abc import Callable
from html import escape

from extproc.accounting.report import Line, Report

_NOTES = (
    "accepted: served, and no rule rejected it; (judged): of them, those that a rule looked at. degraded: served",
    "though rejected, or put aside for a person. left: the client did. escalated: one was rejected on the way.",
    "cost: US dollars at the tiers' prices of the time, rejected answers included; cascade: the part for those.",
    "saving: what the served answers' tokens cost at the default tier, less cost. unknown: answers that told no",
    "tokens (a stream without usage, or one that was cut); they are in no sum.",
)


def _outcomes(line: Line) -> dict[str, str]:
    first = "-" if line.first_byte_s is None else "{:.2f} ({:.2f})".format(*line.first_byte_s)
    return {
        "requests": f"{line.requests:,}",
        "attempts": f"{line.attempts:,}",
        "accepted (judged)": f"{line.accepted:,} ({line.judged:,})",
        "degraded": f"{line.degraded + line.human:,}",
        "failed": f"{line.failed:,}",
        "left": f"{line.cancelled:,}",
        "escalated": f"{line.escalated:,}",
        "fallback": f"{line.fallback:,}",
        "first byte s (p95)": first,
    }


def _costs(line: Line) -> dict[str, str]:
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


Table = list[dict[str, str]]


def _tables(report: Report) -> list[Table]:
    """Rows by column name; the last row of each is the total."""
    lines = [*report.groups, report.total]
    columns: tuple[Callable[[Line], dict[str, str]], ...] = (_outcomes, _costs)
    return [[{report.by: line.name} | cells(line) for line in lines] for cells in columns]


def _because(report: Report) -> list[str]:
    """Why requests escalated or fell back, line by line."""
    said = []
    for line in report.groups:
        for what, reasons in (("escalated", line.escalations), ("fell back", line.fallbacks)):
            why = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items(), key=lambda r: -r[1]))
            said += [f"{line.name} {what}: {why}"] if why else []
    return said


def _title(report: Report) -> str:
    since, until = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(t)) for t in (report.since, report.until))
    return f"{report.ledger}, {since} to {until} UTC, by {report.by}"


def text_of(report: Report) -> str:
    """Tables for a terminal."""
    parts = [[_title(report)]]
    for rows in _tables(report):
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
        form = "  ".join(f"{{:{'<' if name == report.by else '>'}{width}}}" for name, width in widths.items())
        *lines, total = (form.format(*row.values()) for row in rows)
        parts.append([form.format(*widths), *lines, "-" * len(total), total])
    parts += [_because(report), list(_NOTES)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def html_of(report: Report) -> str:
    """The same as one page, without anything outside it."""
    tables = ""
    for rows in _tables(report):
        head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
        cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row.values()) for row in rows)
        tables += f"<table><thead><tr>{head}</tr></thead><tbody>\n"
        tables += "".join(f"<tr>{row}</tr>\n" for row in cells) + "</tbody></table>\n"
    why = "".join(f"<li>{escape(said)}</li>\n" for said in _because(report))
    title = escape(_title(report))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px system-ui, sans-serif; margin: 2em; color: #222; }}
table {{ border-collapse: collapse; margin-bottom: 2em; }}
th, td {{ padding: .3em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
tr:last-child td {{ font-weight: 600; border-top: 2px solid #222; }}
p {{ max-width: 60em; color: #555; }}
</style></head><body>
<h1>{title}</h1>
{tables}<ul>{why}</ul>
<p>{escape(" ".join(_NOTES))}</p>
</body></html>
"""
