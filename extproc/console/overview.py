"""The pages on traffic: the overview, and what is known about each cohort."""

from collections.abc import Container, Iterable

import msgspec

from extproc.accounting.queries import By
from extproc.accounting.render import html_notes, html_of_rows, html_tables, html_verdicts
from extproc.accounting.report import CohortLine, CostReport, read_report, seconds_of
from extproc.console.page import MOST_LINES, NO_LEDGER, Sources, choices, dollars, page, percent, section, tiles
from extproc.routing.policy import Cohort, Policy
from extproc.routing.snapshot import Snapshot
from extproc.style import html_text, soft_line, verdict_line


def overview(sources: Sources, since: str, by: By) -> str:
    """Traffic and money by cohort, tier, caller, app or team."""
    parts = [*_router(sources)]
    if sources.ledger is None:
        return page("/", [*parts, soft_line(NO_LEDGER)])
    ledger = sources.ledger
    return page("/", [*parts, choices("/", since, by), *section(lambda: _traffic(ledger, since, by), "Traffic")])


def _router(sources: Sources) -> Iterable[str]:
    if sources.router is None:
        return
    try:
        first, *rest = sources.router().lines
    except (OSError, ValueError) as error:  # traffic is shown all the more while a router is away
        yield verdict_line(str(error), "The router is not shown")
    else:
        yield f'{verdict_line(first)}<pre class="wrap">{html_text(chr(10).join(rest))}</pre>'


def _traffic(ledger: str, since: str, by: By) -> Iterable[str]:
    report = read_report(ledger, seconds_of(since), by)
    yield from html_verdicts(report)
    if not report.total.requests:
        return
    yield _tiles(report)
    if report.cached.hits:
        yield soft_line(f"The cache answered {report.cached.hits:,} of the requests.")
    yield from html_tables(msgspec.structs.replace(report, groups=report.groups[:MOST_LINES]))
    if len(report.groups) > MOST_LINES:
        yield soft_line(
            f"The {MOST_LINES} with the most requests of {len(report.groups):,} are shown. "
            f"`extproc report --by {by}` prints all."
        )
    yield html_notes(report)


def _tiles(report: CostReport) -> str:
    total = report.total
    return tiles((
        (f"{total.requests:,}", "requests"),
        (percent(total.accepted, total.requests), "accepted"),
        (f"{total.escalated:,}", "escalated"),
        (dollars(total.cost), "cost"),
        (dollars(abs(total.saving)), f"{'saved' if total.saving >= 0 else 'more'} against the default tier"),
    ))  # fmt: skip


def cohorts_page(sources: Sources, since: str) -> str:
    """Each cohort: its traffic, its cost, the outcome of its answers, its floor and the evidence."""
    parts = []
    lines: dict[str, CohortLine] = {}
    if sources.ledger is None:
        parts.append(soft_line(NO_LEDGER))
    else:
        parts.append(choices("/cohorts", since))
        try:
            lines = {line.name: line for line in read_report(sources.ledger, seconds_of(since)).groups}
        except OSError as error:
            parts.append(verdict_line(str(error), "Traffic not shown"))
    return page("/cohorts", [*parts, *_cohorts(sources.snapshot(), lines)])


def _cohorts(snapshot: Snapshot, lines: dict[str, CohortLine]) -> Iterable[str]:
    cohorts = cohorts_of(snapshot, lines)
    trusted = sum(cohort.has_floor for cohort in cohorts.values())
    if trusted:
        yield verdict_line(f"{trusted} of {len(cohorts)} cohorts have a floor by evidence or by a person.")
    else:
        yield verdict_line("No cohort has a floor by evidence or by a person, so each match is a guess.")
    policy = snapshot.policy
    rows = [_row(name, cohort, lines.get(name), policy) for name, cohort in cohorts.items()]
    yield html_of_rows(sorted(rows, key=lambda row: -int(row["requests"].replace(",", ""))), "words", "Cohorts")
    others = [line for name, line in lines.items() if name not in cohorts]
    if others:
        yield "<h2>Requests of no cohort</h2>"
        yield soft_line(
            "Each belongs to no cohort above for its reason, or its cohort is not in the files any more."
        )
        rows = [{"reason": line.name} | _numbers(line) for line in others[:MOST_LINES]]
        yield html_of_rows(rows, "words", "Requests of no cohort")


def cohorts_of(snapshot: Snapshot, counted: Container[str] = ()) -> dict[str, Cohort]:
    """The cohorts of the policy, and as APP/COHORT those of each app that has its own intents.

    Those of another app are listed if the ledger has counted them.
    """
    cohorts: dict[str, Cohort] = {}
    for part in (snapshot, *(app.snapshot for app in snapshot.apps)):
        own = part is snapshot or any(app.folder for app in snapshot.apps if app.snapshot is part)
        names = {part.name_of(name): cohort for name, cohort in part.policy.cohorts.items()}
        cohorts |= {name: cohort for name, cohort in names.items() if own or name in counted}
    return cohorts


def _row(name: str, cohort: Cohort, line: CohortLine | None, policy: Policy) -> dict[str, str]:
    numbers = _numbers(line) if line is not None else {**dict.fromkeys(_COLUMNS, "-"), "requests": "0"}
    fixed = {"floor": f"{cohort.floor:.3f}", "evidence": _evidence(cohort)}
    return {"cohort": name, "tier": cohort.tier, "escalates to": _rungs(cohort, policy)} | numbers | fixed


def _rungs(cohort: Cohort, policy: Policy) -> str:
    """The tiers that are asked after a rejection. Without `escalate`, that is the next tier above."""
    if cohort.escalate is not None:
        names = [rung.tier for rung in cohort.escalate.rungs] + ["a person"] * cohort.escalate.human
        return ", ".join(names) or "-"
    above = policy.tiers[policy.rank(cohort.tier) + 1 :] if cohort.accept else ()
    return above[0].name if above else "-"


_COLUMNS = ("requests", "cost", "accepted", "escalated", "re-asked")


def _numbers(line: CohortLine) -> dict[str, str]:
    n = line.requests
    counts = percent(line.accepted, n), percent(line.escalated, n), percent(line.signals.re_asked, n)
    return dict(zip(_COLUMNS, (f"{n:,}", dollars(line.cost), *counts), strict=True))


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
