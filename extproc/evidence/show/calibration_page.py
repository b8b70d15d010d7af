"""The results of `extproc calibrate` as parts of an HTML page. They have no text of a request."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from extproc.evidence.fit.calibration import Calibration, Counts, FloorFit, total
from extproc.evidence.fit.choice import TierChoice
from extproc.evidence.fit.labelled import LabelledRows
from extproc.evidence.fit.learning import FittedCentroids
from extproc.evidence.measure.headlines import Headline
from extproc.evidence.show.calibration import (
    ABSTAINING,
    floors_about,
    kept_text,
    kind_of,
    matching_about,
    plan_text,
    source_note,
)
from extproc.evidence.show.estimate import percent
from extproc.evidence.show.html_parts import estimate_cell, line_table_html, prose, verdict_lines
from extproc.routing.policy import Cohort
from extproc.style import html_page, html_table, html_text, soft_line

_MEASURES = ["accepted, %", "before", "wrong, % [95&nbsp;%]", "before"]


def fits_page(title: str, bodies: Iterable[tuple[str, Sequence[Headline], str]], changes: Iterable[str]) -> str:
    """The whole page. `bodies`: (app, verdicts, HTML), where the app of the policy itself is empty.

    `changes` are lines of a unified diff of the files.
    """
    parts = [f"<h1>{html_text(title)}</h1>"]
    for app, verdicts, body in bodies:
        parts += [f"<h2>App {html_text(app)}</h2>"] if app else []
        parts += [*verdict_lines(verdicts), body]
    lines = [f"{escape(line)}\n" for line in changes]
    shown = f'<pre tabindex="0">{"".join(lines)}</pre>' if lines else "<p>No file changes.</p>"
    return html_page(title, "".join([*parts, "<h2>Changes to the files</h2>", shown]))


def calibration_html(
    learned: FittedCentroids,
    rows: LabelledRows,
    calibration: Calibration,
    risk: float,
    present: Mapping[str, Cohort],
) -> str:
    """The ways of matching, and the fitted floors beside the present ones."""
    about = [*matching_about(learned, rows), *([] if not learned.trials else [learned.why])]
    parts = ["<h2>Matching</h2>", *_soft(about), *_trials(learned), "<h2>Floors</h2>"]
    parts += [*_soft(floors_about(calibration, risk)), *_floors(calibration, present), *_sources(calibration)]
    return "".join(parts)


def _soft(sentences: Iterable[str]) -> Iterator[str]:
    """Sentences that begin in lower case in a terminal, each as a remark."""
    for sentence in sentences:
        yield f'<p class="soft">{prose(sentence[:1].upper() + sentence[1:])}.</p>'


def _trials(learned: FittedCentroids) -> Iterator[str]:
    if not learned.trials:
        return
    first = learned.trials[0]
    cells = []
    for trial in learned.trials:
        name = trial.kind if trial.encoder == first.encoder else f"{trial.kind}, adapted"
        gain = estimate_cell(trial.gain, "+") if trial is not first else ""
        cells.append([escape(name), *map(estimate_cell, (trial.accuracy, trial.auroc, trial.routed)), gain])
    header = ["way of matching", "accuracy, %", "AUROC, %", "right and accepted, %", "gain, points"]
    yield html_table(header, cells, label="Matching")


def _floors(calibration: Calibration, present: Mapping[str, Cohort]) -> Iterator[str]:
    if not calibration.fits:
        return
    rows, abstaining = [], []
    for fit in sorted(calibration.fits, key=_order):
        name, cohort = html_text(fit.name), present[fit.name]
        if fit.evidence is None or kind_of(fit.evidence) == "abstains":
            abstaining.append([name, f"{fit.after.rows:,}", html_text(fit.why)])
            continue
        floors = [f"{floor:.4f}" for floor in (fit.floor, cohort.floor, fit.margin, cohort.margin)]
        kind = "pool" if kind_of(fit.evidence) == "pool" else ""
        rows.append([name, f"{fit.after.rows:,}", *floors, *_measured(fit.after, fit.before), kind])
    after, before = (total([getattr(fit, when) for fit in calibration.fits]) for when in ("after", "before"))
    rows.append(["together", f"{after.rows:,}", *[""] * 4, *_measured(after, before), ""])
    header = ["cohort", "rows", "floor", "before", "margin", "before", *_MEASURES, ""]
    yield html_table(header, rows, "sums", "Floors")
    if abstaining:
        yield "<h2>Cohorts that abstain</h2>"
        yield html_table(["cohort", "rows", "why"], abstaining, "words", "Abstaining")
        yield from _soft([ABSTAINING])


def _order(fit: FloorFit) -> int:
    """Cohorts with floors come first."""
    return 2 if fit.evidence is None else ("own", "pool", "abstains").index(kind_of(fit.evidence))


def _measured(after: Counts, before: Counts) -> list[str]:
    low, high = (100 * end for end in after.interval)
    wrong = [f"{100 * c.wrong_share:.1f}" if c.accepted else "-" for c in (after, before)]
    accepted = [f"{100 * c.accepted_share:.1f}" for c in (after, before)]
    return [*accepted, f"{wrong[0]} <i>[{low:.1f}, {high:.1f}]</i>", wrong[1]]


def _sources(calibration: Calibration) -> Iterator[str]:
    if calibration.why:
        return
    if calibration.sources:
        yield "<h2>Sources</h2>"
        rows = []
        for source in calibration.sources:
            accepted, _, wrong, _ = _measured(source.after, source.after)
            rows.append([html_text(source.name), f"{source.after.rows:,}", accepted, wrong])
        yield html_table(["source", "rows", "accepted, %", "wrong, % [95&nbsp;%]"], rows, label="Sources")
    yield from _soft(source_note(calibration))


def choice_html(choice: TierChoice) -> str:
    """The choice beside the present settings, and its controls."""
    chosen, kept = [], []
    for setting in choice.cohorts:
        name, rows = html_text(setting.name), f"{sum(setting.rows):,}"
        if setting.plan is None:
            kept.append([name, rows, html_text(kept_text(setting))])
            continue
        quality, dollars = setting.after
        before = setting.before
        numbers = [percent(before[0]).partition(" ")[0], f"{dollars.value:.4f}", f"{before[1].value:.4f}"]
        chosen.append([name, rows, html_text(plan_text(setting.plan)), estimate_cell(quality), *numbers])
    parts = []
    if chosen:
        header = ["cohort", "rows", "chosen", "quality, % [95&nbsp;%]", "before", "$ per 1,000", "before"]
        parts += ["<h2>Chosen</h2>", html_table(header, chosen, label="Chosen")]
    if kept:
        parts += ["<h2>Unchanged</h2>", html_table(["cohort", "rows", "why"], kept, "words", "Unchanged")]
    if choice.lines:
        parts += ["<h2>Compared with its controls</h2>", line_table_html(choice.lines)]
    fitted, reported = choice.rows
    note = f"Chosen for {choice.target} on {fitted:,} distinct rows with outcomes, measured on {reported:,} others."
    return "".join([soft_line(note), *parts])
