"""A target: the quality that all traffic keeps, the most that it may cost, or the most quality that it may lose."""

import math
from typing import Literal

import msgspec


class Target(msgspec.Struct, frozen=True):
    """The quality that all traffic keeps, the most that it may cost, or the most quality that it may lose."""

    kind: Literal["quality", "cost", "loss"]
    # Dollars per 1,000 requests for a cost, otherwise a share. A loss is counted from the quality of the costliest
    # tier for everything.
    value: float

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"


def parse_target(text: str) -> Target:
    """Parse `quality=0.9`, `cost=0.25` or `loss=0.05`. Raises ValueError."""
    kind, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if kind == "quality" and 0 < number <= 1:
        return Target("quality", number)
    if kind == "cost" and 0 < number < math.inf:
        return Target("cost", number)
    if kind == "loss" and 0 < number < 1:
        return Target("loss", number)
    raise ValueError(
        f"--target {text}: give quality=SHARE, as in quality=0.9, cost=DOLLARS per 1,000 requests, or loss=SHARE "
        "below the costliest tier, as in loss=0.05"
    )
