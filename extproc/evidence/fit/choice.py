"""Recorded outcomes -> each cohort's tier and settings, as its file is to have them, and what came of the choice.

Chosen on one part of the rows (target says how), reported on the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from extproc.acceptance.score import Scorer
from extproc.config.schema import Intent
from extproc.evidence.fit.options import Plan, Table, reasoning_of, tier_of
from extproc.evidence.fit.target import Target, Weighed, picks_for
from extproc.evidence.measure.controls import ControlLine, Recorded, beside
from extproc.evidence.measure.metrics import Bools, Estimate, Floats, auroc_estimate, mean
from extproc.settings import Chosen

# A share of escalations is allowed somewhat above the one seen: traffic varies from hour to hour.
_MORE, _OVER = 1.25, 0.05
_DIGITS = 4


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
    lines: list[ControlLine]  # on the rows reported on, beside the controls
    rows: tuple[int, int]


def choose(table: Table, target: Target, cut: float, date: str) -> Choice:
    """Choose for every cohort. Raises ValueError where no choice meets the target."""
    settings = [_setting(table, w, *pick, target, date) for w, pick in picks_for(table, target, cut)]
    return Choice(target, settings, _lines(table, settings), (int(table.fit.sum()), int((~table.fit).sum())))


def _setting(table: Table, w: Weighed, k: int, why: str, target: Target, date: str) -> Setting:
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
    return mean(quality).estimate(seed), mean(1000 * cost, least=None).estimate(seed)


def _scorer(table: Table, w: Weighed, plan: Plan, date: str, held: Bools) -> Scorer | None:
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


def _lines(table: Table, settings: Sequence[Setting]) -> list[ControlLine]:
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
    found: dict[str, Any] = {"tier": tier_of(option.first), "chosen": setting.chosen}
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
    tier = tier_of(setting)
    return tier if reasoning is None else {"tier": tier, "reasoning": reasoning}
