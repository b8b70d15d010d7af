"""Recorded outcomes -> each cohort's tier and settings, and the values of its file.

Settings are chosen on one part of the rows (picks.py) and reported on the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from extproc.acceptance.score import Scorer
from extproc.config.compile import utterances_digest
from extproc.config.schema import Intent
from extproc.evidence.data.setting import reasoning_of, tier_of
from extproc.evidence.fit.cohort_plans import CohortPlans
from extproc.evidence.fit.edits import DIGITS
from extproc.evidence.fit.picks import Pick, picks_for
from extproc.evidence.fit.plans import goes_direct, own_tier, replay
from extproc.evidence.fit.prompt_gains import Proof, gains_of
from extproc.evidence.fit.scored_table import Plan, ScoredTable
from extproc.evidence.fit.target import Target
from extproc.evidence.fit.units import Units
from extproc.evidence.measure.controls import ControlLine, beside
from extproc.evidence.measure.metrics import Bools, Estimate, Floats, auroc_estimate, mean
from extproc.evidence.measure.recording import Recorded
from extproc.routing.gain_file import VERSION, WITHOUT_ANSWERS, GainHeader, decode_gains, encode_gains
from extproc.settings import ByPrompt, Chosen

# The bound on the share of escalations lies above the share on these rows, because traffic varies from hour to
# hour.
_SHARE_FACTOR, _SHARE_MARGIN = 1.25, 0.05


class CohortChoice(msgspec.Struct, frozen=True):
    """The choice for one cohort."""

    name: str
    rows: tuple[int, int]  # rows with outcomes that landed here: fitted on, reported on
    before: tuple[Estimate, Estimate]  # quality and dollars per 1,000, on the rows reported on
    after: tuple[Estimate, Estimate]
    plan: Plan | None = None  # None: the cohort keeps its settings
    why: str = ""  # the reason that it keeps them
    chosen: Chosen | None = None
    scorer: Scorer | None = None
    share: float = 0.0  # the bound on the share of judged answers that escalate
    proof: Proof | None = None  # that the prompt helps, if it chooses the tier
    own_tier: str = ""  # serves the prompts without a prediction, if the prompt chooses the tier


class TierChoice(msgspec.Struct, frozen=True):
    """The choices for all cohorts."""

    target: Target
    cohorts: list[CohortChoice]
    lines: list[ControlLine]  # the choice and the controls, on the rows reported on
    rows: tuple[int, int]  # distinct rows: fitted on, reported on
    raw: bytes = b""  # the file of predicted gains, if any cohort uses it
    seal: str = ""  # of that file


def choose(scored: ScoredTable, target: Target, cut: float, date: str) -> TierChoice:
    """Choose for every cohort. Raises ValueError if no choice meets the target.

    `cut`: the share of successful answers that a cap on output tokens may cut.
    """
    cohorts = [_cohort_choice(scored, c, pick, target, date) for c, pick in picks_for(scored, target, cut)]
    sizes = [scored.table.units.subset(rows).count for rows in (scored.table.fit, ~scored.table.fit)]
    raw = _gains_file(scored, cohorts, date)
    seal = decode_gains(raw).header.seal if raw else ""
    return TierChoice(target, cohorts, _lines(scored, cohorts), (sizes[0], sizes[1]), raw, seal)


def _gains_file(scored: ScoredTable, cohorts: Sequence[CohortChoice], date: str) -> bytes:
    """The predicted gains of the pairs of tiers that a cohort uses. Empty: none does."""
    plans = [c.plan for c in cohorts if c.plan is not None and (c.plan.by_prompt or c.plan.by_gain)]
    if not plans:
        return b""
    used = {(plan.option.first, plan.option.up) for plan in plans}
    judging = {(plan.option.first, plan.option.up) for plan in plans if plan.by_gain}
    pairs = {pair: fit for pair, fit in scored.prompt_fits.items() if pair in used}
    answers = {pair: fit for pair, fit in scored.judged_pairs.items() if pair in judging} if judging else {}
    table, policy = scored.table, scored.table.run.config.policy
    header = GainHeader(
        version=VERSION if answers else WITHOUT_ANSWERS,  # releases that know no answers read the file without them
        date=date,
        data=table.run.digest,
        rows=int((table.fit & (table.cohort != "")).sum()),
        encoder=policy.encoder.name,
        utterances=utterances_digest(table.run.config),
        pairs=tuple(pairs),
        models={name: table.tier(name).model for pair in pairs for name in pair},
        cohorts=tuple(next(iter(pairs.values())).trees.rates),
        judged=tuple(answers),
    )
    return encode_gains(header, gains_of(scored.columns, pairs, answers))


def _cohort_choice(scored: ScoredTable, c: CohortPlans, pick: Pick, target: Target, date: str) -> CohortChoice:
    table, (k, why) = scored.table, pick
    held_out = ~table.fit & (table.cohort == c.cohort.name)
    quality, cost = (values[held_out] for values in table.configured)
    sizes = c.units.count, table.units.subset(held_out).count
    units = table.units.subset(held_out)
    before = _estimates(quality, cost, units, table.seed)
    plan = c.plans[k]
    if plan is None:
        return CohortChoice(c.cohort.name, sizes, before, before, why=why)
    after = _estimates(*replay(scored, c.cohort, plan, held_out)[:2], units, table.seed)
    recorded_tiers = {table.tier(setting).name for setting in table.settings}
    models = {tier.name: tier.model for tier in table.run.snapshot.policy.tiers if tier.name in recorded_tiers}
    ends = [_ends(estimate) for estimate in after]
    judged = ~goes_direct(scored, plan, c.rows)
    escalated = float(c.units.means((replay(scored, c.cohort, plan, c.rows)[2] & judged).astype(np.float64)))
    escalated /= max(float(c.units.means(judged.astype(np.float64))), 1e-12)
    fits = {"prompt": scored.pairs, "gain": scored.judged_pairs} if plan.by_prompt or plan.by_gain else {}
    fit = fits[plan.option.signal][plan.option.first, plan.option.up] if fits and plan.option.up else None
    return CohortChoice(
        c.cohort.name,
        sizes,
        before,
        after,
        plan,
        chosen=Chosen(date, table.run.digest, sum(sizes), str(target), models, ends[0], ends[1]),
        scorer=_scorer(scored, c, plan, date, held_out),
        share=min(1.0, round(_SHARE_FACTOR * escalated + _SHARE_MARGIN, 2)),
        proof=fit.proofs[c.cohort.name] if fit is not None else None,
        own_tier=own_tier(scored, c.cohort, plan) if plan.by_prompt else "",
    )


def _estimates(quality: Floats, cost: Floats, units: Units, seed: int) -> tuple[Estimate, Estimate]:
    dollars = mean(1000 * cost, least=None, weights=units.weight)
    return mean(quality, weights=units.weight).estimate(seed, units.member), dollars.estimate(seed, units.member)


def _ends(estimate: Estimate) -> tuple[float, float]:
    """Return the interval, as the YAML has it."""
    return (round(estimate.low, DIGITS), round(estimate.high, DIGITS)) if estimate.known else (0.0, 1.0)


def _scorer(scored: ScoredTable, c: CohortPlans, plan: Plan, date: str, held_out: Bools) -> Scorer | None:
    if plan.option.level is None or plan.option.signal != "score":
        return None
    table, first = scored.table, plan.option.first
    tier, curve = table.tier(first), scored.curves[first][c.cohort.name]
    right = table.recorded.quality[held_out, table.settings.index(first)] >= 0.5
    units = table.units.subset(held_out)
    ends = _ends(auroc_estimate(scored.scores[first][held_out], right, table.seed, units.member, units.weight))
    rows = int(c.rows.sum())
    return Scorer(date, table.run.digest, rows, tier.name, tier.model, ends, curve.offset, curve.weights)


def _lines(scored: ScoredTable, cohorts: Sequence[CohortChoice]) -> list[ControlLine]:
    """Return the choice and the controls, on the rows reported on."""
    table = scored.table
    held_out = ~table.fit
    if not held_out.any():
        return []
    quality, cost = (values.copy() for values in table.configured)
    paths = list(table.paths)
    for choice in cohorts:
        rows = held_out & (table.cohort == choice.name)
        if choice.plan is None or not rows.any():
            continue
        cohort = table.run.snapshot.policy.cohorts[choice.name]
        quality[rows], cost[rows], escalated = replay(scored, cohort, choice.plan, rows)
        first, up = choice.plan.option.first, choice.plan.option.up
        direct = goes_direct(scored, choice.plan, rows)
        for i, escalates, at_once in zip(np.flatnonzero(rows), escalated, direct, strict=True):
            paths[i] = _path(first, up, escalates, choice.plan.by_prompt or at_once)
    everything = table.recorded
    reported = Recorded(everything.tiers, everything.rows, everything.quality[held_out], everything.cost[held_out])
    reported_paths = [path for path, keep in zip(paths, held_out, strict=True) if keep]
    units = table.units.subset(held_out)
    return beside(
        reported, (quality[held_out], cost[held_out]), reported_paths, table.seed, units.member, units.weight
    )


def _path(first: str, up: str | None, answers: bool, at_once: bool) -> tuple[str, ...]:
    if not answers or up is None:
        return (first,)
    return (up,) if at_once else (first, up)


# --- the values of an intent's file -------------------------------------------------------------------------------


def changes(choice: CohortChoice, intent: Intent, seal: str = "") -> Mapping[str, Any]:
    """Return the new values of the intent's file by key. None: the key is removed.

    `seal` is that of the new file of predicted gains. A cohort that used another file has its own tier then.
    """
    plan = choice.plan
    if plan is None:
        replaced = seal and intent.by_prompt is not None and intent.by_prompt.fit != seal
        return {"by_prompt": None} if replaced else {}
    option = plan.option
    first = choice.own_tier if plan.by_prompt else option.first
    values: dict[str, Any] = {
        "tier": tier_of(first),
        "chosen": choice.chosen,
        "by_prompt": _by_prompt(choice, plan, seal),
    }
    if (reasoning := reasoning_of(option.first)) is not None:
        values["reasoning"] = reasoning
    if plan.cap is not None:
        values["max_output_tokens"] = plan.cap
    if option.up is None or plan.by_prompt:
        # No answer is judged. An `escalate` that only lists where failures go is kept, if the tier stays the same.
        if intent.accept or values["tier"] != intent.tier:
            values |= {"escalate": None}
        return values | {"accept": None, "scorer": None}
    return values | {
        "accept": [*(rule for rule in intent.accept if not _is_fitted(rule)), *_fitted_rule(choice, plan)],
        "escalate": {"to": _rung(option.up), "max": 1, "share": choice.share},
        "scorer": choice.scorer,
    }


def _is_fitted(rule: Any) -> bool:
    """Whether a rule of the file was fitted, so that it is replaced."""
    if not isinstance(rule, dict):
        return bool(rule == "score")
    logprob = rule.get("logprob")
    return "score" in rule or "gain" in rule or (isinstance(logprob, dict) and "tier" in logprob)


def _fitted_rule(choice: CohortChoice, plan: Plan) -> list[dict[str, Any]]:
    if plan.option.level is None:
        return []
    if plan.option.signal == "score":
        return [{"score": {"min": plan.least}}]
    if plan.by_gain:
        return [{"gain": {"least": plan.least}}]
    assert choice.chosen is not None
    tier = tier_of(plan.option.first)
    first = {"first": plan.first} if plan.first is not None else {}
    return [{"logprob": {"min": plan.least, **first, "tier": tier, "model": choice.chosen.models[tier]}}]


def _by_prompt(choice: CohortChoice, plan: Plan, seal: str) -> ByPrompt | None:
    if choice.proof is None or plan.option.up is None:
        return None
    proof = choice.proof
    interval = (round(proof.low, DIGITS), round(proof.high, DIGITS))
    least = plan.direct if plan.by_gain else plan.least
    return ByPrompt((plan.option.first, plan.option.up), least, interval, proof.rows, seal)


def _rung(setting: str) -> Any:
    reasoning = reasoning_of(setting)
    tier = tier_of(setting)
    return tier if reasoning is None else {"tier": tier, "reasoning": reasoning}
