"""A configuration and its controls, as text for a terminal."""

from collections.abc import Iterator, Sequence

from extproc.evidence.measure.controls import ControlLine
from extproc.evidence.measure.metrics import Estimate
from extproc.evidence.show.estimate import percent


def line_table(lines: Sequence[ControlLine]) -> Iterator[str]:
    """One line for the configuration and one for each control."""
    yield f"{'quality and cost':<24}{'quality % [95 %]':<22}{'$/1,000':>9}{'$/success':>11}   configured minus this"
    for line in lines:
        behind = "" if line.behind is None else f"{percent(line.behind, '+')} points{_comparison(line.behind)}"
        dollars = f"{line.per_1000.value:>9.4f}{line.per_success.value:>11.6f}"
        yield f"{line.name:<24}{percent(line.quality):<22}{dollars}   {behind}".rstrip()


def _comparison(difference: Estimate) -> str:
    if difference.low > 0:
        return ", better"
    return ", worse" if difference.high < 0 else ""
