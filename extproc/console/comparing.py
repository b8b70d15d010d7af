"""The pages on comparisons: cost and quality on recorded outcomes, and a rollout."""

from collections.abc import Iterable

from extproc.accounting.render import html_of_rows
from extproc.accounting.rollout_text import RolloutText
from extproc.console.eval_report import EvalReport, read_eval_report
from extproc.console.page import NO_LEDGER, Sources, notes, page, section
from extproc.evidence.show.figures import cost_quality, figure
from extproc.style import html_table, html_text, soft_line, verdict_line


def frontier_page(sources: Sources) -> str:
    """Cost and quality on recorded outcomes: the configuration, its controls, and the frontier."""
    if sources.report is None:
        how = "Write a report with `extproc eval --json FILE`, and start the console with --report FILE."
        return page("/frontier", [soft_line(how)])
    report = read_eval_report(sources.report)
    parts = [verdict_line(verdict.sentence, verdict.word) for verdict in report.verdicts]
    return page("/frontier", [*parts, *_ways(report)])


def _ways(report: EvalReport) -> Iterable[str]:
    known = [
        (way.name, cost, quality, ((way.quality.low or 0.0), (way.quality.high or 0.0)))
        for way in report.lines
        for cost, quality in [(way.per_1000.value, way.quality.value)]
        if cost is not None and quality is not None
    ]
    if len(known) < 2:
        yield soft_line(
            "The rows of this report have no recorded answers of two tiers, so there is nothing to compare. "
            "docs/guides/evaluate.md says how to record them."
        )
        return
    curve = [(point.per_1000, point.quality) for point in report.frontier]
    caption = "The configuration, its controls, and the frontier of one tier per cohort. Dashed: mixes of tiers."
    picture = figure("Cost and quality", cost_quality(known, curve), caption)
    yield f'<h2>Ways to serve these rows</h2><div class="plots">{picture}</div>'
    yield html_table(["way", "quality, %", "95 % interval", "$ per 1,000"], [
        [html_text(name), f"{100 * quality:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", f"{cost:.4f}"]
        for name, cost, quality, (low, high) in known
    ], label="Cost and quality")  # fmt: skip


def rollout_page(sources: Sources) -> str:
    """The comparison of the candidate, by cohort and arm."""
    if sources.ledger is None:
        return page("/rollout", [soft_line(NO_LEDGER)])
    ledger = sources.ledger
    return page("/rollout", section(lambda: _rollout(sources.rollout(ledger)), "The comparison is"))


def _rollout(text: RolloutText | None) -> Iterable[str]:
    if text is None:
        yield soft_line("The policy has no `candidate`. docs/guides/rollout.md says how to compare one.")
        return
    word, colon, rest = text.verdict.partition(": ")
    is_word = bool(colon) and word.isupper()
    yield verdict_line(rest if is_word else text.verdict, word if is_word else "")
    if text.title:
        yield soft_line(text.title)
    labels = ("Both arms", "After the answers")
    for rows, label in zip(text.tables, labels, strict=False):
        yield html_of_rows([dict(row) for row in rows], "", label)
    if text.notes:
        yield notes(text.notes)
