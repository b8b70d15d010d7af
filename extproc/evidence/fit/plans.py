"""A plan: an option with the numbers fitted on one cohort's rows, and what it would have served.

An option chooses among recorded answers, so its quality and cost are known. Only the acceptance score is modelled.
Each row is scored by curves that were fitted without it. If answers have log-probabilities, the score is used only
if it is shown to rank the cohort's answers better than their mean.
"""

import math
from functools import cached_property

import msgspec
import numpy as np

from extproc.acceptance.grounding import Embed
from extproc.acceptance.rules import Complete
from extproc.evidence.execution import Execution
from extproc.evidence.fit.logprobs import level_at, mostly_recorded, ranks_better, tokens_that_suffice
from extproc.evidence.fit.option_table import OptionTable, tabulate
from extproc.evidence.fit.options import Option
from extproc.evidence.fit.scorer import Answers, Curve, chances_of, fit_curves, unseen_chances
from extproc.evidence.measure.metrics import Bools, Floats, effective_rows, quantile
from extproc.routing.policy import Cohort

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


class ScoredTable(msgspec.Struct, frozen=True, dict=True):
    """A table and the acceptance scores of its answers, fitted when they are first needed."""

    table: OptionTable

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


def scored_table(run: Execution, seed: int, embed: Embed | None = None) -> ScoredTable:
    """Tabulate the rows that can be compared. Raises ValueError if there are none."""
    return ScoredTable(tabulate(run, seed, embed))


def fit_plan(scored: ScoredTable, cohort: Cohort, option: Option, cut: float) -> Plan | None:
    """Fit the option's threshold and cap on the cohort's rows. Returns None if they are too few or too alike.

    `cut`: the share of successful answers that a cap may cut.
    """
    rows = scored.table.fit & (scored.table.cohort == cohort.name)
    plan: Plan | None = Plan(option)
    if option.level is not None:
        fit_level = _fit_logprob if option.signal == "logprob" else _fit_score
        plan = fit_level(scored, cohort, option, option.level)
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
    """Return (quality, dollars, whether the answer escalated) of these rows, with the cohort set to the plan."""
    table, option = scored.table, plan.option
    quality, cost, complete = _answered(table, option.first, plan.cap, rows)
    if option.up is None:
        return quality, cost, np.zeros(len(quality), dtype=bool)
    passed = table.passed[rows, table.settings.index(option.first)]
    if any(isinstance(rule, Complete) for rule in cohort.accept):
        passed = passed & complete
    escalated = ~passed
    if option.level is not None:
        escalated |= scored.signal(plan, rows) < plan.least  # an answer without the signal is accepted
    quality_up, cost_up, _ = _answered(table, option.up, plan.cap, rows)
    return np.where(escalated, quality_up, quality), cost + escalated * cost_up, escalated


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
