"""The pages of the console as HTML. They hold no script, load nothing, and show no text of users."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import msgspec

from extproc.accounting.queries import By
from extproc.accounting.render import html_tables, html_verdicts
from extproc.accounting.report import CostReport, read_report, seconds_of
from extproc.accounting.why import why
from extproc.console.readings import EvalReport, newest_requests, read_eval_report
from extproc.evidence.show.charts import stacked
from extproc.evidence.show.figures import cost_quality, figure
from extproc.routing.policy import Cohort, Policy
from extproc.style import html_page, html_table, soft_line, verdict_line

SPANS = ("1h", "24h", "7d", "30d")
GROUPINGS: tuple[By, ...] = get_args(By)
_PAGES = {
    "/": "Overview",
    "/try": "Try a prompt",
    "/requests": "Requests",
    "/frontier": "Cost and quality",
    "/rollout": "Rollout",
}
# The text below has all of them.
_CLASSES = 5
_NO_LEDGER = "There is no ledger to read: start the console with --ledger, as for `extproc serve`."


class Tried(msgspec.Struct, frozen=True):
    """The decision about a request that nobody sends."""

    verdict: str  # in a sentence
    chances: list[tuple[str, str, float]]  # name of the class, its tier, its chance (0 to 1). The likeliest first
    text: str  # as `extproc explain` prints it


class Sources(msgspec.Struct, frozen=True):
    """The things that the console reads. All are read again for each page, except the encoder."""

    policy: Callable[[], Policy]  # the files on disk
    explain: Callable[[str], Tried]  # of a prompt, or of a request as JSON
    rollout: Callable[[str], str]  # the comparison of the candidate, by a ledger
    router: Callable[[], Iterable[str]] | None = None  # what a router serves
    ledger: str | None = None
    report: Path | None = None  # the JSON of `extproc eval`


def overview(sources: Sources, since: str, by: By) -> str:
    """Traffic and money by cohort, tier, caller, app or team, and the evidence of each cohort."""
    parts = [*_router(sources)]
    if sources.ledger is None:
        parts.append(soft_line(_NO_LEDGER))
    else:
        report = read_report(sources.ledger, seconds_of(since), by)
        parts += [_choice(since, by), *html_verdicts(report), *_tiles(report), *html_tables(report)]
    parts += ["<h2>Cohorts</h2>", *_cohorts(sources.policy())]
    return _page("/", parts)


def _router(sources: Sources) -> Iterable[str]:
    if sources.router is None:
        return
    try:
        first, *rest = sources.router()
    except (OSError, ValueError) as error:  # traffic is shown all the more while a router is away
        yield verdict_line(str(error), "The router is not shown")
    else:
        yield f"{verdict_line(first)}<pre>{escape(chr(10).join(rest))}</pre>"


def _choice(since: str, by: By) -> str:
    """Links to the other times and groupings."""
    spans = (_link(f"/?since={span}&by={by}", span, span == since) for span in SPANS)
    groups = (_link(f"/?since={since}&by={group}", f"by {group}", group == by) for group in GROUPINGS)
    return f'<nav aria-label="Time and grouping">{"".join(spans)}{"".join(groups)}</nav>'


def _tiles(report: CostReport) -> Iterable[str]:
    total = report.total
    share = f"{100 * total.accepted / total.requests:.1f} %" if total.requests else "-"
    values = (
        (f"{total.requests:,}", "requests"),
        (share, "accepted"),
        (f"{total.escalated:,}", "escalated"),
        (f"${total.cost:,.2f}", "cost"),
        (f"${total.saving:+,.2f}".replace("$-", "-$").replace("$+", "$"), "saved against the default tier"),
    )
    tiles = (f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in values)
    yield f'<div class="tiles">{"".join(tiles)}</div>'


def _cohorts(policy: Policy) -> Iterable[str]:
    rows = [
        [
            escape(cohort.name),
            escape(cohort.tier),
            escape(", ".join(rung.tier for rung in cohort.escalate.rungs) if cohort.escalate else "-"),
            f"{cohort.floor:.3f}",
            escape(_evidence(cohort)),
        ]
        for cohort in policy.cohorts.values()
    ]
    yield html_table(["cohort", "tier", "escalates to", "floor", "evidence"], rows, "words")


def _evidence(cohort: Cohort) -> str:
    evidence = cohort.evidence
    if evidence is None:
        return "a person's floor" if cohort.operator_floor else "none: a match is a guess"
    source = f"{evidence.rows:,} rows, {evidence.date}"
    if cohort.abstains:
        return f"abstains ({cohort.figure}); {source}"
    if not cohort.calibrated:
        return f"stale: run `extproc calibrate` again ({source})"
    low, high = (100 * end for end in evidence.wrong)
    return f"{low:.1f} to {high:.1f} % of accepted matches are wrong; {source}"


def try_page(sources: Sources, request: str | None) -> str:
    """A form for a prompt or a request, and with one what would happen to it."""
    label = "A prompt, or the JSON of a request. Nothing is sent to a model, and nothing is kept."
    parts = [
        f'<form method="post" action="/try"><label for="request">{label}</label>'
        f'<textarea id="request" name="request" required maxlength="200000">{escape(request or "")}</textarea>'
        "<button>Decide</button></form>"
    ]
    if request is not None:
        parts += _tried(sources.explain(request))
    return _page("/try", parts)


def _tried(tried: Tried) -> Iterable[str]:
    yield verdict_line(tried.verdict, "Decision")
    if tried.chances:
        yield html_table(["class", "tier", "chance, %", ""], [
            [escape(name), escape(tier), f"{100 * chance:.1f}", stacked([(name, chance, "t1")])]
            for name, tier, chance in tried.chances[:_CLASSES]
        ])  # fmt: skip
    yield f"<pre>{escape(tried.text)}</pre>"


def requests_page(sources: Sources, request: str | None) -> str:
    """The newest requests, and with an id the story of that one."""
    if sources.ledger is None:
        return _page("/requests", [soft_line(_NO_LEDGER)])
    parts = [
        '<form action="/requests"><label for="id">Id of a request, from the answer\'s header x-request-id</label>'
        f'<input id="id" name="id" required value="{escape(request or "")}"> <button>Show</button></form>'
    ]
    if request is not None:
        parts.append(_story(sources.ledger, request))
    rows = newest_requests(sources.ledger)
    heading = f"The newest {len(rows)} requests" if rows else "The ledger has no request yet"
    return _page(
        "/requests", [*parts, f"<h2>{heading}</h2>", _newest(rows)] if rows else [*parts, soft_line(heading)]
    )


def _story(ledger: str, request: str) -> str:
    try:
        return f"<pre>{escape(why(ledger, request))}</pre>"
    except OSError as error:
        return verdict_line(str(error))


def _newest(rows: Sequence[Mapping[str, Any]]) -> str:
    return html_table(["time (UTC)", "cohort", "tier", "reason", "ended", "attempts", "$", "seconds", "id"], [
        [
            time.strftime("%m-%d %H:%M:%S", time.gmtime(row["time"])),
            *(escape(str(row[name] or "-")) for name in ("cohort", "tier", "reason")),
            f"{escape(row['ending'])} ({row['status']})",
            str(row["attempts"]),
            f"{row['cost']:.6f}" if row["cost"] is not None else "-",
            f"{row['duration_s']:.2f}" if row["duration_s"] is not None else "-",
            _link(f"/requests?id={quote(row['request'], safe='')}", row["request"][:8]) if row["request"] else "-",
        ]
        for row in rows
    ], "words")  # fmt: skip


def frontier_page(sources: Sources) -> str:
    """Cost and quality on recorded outcomes: the configuration, its controls, and the frontier."""
    if sources.report is None:
        how = "Write a report with `extproc eval --json FILE`, and start the console with --report FILE."
        return _page("/frontier", [soft_line(how)])
    report = read_eval_report(sources.report)
    parts = [verdict_line(verdict.sentence, verdict.word) for verdict in report.verdicts]
    return _page("/frontier", [*parts, *_ways(report)])


def _ways(report: EvalReport) -> Iterable[str]:
    known = [
        (way.name, cost, quality, ((way.quality.low or 0.0), (way.quality.high or 0.0)))
        for way in report.lines
        for cost, quality in [(way.per_1000.value, way.quality.value)]
        if cost is not None and quality is not None
    ]
    if len(known) < 2:
        yield soft_line("The report has no recorded outcomes of two tiers, so there is nothing to compare.")
        return
    curve = [(point.per_1000, point.quality) for point in report.frontier]
    caption = "The configuration, its controls, and the frontier of one tier per cohort. Dashed: mixes of tiers."
    yield f'<div class="plots">{figure("Cost and quality", cost_quality(known, curve), caption)}</div>'
    yield html_table(["", "quality, %", "95 % interval", "$ per 1,000"], [
        [escape(name), f"{100 * quality:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", f"{cost:.4f}"]
        for name, cost, quality, (low, high) in known
    ])  # fmt: skip


def rollout_page(sources: Sources) -> str:
    """The comparison of the candidate."""
    if sources.ledger is None:
        return _page("/rollout", [soft_line(_NO_LEDGER)])
    sentence, _, rest = sources.rollout(sources.ledger).partition("\n")
    return _page("/rollout", [f"{verdict_line(sentence)}<pre>{escape(rest.strip())}</pre>"])


def error_page(path: str, message: str) -> str:
    """A mistake in the input, in the files or in the ledger, with its remedy."""
    return _page(path, [verdict_line(message, "Not shown")])


def _page(path: str, parts: Iterable[str]) -> str:
    links = "".join(_link(at, name, at == path) for at, name in _PAGES.items())
    title = _PAGES.get(path, "Console")
    nav = f'<nav aria-label="Pages">{links}</nav>'
    return html_page(f"{title} - extproc", f"{nav}<main><h1>{title}</h1>{''.join(parts)}</main>")


def _link(to: str, name: str, is_here: bool = False) -> str:
    here = ' aria-current="page"' if is_here else ""
    return f'<a href="{escape(to)}"{here}>{escape(name)}</a>'
