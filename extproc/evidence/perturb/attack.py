"""A few words that move any prompt to a dearer tier, or to a cheaper one, searched against the centroids.

The attack on routers of Shafran et al. 2025 ("Rerouting LLM Routers"): a gadget that is put before or after a
prompt is fitted once, on some prompts, and then moves others. The attacker here is the strongest of theirs: it
knows the encoder, the centroids and the utterances.
"""

import random
import re
import time
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from extproc.encoder.protocols import Vectors
from extproc.evidence.execution import Memory
from extproc.evidence.measure.metrics import Bools, Floats
from extproc.routing.policy import Cohort, Policy
from extproc.routing.snapshot import Snapshot

# Longer gadgets move more, and are seen sooner; theirs have ten tokens.
_LENGTH = 6
# Words that are tried at each place, the most promising ones by themselves.
_TRIED = 24
# Of the encoder's vocabulary, so many are looked at besides the words of the utterances to be reached.
_DRAWN = 256
# How far past the border a prompt is worth moving: further is no better, others are left to move.
_ENOUGH = 0.05
_WORD = re.compile(r"[a-z]{3,}")


class Gadget(msgspec.Struct, frozen=True):
    """What was found."""

    words: str
    before: bool  # put before the prompt, else after it
    up: bool

    def around(self, text: str) -> str:
        """The prompt with the gadget."""
        return f"{self.words} {text}" if self.before else f"{text} {self.words}"


def reached(policy: Policy, cohort: Cohort) -> int:
    """The rung that a match with the cohort leads to."""
    return max(policy.rank(cohort.tier), policy.rank(cohort.tier_floor or cohort.tier))


class Search:
    """Greedy search, word by word; everything is drawn from `seed`."""

    def __init__(
        self,
        snapshot: Snapshot,
        memory: Memory,
        utterances: Mapping[str, Sequence[str]],
        words: Sequence[str],
        seed: int,
    ) -> None:
        """`utterances` of each cohort; `words`: a vocabulary to draw from."""
        self._memory = memory
        index, policy = snapshot.index, snapshot.policy
        self._cohorts = list(index.cohorts)
        self._centroids: Vectors = index.faiss.reconstruct_n(0, index.faiss.ntotal)
        self._ranks = np.array([reached(policy, policy.cohorts[name]) for name in self._cohorts])
        self._utterances, self._words, self._seed = utterances, words, seed

    @property
    def possible(self) -> bool:
        """Whether cohorts lead to different tiers at all."""
        return bool(np.ptp(self._ranks))

    def random(self, before: bool) -> Gadget:
        """The control: as many words, drawn blindly."""
        return Gadget(" ".join(random.Random(f"{self._seed} control").sample(self._words, _LENGTH)), before, True)

    def best(self, texts: Sequence[str], before: bool, up: bool) -> Gadget:
        """The gadget that moves these texts furthest towards the cohorts of the dearest (or cheapest) tier."""
        goal = self._ranks == (self._ranks.max() if up else self._ranks.min())
        candidates = self._candidates(goal)
        alone = self._towards(goal, candidates)
        tried = [candidates[i] for i in np.argsort(-alone, kind="stable")[:_TRIED]]
        found, most, began = Gadget("", before, up), -np.inf, time.monotonic()
        for step in range(_LENGTH):
            self._memory.told(
                step, _LENGTH, began, f"words of a gadget {'before' if before else 'after'} the prompt"
            )
            longer = [Gadget(f"{found.words} {word}".strip(), before, up) for word in tried]
            moved = self._towards(goal, [gadget.around(text) for gadget in longer for text in texts])
            means = np.minimum(moved, _ENOUGH).reshape(len(longer), -1).mean(axis=1)
            if means.max() <= most:
                break
            found, most = longer[int(means.argmax())], float(means.max())
        self._memory.told(_LENGTH, _LENGTH, began)
        return found

    def _candidates(self, goal: Bools) -> list[str]:
        spoken = [text for i in np.flatnonzero(goal) for text in self._utterances[self._cohorts[i]]]
        drawn = random.Random(f"{self._seed} words").sample(self._words, min(_DRAWN, len(self._words)))
        return sorted({word for text in spoken for word in _WORD.findall(text.lower())} | set(drawn))

    def _towards(self, goal: Bools, texts: Sequence[str]) -> Floats:
        """By how much each text is nearer to a cohort of the goal than to any other."""
        near = self._memory.fresh().encode(texts) @ self._centroids.T
        ahead: Floats = near[:, goal].max(axis=1) - near[:, ~goal].max(axis=1)
        return ahead
