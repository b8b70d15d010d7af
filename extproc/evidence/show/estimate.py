"""An estimate with its interval, as text."""

from extproc.evidence.measure.metrics import Estimate


def percent(estimate: Estimate, sign: str = "") -> str:
    """An estimate of a share in per cent, with its interval; "-" where there is nothing to measure."""
    if not estimate.known:
        return "-"
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def number(estimate: Estimate, times: float) -> str:
    return f"{times * estimate.value:.1f}" if estimate.known else "-"
