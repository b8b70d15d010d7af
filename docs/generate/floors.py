"""The picture of the packages, by the floors that tests/test_layers.py checks."""

from docs.generate.picture import box, picture
from tests.test_layers import FLOORS

_WIDTH, _BOX, _GAP, _ROW, _WIDEST = 860, 34, 10, 52, 200


def floors_picture() -> str:
    """One row of boxes for each floor, the highest first."""
    floors = [[name for name in floor.split() if not name.startswith("__")] for floor in FLOORS]
    floors = [floor for floor in floors if floor][::-1]
    parts = [part for row, floor in enumerate(floors) for part in _row(20 + row * _ROW, floor)]
    return picture(_WIDTH, len(floors) * _ROW + 30, "Packages in floors", parts)


def _row(top: int, names: list[str]) -> list[str]:
    gaps = _GAP * (len(names) - 1)
    width = min((_WIDTH - 60 - gaps) // len(names), _WIDEST)
    left = (_WIDTH - width * len(names) - gaps) // 2
    return [part for i, name in enumerate(names) for part in box(left + i * (width + _GAP), top, width, _BOX, name)]
