"""The figures of a page: cost and quality, risk and coverage, reliability."""

from collections.abc import Iterable, Sequence
from html import escape

from extproc.evidence.measure.controls import MIX, ORACLE, RANDOM, ROUTED
from extproc.evidence.measure.evaluation import Evaluation
from extproc.evidence.measure.metrics import exact_interval
from extproc.evidence.show.charts import Plot


def figures(report: Evaluation) -> Iterable[str]:
    if report.lines:
        yield figure("Cost and quality", _frontier(report), (
            "What is configured, its controls, and the frontier of one tier a cohort, chosen on one half of the "
            "rows and tried on the other. Dashed: fixed random mixes of tiers."
        ))  # fmt: skip
    if report.risk_coverage:
        yield figure("Risk and coverage", _risk(report), (
            f"Accepted matches, surest first by {report.score}: how many of the labelled rows are accepted, and "
            "how many of those are wrong. The right end is what is configured."
        ))  # fmt: skip
    if report.reliability:
        yield figure("Reliability", _reliability(report), (
            "How often a match is right, against the probability that was given; bars are exact 95 % intervals. "
            f"Calibration error {100 * report.calibration_error:.1f} points."
        ))  # fmt: skip


def figure(title: str, picture: str, caption: str) -> str:
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
