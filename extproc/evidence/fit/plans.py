"""A plan: an option with the numbers fitted on one cohort's rows, and what it would have served.

An option chooses among recorded answers, so its quality and cost are known. Only the acceptance score is modelled.
Each row is scored by curves that were fitted without it. If answers have log-probabilities, the score is used only
if it is shown to rank the cohort's answers better than their mean.
"""

import math
from functools import cached_property
from itertools import combinations

import msgspec
import numpy as np

from extproc.acceptance.grounding import Embed
from extproc.acceptance.rules import Complete
from extproc.evidence.data.setting import reasoning_of
from extproc.evidence.execution import Execution
from extproc.evidence.fit.logprobs import level_at, mostly_recorded, ranks_better, tokens_that_suffice
from extproc.evidence.fit.option_table import OptionTable, tabulate
from extproc.evidence.fit.options import Option
from extproc.evidence.fit.prompt_gains import (
    Encode,
    PairFit,
    Prompts,
    any_large,
    fit_columns,
    fit_pair,
    read_prompts,
)
from extproc.evidence.fit.scorer import Answers, Curve, chances_of, fit_curves, unseen_chances
from extproc.evidence.measure.metrics import Bools, Floats, effective_rows, quantile
from extproc.routing.policy import Cohort
from extproc.routing.prompt_gain import PromptColumns

# A cohort's scores must spread over at least this much. Otherwise there is nothing to separate.
_SPREAD = 0.01
# A cap leaves room above the fitted length, because later traffic and models write longer answers.
_HEAD_ROOM = 1.5
_LEAST_CAP = 64


class Plan(msgspec.Struct, frozen=True):
    """An option with the numbers fitted on one cohort's rows."""

    option: Option
    least: float = -math.inf  # the least score or mean log-probability that is accepted
    cap: int | None = None  # output tokens
    first: int | None = None  # the first tokens whose mean log-probability is used; None: all tokens

    @property
    def by_prompt(self) -> bool:
        """Whether the prompt chooses between two tiers, before any answer."""
        return self.option.signal == "prompt"


class ScoredTable(msgspec.Struct, frozen=True, dict=True):
    """A table and the acceptance scores of its answers, fitted when they are first needed."""

    table: OptionTable
    prompts: Prompts | None = None  # None: no prompt chooses a tier

    @cached_property
    def columns(self) -> PromptColumns:
        """The columns of a prompt, fitted on the rows to fit on."""
        assert self.prompts is not None
        return fit_columns(self.prompts, self.table.fit & (self.table.cohort != ""))

    @cached_property
    def pairs(self) -> dict[tuple[str, str], PairFit]:
        """The predicted gains of every two tiers that are proven in a cohort."""
        if self.prompts is None or not any_large(self.table):
            return {}
        plain = [name for name in self.table.settings if reasoning_of(name) is None]
        tiers = [name for name in plain if self.table.tier(name).takes_new]
        fits = {pair: fit_pair(self.table, self.prompts, self.columns, pair) for pair in combinations(tiers, 2)}
        return {pair: fit for pair, fit in fits.items() if any(proof.holds for proof in fit.proofs.values())}

    @cached_property
    def curves(self) -> dict[str, dict[str, Curve]]:
        """setting -> cohort -> its curve, fitted on the rows to fit on."""
        rows = self.table.fit & (self.table.cohort != "")
        return {name: fit_curves(self._answers(name, rows), self.table.logprobs[name]) for name in self.table.facts}

    @cached_property
    def scores(self) -> dict[str, Floats]:
        """setting -> float64[row], by curves fitted without the row; NaN for a row without a curve."""
        table, scores = self.table, {}
        for name, curves in self.curves.items():
            scores[name] = chances_of(curves, self._answers(name, table.fit | ~table.fit))
            rows = table.fit & (table.cohort != "")
            answers = self._answers(name, rows)
            scores[name][rows] = unseen_chances(answers, table.fraction[rows], table.logprobs[name], table.seed)
        return scores

    def _answers(self, setting: str, rows: Bools) -> Answers:
        table = self.table
        return Answers(
            table.cohort[rows], table.facts[setting][rows], self._quality(setting)[rows], table.units.weight[rows]
        )

    def _quality(self, setting: str) -> Floats:
        return self.table.recorded.quality[:, self.table.settings.index(setting)]

    def signal(self, plan: Plan, rows: Bools) -> Floats:
        """Return float64[row]: the values to compare with the plan's least value. NaN: nothing to compare."""
        if plan.by_prompt:
            assert plan.option.up is not None
            return self.pairs[plan.option.first, plan.option.up].gains[rows]
        if plan.option.signal == "logprob":
            return self.table.means[plan.option.first][plan.first][rows]
        return self.scores[plan.option.first][rows]

    def first_tokens(self, setting: str, rows: Bools) -> int | None:
        """Return how many first tokens suffice for the mean log-probability. None: all are needed."""
        means = {first: values[rows] for first, values in self.table.means[setting].items()}
        return tokens_that_suffice(
            means, self.table.logprob_tokens[setting][rows], self._quality(setting)[rows] >= 0.5
        )

    def needs_no_score(self, setting: str, rows: Bools) -> bool:
        """Return whether the log-probabilities of these rows rank the answers as well as the score."""
        if setting not in self.table.means or not mostly_recorded(means := self.table.means[setting][None][rows]):
            return False
        return not ranks_better(self.scores[setting][rows], means, self._quality(setting)[rows] >= 0.5)


def scored_table(
    run: Execution, seed: int, embed: Embed | None = None, encode: Encode | None = None
) -> ScoredTable:
    """Tabulate the rows that can be compared. Raises ValueError if there are none.

    `encode` gives the vectors of asks. Without it no prompt chooses a tier.
    """
    table = tabulate(run, seed, embed)
    return ScoredTable(table, read_prompts(run, table.positions, encode) if encode is not None else None)


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


_FIT_LEVEL = {"logprob": _fit_logprob, "score": _fit_score, "prompt": _fit_prompt}


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
    if option.level is not None:
        escalated |= scored.signal(plan, rows) < plan.least  # an answer without the signal is accepted
    return np.where(escalated, quality_up, quality), cost + escalated * cost_up, escalated


def _sent_up(scored: ScoredTable, cohort: Cohort, plan: Plan, rows: Bools) -> Bools:
    """Whether each prompt goes to the costlier tier. Without a prediction it goes where most prompts go."""
    gains = scored.signal(plan, rows)
    return np.where(np.isnan(gains), own_tier(scored, cohort, plan) == plan.option.up, gains >= plan.least)


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
