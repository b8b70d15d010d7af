"""A cohort's plans, with the mean quality and dollars of each, and how many rows would show that it pays.

A cohort has few rows, so the means of a plan are shrunk towards those of the same option in all cohorts.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from extproc.evidence.fit.option_table import OptionTable
from extproc.evidence.fit.options import Option, options_of
from extproc.evidence.fit.plans import Plan, ScoredTable, fit_plan, replay
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
    total: int  # with the rows to report on
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
    for option in options_of(table, cohort) if rows.sum() >= LEAST_ROWS else ():
        plan = fit_plan(scored, cohort, option, cut)
        if plan is not None:
            plans.append(plan)
            served.append(replay(scored, cohort, plan, rows)[:2])
    quality, cost = (np.stack([values[i] for values in served]) for i in (0, 1))
    total = int((table.cohort == cohort.name).sum())
    if not rows.any():
        return CohortPlans(cohort, rows, total, plans, quality, cost, (np.zeros(1), np.zeros(1)), np.zeros(1))
    means = quality.mean(axis=1), cost.mean(axis=1)
    return CohortPlans(cohort, rows, total, plans, quality, cost, means, rows_to_show(quality, cost))


def rows_to_show(quality: Floats, cost: Floats) -> Floats:
    """Return float64[plan]: how many rows would show, at 95 %, that a plan beats the first one.

    If the mean cost of a plan is lower, its saving must be shown, otherwise its gain in quality. Infinite: it has
    neither.
    """
    better, cheaper = quality - quality[0], cost[0] - cost
    needed = np.full(len(quality), np.inf)
    for k, (gain, saved) in enumerate(zip(better, cheaper, strict=True)):
        advantage = saved if saved.mean() > 0 else gain
        if advantage.mean() > 0:
            needed[k] = (SIGMA * advantage.std(ddof=1) / advantage.mean()) ** 2
    needed[0] = 0.0
    return needed


def _shrink(cohorts: Sequence[CohortPlans], table: OptionTable) -> list[CohortPlans]:
    """Shrink means towards those of the same option in all cohorts, measured as gains over the cheapest setting.

    The effect of a cap is not shrunk, because it is known for every answer.
    """
    cheapest = np.stack([table.recorded.quality[:, 0], table.recorded.cost[:, 0]])
    gains: dict[Option, list[Floats]] = {}
    for c in cohorts:
        for k, plan in enumerate(c.plans):
            if plan is not None and not plan.option.capped:
                gains.setdefault(plan.option, []).append(np.stack([c.quality[k], c.cost[k]]) - cheapest[:, c.rows])
    pooled = {option: np.concatenate(by_cohort, axis=1).mean(axis=1) for option, by_cohort in gains.items()}
    return [_shrunk(c, pooled, cheapest[:, c.rows]) for c in cohorts]


def _shrunk(c: CohortPlans, pooled: Mapping[Option, Floats], cheapest: Floats) -> CohortPlans:
    n, means = int(c.rows.sum()), np.stack(c.expected)
    expected, at = means.copy(), {plan.option: k for k, plan in enumerate(c.plans) if plan is not None}
    for option, k in at.items():
        if option.capped:
            uncapped = at[msgspec.structs.replace(option, capped=False)]  # comes before this plan
            expected[:, k] = expected[:, uncapped] + (means[:, k] - means[:, uncapped])
        else:
            base = cheapest.mean(axis=1)
            expected[:, k] = base + (n * (means[:, k] - base) + _PRIOR * pooled[option]) / (n + _PRIOR)
    return msgspec.structs.replace(c, expected=(expected[0], expected[1]))
