"""How much more likely the costlier of two tiers answers this prompt well: small boosted trees on the prompt.

A gain is the expected quality of the costlier tier minus that of the cheaper one. The trees compare directions of
the prompt's vector, facts that are counted in the ask, and the success rates of its cohort. All nodes of a level
make the same comparison (oblivious trees), so the answer of a tree is one look-up.
"""

from collections.abc import Mapping

import msgspec
import numpy as np

from extproc.encoder.protocols import Vectors
from extproc.routing.ask import Ask
from extproc.routing.prompt_facts import prompt_facts

RATES = 3  # of a cohort: the success of the cheaper tier, that of the costlier one, and the difference


class GainTrees(msgspec.Struct, frozen=True, eq=False):
    """The trees for two tiers."""

    tiers: tuple[str, str]  # the cheaper one first
    base: float  # the mean gain of all rows
    features: np.ndarray  # int64[trees, depth]: the column that each level compares
    cuts: Vectors  # float32[trees, depth]: the value that it is compared with
    leaves: Vectors  # float32[trees, 2 ** depth]: the part of the gain
    rates: Mapping[str, Vectors]  # cohort -> float32[RATES]

    def gains(self, columns: Vectors, rates: Vectors) -> Vectors:
        """Return float32[n]: the gains of prompts, from float32[n, columns] and float32[n, RATES]."""
        rows = np.concatenate([columns, rates], axis=1)
        trees, depth = self.features.shape
        bits = rows[:, self.features] > self.cuts
        leaf = bits @ (1 << np.arange(depth)[::-1])
        gains: Vectors = self.base + self.leaves[np.arange(trees), leaf].sum(axis=1)
        return gains


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

    def gain(self, tiers: tuple[str, str], cohort: str, vector: Vectors, ask: Ask) -> float | None:
        """Return the gain of one prompt. None: these tiers, this cohort or prompts like this were not fitted on."""
        trees = self.pairs.get(tiers)
        rates = trees.rates.get(cohort) if trees is not None else None
        if trees is None or rates is None:
            return None
        columns = self.columns.of(vector[None], prompt_facts(ask)[None])
        return float(trees.gains(columns, rates[None])[0]) if self.columns.saw(columns[0]) else None
