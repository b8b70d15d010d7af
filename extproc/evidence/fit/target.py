"""Each cohort's options -> one a cohort, for a quality at least cost, or a cost at most quality.

All cohorts pay one price for a dollar, in quality: at that price each takes the option worth most, and that price
is taken whose sum meets the target (Lagrange). Means of options are drawn to those of all cohorts. A cohort takes
what costs more only where its own rows show that it is better, and anything else only where they show that it costs
less, at 95 %; where they are too few, it stays, and is told how many would show it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from extproc.evidence.fit.options import Option, OptionTable, Plan, ends_with_person
from extproc.evidence.fit.partition import FIT_SHARE
from extproc.evidence.measure.metrics import Bools, Floats
from extproc.routing.policy import Cohort

# Fewer rows to fit on say nothing that an interval of a mean could be trusted with.
_LEAST = 30
# In rows: what all cohorts' rows say of an option, beside a cohort's own.
_PRIOR = 20.0
_SIGMA = 1.645  # of a normal mean: 95 % lie above its lower end
# Prices of a dollar, relative to what the dearest setting costs: from nearly quality alone to nearly cost alone.
_PRICES = np.geomspace(1e-4, 1e2, 4000)


class Target(msgspec.Struct, frozen=True):
    """What all the traffic is to keep, or may cost."""

    kind: Literal["quality", "cost"]
    value: float  # a share; or dollars per 1,000 requests

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"


def parse_target(text: str) -> Target:
    """`quality=0.9` or `cost=0.25`. Raises ValueError."""
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


class Weighed(msgspec.Struct, frozen=True):
    """A cohort's plans on the rows fitted on; the first is None, what it is set to."""

    cohort: Cohort
    rows: Bools
    total: int  # with those that are reported on
    plans: list[Plan | None]
    quality: Floats  # [plan, row]
    cost: Floats
    expected: tuple[Floats, Floats]  # [plan]: mean quality and dollars, drawn to all cohorts'
    needed: Floats  # [plan]: how many rows would show what speaks for it; infinite where nothing does


Pick = tuple[int, str]  # which plan, and why none


def picks_for(table: OptionTable, target: Target, cut: float) -> list[tuple[Weighed, Pick]]:
    """Every cohort with its pick. Raises ValueError where no picks meet the target."""
    cohorts = table.run.snapshot.policy.cohorts
    weighed = _draw([_weigh(table, cohort, cut) for cohort in cohorts.values()], table)
    prices = _PRICES / max(float(table.found.cost.mean(axis=0).max()), 1e-12)
    tried = dict.fromkeys(tuple(_pick(w, price) for w in weighed) for price in prices)  # most prices agree
    return [*zip(weighed, _meeting(table, weighed, [*tried], target), strict=True)]


# --- what options are worth ---------------------------------------------------------------------------------------


def _weigh(table: OptionTable, cohort: Cohort, cut: float) -> Weighed:
    rows = table.fit & (table.cohort == cohort.name)
    plans: list[Plan | None] = [None]
    given = [(table.present[0][rows], table.present[1][rows])]
    for option in table.options(cohort) if rows.sum() >= _LEAST else ():
        plan = table.plan(cohort, option, cut)
        if plan is not None:
            plans.append(plan)
            given.append(table.given(cohort, plan, rows)[:2])
    quality, cost = (np.stack([one[i] for one in given]) for i in (0, 1))
    total = int((table.cohort == cohort.name).sum())
    if not rows.any():
        return Weighed(cohort, rows, total, plans, quality, cost, (np.zeros(1), np.zeros(1)), np.zeros(1))
    means = quality.mean(axis=1), cost.mean(axis=1)
    return Weighed(cohort, rows, total, plans, quality, cost, means, _needed(quality, cost))


def _needed(quality: Floats, cost: Floats) -> Floats:
    """Rows that would show, at 95 %, that a plan is better than the first, or else that it costs less."""
    better, cheaper = quality - quality[0], cost[0] - cost
    needed = np.full(len(quality), np.inf)
    for k, (gain, saved) in enumerate(zip(better, cheaper, strict=True)):
        speaks = saved if saved.mean() > 0 else gain
        if speaks.mean() > 0:
            needed[k] = (_SIGMA * speaks.std(ddof=1) / speaks.mean()) ** 2
    needed[0] = 0.0
    return needed


def _draw(weighed: Sequence[Weighed], table: OptionTable) -> list[Weighed]:
    """Means drawn to what the same option gains over the cheapest setting in all cohorts.

    A cap's own effect is seen on every answer, and is no guess: it comes on top, as it is.
    """
    cheapest = np.stack([table.found.quality[:, 0], table.found.cost[:, 0]])
    gains: dict[Option, list[Floats]] = {}
    for w in weighed:
        for k, plan in enumerate(w.plans):
            if plan is not None and not plan.option.capped:
                gains.setdefault(plan.option, []).append(np.stack([w.quality[k], w.cost[k]]) - cheapest[:, w.rows])
    pooled = {option: np.concatenate(some, axis=1).mean(axis=1) for option, some in gains.items()}
    return [_drawn(w, pooled, cheapest[:, w.rows]) for w in weighed]


def _drawn(w: Weighed, pooled: Mapping[Option, Floats], cheapest: Floats) -> Weighed:
    n, own = int(w.rows.sum()), np.stack(w.expected)
    expected, place = own.copy(), {plan.option: k for k, plan in enumerate(w.plans) if plan is not None}
    for option, k in place.items():
        if option.capped:
            bare = place[msgspec.structs.replace(option, capped=False)]  # it stands before this one
            expected[:, k] = expected[:, bare] + (own[:, k] - own[:, bare])
        else:
            base = cheapest.mean(axis=1)
            expected[:, k] = base + (n * (own[:, k] - base) + _PRIOR * pooled[option]) / (n + _PRIOR)
    return msgspec.structs.replace(w, expected=(expected[0], expected[1]))


def _pick(w: Weighed, price: float) -> Pick:
    """The plan worth most at this price of a dollar, of those that the cohort's own rows speak for."""
    n = int(w.rows.sum())
    if ends_with_person(w.cohort):
        return 0, "left alone: it ends with a person"
    if n < _LEAST:
        return 0, _needs(_LEAST, w.total, "")
    worth = w.expected[0] - price * w.expected[1]
    best, shown = int(worth.argmax()), int(np.where(w.needed <= n, worth, -np.inf).argmax())
    if shown or not best or not math.isfinite(w.needed[best]):
        return shown, ""
    return 0, _needs(math.ceil(w.needed[best]), w.total, "to show that another setting pays, ")


def _needs(fitted: int, has: int, what: str) -> str:
    return f"{what}needs about {math.ceil(fitted / FIT_SHARE)} rows with outcomes that land here; has {has}"


# --- one price for all --------------------------------------------------------------------------------------------


def _meeting(
    table: OptionTable, weighed: Sequence[Weighed], tried: Sequence[Sequence[Pick]], target: Target
) -> list[Pick]:
    """Of the picks, a list a price, the cheapest that keeps the quality, or the best that keeps to the cost.

    Both by the end of an interval, over all rows fitted on.
    """
    alone = table.fit & ~np.any([w.rows for w in weighed], axis=0)
    rest = _sums(*(values[None, alone] for values in table.present))[0]
    sums = [_sums(w.quality, w.cost, w.expected[0]) for w in weighed]

    def total(picks: Sequence[Pick]) -> Floats:
        found: Floats = rest + np.sum([some[k] for some, (k, _) in zip(sums, picks, strict=True)], axis=0)
        return found

    totals = [total(picks) for picks in tried]
    worths = [_worth(each, target) for each in totals]
    if max(worths) == -math.inf:
        ends = np.array([_ends(each) for each in totals])
        raise ValueError(
            f"--target {target}: out of reach on these rows, at 95 %: with what could be shown to help, quality "
            f"reaches {ends[:, 0].max():.3f}, and cost comes down to {ends[:, 1].min():.4f} dollars per 1,000"
        )
    best = int(np.argmax(worths))
    return _spent(weighed, sums, tried[best], totals[best], target) if target.kind == "cost" else list(tried[best])


def _spent(
    weighed: Sequence[Weighed], sums: Sequence[Floats], tried: Sequence[Pick], now: Floats, target: Target
) -> list[Pick]:
    """The picks, with what they leave over of a cost spent cohort by cohort, where its rows show that it pays.

    One price leaves gaps where a cohort's next option is far dearer. A quality that is kept with room to spare is
    kept: to save there would be to pick what is lucky on these very rows.
    """
    picks = list(tried)
    shown = [(i, int(k)) for i, w in enumerate(weighed) for k in np.flatnonzero(w.needed <= w.rows.sum())]
    while shown:
        moved = [now + sums[i][k] - sums[i][picks[i][0]] for i, k in shown]
        further, worth = [_worth(each, target) for each in moved], _worth(now, target)
        nearer = [at for at in np.argsort(further)[::-1] if further[at] > worth + 1e-9]
        at = next((at for at in nearer if _pays(weighed[shown[at][0]], picks[shown[at][0]][0], shown[at][1])), None)
        if at is None:
            break
        (i, k), now = shown[at], moved[at]
        picks[i] = k, ""
    return picks


def _pays(w: Weighed, now: int, then: int) -> bool:
    """Whether the cohort's own rows speak for one plan rather than another."""
    at = [now, then]
    return bool(_needed(w.quality[at], w.cost[at])[1] <= w.rows.sum())


def _sums(quality: Floats, cost: Floats, expected: Floats | None = None) -> Floats:
    """float64[plan, 6]: sums of quality, dollars per 1,000, their squares, the quality expected; and the rows."""
    cost, n = 1000 * cost, quality.shape[1]
    likely = quality.sum(axis=1) if expected is None else n * expected
    squares = (quality**2).sum(axis=1), (cost**2).sum(axis=1)
    return np.stack([quality.sum(axis=1), cost.sum(axis=1), *squares, likely, np.full(len(cost), float(n))], axis=1)


def _ends(sums: Floats) -> tuple[float, float]:
    """The lower end of the quality expected, and the upper one of the mean cost; one-sided, 95 %."""
    n = sums[5]
    if n < 2:
        return -math.inf, math.inf
    quality, cost, quality2, cost2, likely = sums[:5] / n
    spread = [_SIGMA * math.sqrt(max(0.0, of - mean**2) / n) for of, mean in ((quality2, quality), (cost2, cost))]
    return float(likely - spread[0]), float(cost + spread[1])


def _worth(sums: Floats, target: Target) -> float:
    """What there is most to gain of, within the target; minus infinity outside."""
    low, high = _ends(sums)
    if target.kind == "quality":
        return -float(sums[1] / sums[5]) if low >= target.value else -math.inf
    return float(sums[4] / sums[5]) if high <= target.value else -math.inf
