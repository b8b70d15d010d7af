"""The plots of the HTML pages: labels stay apart."""

import re

from extproc.evidence.show.charts import Plot

_LABEL = re.compile(r'<text class="(\w+) name" x="([\d.-]+)" y="([\d.-]+)">([^<]*)</text>')


def test_labels_of_points_at_one_place_stand_apart() -> None:
    """A policy that sends everything to one tier is where the tier, the fixed mix and the random mix are."""
    plot = Plot("Cost and quality", "dollars", "quality", (0.0, 1.0), (0.4, 0.8))
    names = ["configured", "always small", "random", "mix"]
    for name in names:
        plot.dot((0.05, 0.45), "chosen" if name == "configured" else "control", name, (0.42, 0.48))
    plot.dot((0.9, 0.75), "control", "always large")
    boxes = {name: (float(x), float(y), len(name) * 7.0) for _, x, y, name in _LABEL.findall(plot.svg())}
    assert set(boxes) == {*names, "always large"}
    placed = list(boxes.values())
    for at, (x, y, width) in enumerate(placed):
        for other_x, other_y, other_width in placed[at + 1 :]:
            assert abs(y - other_y) >= 14 or x >= other_x + other_width or other_x >= x + width
