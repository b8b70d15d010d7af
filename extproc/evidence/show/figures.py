"""The figures of a page: cost and quality, risk and coverage, reliability."""

from collections.abc import Iterable, Sequence
from html import escape

from extproc.evidence.measure.controls import MIX, ORACLE, RANDOM, ROUTED
from extproc.evidence.measure.evaluation import Evaluation
from extproc.evidence.measure.metrics import exact_interval
from extproc.evidence.show.charts import Pair, Plot


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
    return cost_quality(
        [(e.name, e.per_1000.value, e.quality.value, (e.quality.low, e.quality.high)) for e in evaluation.lines],
        [(point.per_1000, point.quality) for point in evaluation.frontier],
    )


def cost_quality(lines: Sequence[tuple[str, float, float, Pair]], frontier: Sequence[Pair]) -> str:
    """SVG of ways to serve the same rows, each as (name, dollars per 1,000, quality, its interval), as shares."""
    dots = [(name, (dollars, 100 * quality), ends) for name, dollars, quality, ends in lines]
    curve = [(dollars, 100 * quality) for dollars, quality in frontier]
    xs, ys = zip(*[point for _, point, _ in dots], *curve, strict=True)
    plot = Plot("Cost and quality", "dollars per 1,000 requests", "quality, %", (0.0, max(xs)), (min(ys), max(ys)))
    alone = sorted(point for name, point, _ in dots if name.startswith("always "))
    plot.line(_upper_hull(alone), "hull")
    plot.line(sorted(curve), "curve")
    names = {ROUTED: "configured", RANDOM: "random", MIX: "mix", ORACLE: "oracle"}
    for name, point, (low, high) in dots:
        kind = "chosen" if name == ROUTED else "control"
        plot.dot(point, kind, names.get(name, name), (100 * low, 100 * high) if kind == "chosen" else None)
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
