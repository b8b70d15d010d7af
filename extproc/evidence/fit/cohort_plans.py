"""A cohort's plans, with the mean quality and dollars of each, and how many rows would show that it pays.

A cohort has few rows, so the means of a plan are shrunk towards those of the same option in all cohorts.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from extproc.evidence.fit.option_table import OptionTable
from extproc.evidence.fit.options import Option, options_of
from extproc.evidence.fit.plans import fit_plan, replay
from extproc.evidence.fit.scored_table import Plan, ScoredTable
from extproc.evidence.fit.units import Units
from extproc.evidence.measure.metrics import Bools, Floats
from extproc.routing.policy import Cohort

# With fewer rows to fit on, the interval of a mean cannot be trusted.
LEAST_ROWS = 30
SIGMA = 1.645  # standard errors: 95 % of a normal distribution lie above the lower end of this interval
# Means are shrunk as if this many rows with the mean of all cohorts were added.
_PRIOR = 20.0


class CohortPlans(msgspec.Struct, frozen=True):
    """The plans of one cohort on its rows to fit on. The first plan is None: the cohort as configured."""

    cohort: Cohort
    rows: Bools  # the rows to fit on, among all rows of the table
    units: Units  # of these rows
    total: int  # distinct rows, with those to report on
    plans: list[Plan | None]
    quality: Floats  # [plan, row]
    cost: Floats  # [plan, row] dollars
    expected: tuple[Floats, Floats]  # [plan] mean quality and dollars, shrunk towards those of all cohorts
    needed: Floats  # [plan] rows that would show that the plan is better or costs less; infinite if it does neither


def plans_of_cohorts(scored: ScoredTable, cut: float) -> list[CohortPlans]:
    """Return the plans of every cohort. `cut`: the share of successful answers that a cap may cut."""
    cohorts = scored.table.run.snapshot.policy.cohorts
    return _shrink([_plans_of(scored, cohort, cut) for cohort in cohorts.values()], scored.table)


def _plans_of(scored: ScoredTable, cohort: Cohort, cut: float) -> CohortPlans:
    table = scored.table
    rows = table.fit & (table.cohort == cohort.name)
    plans: list[Plan | None] = [None]
    served = [(table.configured[0][rows], table.configured[1][rows])]
    units = table.units.subset(rows)
    for option in options_of(table, cohort) if units.count >= LEAST_ROWS else ():
        plan = fit_plan(scored, cohort, option, cut)
        if plan is not None:
            plans.append(plan)
            served.append(replay(scored, cohort, plan, rows)[:2])
    quality, cost = (np.stack([values[i] for values in served]) for i in (0, 1))
    total = table.units.subset(table.cohort == cohort.name).count
    if not rows.any():
        none = np.zeros(1), np.zeros(1)
        return CohortPlans(cohort, rows, units, total, plans, quality, cost, none, np.zeros(1))
    means = units.means(quality), units.means(cost)
    needed = rows_to_show(quality, cost, units)
    return CohortPlans(cohort, rows, units, total, plans, quality, cost, means, needed)


def rows_to_show(quality: Floats, cost: Floats, units: Units) -> Floats:
    """Return float64[plan]: how many distinct rows would show, at 95 %, that a plan beats the first one.

    If the mean cost of a plan is lower, its saving must be shown, otherwise its gain in quality. Infinite: it has
    neither.
    """
    better, cheaper = quality - quality[0], cost[0] - cost
    needed = np.full(len(quality), np.inf)
    for k, (gain, saved) in enumerate(zip(better, cheaper, strict=True)):
        advantage = saved if units.means(saved) > 0 else gain
        mean = float(units.means(advantage))
        if mean > 0 and units.count > 1:
            needed[k] = units.count * (SIGMA * units.error(advantage) / mean) ** 2
    needed[0] = 0.0
    return needed


def _shrink(cohorts: Sequence[CohortPlans], table: OptionTable) -> list[CohortPlans]:
    """Shrink means towards those of the same option in all cohorts, measured as gains over the cheapest setting.

    The effect of a cap is not shrunk, because it is known for every answer.
    """
    cheapest = np.stack([table.recorded.quality[:, 0], table.recorded.cost[:, 0]])
    gains: dict[Option, list[tuple[Floats, Floats]]] = {}  # (gains [quality | cost, row], weights)
    for c in cohorts:
        for k, plan in enumerate(c.plans):
            if plan is not None and not plan.option.capped:
                gain = np.stack([c.quality[k], c.cost[k]]) - cheapest[:, c.rows]
                gains.setdefault(plan.option, []).append((gain, c.units.weight))
    pooled = {option: _mean_of(by_cohort) for option, by_cohort in gains.items()}
    return [_shrunk(c, pooled, cheapest[:, c.rows]) for c in cohorts]


def _mean_of(parts: Sequence[tuple[Floats, Floats]]) -> Floats:
    gains, weights = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
    means: Floats = np.average(gains, axis=1, weights=weights)
    return means


def _shrunk(c: CohortPlans, pooled: Mapping[Option, Floats], cheapest: Floats) -> CohortPlans:
    n, means = c.units.effective, np.stack(c.expected)
    expected, at = means.copy(), {plan.option: k for k, plan in enumerate(c.plans) if plan is not None}
    for option, k in at.items():
        if option.capped:
            uncapped = at[msgspec.structs.replace(option, capped=False)]  # comes before this plan
            expected[:, k] = expected[:, uncapped] + (means[:, k] - means[:, uncapped])
        else:
            base = c.units.means(cheapest)
            expected[:, k] = base + (n * (means[:, k] - base) + _PRIOR * pooled[option]) / (n + _PRIOR)
    return msgspec.structs.replace(c, expected=(expected[0], expected[1]))
