"""A pick: the plan of one cohort. All picks together meet the target.

All cohorts pay the same price for a dollar, in quality. At that price each cohort picks the plan that is worth
most, and the price is chosen so that the sum over all cohorts meets the target (Lagrange multipliers).

A cohort picks a plan only if its own rows show, at 95 %, that the plan pays. A more expensive plan must be better,
and any other plan must cost less. A cohort with too few rows keeps its settings, and the report says how many rows
it needs.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from extproc.evidence.fit.cohort_plans import LEAST_ROWS, SIGMA, CohortPlans, plans_of_cohorts, rows_to_show
from extproc.evidence.fit.option_table import OptionTable, ends_with_person
from extproc.evidence.fit.partition import FIT_SHARE
from extproc.evidence.fit.scored_table import ScoredTable
from extproc.evidence.fit.target import Target
from extproc.evidence.fit.units import Units
from extproc.evidence.measure.metrics import Floats

# Prices of a dollar, relative to the cost of the most expensive setting. At the lowest almost only quality counts,
# at the highest almost only cost.
_PRICES = np.geomspace(1e-4, 1e2, 4000)

Pick = tuple[int, str]  # the index of the plan, and why the cohort keeps its settings


def picks_for(scored: ScoredTable, target: Target, cut: float) -> list[tuple[CohortPlans, Pick]]:
    """Return every cohort with its pick. Raises ValueError if no picks meet the target."""
    cohorts = plans_of_cohorts(scored, cut)
    if target.kind == "loss":
        cohorts = [_below_costliest(c, scored.table) for c in cohorts]
    prices = _PRICES / max(float(scored.table.recorded.cost.mean(axis=0).max()), 1e-12)
    tried = dict.fromkeys(tuple(_pick(c, price) for c in cohorts) for price in prices)  # most prices agree
    return [*zip(cohorts, _best_picks(scored.table, cohorts, [*tried], target), strict=True)]


def _below_costliest(c: CohortPlans, table: OptionTable) -> CohortPlans:
    """Return the plans with the quality of each answer less that of the costliest setting's answer."""
    costliest = table.recorded.quality[c.rows, -1]
    mean = costliest.mean() if len(costliest) else 0.0
    expected = c.expected[0] - mean, c.expected[1]
    return msgspec.structs.replace(c, quality=c.quality - costliest, expected=expected)


def _pick(c: CohortPlans, price: float) -> Pick:
    """Pick the plan that is worth most at this price of a dollar, if the cohort's own rows show that it pays."""
    n = c.units.count
    if ends_with_person(c.cohort):
        return 0, "unchanged: its rejected answers end with a person"
    if n < LEAST_ROWS:
        return 0, _why_too_few(LEAST_ROWS, c.total, "")
    worth = c.expected[0] - price * c.expected[1]
    best, shown = int(worth.argmax()), int(np.where(c.needed <= n, worth, -np.inf).argmax())
    if shown or not best or not math.isfinite(c.needed[best]):
        return shown, ""
    return 0, _why_too_few(math.ceil(c.needed[best]), c.total, "to show that another setting pays, ")


def _why_too_few(rows_to_fit: int, total: int, purpose: str) -> str:
    needed = math.ceil(rows_to_fit / FIT_SHARE)
    return f"{purpose}needs about {needed} rows with outcomes that land here; has {total}"


# --- the picks of all cohorts -------------------------------------------------------------------------------------


def _best_picks(
    table: OptionTable, cohorts: Sequence[CohortPlans], tried: Sequence[Sequence[Pick]], target: Target
) -> list[Pick]:
    """Return the picks, among one list per price, that meet the target best over all rows to fit on.

    For a target of quality or loss these are the cheapest picks, for a cost target the best. A target counts as met
    only if the end of a one-sided 95 % interval meets it.
    """
    in_no_cohort = table.fit & ~np.any([c.rows for c in cohorts], axis=0)
    quality, cost = (values[in_no_cohort] for values in table.configured)
    if target.kind == "loss":
        quality = quality - table.recorded.quality[in_no_cohort, -1]
    rest = _sums(quality[None], cost[None], table.units.subset(in_no_cohort))[0]
    sums = [_sums(c.quality, c.cost, c.units, c.expected[0]) for c in cohorts]
    totals: list[Floats] = [
        rest + np.sum([plans[k] for plans, (k, _) in zip(sums, picks, strict=True)], axis=0) for picks in tried
    ]
    worths = [_worth(each, target) for each in totals]
    if max(worths) == -math.inf:
        ends = np.array([_ends(each) for each in totals])
        if not np.isfinite(ends).all():
            raise ValueError(
                f"--target {target}: out of reach: the choice needs two rows, and has fewer. Equal asks and "
                "those of one session or user count once: record the outcomes of more of them"
            )
        best_quality = ends[:, 0].max()
        reached = f"quality reaches {best_quality:.3f}"
        if target.kind == "loss":
            reached = f"the loss falls to {-best_quality:.3f}"
        raise ValueError(
            f"--target {target}: out of reach on these rows, at 95 %: with the settings that they show to pay, "
            f"{reached}, and cost falls to {ends[:, 1].min():.4f} dollars per 1,000"
        )
    best = int(np.argmax(worths))
    picks = list(tried[best])
    return _spend_rest(cohorts, sums, picks, totals[best], target) if target.kind == "cost" else picks


def _spend_rest(
    cohorts: Sequence[CohortPlans], sums: Sequence[Floats], picks: list[Pick], total: Floats, target: Target
) -> list[Pick]:
    """Spend the rest of the budget, one cohort at a time, on plans that its rows show to pay. Return the picks.

    One price for all cohorts leaves some budget over if the next plan of a cohort costs much more. A quality target
    has no such step: saving until it is only just met would pick the plans that were lucky on these rows.
    """
    moves = [(i, int(k)) for i, c in enumerate(cohorts) for k in np.flatnonzero(c.needed <= c.units.count)]
    while moves:
        moved = [total + sums[i][k] - sums[i][picks[i][0]] for i, k in moves]
        worths, worth = [_worth(each, target) for each in moved], _worth(total, target)
        gains = [at for at in np.argsort(worths)[::-1] if worths[at] > worth + 1e-9]
        at = next((at for at in gains if _pays(cohorts[moves[at][0]], picks[moves[at][0]][0], moves[at][1])), None)
        if at is None:
            break
        (i, k), total = moves[at], moved[at]
        picks[i] = k, ""
    return picks


def _pays(c: CohortPlans, old: int, new: int) -> bool:
    """Return whether the cohort's own rows show that the new plan is better or costs less than the old one."""
    both = [old, new]
    return bool(rows_to_show(c.quality[both], c.cost[both], c.units)[1] <= c.units.count)


# --- sums over rows -----------------------------------------------------------------------------------------------


def _sums(quality: Floats, cost: Floats, units: Units, expected: Floats | None = None) -> Floats:
    """Return float64[plan, 10]: the sums that `_ends` and `_worth` need. They can be added over cohorts.

    These are the weighted sums of quality, dollars per 1,000 and expected quality, and the sum of weights. Over
    units they are the squares of the first two, their products with the weight, the squared weight, and the number.
    """
    weight = units.totals(np.ones(quality.shape[1]))
    total = weight.sum()
    quality, cost = units.totals(quality), units.totals(1000 * cost)
    likely = quality.sum(axis=1) if expected is None else total * expected
    columns = [quality.sum(axis=1), cost.sum(axis=1), likely, np.full(len(cost), total)]
    columns += [(quality**2).sum(axis=1), (cost**2).sum(axis=1), quality @ weight, cost @ weight]
    columns += [np.full(len(cost), weight @ weight), np.full(len(cost), float(units.count))]
    return np.stack(columns, axis=1)


def _ends(sums: Floats) -> tuple[float, float]:
    """Return the lower end of the expected quality and the upper end of the mean cost, one-sided at 95 %."""
    quality, cost, likely, weight, quality2, cost2, with_quality, with_cost, weight2, units = sums
    if units < 2:
        return -math.inf, math.inf

    def spread(total: float, squares: float, products: float) -> float:
        mean = total / weight
        return float(SIGMA * math.sqrt(max(0.0, squares - 2 * mean * products + mean**2 * weight2)) / weight)

    low = likely / weight - spread(quality, quality2, with_quality)
    return float(low), float(cost / weight + spread(cost, cost2, with_cost))


def _worth(sums: Floats, target: Target) -> float:
    """Return the value to maximise if the target is met, otherwise minus infinity."""
    low, high = _ends(sums)
    if target.kind != "cost":
        least = target.value if target.kind == "quality" else -target.value
        return -float(sums[1] / sums[3]) if low >= least else -math.inf
    return float(sums[2] / sums[3]) if high <= target.value else -math.inf
