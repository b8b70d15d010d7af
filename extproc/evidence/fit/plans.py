"""A plan: an option with the numbers fitted on one cohort's rows, and what it would have served.

An option chooses among recorded answers, so its quality and cost are known. Only the acceptance score is modelled.
Each row is scored by curves that were fitted without it. If answers have log-probabilities, the score is used only
if it is shown to rank the cohort's answers better than their mean.
"""

import math

import msgspec
import numpy as np

from extproc.acceptance.rules import Complete
from extproc.evidence.fit.edits import DIGITS
from extproc.evidence.fit.logprobs import level_at, mostly_recorded
from extproc.evidence.fit.option_table import OptionTable
from extproc.evidence.fit.options import Option
from extproc.evidence.fit.scored_table import Plan, ScoredTable
from extproc.evidence.measure.metrics import Bools, Floats, effective_rows, quantile
from extproc.routing.policy import Cohort

# A cohort's scores must spread over at least this much. Otherwise there is nothing to separate.
_SPREAD = 0.01
# A cap leaves room above the fitted length, because later traffic and models write longer answers.
_HEAD_ROOM = 1.5
_LEAST_CAP = 64
# A gain that no prediction reaches.
NEVER = 100.0
# Quantiles of a cohort's gains predicted from the prompt, from which a prompt may go to the costlier tier directly.
_DIRECT = tuple(k / 20 for k in range(20))


def fit_plan(scored: ScoredTable, cohort: Cohort, option: Option, cut: float) -> Plan | None:
    """Fit the option's threshold and cap on the cohort's rows. Returns None if they are too few or too alike.

    `cut`: the share of successful answers that a cap may cut.
    """
    rows = scored.table.fit & (scored.table.cohort == cohort.name)
    plan: Plan | None = Plan(option)
    if option.level is not None:
        plan = _FIT_LEVEL[option.signal](scored, cohort, option, option.level)
    if plan is None:
        return None
    cap = None
    if option.capped:
        caps = [_fit_cap(scored.table, rows, name, cut) for name in (option.first, option.up) if name is not None]
        if None in caps:
            return None
        cap = max(c for c in caps if c is not None)
    return msgspec.structs.replace(plan, cap=cap)


def _fit_logprob(scored: ScoredTable, cohort: Cohort, option: Option, share: float) -> Plan | None:
    rows = scored.table.fit & (scored.table.cohort == cohort.name)
    if not mostly_recorded(scored.table.means[option.first][None][rows]):
        return None
    first = scored.first_tokens(option.first, rows)
    level = level_at(scored.table.means[option.first][first][rows], share, scored.table.units.weight[rows])
    return Plan(option, level, first=first)


def _fit_score(scored: ScoredTable, cohort: Cohort, option: Option, share: float) -> Plan | None:
    rows = scored.table.fit & (scored.table.cohort == cohort.name)
    scores, curve = scored.scores[option.first][rows], scored.curves[option.first].get(cohort.name)
    served = curve.chances(scored.table.facts[option.first][rows]) if curve is not None else np.zeros(0)
    # If the curve gives all answers the same score, the scores by curves without them differ only by chance.
    if np.isnan(scores).any() or not len(served) or np.ptp(served) < _SPREAD:
        return None
    if scored.needs_no_score(option.first, rows):
        return None
    return Plan(option, round(quantile(scores, share, scored.table.units.weight[rows]), 3))


def _fit_prompt(scored: ScoredTable, cohort: Cohort, option: Option, share: float) -> Plan | None:
    """Fit the least gain, if the cohort's own rows prove the predictions and its matches count by a floor."""
    assert option.up is not None
    fit = scored.pairs.get((option.first, option.up))
    proof = fit.proofs.get(cohort.name) if fit is not None else None
    if fit is None or proof is None or not proof.holds or not cohort.has_floor:
        return None
    gains = fit.gains[scored.table.fit & (scored.table.cohort == cohort.name)]
    return Plan(option, round(float(np.nanquantile(gains, 1 - share)), 4))


def _fit_gain(scored: ScoredTable, cohort: Cohort, option: Option, share: float) -> Plan | None:
    """Fit both least gains, if the cohort's own rows prove the predictions and its matches count by a floor.

    The share of the answers that the level rejects sets the first one, which is the price of a gain. At this price
    the other one is worth most: from there on the prompt is predicted to be rejected anyway.
    """
    assert option.up is not None
    pair = option.first, option.up
    fit = scored.judged_pairs.get(pair)
    proof = fit.proofs.get(cohort.name) if fit is not None else None
    if fit is None or proof is None or not proof.holds or not cohort.has_floor:
        return None
    rows = scored.table.fit & (scored.table.cohort == cohort.name)
    least = round(float(np.nanquantile(fit.gains[rows], 1 - share)), DIGITS)
    plan, of_prompts = Plan(option, least, direct=NEVER), scored.prompt_fits[pair]
    if not of_prompts.proofs[cohort.name].holds:
        return plan
    recorded, tiers = scored.table.recorded, [scored.table.settings.index(name) for name in pair]
    usable = scored.table.fit & (scored.table.cohort != "")
    unit = (recorded.cost[usable, tiers[1]] - recorded.cost[usable, tiers[0]]).mean()
    price, weight = max(0.0, least) / max(unit, 1e-12), scored.table.units.weight[rows]
    plans = [plan]
    for k in _DIRECT:
        at = round(float(np.nanquantile(of_prompts.gains[rows], k)), DIGITS)
        plans.append(msgspec.structs.replace(plan, direct=at))
    worths = []
    for tried in plans:
        quality, cost, _ = replay(scored, cohort, tried, rows)
        worths.append(float(np.average(quality - price * cost, weights=weight)))
    return plans[int(np.argmax(worths))]


_FIT_LEVEL = {"logprob": _fit_logprob, "score": _fit_score, "prompt": _fit_prompt, "gain": _fit_gain}


def _fit_cap(table: OptionTable, rows: Bools, setting: str, cut: float) -> int | None:
    j = table.settings.index(setting)
    fitted = cap_of(table.tokens[rows, j], table.recorded.quality[rows, j], cut, table.units.weight[rows])
    return None if fitted is None else max(_LEAST_CAP, math.ceil(_HEAD_ROOM * fitted))


def cap_of(tokens: Floats, quality: Floats, cut: float, weights: Floats | None = None) -> int | None:
    """Return the least cap that cuts at most the share `cut` of future successful answers.

    A new answer is longer than the k-th longest of m lengths with probability k / (m + 1). None: there are too few
    successful answers, or their lengths were not recorded. `weights`: how many answers each stands for. They count
    as the number of answers of equal weight that are worth as much.
    """
    good = quality >= 0.5
    lengths, mass = tokens[good], np.ones(int(good.sum())) if weights is None else weights[good]
    if not len(lengths) or np.isnan(lengths).any():
        return None
    order = np.argsort(-lengths, kind="stable")
    rows = effective_rows(mass, None)
    longer = np.cumsum(mass[order]) * rows / mass.sum()
    k = int((longer <= cut * (rows + 1) + 1e-9).sum())
    return int(lengths[order[k - 1]]) if k >= 1 else None


def replay(scored: ScoredTable, cohort: Cohort, plan: Plan, rows: Bools) -> tuple[Floats, Floats, Bools]:
    """Return (quality, dollars, whether the plan's second tier answered) of these rows, by this plan."""
    table, option = scored.table, plan.option
    quality, cost, complete = _answered(table, option.first, plan.cap, rows)
    if option.up is None:
        return quality, cost, np.zeros(len(quality), dtype=bool)
    quality_up, cost_up, _ = _answered(table, option.up, plan.cap, rows)
    if plan.by_prompt:
        sent = _sent_up(scored, cohort, plan, rows)
        return np.where(sent, quality_up, quality), np.where(sent, cost_up, cost), sent
    passed = table.passed[rows, table.settings.index(option.first)]
    if any(isinstance(rule, Complete) for rule in cohort.accept):
        passed = passed & complete
    escalated = ~passed
    if plan.by_gain:
        direct = goes_direct(scored, plan, rows)
        # A prompt without a prediction has no columns, so its answer is accepted.
        predicted = ~np.isnan(scored.prompt_fits[option.first, option.up].gains[rows])
        up = direct | (predicted & (scored.signal(plan, rows) >= plan.least))
        return np.where(up, quality_up, quality), np.where(direct, 0.0, cost) + up * cost_up, up
    if option.level is not None:
        escalated |= scored.signal(plan, rows) < plan.least  # an answer without the signal is accepted
    return np.where(escalated, quality_up, quality), cost + escalated * cost_up, escalated


def _sent_up(scored: ScoredTable, cohort: Cohort, plan: Plan, rows: Bools) -> Bools:
    """Whether each prompt goes to the costlier tier. Without a prediction it goes where most prompts go."""
    gains = scored.signal(plan, rows)
    return np.where(np.isnan(gains), own_tier(scored, cohort, plan) == plan.option.up, gains >= plan.least)


def goes_direct(scored: ScoredTable, plan: Plan, rows: Bools) -> Bools:
    """Return whether the prompt of each row chooses the second tier before any answer, for a plan by gain."""
    if not plan.by_gain or plan.option.up is None:
        return np.zeros(int(rows.sum()), dtype=bool)
    direct: Bools = scored.prompt_fits[plan.option.first, plan.option.up].gains[rows] >= plan.direct
    return direct


def own_tier(scored: ScoredTable, cohort: Cohort, plan: Plan) -> str:
    """Return the tier that most prompts of the rows to fit on have. It serves if there is no prediction."""
    option = plan.option
    assert option.up is not None
    gains = scored.signal(plan, scored.table.fit & (scored.table.cohort == cohort.name))
    return option.up if 2 * (gains >= plan.least).sum() >= len(gains) else option.first


def _answered(table: OptionTable, setting: str, cap: int | None, rows: Bools) -> tuple[Floats, Floats, Bools]:
    """Return (quality, dollars, whether it fits the cap) of a setting's answers. A cut answer has quality 0."""
    j = table.settings.index(setting)
    quality, cost, tokens = (
        values[rows, j] for values in (table.recorded.quality, table.recorded.cost, table.tokens)
    )
    if cap is None:
        return quality, cost, np.ones(len(quality), dtype=bool)
    over = np.maximum(tokens - cap, 0.0)
    return np.where(over > 0, 0.0, quality), cost - over * table.tier(setting).price.output / 1e6, over == 0
