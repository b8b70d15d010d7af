"""A target: the quality that all traffic keeps, or the most that it may cost."""

import math
from typing import Literal

import msgspec


class Target(msgspec.Struct, frozen=True):
    """The quality that all traffic keeps, or the most that it may cost."""

    kind: Literal["quality", "cost"]
    value: float  # quality: a share; cost: dollars per 1,000 requests

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"


def parse_target(text: str) -> Target:
    """Parse `quality=0.9` or `cost=0.25`. Raises ValueError."""
    kind, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if kind == "quality" and 0 < number <= 1:
        return Target("quality", number)
    if kind == "cost" and 0 < number < math.inf:
        return Target("cost", number)
    raise ValueError(f"--target {text}: give quality=SHARE, as in quality=0.9, or cost=DOLLARS per 1,000 requests")
