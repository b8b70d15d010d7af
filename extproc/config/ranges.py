"""Checks of numbers: their range, and intervals."""

import math
from collections.abc import Iterator

from extproc.mismatch import shown

Finding = tuple[str, str]  # the path of the value, and what is wrong with it


def within(
    path: str,
    value: float | None,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    hint: str = "",
) -> Iterator[Finding]:
    """A number must be finite, at least `least`, above `above`, and at most `most`. None is right."""
    if value is None or (least <= value <= most and math.inf > value > above):
        return
    start = f"above {above:g}" if above > -math.inf else f"from {least:g}"
    end = f" to {most:g}" if most < math.inf else "" if above > -math.inf else " up"
    number = f"{value:g}" if isinstance(value, float) else shown(str(value))
    what = f"`{_short_name(path)}` is {number}: expected a number {start}{end}"
    yield path, f"{what}; {hint}" if hint else what


def is_interval(path: str, ends: tuple[float, float]) -> Iterator[Finding]:
    """Two numbers from 0 to 1, the lower one first."""
    low, high = ends
    if not 0 <= low <= high <= 1:
        ends_text = f"[{low:g}, {high:g}]"
        yield path, f"`{_short_name(path)}` is {ends_text}: expected two numbers from 0 to 1, the lower one first"


def _short_name(path: str) -> str:
    """The keys of a path after the last list, as in `price.input`."""
    return path.rpartition("].")[2].lstrip(".")
