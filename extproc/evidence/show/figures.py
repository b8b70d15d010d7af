"""The figures of a page: cost and quality, risk and coverage, reliability."""

from collections.abc import Iterable, Sequence
from html import escape

from extproc.evidence.measure.controls import MIX, ORACLE, RANDOM, ROUTED
from extproc.evidence.measure.evaluation import Evaluation
from extproc.evidence.measure.metrics import exact_interval
from extproc.evidence.show.charts import Plot


def figures(evaluation: Evaluation) -> Iterable[str]:
    """Every figure that the evaluation has data for."""
    if len(evaluation.lines) > 1:
        yield figure("Cost and quality", _frontier(evaluation), (
            "The configuration, its controls, and the frontier of one tier per cohort. The frontier was chosen on "
            "one half of the rows and tried on the other. Dashed: fixed random mixes of tiers."
        ))  # fmt: skip
    if evaluation.risk_coverage:
        yield figure("Risk and coverage", _risk(evaluation), (
            f"Accepted matches by {evaluation.score}, highest first: the share of the labelled rows that is "
            "accepted, and the share of these that is wrong. The right end is the configuration."
        ))  # fmt: skip
    if evaluation.reliability:
        yield figure("Reliability", _reliability(evaluation), (
            "The share of matches that are right, against the predicted probability. Bars are exact 95 % "
            "intervals, labels are rows. "
            f"Calibration error: {100 * evaluation.calibration_error:.1f} percentage points."
        ))  # fmt: skip


def figure(title: str, picture: str, caption: str) -> str:
    """HTML of one figure. `picture` is SVG, `caption` is plain text."""
    return f"<figure><h3>{title}</h3>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _frontier(evaluation: Evaluation) -> str:
    dots = [(line, (line.per_1000.value, 100 * line.quality.value)) for line in evaluation.lines]
    curve = [(p.per_1000, 100 * p.quality) for p in evaluation.frontier]
    xs, ys = zip(*[point for _, point in dots], *curve, strict=True)
    plot = Plot("Cost and quality", "dollars per 1,000 requests", "quality, %", (0.0, max(xs)), (min(ys), max(ys)))
    alone = sorted(point for line, point in dots if line.name.startswith("always "))
    plot.line(_upper_hull(alone), "hull")
    plot.line(sorted(curve), "curve")
    names = {ROUTED: "configured", RANDOM: "random", MIX: "mix", ORACLE: "oracle"}
    for line, point in dots:
        kind = "chosen" if line.name == ROUTED else "control"
        interval = (100 * line.quality.low, 100 * line.quality.high) if kind == "chosen" else None
        plot.dot(point, kind, names.get(line.name, line.name), interval)
    return plot.svg()


def _upper_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The best points that random mixes of these points reach, from the cheapest up."""
    hull: list[tuple[float, float]] = []
    for point in points:
        while hull and (point[1] >= hull[-1][1]) and len(hull) > 1 and _below(hull[-2], hull[-1], point):
            hull.pop()
        if not hull or point[1] > hull[-1][1]:
            hull.append(point)
    return hull


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def _risk(evaluation: Evaluation) -> str:
    points = [(100 * x, 100 * y) for x, y in evaluation.risk_coverage]
    top = max(5.0, *(y for _, y in points))
    plot = Plot(
        "Risk and coverage", "accepted, % of labelled rows", "wrong, % of accepted", (0.0, 100.0), (0.0, top)
    )
    plot.line(points, "curve")
    plot.dot(points[-1], "chosen", "configured")
    return plot.svg()


def _reliability(evaluation: Evaluation) -> str:
    plot = Plot("Reliability", "predicted probability, %", "right, %", (0.0, 100.0), (0.0, 100.0))
    plot.line([(0, 0), (100, 100)], "hull")
    for b in evaluation.reliability:
        low, high = exact_interval(round(b.right * b.rows), b.rows)
        plot.dot((100 * b.predicted, 100 * b.right), "control", f"{b.rows}", (100 * low, 100 * high))
    return plot.svg()
