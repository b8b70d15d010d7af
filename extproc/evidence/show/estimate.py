"""An estimate as text."""

from extproc.evidence.measure.metrics import Estimate


def percent(estimate: Estimate, sign: str = "") -> str:
    """A share in per cent with its interval: "12.5 [10.1, 14.9]". "-" if there was nothing to measure."""
    if not estimate.known:
        return "-"
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:{sign}z.1f} [{low:{sign}z.1f}, {high:{sign}z.1f}]"


def number(estimate: Estimate, times: float) -> str:
    """The value alone, multiplied. "-" if there was nothing to measure."""
    return f"{times * estimate.value:z.1f}" if estimate.known else "-"
