"""The verdict of the gate on a comparison: passed, failed, or that the rows cannot show it."""

import math
from enum import IntEnum

import msgspec
from scipy import stats

from extproc.evidence.measure.comparison import ALL, COST, QUALITY, ROUTING, Cell, Comparison
from extproc.evidence.measure.headlines import Headline
from extproc.evidence.measure.lowered import Lowered

# The share of comparisons in which the gate may report a regression although nothing got worse.
_FALSE_ALARMS = 0.05
# A drop counts as one that the rows could have shown if the gate would fail with this chance.
_POWER = 0.8


class Passage(IntEnum):
    """The outcome of the gate. The number is its exit code."""

    PASSED = 0
    FAILED = 1  # a cohort got worse
    UNSEEN = 3  # a cohort goes to a cheaper tier, and its answers were not recorded
    UNCLEAR = 4  # a cohort is worse than allowed, and the rows are too few to show that it is not random


class GateVerdict(msgspec.Struct, frozen=True):
    """The gate's verdict on one cell that is worse than allowed."""

    cell: Cell
    regressed: bool
    unclear: bool  # the change may be random


class Power(msgspec.Struct, frozen=True):
    """The least drop of one group that its rows could have shown. None: they could not have shown any drop."""

    group: str
    measure: str
    rows: int
    drop: float | None


class GateReport(msgspec.Struct, frozen=True):
    """Everything that `extproc gate` says beside the comparison."""

    passage: Passage
    headline: Headline
    verdicts: list[GateVerdict]  # on every cell that is worse than allowed, worst first
    unseen: list[Lowered]
    power: list[Power]  # of all rows, and of each cohort with a row that flips


def gate(comparison: Comparison, max_quality_drop: float, max_cost_rise: float) -> list[GateVerdict]:
    """A verdict on every cell that is worse than allowed. It regressed if chance does not explain the change.

    Each cell in which any row differs is a test. The tests share the false alarms (Bonferroni). So a comparison in
    which nothing got worse fails at most one time in twenty, for any number of cohorts.
    """
    tests = _tests(comparison)
    verdicts = []
    for cell in comparison.cells:
        rise = cell.change.value if cell.measure == COST else -cell.change.value
        if rise > (max_cost_rise if cell.measure == COST else max_quality_drop):
            regressed = cell.chance <= _FALSE_ALARMS / tests
            verdicts.append(GateVerdict(cell, regressed, not regressed))
    return verdicts


def _tests(comparison: Comparison) -> int:
    return max(1, sum(cell.differing > 0 for cell in comparison.cells))


def gate_report(comparison: Comparison, max_quality_drop: float, max_cost_rise: float) -> GateReport:
    """The verdict on the comparison. A measured regression counts more than unseen rows."""
    verdicts = gate(comparison, max_quality_drop, max_cost_rise)
    power = _power(comparison, max_quality_drop)
    unseen = [each for each in comparison.lowered if _is_unseen(each, comparison, power, max_quality_drop)]
    limits = f"quality may drop {100 * max_quality_drop:g} points, cost may rise {100 * max_cost_rise:g} %"
    regressed = [verdict for verdict in verdicts if verdict.regressed]
    if regressed:
        count = "1 regression" if len(regressed) == 1 else f"{len(regressed)} regressions"
        passage, sentence = Passage.FAILED, f"{count} ({limits})"
    elif unseen:
        rows, without = sum(each.rows for each in unseen), sum(each.rows - each.recorded for each in unseen)
        lacks = (
            f"{without:,} of them have no recorded answers, so the new quality is not known"
            if without
            else "Their recorded answers are too few to show any drop"
        )
        passage = Passage.UNSEEN
        sentence = f"{rows:,} rows go to a cheaper tier or setting. {lacks} ({limits})"
    elif verdicts:
        passage = Passage.UNCLEAR
        count = "1 measure is" if len(verdicts) == 1 else f"{len(verdicts)} measures are"
        sentence = f"{count} worse than allowed. The rows are too few to decide ({limits})"
    else:
        passage, sentence = Passage.PASSED, f"no cohort is worse than allowed ({limits})"
    word = "passed" if passage is Passage.PASSED else passage.name
    worst_first = sorted(verdicts, key=lambda verdict: (not verdict.regressed, verdict.cell.chance))
    return GateReport(passage, Headline(word, sentence), worst_first, unseen, power)


def _is_unseen(lowered: Lowered, comparison: Comparison, power: list[Power], limit: float) -> bool:
    """Whether a drop beyond the limit could hide in the rows without recorded answers, or in too few rows."""
    if not lowered.by_chance and lowered.hidden > limit:
        return True
    shown = {each.group: each.drop for each in power if each.measure == QUALITY}
    return shown.get(lowered.group) is None


def _power(comparison: Comparison, limit: float) -> list[Power]:
    """The power of all rows, and of each group with a flip or a lowered row. Quality is measured if it is known."""
    groups = {ALL, *(flip.group for flip in comparison.flips), *(each.group for each in comparison.lowered)}
    cells = {(cell.group, cell.measure): cell for cell in comparison.cells}
    power = []
    for group in [ALL, *comparison.groups]:
        cell = cells.get((group, QUALITY)) or cells.get((group, ROUTING))
        if group in groups and cell is not None:
            drop = least_drop(cell, _tests(comparison), limit)
            power.append(Power(group, cell.measure, cell.rows, drop))
    return power


def least_drop(cell: Cell, tests: int, limit: float = 0.0) -> float | None:
    """The least drop that fails the gate with a chance of 80 %, if a row that gets worse turns from right to wrong.

    As many conversations get better as in the cell. None: even if all got worse, the gate would not fail.
    """
    rows = cell.independent if cell.independent is not None else float(cell.rows)
    needed = cell.better + 1
    while needed <= rows and stats.binom.sf(needed - 1, needed + cell.better, 0.5) > _FALSE_ALARMS / tests:
        needed += 1
    if needed > rows:
        return None
    worse = float(stats.beta.ppf(_POWER, needed, rows - needed + 1)) if rows >= needed else math.nan
    return max(worse - cell.better / rows, limit)
