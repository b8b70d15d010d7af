"""Recorded outcomes -> each cohort's option, for a quality at least cost or a cost at most quality.

All cohorts pay one price for a dollar, in quality: at that price each takes the option worth most, and that price
is taken whose sum meets the target (Lagrange). Means of options are drawn to those of all cohorts. A cohort takes
what costs more only where its own rows show that it is better, and anything else only where they show that it costs
less, at 95 %; where they are too few, it stays, and is told how many would show it. Chosen on one part of the rows,
reported on the other.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from extproc.acceptance.score import Scorer
from extproc.config import Intent
from extproc.offline.calibration import FIT_SHARE
from extproc.offline.controls import Line, Recorded, beside
from extproc.offline.metrics import Bools, Estimate, Floats, auroc_estimate, mean
from extproc.offline.options import Option, Plan, Table, ends_with_person, reasoning_of
from extproc.policy import Cohort
from extproc.settings import Chosen

# Fewer rows to fit on say nothing that an interval of a mean could be trusted with.
_LEAST = 30
# In rows: what all cohorts' rows say of an option, beside a cohort's own.
_PRIOR = 20.0
_SIGMA = 1.645  # of a normal mean: 95 % lie above its lower end
# Prices of a dollar, relative to what the dearest setting costs: from nearly quality alone to nearly cost alone.
_PRICES = np.geomspace(1e-4, 1e2, 4000)
# A share of escalations is allowed somewhat above the one seen: traffic varies from hour to hour.
_MORE, _OVER = 1.25, 0.05
_DIGITS = 4


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


class Setting(msgspec.Struct, frozen=True):
    """What was found for one cohort."""

    name: str
    rows: tuple[int, int]  # with outcomes that landed here: fitted on, reported on
    before: tuple[Estimate, Estimate]  # quality and dollars per 1,000, on the rows reported on
    after: tuple[Estimate, Estimate]
    plan: Plan | None = None  # None: as it is
    why: str = ""  # it stays
    chosen: Chosen | None = None
    scorer: Scorer | None = None
    share: float = 0.0  # of judged answers that may climb


class Choice(msgspec.Struct, frozen=True):
    """What was found for all."""

    target: Target
    settings: list[Setting]
    lines: list[Line]  # on the rows reported on, beside the controls
    rows: tuple[int, int]


class _Weighed(msgspec.Struct, frozen=True):
    """A cohort's plans on the rows fitted on; the first is None, what it is set to."""

    cohort: Cohort
    rows: Bools
    total: int  # with those that are reported on
    plans: list[Plan | None]
    quality: Floats  # [plan, row]
    cost: Floats
    expected: tuple[Floats, Floats]  # [plan]: mean quality and dollars, drawn to all cohorts'
    needed: Floats  # [plan]: how many rows would show what speaks for it; infinite where nothing does


def choose(table: Table, target: Target, cut: float, date: str) -> Choice:
    """Choose for every cohort. Raises ValueError where no choice meets the target."""
    cohorts = table.run.snapshot.policy.cohorts
    weighed = _draw([_weigh(table, cohort, cut) for cohort in cohorts.values()], table)
    prices = _PRICES / max(float(table.found.cost.mean(axis=0).max()), 1e-12)
    tried = dict.fromkeys(tuple(_pick(w, price) for w in weighed) for price in prices)  # most prices agree
    picks = _meeting(table, weighed, [*tried], target)
    settings = [_setting(table, w, *pick, target, date) for w, pick in zip(weighed, picks, strict=True)]
    return Choice(target, settings, _lines(table, settings), (int(table.fit.sum()), int((~table.fit).sum())))


# --- what options are worth ---------------------------------------------------------------------------------------


def _weigh(table: Table, cohort: Cohort, cut: float) -> _Weighed:
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
        return _Weighed(cohort, rows, total, plans, quality, cost, (np.zeros(1), np.zeros(1)), np.zeros(1))
    means = quality.mean(axis=1), cost.mean(axis=1)
    return _Weighed(cohort, rows, total, plans, quality, cost, means, _needed(quality, cost))


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


def _draw(weighed: Sequence[_Weighed], table: Table) -> list[_Weighed]:
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


def _drawn(w: _Weighed, pooled: Mapping[Option, Floats], cheapest: Floats) -> _Weighed:
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


_Pick = tuple[int, str]  # which plan, and why none


def _pick(w: _Weighed, price: float) -> _Pick:
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


def _meeting(
    table: Table, weighed: Sequence[_Weighed], tried: Sequence[Sequence[_Pick]], target: Target
) -> Sequence[_Pick]:
    """Of the picks, a list a price, the cheapest that keeps the quality, or the best that keeps to the cost.

    Both with 95 % confidence, over all rows fitted on.
    """
    found: list[tuple[float, float, float, float]] = []
    for picks in tried:
        quality, cost = (values.copy() for values in table.present)
        for w, (k, _) in zip(weighed, picks, strict=True):
            quality[w.rows], cost[w.rows] = w.quality[k], w.cost[k]
        (q, q_low), (c, c_high) = _end(quality[table.fit], -1), _end(1000 * cost[table.fit], 1)
        found.append((q, q_low, c, c_high))
    q, q_low, c, c_high = np.array(found).T
    if target.kind == "quality":
        value = np.where(q_low >= target.value, -c, -np.inf)
    else:
        value = np.where(c_high <= target.value, q, -np.inf)
    if np.isinf(value).all():
        raise ValueError(
            f"--target {target}: out of reach on these rows, at 95 %: with what could be shown to help, quality "
            f"reaches {q_low.max():.3f}, and cost comes down to {c_high.min():.4f} dollars per 1,000 requests"
        )
    return tried[int(value.argmax())]


def _end(values: Floats, side: int) -> tuple[float, float]:
    """A mean, and the end of its one-sided 95 % interval."""
    center, spread = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.inf
    return center, center + side * _SIGMA * spread / math.sqrt(len(values))


# --- what came of it ----------------------------------------------------------------------------------------------


def _setting(table: Table, w: _Weighed, k: int, why: str, target: Target, date: str) -> Setting:
    held = ~table.fit & (table.cohort == w.cohort.name)
    quality, cost = (values[held] for values in table.present)
    sizes = int(w.rows.sum()), int(held.sum())
    before = _estimates(quality, cost, table.seed)
    plan = w.plans[k]
    if plan is None:
        return Setting(w.cohort.name, sizes, before, before, why=why)
    after = _estimates(*table.given(w.cohort, plan, held)[:2], table.seed)
    policy, run = table.run.snapshot.policy, table.run
    models = {
        tier.name: tier.model for tier in policy.tiers if tier.name in {table.tier(s).name for s in table.settings}
    }
    ends = [(round(e.low, _DIGITS), round(e.high, _DIGITS)) if e.known else (0.0, 1.0) for e in after]
    climbing = float(table.given(w.cohort, plan, w.rows)[2].mean())
    return Setting(
        w.cohort.name,
        sizes,
        before,
        after,
        plan,
        chosen=Chosen(date, run.digest, sum(sizes), str(target), models, ends[0], ends[1]),
        scorer=_scorer(table, w, plan, date, held),
        share=min(1.0, round(_MORE * climbing + _OVER, 2)),
    )


def _estimates(quality: Floats, cost: Floats, seed: int) -> tuple[Estimate, Estimate]:
    return mean(quality).estimate(seed), mean(1000 * cost).estimate(seed)


def _scorer(table: Table, w: _Weighed, plan: Plan, date: str, held: Bools) -> Scorer | None:
    if plan.option.level is None:
        return None
    first = plan.option.first
    tier, curve = table.tier(first), table.curves[first][w.cohort.name]
    right = table.found.quality[held, table.settings.index(first)] >= 0.5
    area = auroc_estimate(table.scores[first][held], right, table.seed)
    ends = (round(area.low, _DIGITS), round(area.high, _DIGITS)) if area.known else (0.0, 1.0)
    return Scorer(
        date, table.run.digest, int(w.rows.sum()), tier.name, tier.model, ends, curve.offset, curve.weights
    )


def _lines(table: Table, settings: Sequence[Setting]) -> list[Line]:
    """What was chosen beside the controls, on the rows reported on."""
    held = ~table.fit
    if not held.any():
        return []
    quality, cost = (values.copy() for values in table.present)
    paths = list(table.paths)
    for setting in settings:
        rows = held & (table.cohort == setting.name)
        if setting.plan is None or not rows.any():
            continue
        cohort = table.run.snapshot.policy.cohorts[setting.name]
        quality[rows], cost[rows], climbs = table.given(cohort, setting.plan, rows)
        first, up = setting.plan.option.first, setting.plan.option.up
        for i, climbed in zip(np.flatnonzero(rows), climbs, strict=True):
            paths[i] = (first, up) if climbed and up is not None else (first,)
    of = table.found
    some = Recorded(of.tiers, of.rows, of.quality[held], of.cost[held])
    kept = [path for path, keep in zip(paths, held, strict=True) if keep]
    return beside(some, (quality[held], cost[held]), kept, table.seed)


# --- as the intent's file has it ----------------------------------------------------------------------------------


def changes(setting: Setting, intent: Intent) -> Mapping[str, Any]:
    """key -> value of the intent's file; None: the key goes."""
    plan = setting.plan
    if plan is None:
        return {}
    option = plan.option
    found: dict[str, Any] = {"tier": option.first.partition("+")[0], "chosen": setting.chosen}
    if (reasoning := reasoning_of(option.first)) is not None:
        found["reasoning"] = reasoning
    if plan.cap is not None:
        found["max_output_tokens"] = plan.cap
    written = [
        item for item in intent.accept if item != "score" and not (isinstance(item, dict) and "score" in item)
    ]
    score = [{"score": {"min": plan.least}}] if option.level is not None else []
    if option.up is None:  # nothing is left to judge for; where failures climb is another matter
        if intent.accept or found["tier"] != intent.tier:
            found |= {"escalate": None}
        return found | {"accept": None, "scorer": None}
    return found | {
        "accept": [*written, *score],
        "escalate": {"to": _rung(option.up), "max": 1, "share": setting.share},
        "scorer": setting.scorer,
    }


def _rung(setting: str) -> Any:
    reasoning = reasoning_of(setting)
    tier = setting.partition("+")[0]
    return tier if reasoning is None else {"tier": tier, "reasoning": reasoning}
