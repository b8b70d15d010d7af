"""The pages on single decisions: a prompt that is tried, and requests of the ledger."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, get_args
from urllib.parse import quote

from extproc.accounting.outcome import Ending
from extproc.accounting.why import why
from extproc.console.page import NO_LEDGER, Sources, Tried, link, page, section, when
from extproc.console.readings import Shown, newest_requests
from extproc.evidence.show.charts import stacked
from extproc.style import html_table, html_text, soft_line, verdict_line

# The text below has all of them.
_CLASSES = 5
_SHOWN: Mapping[Shown, str] = {
    "all": "all requests",
    "escalated": "with a rejected answer",
    Ending.DEGRADED.value: "served although rejected",
    Ending.HUMAN.value: "queued for a person",
    Ending.FAILED.value: "failed",
    Ending.CANCELLED.value: "left by their client",
    "disliked": "rated badly, or with another cohort named",
}
SHOWN: tuple[Shown, ...] = get_args(Shown)


def try_page(sources: Sources, request: str | None) -> str:
    """A form for a prompt or a request, and with one what would happen to it."""
    label = "A prompt, or the JSON of a request. Nothing is sent to a model, and nothing is kept."
    parts = [
        f'<form method="post" action="/try"><label for="request">{label}</label>'
        f'<textarea id="request" name="request" dir="auto" required maxlength="200000">{escape(request or "")}'
        "</textarea><button>Decide</button></form>"
    ]
    if request is not None:
        parts += section(lambda: _tried(sources.explain(request)), "The decision is")
    return page("/try", parts)


def _tried(tried: Tried) -> Iterable[str]:
    yield verdict_line(tried.verdict, "Decision")
    if tried.candidate:
        yield verdict_line(tried.candidate, "Candidate")
    if tried.chances:
        yield html_table(["class", "tier", "chance, %", ""], [
            [html_text(name), html_text(tier), f"{100 * chance:.1f}", stacked([(name, chance, "t1")])]
            for name, tier, chance in tried.chances[:_CLASSES]
        ], label="Chance of each class")  # fmt: skip
    yield f'<h2>In full</h2><pre tabindex="0">{escape(tried.text)}</pre>'


def requests_page(sources: Sources, request: str | None, shown: Shown, cohort: str) -> str:
    """The newest requests, and with an id the story of that one."""
    if sources.ledger is None:
        return page("/requests", [soft_line(NO_LEDGER)])
    ledger = sources.ledger
    parts = [
        '<form action="/requests"><label for="id">Id of a request, from the answer\'s header x-request-id</label>'
        f'<input id="id" name="id" required value="{escape(request or "")}"> <button>Show</button></form>'
    ]
    if request is not None:
        parts += section(lambda: [f'<pre tabindex="0">{html_text(why(ledger, request))}</pre>'], "The request is")
    parts.append(_filter(shown, cohort))
    return page("/requests", [*parts, *section(lambda: _list(ledger, shown, cohort), "Requests are")])


def _filter(shown: Shown, cohort: str) -> str:
    options = "".join(
        f'<option value="{value}"{" selected" if value == shown else ""}>{text}</option>'
        for value, text in _SHOWN.items()
    )
    return (
        f'<form action="/requests"><label for="shown">Requests</label><select id="shown" name="shown">{options}'
        '</select><label for="cohort">Only of this cohort or reason (empty: all)</label>'
        f'<input id="cohort" name="cohort" value="{escape(cohort)}"> <button>Filter</button></form>'
    )


def _list(ledger: str, shown: Shown, cohort: str) -> Iterable[str]:
    rows = newest_requests(ledger, shown, cohort)
    if rows:
        yield f"<h2>The newest {len(rows)} requests</h2>"
        yield _newest(rows)
    elif shown == "all" and not cohort:
        yield soft_line("The ledger has no request yet.")
    else:
        yield soft_line("The ledger has no such request.")


def _newest(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["time (UTC)", "cohort", "tier", "reason", "ended", "attempts", "$", "seconds", "id"]
    return html_table(header, [
        [
            when(row["time"]),
            *(html_text(str(row[name] or "-")) for name in ("cohort", "tier", "reason")),
            f"{html_text(row['ending'])} ({row['status']})",
            str(row["attempts"]),
            f"{row['cost']:.6f}" if row["cost"] is not None else "-",
            f"{row['duration_s']:.2f}" if row["duration_s"] is not None else "-",
            link(f"/requests?id={quote(row['request'], safe='')}", row["request"][:8]) if row["request"] else "-",
        ]
        for row in rows
    ], "words", "Requests")  # fmt: skip
