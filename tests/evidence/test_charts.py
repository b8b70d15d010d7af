"""The plots of the HTML pages: labels stay apart."""

import re
from collections.abc import Sequence

import pytest

from extproc.evidence.show.charts import Plot

_LABEL = re.compile(r'<text class="(\w+) name" x="([\d.-]+)" y="([\d.-]+)">([^<]*)</text>')


def dotted(points: Sequence[tuple[str, float, float]], top: float) -> str:
    """A plot of cost and quality, as a page has it. Only the configuration has an interval."""
    low = min(quality for _, _, quality in points)
    plot = Plot("Cost and quality", "dollars", "quality", (0.0, top), (low, 100.0))
    for name, dollars, quality in points:
        own = name == "configured"
        interval = (quality - 3.2, quality + 3.2) if own else None
        plot.dot((dollars, quality), "chosen" if own else "control", name, interval)
    return plot.svg()


ONE_PLACE = [(name, 0.05, 45.0) for name in ("configured", "always small", "random", "mix")]
CROWDED = [
    ("configured", 0.76, 64.4), ("always small", 0.047, 59.8), ("always large", 0.285, 66.2),
    ("always frontier", 6.8, 77.2), ("random", 0.71, 64.1), ("mix", 0.76, 67.0), ("oracle", 0.94, 96.2),
]  # fmt: skip


@pytest.mark.parametrize(
    ("points", "top"), [([*ONE_PLACE, ("always large", 0.9, 75.0)], 1.0), (CROWDED, 6.8)], ids=["equal", "crowded"]
)
def test_labels_of_points_near_each_other_stand_apart(points: list[tuple[str, float, float]], top: float) -> None:
    """All at the place of one tier, or crowded because one tier is much more expensive."""
    labels = _LABEL.findall(dotted(points, top))
    boxes = {name: (float(x), float(y), len(name) * 7.0) for _, x, y, name in labels}
    assert set(boxes) == {name for name, *_ in points}
    placed = list(boxes.values())
    for at, (x, y, width) in enumerate(placed):
        for other_x, other_y, other_width in placed[at + 1 :]:
            assert abs(y - other_y) >= 14 or x >= other_x + other_width or other_x >= x + width
