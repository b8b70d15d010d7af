"""An evaluation as one HTML page that loads nothing else, for phones, print and dark mode."""

from collections.abc import Iterable, Sequence
from html import escape

from extproc.evidence.measure.columns import OUT_OF_SCOPE
from extproc.evidence.measure.controls import ROUTED
from extproc.evidence.measure.evaluation import Evaluation
from extproc.evidence.measure.headlines import DEFAULT_RISK
from extproc.evidence.measure.labels import Disagreement, TierMatrix
from extproc.evidence.perturb.robustness import Robustness
from extproc.evidence.show.charts import ranges, stacked
from extproc.evidence.show.estimate import percent
from extproc.evidence.show.figures import figure, figures
from extproc.evidence.show.html_parts import estimate_cell, figure_table, line_table_html, prose, verdict_lines
from extproc.evidence.show.robustness import COLUMNS
from extproc.style import html_page, scroll_region, soft_line

# A confusion matrix with more labels is unreadable. Its largest entries are listed instead.
_MOST_LABELS = 30
_LISTED = 25


def as_html(evaluation: Evaluation, title: str) -> str:
    """The whole page."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        *verdict_lines(evaluation.verdicts),
        _head(evaluation),
        _tiles(evaluation),
        '<div class="plots">',
        *figures(evaluation),
        "</div>",
        *_controls(evaluation),
        *_tiers(evaluation.tiers),
        *_cohorts(evaluation),
        *_confusion(evaluation),
        *_disagreements(evaluation.disagreements),
        *_robustness(evaluation.robustness),
        "<h2>How to read this</h2><ul>",
        *(f"<li>{prose(note)}</li>" for note in evaluation.notes),
        "<li>Brackets are 95 % bootstrap intervals over conversations. If all rows are equal, they are exact "
        "intervals of a share. Differences are paired.</li>",
        "<li>A row counts under its label, or without one under the cohort that it matched.</li></ul>",
    ]
    return html_page(title, "".join(parts))


def _head(evaluation: Evaluation) -> str:
    d = evaluation.data
    return (
        f'<p class="soft">Traffic {d["traffic"]}: {d["rows"]:,} rows, {d["labelled"]:,} labelled (of these '
        f"{d['out_of_scope']:,} out of scope), {d['with_any_outcome']:,} with outcomes; {d['skipped']} lines "
        f"skipped. Intents: revision {d['revision']}, {d['cohorts']} cohorts, {d['calibrated']} of them calibrated."
        f" Encoder: {escape(d['encoder'])}.</p>"
    )


def _tiles(evaluation: Evaluation) -> str:
    routed = next((line for line in evaluation.lines if line.name == ROUTED), None)
    tiles = [
        ("of rows in scope: nearest cohort is right", evaluation.overall.accuracy),
        (f"of {evaluation.overall.wrong.rows:,} trusted matches are wrong", evaluation.overall.wrong),
        ("of out-of-scope rows recognised", evaluation.scope_recall),
        ("of rows fall back", evaluation.overall.fallback),
    ]
    cells = [_tile(f"{100 * e.value:.1f} %", name, percent(e)) for name, e in tiles if e.known]
    if routed is not None:
        cells.append(_tile(f"{100 * routed.quality.value:.1f} %", "quality", percent(routed.quality)))
        if routed.per_success.known:
            dollars = f"{1000 * routed.per_success.low:.3f} to {1000 * routed.per_success.high:.3f}"
            cells.append(_tile(f"${1000 * routed.per_success.value:.3f}", "per 1,000 successes", dollars))
    return f'<div class="tiles">{"".join(cells)}</div>'


def _tile(value: str, name: str, interval: str) -> str:
    return f'<div class="tile"><b>{value}</b><span>{name}<br>{interval}</span></div>'


def _controls(evaluation: Evaluation) -> Iterable[str]:
    if evaluation.lines or evaluation.bounds:
        yield "<h2>Compared with its controls</h2>"
    if evaluation.lines:
        yield line_table_html(evaluation.lines)
        prices = "; ".join(f"{name} {p[0]:g} / {p[1]:g}" for name, p in evaluation.data["prices"].items())
        yield f'<p class="soft">Dollars per million tokens, input / output: {escape(prices)}.</p>'
    if evaluation.estimated:
        yield soft_line("Doubly robust estimates: answers were recorded by chance, with known propensities.")
    if evaluation.bounds:
        yield soft_line("Answers recorded on chosen rows only: bounds of the quality on all rows with outcomes.")
        yield figure_table(("", "lowest, %", "highest, %", "rows with the answer", "rows"), [
            f"<tr><td>{escape(b.name)}</td><td>{100 * b.low:.1f}</td><td>{100 * b.high:.1f}</td>"
            f"<td>{b.recorded:,}</td><td>{b.rows:,}</td></tr>"
            for b in evaluation.bounds
        ])  # fmt: skip
    if evaluation.paired:
        rows = evaluation.paired[0].quality.rows
        yield soft_line(f"The {rows:,} rows that have every answer. Other rows may differ.")
        yield line_table_html(evaluation.paired)


def _tiers(tiers: TierMatrix) -> Iterable[str]:
    if not tiers.cells:
        return
    counts = {(needed, chosen): rows for needed, chosen, rows in tiers.cells}
    chosen = [name for name in tiers.names if any(name == cell[1] for cell in tiers.cells)]
    yield "<h2>Tiers</h2>"
    yield soft_line("Labelled rows. Rows: the tier that the label needs. Columns: the tier of the first attempt.")
    rows = []
    for needed in dict.fromkeys(cell[0] for cell in tiers.cells):
        cells = "".join(f"<td>{counts.get((needed, name), 0):,}</td>" for name in chosen)
        rows.append(f"<tr><td>{escape(needed)}</td>{cells}</tr>")
    yield figure_table(("", *map(escape, chosen)), rows)
    shares = f"Right tier: {percent(tiers.right)} % of {tiers.right.rows:,} rows."
    if tiers.below.known:
        needing = f"{tiers.below.rows:,} rows that need more than the cheapest tier"
        shares += f" Sent too low: {percent(tiers.below)} % of {needing}."
    yield soft_line(shares)


def _disagreements(rows: Sequence[Disagreement]) -> Iterable[str]:
    if not rows:
        return
    yield "<h2>Labels that a confident match contradicts</h2>"
    yield soft_line(f"{len(rows):,} rows, most confident first. Check these labels before you reword utterances.")
    yield figure_table(("line", "label", "match"), [
        f"<tr><td>{row.line}</td><td>{escape(row.label)}</td><td>{escape(row.cohort)}</td></tr>"
        for row in rows[:_LISTED]
    ], "words")  # fmt: skip


def _cohorts(evaluation: Evaluation) -> Iterable[str]:
    tiers = list(evaluation.data["prices"])
    yield "<h2>By cohort</h2>"
    swatch = '<svg viewBox="0 0 10 10"><rect class="t{}" width="10" height="10"/></svg>'
    key = "".join(f"<span>{swatch.format(i % 5)}{escape(t)}</span>" for i, t in enumerate(tiers))
    yield f'<p class="key">{key}</p>'
    rows = []
    for g in [evaluation.overall, *evaluation.groups]:
        shares = [(t, g.tiers.get(t, 0) / max(g.rows, 1), f"t{i % 5}") for i, t in enumerate(tiers)]
        dollars = f"{g.per_1000.value:.3f}" if g.per_1000.known else "-"
        fallback = f"{100 * g.fallback.value:.1f}" if g.fallback.known else "-"
        wrong = f"{estimate_cell(g.wrong)} <i>of {g.wrong.rows:,}</i>" if g.wrong.known else "-"
        cells = [
            f"{g.rows:,}",
            *(estimate_cell(e) for e in (g.accuracy, g.accepted)),
            wrong,
            fallback,
            stacked(shares),
        ]
        if evaluation.lines:
            cells += [*(estimate_cell(e) for e in (g.escalated, g.quality)), dollars]
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr><td>{escape(g.name)}</td>{body}</tr>")
    risk = 100 * (evaluation.data["risk"] or DEFAULT_RISK)
    wrong = f"wrong, % of trusted matches (risk {risk:g} %)"
    header = ["", "rows", "nearest is right, %", "accepted, % of rows", wrong, "fallback, % of rows", "first tier"]
    outcomes = ["escalated, %", "quality, %", "$ per 1,000"] if evaluation.lines else []
    yield figure_table([*header, *outcomes], rows)
    reasons = ", ".join(f"{name} {count:,}" for name, count in evaluation.overall.reasons.items())
    yield f'<p class="soft">Rows by the reason for the first tier: {escape(reasons)}.</p>'
    if evaluation.overall.rejections:
        rejections = ", ".join(f"{name} {count:,}" for name, count in evaluation.overall.rejections.items())
        better = percent(evaluation.overall.corrected)
        yield f'<p class="soft">Rejected answers by reason: {escape(rejections)}.</p>'
        yield (
            f'<p class="soft">Better after the escalation: {better} % of the escalated rows with both qualities '
            "recorded.</p>"
        )
    for path, (count, p50, p95) in evaluation.latency_s.items():
        yield f'<p class="soft">Latency, {escape(path)}: p50 {p50:.2f} s, p95 {p95:.2f} s ({count:,} rows).</p>'


def _confusion(evaluation: Evaluation) -> Iterable[str]:
    if not evaluation.confusion:
        return
    yield "<h2>Confusion</h2>"
    labels = sorted({a for a, _, _ in evaluation.confusion}, key=lambda name: (name == OUT_OF_SCOPE, name))
    if len(labels) > _MOST_LABELS:
        wrong = [c for c in evaluation.confusion if c[0] != c[1] and c[:2] != (OUT_OF_SCOPE, "fallback")][:_LISTED]
        yield f'<p class="soft">{len(labels)} labels. The {len(wrong)} most frequent mistakes:</p>'
        yield figure_table(("label", "match", "rows"), [
            f"<tr><td>{escape(a)}</td><td>{escape(b)}</td><td>{n}</td></tr>" for a, b, n in wrong
        ])  # fmt: skip
        return
    counts = {(a, b): n for a, b, n in evaluation.confusion}
    ends = [*sorted({*labels, *(b for _, b, _ in evaluation.confusion)} - {OUT_OF_SCOPE, "fallback"}), "fallback"]
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in ends)
    rows = []
    for a in labels:
        total = sum(counts.get((a, b), 0) for b in ends)
        cells = []
        for b in ends:
            n = counts.get((a, b), 0)
            hit = a == b or (a == OUT_OF_SCOPE and b == "fallback")
            tint = "var(--other)" if hit else "var(--own)"
            strength = round(75 * n / max(total, 1))
            style = f"background:color-mix(in srgb,{tint} {strength}%,var(--band))"
            cells.append(f'<td class="{"hit" if hit else ""}" style="{style}">{n or ""}</td>')
        rows.append(f'<tr><th scope="row">{escape(a)}</th>{"".join(cells)}</tr>')
    yield '<p class="soft">Rows: the label. Columns: the trusted match.</p>'
    yield f'{scroll_region("Confusion")}<table class="matrix"><thead><tr><td></td>{head}</tr></thead>'
    yield f"{''.join(rows)}</table></div>"


def _robustness(robustness: Robustness | None) -> Iterable[str]:
    if robustness is None:
        return
    yield "<h2>Rewritten requests</h2>"
    drawn, rows = [], []
    for e in robustness.effects:
        marks = [(m, kind) for m, kind in ((e.flipped, "control"), (e.upgraded, "chosen")) if m.known]
        drawn.append((e.kind, [((100 * m.low, 100 * m.high), 100 * m.value, kind) for m, kind in marks]))
        shares = (e.flipped, e.upgraded, e.downgraded, e.above, e.above_capped, e.right)
        cells = [f"{e.rows:,}", *map(estimate_cell, shares), estimate_cell(e.change, "+")]
        rows.append(f"<tr><td>{escape(e.kind)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    yield figure("Flips and upgrades", ranges("Flips and upgrades", "% of rows", drawn), (
        f"Upper mark, blue: {COLUMNS['flipped']}. Lower mark, orange: {COLUMNS['upgraded']}. Bars are 95 % "
        "intervals."
    ))  # fmt: skip
    yield "<p></p>"
    yield figure_table(("", "rows", *(f"{name}, %" for name in COLUMNS), "change, points"), rows)
    columns = [f"{name}: {meaning}." for name, meaning in COLUMNS.items()]
    yield "<ul>" + "".join(f"<li>{prose(line)}</li>" for line in [*columns, *robustness.notes]) + "</ul>"
