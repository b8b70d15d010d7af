"""SVG pictures that can be read on a light and on a dark page."""

from collections.abc import Iterable
from html import escape

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


def picture(width: int, height: int, label: str, parts: Iterable[str], style: str = "") -> str:
    """A whole picture on a panel. `label` says to those who cannot see it what it shows."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}" font-family="system-ui, sans-serif">',
        f"  <style>{_STYLE}{style}  </style>",
        f'  <rect class="panel" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="10"/>',
        *(f"  {part}" for part in parts),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def box(x: int, y: int, width: int, height: int, label: str) -> list[str]:
    """A box with a label in its middle."""
    outline = f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
    return [outline, *text(x + width // 2, y + height // 2 + 5, label)]


def text(x: int, y: int, label: str) -> list[str]:
    """A label with its middle at `x`."""
    return [f'<text x="{x}" y="{y}">{escape(label)}</text>']
