"""The pages on change: signals about the answers, and drift."""

from collections.abc import Iterable
from urllib.parse import quote

from extproc.accounting.queries import By
from extproc.accounting.render import html_of_rows
from extproc.accounting.report import CohortLine, CostReport, read_report, seconds_of
from extproc.console.page import (
    MOST_LINES,
    NO_LEDGER,
    Sources,
    choices,
    link,
    notes,
    page,
    percent,
    section,
    tiles,
    when,
)
from extproc.console.readings import corrections, poor_ratings
from extproc.evidence.measure.drift import ALL, FALSE_ALARM, Finding, read_drift
from extproc.style import html_table, html_text, soft_line, verdict_line

_SIGNALS = (
    "re-asked: the conversation asked almost the same again. abandoned: the client left a stream.",
    "edited: the ask was changed and sent again. repeated: it was sent again, unchanged.",
    "Shares are of the requests. rating: the mean, 1 is good. docs/guides/learn.md explains the signals.",
)
_DRIFT = (
    "fallbacks: the share of the conversations that fall back.",
    "margins: how often a margin of the last day is above one of the week before. Without drift that is 50 %.",
    "probability: the share of labelled matches that are right. Before it is the share that they promised.",
    "p: the chance of a difference of this size without drift. docs/guides/drift.md explains the numbers.",
    f"Without drift, one look gives an alarm with a probability of at most {FALSE_ALARM * 100:g} %.",
    "`extproc drift --evidence DATA` also compares with the rows that the floors were fitted on.",
)


def signals_page(sources: Sources, since: str, by: By) -> str:
    """The signals about the answers: re-asks, edits and feedback."""
    if sources.ledger is None:
        return page("/signals", [soft_line(NO_LEDGER)])
    ledger = sources.ledger
    return page("/signals", [
        choices("/signals", since, by),
        *section(lambda: _all_signals(ledger, since, by), "Signals are"),
    ])  # fmt: skip


def _all_signals(ledger: str, since: str, by: By) -> Iterable[str]:
    yield from _signals(read_report(ledger, seconds_of(since), by))
    yield from _corrected(ledger, since)
    yield from _poor(ledger, since)


def _signals(report: CostReport) -> Iterable[str]:
    total, signals = report.total, report.total.signals
    if signals.is_empty:
        nothing = "Nothing happened after the answers of this time" if total.requests else "No request ended"
        yield soft_line(f"{nothing}: no client asked again, rated an answer or named another cohort.")
        return
    yield tiles((
        (percent(signals.re_asked, total.requests), "asked again"),
        (percent(signals.edited + signals.repeated, total.requests), "edited or repeated"),
        (percent(signals.abandoned, total.requests), "streams left"),
        (f"{signals.rated:,}", "answers rated"),
        ("-" if signals.rating is None else f"{signals.rating:.2f}", "mean rating (1 is good)"),
    ))  # fmt: skip
    lines = sorted(report.groups, key=lambda line: (line.signals.is_empty, -line.requests, line.name))
    yield html_of_rows([_row(report.by, line) for line in [*lines[:MOST_LINES], total]], "sums", "Signals")
    if len(lines) > MOST_LINES:
        yield soft_line(f"{MOST_LINES} of {len(lines):,} are shown. `extproc report --by {report.by}` prints all.")
    yield notes(_SIGNALS)


def _row(by: By, line: CohortLine) -> dict[str, str]:
    signals = line.signals
    counts = {
        name: f"{count:,} ({percent(count, line.requests)})" if count else "0"
        for name, count in (
            ("re-asked", signals.re_asked),
            ("edited", signals.edited),
            ("repeated", signals.repeated),
            ("abandoned", signals.abandoned),
        )
    }
    rating = "-" if signals.rating is None else f"{signals.rating:.2f}"
    ends = {"rated": f"{signals.rated:,}", "rating": rating, "labelled": f"{signals.labelled:,}"}
    return {by: line.name, "requests": f"{line.requests:,}"} | counts | ends


def _corrected(ledger: str, since: str) -> Iterable[str]:
    rows = corrections(ledger, seconds_of(since))
    if not rows:
        return
    yield "<h2>Cohorts that clients corrected</h2>"
    yield html_of_rows([
        {"counted as": row["name"], "the client says": row["label"], "answers": f"{row['answers']:,}"}
        for row in rows
    ], "words", "Corrected cohorts")  # fmt: skip


def _poor(ledger: str, since: str) -> Iterable[str]:
    rows = poor_ratings(ledger, seconds_of(since))
    if not rows:
        return
    yield f"<h2>The newest {len(rows)} bad ratings</h2>"
    yield html_table(["rated (UTC)", "cohort", "tier", "score", "label", "id"], [
        [
            when(row["time"]),
            *(html_text(str(row[name] or "-")) for name in ("cohort", "tier")),
            f"{row['score']:.2f}",
            html_text(str(row["label"] or "-")),
            link(f"/requests?id={quote(row['request'], safe='')}", row["request"][:8]),
        ]
        for row in rows
    ], "words", "Bad ratings")  # fmt: skip


def drift_page(sources: Sources) -> str:
    """Whether the requests of the last day differ from the week before, by cohort."""
    if sources.ledger is None:
        return page("/drift", [soft_line(NO_LEDGER)])
    ledger = sources.ledger
    return page("/drift", section(lambda: _drift(ledger), "Drift is"))


def _drift(ledger: str) -> Iterable[str]:
    drift = read_drift(ledger)
    word, _, rest = drift.verdict.partition(": ")
    yield verdict_line(rest, word)
    before, now = drift.rows
    if drift.revision is not None:
        yield soft_line(
            f"Revision {drift.revision}: {before:,} conversations of the week before, {now:,} of the last day."
        )
    if drift.findings:
        yield html_of_rows([_finding(finding) for finding in drift.findings], "words", "Drift")
        yield notes(_DRIFT)


def _finding(finding: Finding) -> dict[str, str]:
    before, now = finding.rows
    return {
        "cohort": "all requests" if finding.group == ALL else finding.group,
        "number": finding.kind,
        "verdict": "DRIFT" if finding.drifted else "as before",
        "before": percent(finding.before, 1),
        "now": percent(finding.now, 1),
        "conversations before": f"{before:,}",
        "and now": f"{now:,}",
        "p": f"{finding.p:.2g}",
    }
