"""A report as one HTML page: everything inline, nothing fetched, readable on a phone, in print and in the dark."""

from collections.abc import Iterable, Sequence
from html import escape

from extproc.evidence.measure.columns import OUT_OF_SCOPE
from extproc.evidence.measure.controls import MIX, ORACLE, RANDOM, ROUTED
from extproc.evidence.measure.evaluation import Evaluation
from extproc.evidence.measure.metrics import Estimate, exact_interval
from extproc.evidence.perturb.robustness import Robustness
from extproc.evidence.show.charts import Plot, ranges, stacked
from extproc.evidence.show.report import percent

# A larger confusion matrix is a grey square: its largest entries are listed instead.
_MATRIX = 30
_LISTED = 25

_STYLE = """
:root{--ink:#1c2430;--soft:#5d6878;--paper:#fff;--band:#f4f6f9;--rule:#dde2ea;--own:#c2410c;--other:#2563a8;
--t0:#8fb8de;--t1:#2563a8;--t2:#123a66;--t3:#7a4ea8;--t4:#c2410c}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b6;--paper:#14181f;--band:#1d232d;--rule:#313a48;
--own:#fb923c;--other:#7db3ea;--t0:#3c6288;--t1:#7db3ea;--t2:#c4ddf5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1200px;padding:24px 16px 48px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.45rem;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:32px 0 8px}
p,li{max-width:75ch}p.soft,li,figcaption{color:var(--soft);font-size:.87rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:8px;margin:16px 0}
.tile{background:var(--band);border-radius:8px;padding:10px 12px}
.tile b{display:block;font-size:1.35rem}.tile span{color:var(--soft);font-size:.8rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:16px}
figure{margin:0;max-width:640px;break-inside:avoid;border:1px solid var(--rule);border-radius:8px;padding:12px}
figure h3{margin:0 0 6px;font-size:.98rem}figure svg{width:100%;height:auto;display:block}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:.84rem;font-variant-numeric:tabular-nums}
th,td{padding:5px 8px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule)}
tr:last-child td{border-bottom:0}
th{color:var(--soft);font-weight:600;vertical-align:bottom;background:var(--band)}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
th:first-child{background:var(--band)}
tr.own td{font-weight:600;color:var(--own)}td i{color:var(--soft);font-style:normal;font-size:.92em}
svg text{fill:var(--soft);font:12px system-ui,sans-serif}svg .tick{font-size:11px}
svg .grid{stroke:var(--rule);stroke-width:1}svg polyline{fill:none;stroke-width:2}
svg .curve{stroke:var(--other)}svg .hull{stroke:var(--soft);stroke-dasharray:5 4}
svg .ideal{stroke:var(--rule);stroke-width:1.5}
svg circle.control{fill:var(--other)}svg circle.chosen{fill:var(--own)}
svg .bar{stroke-width:1.5;stroke:var(--other)}svg .chosen.bar{stroke:var(--own)}
svg text.name{fill:var(--ink)}svg text.chosen{fill:var(--own);font-weight:600}
svg.stack{width:90px;height:12px;border-radius:3px;vertical-align:middle}
.t0{fill:var(--t0)}.t1{fill:var(--t1)}.t2{fill:var(--t2)}.t3{fill:var(--t3)}.t4{fill:var(--t4)}
.key span{display:inline-block;margin-right:14px;font-size:.84rem;color:var(--soft)}
.key svg{width:11px;height:11px;margin-right:5px}
.matrix td,.matrix th{padding:3px 5px;text-align:center;border:1px solid var(--paper);min-width:26px}
.matrix thead th{vertical-align:bottom;padding:8px 0 4px}
.matrix thead th span{writing-mode:vertical-rl;transform:rotate(180deg)}
.matrix th:first-child{text-align:right}.matrix td.hit{font-weight:600}
@media print{:root{--ink:#000;--soft:#444;--paper:#fff;--band:#f2f2f2;--rule:#bbb;--own:#a33a00;--other:#1c4f8a;
--t0:#8fb8de;--t1:#2563a8;--t2:#123a66}body{max-width:none;padding:0;font-size:11pt}
.scroll{overflow:visible;border:0}table{font-size:7.5pt}th,td{padding:2px 4px}.plots{grid-template-columns:1fr 1fr}
th:first-child,td:first-child{position:static}tr{break-inside:avoid}h2,.key{break-after:avoid}}
"""


def as_html(report: Evaluation, title: str) -> str:
    """The whole page."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        _head(report),
        _tiles(report),
        '<div class="plots">',
        *_plots(report),
        "</div>",
        *_controls(report),
        *_cohorts(report),
        *_confusion(report),
        *_robustness(report.robustness),
        "<h2>How to read this</h2><ul>",
        *(f"<li>{escape(note)}</li>" for note in report.notes),
        "<li>Brackets are 95 % bootstrap intervals over conversations (exact ones where all rows are alike); "
        "differences are paired. A row is counted under its label; without one, under the cohort where it landed."
        "</li></ul>",
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _head(report: Evaluation) -> str:
    d = report.data
    return (
        f'<p class="soft">Traffic {d["traffic"]}: {d["rows"]:,} rows, {d["labelled"]:,} labelled, '
        f"{d['out_of_scope']:,} of them out of scope, {d['with_outcomes']:,} with outcomes; {d['skipped']} lines "
        f"skipped. Intents: revision {d['revision']}, {d['cohorts']} cohorts, {d['calibrated']} calibrated; "
        f"encoder {escape(d['encoder'])}.</p>"
    )


def _tiles(report: Evaluation) -> str:
    routed = next((line for line in report.lines if line.name == ROUTED), None)
    tiles = [
        ("nearest cohort is right", report.overall.accuracy),
        ("wrong of accepted matches", report.overall.wrong),
        ("out of scope, recall", report.scope_recall),
        ("fallback", report.overall.fallback),
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


def _plots(report: Evaluation) -> Iterable[str]:
    if report.lines:
        yield _figure("Cost and quality", _frontier(report), (
            "What is configured, its controls, and the frontier of one tier a cohort, chosen on one half of the "
            "rows and tried on the other. Dashed: fixed random mixes of tiers."
        ))  # fmt: skip
    if report.risk_coverage:
        yield _figure("Risk and coverage", _risk(report), (
            f"Accepted matches, surest first by {report.score}: how many of the labelled rows are accepted, and "
            "how many of those are wrong. The right end is what is configured."
        ))  # fmt: skip
    if report.reliability:
        yield _figure("Reliability", _reliability(report), (
            "How often a match is right, against the probability that was given; bars are exact 95 % intervals. "
            f"Calibration error {100 * report.calibration_error:.1f} points."
        ))  # fmt: skip


def _figure(title: str, picture: str, caption: str) -> str:
    return f"<figure><h3>{title}</h3>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _frontier(report: Evaluation) -> str:
    dots = [(line, (line.per_1000.value, 100 * line.quality.value)) for line in report.lines]
    curve = [(p.per_1000, 100 * p.quality) for p in report.frontier]
    xs, ys = zip(*[at for _, at in dots], *curve, strict=True)
    plot = Plot("Cost and quality", "dollars per 1,000 requests", "quality, %", (0.0, max(xs)), (min(ys), max(ys)))
    alone = sorted(at for line, at in dots if line.name.startswith("always "))
    plot.line(_upper_hull(alone), "hull")
    plot.line(sorted(curve), "curve")
    names = {ROUTED: "configured", RANDOM: "random", MIX: "mix", ORACLE: "oracle"}
    for line, at in dots:
        kind = "chosen" if line.name == ROUTED else "control"
        interval = (100 * line.quality.low, 100 * line.quality.high) if kind == "chosen" else None
        plot.dot(at, kind, names.get(line.name, line.name), interval)
    return plot.svg()


def _upper_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """What random mixes of the points can reach, from the cheapest up."""
    hull: list[tuple[float, float]] = []
    for point in points:
        while hull and (point[1] >= hull[-1][1]) and len(hull) > 1 and _below(hull[-2], hull[-1], point):
            hull.pop()
        if not hull or point[1] > hull[-1][1]:
            hull.append(point)
    return hull


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def _risk(report: Evaluation) -> str:
    points = [(100 * x, 100 * y) for x, y in report.risk_coverage]
    top = max(5.0, *(y for _, y in points))
    plot = Plot(
        "Risk and coverage", "accepted, % of labelled rows", "wrong, % of accepted", (0.0, 100.0), (0.0, top)
    )
    plot.line(points, "curve")
    plot.dot(points[-1], "chosen", "configured")
    return plot.svg()


def _reliability(report: Evaluation) -> str:
    plot = Plot("Reliability", "probability given, %", "right, %", (0.0, 100.0), (0.0, 100.0))
    plot.line([(0, 0), (100, 100)], "hull")
    for b in report.reliability:
        low, high = exact_interval(round(b.right * b.rows), b.rows)
        plot.dot((100 * b.predicted, 100 * b.right), "control", f"{b.rows}", (100 * low, 100 * high))
    return plot.svg()


def _controls(report: Evaluation) -> Iterable[str]:
    if not report.lines:
        return
    prices = "; ".join(f"{name} {p[0]:g} / {p[1]:g}" for name, p in report.data["prices"].items())
    yield "<h2>Against its controls</h2>"
    rows = []
    for line in report.lines:
        own = ' class="own"' if line.name == ROUTED else ""
        behind = _cell(line.behind, "+") if line.behind is not None else ""
        dollars = f"{line.per_1000.value:.4f} <i>[{line.per_1000.low:.4f}, {line.per_1000.high:.4f}]</i>"
        success = f"{1000 * line.per_success.value:.4f}" if line.per_success.known else "-"
        rows.append(f"<tr{own}><td>{escape(line.name)}</td><td>{_cell(line.quality)}</td><td>{dollars}</td>"
                    f"<td>{success}</td><td>{behind}</td></tr>")  # fmt: skip
    yield _table(("", "quality, %", "$ per 1,000", "$ per 1,000 successes", "configured less this, points"), rows)
    yield f'<p class="soft">Dollars per million tokens, input / output: {escape(prices)}.</p>'


def _cohorts(report: Evaluation) -> Iterable[str]:
    tiers = list(report.data["prices"])
    yield "<h2>By cohort</h2>"
    swatch = '<svg viewBox="0 0 10 10"><rect class="t{}" width="10" height="10"/></svg>'
    key = "".join(f"<span>{swatch.format(i % 5)}{escape(t)}</span>" for i, t in enumerate(tiers))
    yield f'<p class="key">{key}</p>'
    rows = []
    for g in [report.overall, *report.groups]:
        shares = [(t, g.tiers.get(t, 0) / max(g.rows, 1), f"t{i % 5}") for i, t in enumerate(tiers)]
        dollars = f"{g.per_1000.value:.3f}" if g.per_1000.known else "-"
        fallback = f"{100 * g.fallback.value:.1f}" if g.fallback.known else "-"
        cells = [f"{g.rows:,}", *(_cell(e) for e in (g.accuracy, g.accepted, g.wrong)), fallback, stacked(shares)]
        if report.lines:
            cells += [*(_cell(e) for e in (g.escalated, g.quality)), dollars]
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr><td>{escape(g.name)}</td>{body}</tr>")
    header = ["", "rows", "nearest is right, %", "accepted, %", "wrong of accepted, %", "fallback, %", "first tier"]
    outcomes = ["escalated, %", "quality, %", "$ per 1,000"] if report.lines else []
    yield _table([*header, *outcomes], rows)
    reasons = ", ".join(f"{name} {count:,}" for name, count in report.overall.reasons.items())
    yield f'<p class="soft">Reasons for the first tier: {escape(reasons)}.</p>'
    if report.overall.rejections:
        told = ", ".join(f"{name} {count:,}" for name, count in report.overall.rejections.items())
        better = percent(report.overall.corrected)
        yield f'<p class="soft">Answers rejected as: {escape(told)}; better after climbing: {better} %.</p>'
    for path, (count, p50, p95) in report.latency_s.items():
        yield f'<p class="soft">Latency, {escape(path)}: p50 {p50:.2f} s, p95 {p95:.2f} s ({count:,} rows).</p>'


def _confusion(report: Evaluation) -> Iterable[str]:
    if not report.confusion:
        return
    yield "<h2>Confusion</h2>"
    labels = sorted({a for a, _, _ in report.confusion}, key=lambda name: (name == OUT_OF_SCOPE, name))
    if len(labels) > _MATRIX:
        wrong = [c for c in report.confusion if c[0] != c[1] and c[:2] != (OUT_OF_SCOPE, "fallback")][:_LISTED]
        yield f'<p class="soft">{len(labels)} labels: the {len(wrong)} most frequent mistakes.</p>'
        yield _table(("label", "landed in", "rows"), [
            f"<tr><td>{escape(a)}</td><td>{escape(b)}</td><td>{n}</td></tr>" for a, b, n in wrong
        ])  # fmt: skip
        return
    counts = {(a, b): n for a, b, n in report.confusion}
    ends = [*sorted({*labels, *(b for _, b, _ in report.confusion)} - {OUT_OF_SCOPE, "fallback"}), "fallback"]
    head = "".join(f"<th><span>{escape(name)}</span></th>" for name in ends)
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
        rows.append(f"<tr><th>{escape(a)}</th>{''.join(cells)}</tr>")
    yield '<p class="soft">Rows: the label. Columns: the cohort where it landed, trusted.</p>'
    yield f'<div class="scroll"><table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
    yield f"{''.join(rows)}</table></div>"


def _robustness(found: Robustness | None) -> Iterable[str]:
    if found is None:
        return
    yield "<h2>The same ask put otherwise</h2>"
    drawn, rows = [], []
    for e in found.effects:
        marks = [(m, kind) for m, kind in ((e.flipped, "control"), (e.upgraded, "chosen")) if m.known]
        drawn.append((e.kind, [((100 * m.low, 100 * m.high), 100 * m.value, kind) for m, kind in marks]))
        cells = [
            f"{e.rows:,}",
            *(_cell(m) for m in (e.flipped, e.upgraded, e.above, e.held, e.downgraded, e.right)),
        ]
        cells.append(_cell(e.change, "+"))
        rows.append(f"<tr><td>{escape(e.kind)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    yield _figure("Flips and upgrades", ranges("Flips and upgrades", "% of rows", drawn), (
        "Above, blue: decided otherwise, to another cohort or tier. Below, orange: of the rows with a dearer tier "
        "above them, moved to one. Bars are 95 % intervals."
    ))  # fmt: skip
    yield "<p></p>"
    yield _table(("", "rows", "flipped, %", "to a dearer tier, %", "above the default tier, %",
                  "above it, upgrades spent, %", "to a cheaper tier, %", "routed right, %", "change, points"),
                 rows)  # fmt: skip
    gadgets = [f"{escape(e.kind)}: <q>{escape(e.gadget)}</q>" for e in found.effects if e.gadget]
    yield "<ul>" + "".join(f"<li>{line}</li>" for line in [*gadgets, *map(escape, found.notes)]) + "</ul>"


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{name}</th>" for name in header)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{"".join(rows)}</table></div>'


def _cell(estimate: Estimate, sign: str = "") -> str:
    value, _, interval = percent(estimate, sign).partition(" ")
    return f"{value} <i>{interval}</i>" if interval else value
