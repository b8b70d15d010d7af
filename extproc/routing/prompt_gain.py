"""How much more the costlier of two tiers is worth for this prompt: small boosted trees on the prompt.

A gain is the expected quality of the costlier tier minus that of the cheaper one. It is divided by the expected
extra cost of the costlier tier, where 1 is the mean extra cost of the fit. So a long answer needs a larger gain.
The trees compare directions of the prompt's vector, facts that are counted in the ask, and rates of its cohort. All
nodes of a level make the same comparison (oblivious trees), so the answer of a tree is one look-up.

Other trees also read facts about the cheaper tier's answer. Their gain is that of asking the costlier tier after
all. It is divided by the whole cost of that, because the cheaper answer is paid in any case.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import msgspec
import numpy as np

from extproc.acceptance.score import LOGPROB_FACTS, SCORE_FACTS, score_facts
from extproc.api.observation import Observation
from extproc.encoder.protocols import Vectors
from extproc.routing.ask import Ask
from extproc.routing.prompt_facts import prompt_facts

RATES = 4  # of a cohort: the success of the cheaper tier, that of the costlier one, the difference, the extra cost
NO_CUT = float(np.finfo(np.float32).max)  # of a column that was the same in all rows of the fit: none lies above it
LEAST_COST = 0.1  # of the mean extra cost. A prediction below it counts as this much.


class Trees(msgspec.Struct, frozen=True, eq=False):
    """Fitted trees. Their sum and `base` are the prediction."""

    base: float  # the mean of all rows
    features: np.ndarray  # int64[trees, depth]: the column that each level compares
    cuts: Vectors  # float32[trees, depth]: the value that it is compared with
    leaves: Vectors  # float32[trees, 2 ** depth]: the part of the prediction

    def values(self, rows: Vectors) -> Vectors:
        """Return float32[n], from float32[n, columns]."""
        trees, depth = self.features.shape
        bits = rows[:, self.features] > self.cuts
        leaf = bits @ (1 << np.arange(depth)[::-1])
        values: Vectors = self.base + self.leaves[np.arange(trees), leaf].sum(axis=1)
        return values


class GainTrees(msgspec.Struct, frozen=True, eq=False):
    """The trees for two tiers."""

    tiers: tuple[str, str]  # the cheaper one first
    gain: Trees  # quality of the costlier tier minus that of the cheaper one
    # Dollars of the costlier tier minus those of the cheaper one, where 1 is the mean of the fit. If the trees read
    # an answer: all dollars of the costlier tier, in the same unit.
    cost: Trees
    rates: Mapping[str, Vectors]  # cohort -> float32[RATES]

    def gains(self, columns: Vectors, rates: Vectors) -> Vectors:
        """Return float32[n]: the gains at the mean extra cost, from float32[n, columns] and float32[n, RATES]."""
        rows = np.concatenate([columns, rates], axis=1)
        costs = np.maximum(self.cost.values(rows), LEAST_COST)
        return np.asarray(self.gain.values(rows) / costs, dtype=np.float32)


class PromptColumns(msgspec.Struct, frozen=True, eq=False):
    """The directions in which prompts differ most, and the range of every column in the rows of the fit."""

    mean: Vectors  # float32[d]: of the first d numbers of a vector, which are those of the embedding
    directions: Vectors  # float32[d, k]
    low: Vectors  # float32[k + facts]
    high: Vectors

    def of(self, vectors: Vectors, facts: Vectors) -> Vectors:
        """Return float32[n, k + facts], from float32[n, at least d] and float32[n, facts]."""
        projected = (vectors[:, : len(self.mean)] - self.mean) @ self.directions
        return np.concatenate([projected, facts], axis=1).astype(np.float32)

    def saw(self, columns: Vectors) -> bool:
        """Whether every column of one prompt, float32[k + facts], is in the range of the fit."""
        return bool(((columns >= self.low) & (columns <= self.high)).all())


class PromptGains(msgspec.Struct, frozen=True, eq=False):
    """Predicts gains for the pairs of tiers that it was fitted on."""

    columns: PromptColumns
    pairs: Mapping[tuple[str, str], GainTrees]
    answers: Mapping[tuple[str, str], GainTrees] = {}  # trees that read the cheaper tier's answer, too

    def gain(self, tiers: tuple[str, str], cohort: str, vector: Vectors, ask: Ask) -> float | None:
        """Return the gain of one prompt, as `predict` does."""
        predicted = self.predict(tiers, cohort, vector, ask)
        return None if predicted is None else predicted[0]

    def predict(
        self, tiers: tuple[str, str], cohort: str, vector: Vectors, ask: Ask
    ) -> tuple[float, tuple[float, ...]] | None:
        """Return the gain of one prompt, and its columns.

        None: these tiers, this cohort or prompts like this were not fitted on.
        """
        trees = self.pairs.get(tiers)
        rates = trees.rates.get(cohort) if trees is not None else None
        if trees is None or rates is None:
            return None
        columns = self.columns.of(vector[None], prompt_facts(ask)[None])
        if not self.columns.saw(columns[0]):
            return None
        return float(trees.gains(columns, rates[None])[0]), tuple(columns[0].tolist())

    def of_answers(self, tiers: tuple[str, str], cohort: str, fit: str = "") -> "AnswerGain | None":
        """Return the predictor for answers in one cohort. None: these tiers or this cohort were not fitted on.

        `fit` is the seal of the file.
        """
        trees = self.answers.get(tiers)
        rates = trees.rates.get(cohort) if trees is not None else None
        return None if trees is None or rates is None else AnswerGain(trees, rates, len(self.columns.low), fit)


class AnswerGain(msgspec.Struct, frozen=True, eq=False, dict=True):
    """Predicts the gain of the costlier tier, from a prompt of one cohort and the cheaper tier's answer."""

    trees: GainTrees
    rates: Vectors  # of the cohort: float32[RATES]
    width: int  # columns of a prompt
    fit: str = ""  # the seal of the file

    @property
    def tier(self) -> str:
        """The tier whose answers it reads."""
        return self.trees.tiers[0]

    @cached_property
    def wants_logprobs(self) -> bool:
        """Whether a comparison reads a fact about log-probabilities."""
        places = [self.width + SCORE_FACTS.index(name) for name in LOGPROB_FACTS]
        sets = self.trees.gain, self.trees.cost
        return any((np.isin(trees.features, places) & (trees.cuts < NO_CUT)).any() for trees in sets)

    def gain(self, columns: Sequence[float], question: str, answer: Observation) -> float | None:
        """Return the gain. None: there are no columns, or log-probabilities are missing."""
        if len(columns) != self.width or (self.wants_logprobs and not answer.logprobs):
            return None
        row = np.array([*columns, *score_facts(question, answer)], dtype=np.float32)
        return float(self.trees.gains(row[None], self.rates[None])[0])
