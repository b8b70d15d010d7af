"""The picture of the packages, by the floors that tests/test_layers.py checks."""

from html import escape

from tests.test_layers import FLOORS

_WIDTH, _BOX, _GAP, _ROW = 860, 34, 10, 52
_STYLE = """
    .panel { fill: #f7f8fc; stroke: #d5d9e8 }
    .box { fill: #e8eaf6; stroke: #3949ab; stroke-width: 1.2 }
    text { fill: #1c2333; text-anchor: middle; font-size: 15px }
    @media (prefers-color-scheme: dark) {
      .panel { fill: #1f2430; stroke: #39415a }
      .box { fill: #303a5c; stroke: #8c9eff }
      text { fill: #eceff4 }
    }
"""


def floors_picture() -> str:
    """An SVG with one row of boxes for each floor, the highest first."""
    floors = [[name for name in floor.split() if not name.startswith("__")] for floor in FLOORS]
    floors = [floor for floor in floors if floor][::-1]
    height = len(floors) * _ROW + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'aria-label="Packages in floors" font-family="system-ui, sans-serif">',
        f"  <style>{_STYLE}  </style>",
        f'  <rect class="panel" x="1" y="1" width="{_WIDTH - 2}" height="{height - 2}" rx="10"/>',
    ]
    for row, floor in enumerate(floors):
        width = (_WIDTH - 60 - _GAP * (len(floor) - 1)) // len(floor)
        width = min(width, 200)
        left = (_WIDTH - width * len(floor) - _GAP * (len(floor) - 1)) // 2
        top = 20 + row * _ROW
        for place, name in enumerate(floor):
            x = left + place * (width + _GAP)
            parts.append(f'  <rect class="box" x="{x}" y="{top}" width="{width}" height="{_BOX}" rx="6"/>')
            parts.append(f'  <text x="{x + width // 2}" y="{top + 22}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
