"""Small plots as inline SVG, readable on a phone, in print and in dark mode.

A plotting library would add a dependency of fifty megabytes. These plots need four kinds of marks on two axes and
take their style from the CSS of the page, which stays at a few kilobytes.
"""

import math
from collections.abc import Sequence
from html import escape

# The page scales the plots a little. Text has at least 11 pixels on a screen of 400.
_WIDTH, _HEIGHT = 360, 290
_CHARACTER, _BOLD = 7.0, 8.2  # width of a character of a label
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 44
_LINE, _STEPS = 14, 8  # height of a label, and the most lines between a label and its point

Pair = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, width, height


class Plot:
    """Two axes and the marks on them. `svg()` returns the picture."""

    def __init__(self, title: str, x: str, y: str, x_range: Pair, y_range: Pair) -> None:
        self._title, self._names = title, (x, y)
        self._x, self._y = _widened(x_range), _widened(y_range)
        self._marks: list[str] = []
        self._labels: list[tuple[float, float, str, str]] = []
        self._boxes: list[Box] = []  # of dots, which no label may cover
        self._bars: list[Box] = []  # of intervals, which a label covers rather than be far from its point

    def line(self, points: Sequence[Pair], kind: str) -> None:
        """A line through the points. `kind` is its CSS class."""
        if points:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self._at, points))
            self._marks.append(f'<polyline class="{kind}" points="{path}"/>')

    def dot(self, point: Pair, kind: str, label: str = "", interval: Pair | None = None) -> None:
        """A point with a label beside it and a vertical interval."""
        x, y = self._at(point)
        if interval is not None and not any(map(math.isnan, interval)):
            low, high = (self._at((point[0], end))[1] for end in interval)
            self._bars.append((x - 2, min(low, high), 4, abs(high - low)))
            self._marks.append(
                f'<line class="{kind} bar" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
            )
        radius = 6 if kind == "chosen" else 4
        self._boxes.append((x - radius, y - radius, 2 * radius, 2 * radius))
        self._marks.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>')
        if label:
            self._labels.append((x, y, label, kind))

    def svg(self) -> str:
        """The picture, with a title for screen readers."""
        parts = [*self._grid(), *self._marks, *self._placed()]
        return (
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(self._title)}">'
            f"<title>{escape(self._title)}</title>{''.join(parts)}</svg>"
        )

    def _at(self, point: Pair) -> Pair:
        (x0, x1), (y0, y1) = self._x, self._y
        across, up = (point[0] - x0) / (x1 - x0), (point[1] - y0) / (y1 - y0)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    def _grid(self) -> list[str]:
        parts = []
        for tick in ticks(*self._x):
            x, y = self._at((tick, self._y[0]))
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{tick:g}</text>')
        for tick in ticks(*self._y):
            x, y = self._at((self._x[0], tick))
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        middle = _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(self._names[0])}</text>')
        position = f'x="14" y="{_TOP + (_HEIGHT - _TOP - _BOTTOM) / 2}" text-anchor="middle"'
        turned = f'transform="rotate(-90 14 {_TOP + (_HEIGHT - _TOP - _BOTTOM) / 2})"'
        parts.append(f"<text {position} {turned}>{escape(self._names[1])}</text>")
        return parts

    def _placed(self) -> list[str]:
        """Labels beside their points, at a free spot if there is one. A line joins a distant label to its point."""
        taken = list(self._boxes)
        parts = []
        for x, y, label, kind in sorted(self._labels, key=lambda entry: entry[3] != "chosen"):
            width = len(label) * (_BOLD if kind == "chosen" else _CHARACTER)
            left, middle, right = x - 9 - width, x - width / 2, x + 9
            spots = [(right, y + 4), (left, y + 4), (middle, y - 11), (middle, y + 20)]
            # Several points can be at one place. Then the labels stand in a column.
            steps = [sign * step for step in range(1, _STEPS + 1) for sign in (-1, 1)]
            spots += [(side, y + 4 + _LINE * step) for step in steps for side in (right, left)]
            edges = _WIDTH - width, _HEIGHT - _BOTTOM
            inside = [s for s in spots if s[0] > _LEFT and s[0] < edges[0] and 10 < s[1] < edges[1]]
            free = [s for s in inside if _is_free(_box(s, width), taken)]
            clear = [s for s in free if _is_free(_box(s, width), self._bars)]
            near = [s for s in free if abs(s[1] - 4 - y) <= 2 * _LINE]
            left, base = next(iter([*(s for s in clear if s in near), *near, *clear, *free, *inside, *spots]))
            taken.append(_box((left, base), width))
            if abs(base - 4 - y) > 2 * _LINE:
                end = left if left > x else left + width
                parts.append(f'<line class="far" x1="{x:.1f}" x2="{end:.1f}" y1="{y:.1f}" y2="{base - 4:.1f}"/>')
            parts.append(f'<text class="{kind} name" x="{left:.1f}" y="{base:.1f}">{escape(label)}</text>')
        return parts


def _box(spot: Pair, width: float) -> Box:
    """The room of a label whose first letter stands at `spot`."""
    return spot[0], spot[1] - 11, width, _LINE


def _is_free(box: Box, taken: Sequence[Box]) -> bool:
    return not any(_overlap(box, other) for other in taken)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _widened(ends: Pair) -> Pair:
    """The range with room beside the data. A range without width gets one."""
    low, high = ends
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - (0 if low == 0 else room), high + (0 if high in (1.0, 100.0) else room)


def ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers between the ends."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def stacked(shares: Sequence[tuple[str, float, str]]) -> str:
    """A bar of shares that add up to 1, each as (name, share, CSS class)."""
    parts, left = [], 0.0
    for name, share, kind in shares:
        parts.append(
            f'<rect class="{kind}" x="{100 * left:.2f}" width="{100 * share:.2f}" height="10">'
            f"<title>{escape(name)} {100 * share:.0f} %</title></rect>"
        )
        left += share
    return f'<svg class="stack" viewBox="0 0 100 10" preserveAspectRatio="none" role="img">{"".join(parts)}</svg>'


def ranges(title: str, x: str, rows: Sequence[tuple[str, Sequence[tuple[Pair, float, str]]]]) -> str:
    """Values with their intervals in per cent, one line per name: (name, [(interval, value, CSS class)])."""
    left, step, top = 196, 24, 6
    bottom, scale, parts = top + step * len(rows), (_WIDTH - left - _RIGHT) / 100, []
    for tick in range(0, 101, 20):
        position = left + scale * tick
        parts.append(f'<line class="grid" x1="{position:.1f}" x2="{position:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{position:.1f}" y="{bottom + 14}" text-anchor="middle">{tick}</text>')
    for i, (name, marks) in enumerate(rows):
        middle = top + step * i + step / 2
        parts.append(f'<text x="{left - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(name[:27])}</text>')
        for n, ((low, high), value, kind) in enumerate(marks):
            y = middle + 7 * n - 3.5 * (len(marks) - 1)
            ends = f'x1="{left + scale * low:.1f}" x2="{left + scale * high:.1f}"'
            parts.append(f'<line class="{kind} bar" {ends} y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<circle class="{kind}" cx="{left + scale * value:.1f}" cy="{y:.1f}" r="3.5"/>')
    axis = f'x="{(left + _WIDTH - _RIGHT) / 2}" y="{bottom + 30}" text-anchor="middle"'
    parts.append(f"<text {axis}>{escape(x)}</text>")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {bottom + 36}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
