"""A table with the acceptance scores and the predicted gains of its rows, fitted when they are first needed.

Each row is scored by curves and trees that were fitted without it.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from itertools import combinations

import msgspec

from extproc.acceptance.grounding import Embed
from extproc.evidence.data.setting import reasoning_of
from extproc.evidence.execution import Execution
from extproc.evidence.fit.logprobs import mostly_recorded, ranks_better, tokens_that_suffice
from extproc.evidence.fit.option_table import OptionTable, tabulate
from extproc.evidence.fit.options import Option
from extproc.evidence.fit.prompt_gains import (
    Encode,
    PairFit,
    Prompts,
    any_large,
    fit_answers,
    fit_columns,
    fit_pair,
    read_prompts,
)
from extproc.evidence.fit.scorer import Answers, Curve, chances_of, fit_curves, unseen_chances
from extproc.evidence.measure.metrics import Bools, Floats
from extproc.routing.prompt_gain import PromptColumns


class Plan(msgspec.Struct, frozen=True):
    """An option with the numbers fitted on one cohort's rows."""

    option: Option
    least: float = -math.inf  # the least score or mean log-probability that is accepted
    cap: int | None = None  # output tokens
    first: int | None = None  # the first tokens whose mean log-probability is used; None: all tokens
    direct: float = math.inf  # the least gain predicted from the prompt at which the first tier is not asked

    @property
    def by_prompt(self) -> bool:
        """Whether the prompt chooses between two tiers, before any answer."""
        return self.option.signal == "prompt"

    @property
    def by_gain(self) -> bool:
        """Whether the gain is predicted again with the answer."""
        return self.option.signal == "gain"


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
        return _proven(self.prompt_fits)

    @cached_property
    def prompt_fits(self) -> dict[tuple[str, str], PairFit]:
        """The predicted gains of every two tiers."""
        if self.prompts is None or not any_large(self.table):
            return {}
        plain = [name for name in self.table.settings if reasoning_of(name) is None]
        tiers = [name for name in plain if self.table.tier(name).takes_new]
        return {pair: fit_pair(self.table, self.prompts, self.columns, pair) for pair in combinations(tiers, 2)}

    @cached_property
    def judged_pairs(self) -> dict[tuple[str, str], PairFit]:
        """The gains predicted with the answer, of every two tiers for which they are proven in a cohort."""
        prompts, fits = self.prompts, {}
        for pair in self.prompt_fits:
            if prompts is not None and pair[0] in self.table.facts:
                fits[pair] = fit_answers(self.table, prompts, self.columns, pair)
        return _proven(fits)

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
        if plan.by_gain:
            assert plan.option.up is not None
            return self.judged_pairs[plan.option.first, plan.option.up].gains[rows]
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


def _proven(fits: Mapping[tuple[str, str], PairFit]) -> dict[tuple[str, str], PairFit]:
    return {pair: fit for pair, fit in fits.items() if any(proof.holds for proof in fit.proofs.values())}


def scored_table(
    run: Execution, seed: int, embed: Embed | None = None, encode: Encode | None = None
) -> ScoredTable:
    """Tabulate the rows that can be compared. Raises ValueError if there are none.

    `encode` gives the vectors of asks. Without it no prompt chooses a tier.
    """
    table = tabulate(run, seed, embed)
    return ScoredTable(table, read_prompts(run, table.positions, encode) if encode is not None else None)
