"""A search for a few words that move any prompt to a more expensive tier, or to a cheaper one.

The attack on routers of Shafran et al. 2025 ("Rerouting LLM Routers"): a gadget is fitted once on some prompts. Put
before or after other prompts, it then moves those, too. This attacker is the strongest one in that paper. It knows
the encoder, the centroids and the utterances.
"""

import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from extproc.evidence.execution import Execution, Memory
from extproc.evidence.measure.metrics import Bools, Floats
from extproc.evidence.perturb.robustness import Effect, RewriteTrial, drawn_rows
from extproc.routing.head import softmax
from extproc.routing.policy import Cohort, Policy
from extproc.routing.snapshot import Snapshot

# Words in a gadget. Longer gadgets move more prompts but are easier to notice. The paper uses ten tokens.
_LENGTH = 6
# Candidate words tried at each step: the ones that move texts furthest by themselves.
_TRIED = 24
# Words drawn from the vocabulary, in addition to the words of the utterances to be reached.
_DRAWN = 256
# How far past the border between cohorts a prompt counts: moving it further gains nothing.
_ENOUGH = 0.05
# The same for chances. Trust by cost takes a cheap tier from a chance of about 0.7.
_ENOUGH_CHANCE = 0.5
# Prompts that a gadget is fitted on. It is tried on all others.
_FITTED_ON = 12
_CANDIDATE = re.compile(r"[a-z]{3,}")

NOTE = (
    f"Gadgets were searched greedily on at most {_FITTED_ON} prompts, with access to the utterances and the "
    "centroids. A longer search may find better ones. They are tried on the other rows that can move. The random "
    "control is tried on all rows."
)
NO_TARGET = "No gadget was searched: every cohort leads to the same tier."


class Gadget(msgspec.Struct, frozen=True):
    """Words and where they are put."""

    text: str
    before: bool  # before the prompt, otherwise after it
    up: bool  # towards the most expensive tier, otherwise the cheapest

    def around(self, prompt: str) -> str:
        """The prompt with the gadget."""
        return f"{self.text} {prompt}" if self.before else f"{prompt} {self.text}"


def attacks(run: Execution, memory: Memory, words: Sequence[str], seed: int = 0) -> Iterator[tuple[Gadget, Effect]]:
    """Gadgets and random words, with their effect on the rows of `run` that they were not fitted on.

    Yields nothing when every cohort leads to the same tier. The same seed gives the same gadgets.
    """
    utterances = {intent.intent: intent.utterances for intent in run.config.intents}
    search = Search(run.snapshot, memory, utterances, words, seed)
    if not search.possible:
        return
    trial, rows = RewriteTrial(run, memory, seed), drawn_rows(run, seed)
    for before in (False, True):
        place = "before" if before else "after"
        control = search.random(before)
        texts = [control.around(trial.ask(i)) for i in rows]
        yield control, trial.effect(f"random words {place} (control)", rows, texts)
        for up in (True, False):
            movable = [i for i in rows if trial.movable(i, up)]
            fitted = set(random.Random(f"{seed} {up}").sample(movable, min(_FITTED_ON, len(movable) // 2)))
            others = [i for i in movable if i not in fitted]
            if not fitted or not others:
                continue
            gadget = search.best([trial.ask(i) for i in sorted(fitted)], before, up)
            texts = [gadget.around(trial.ask(i)) for i in others]
            kind = f"{'upgrading' if up else 'downgrading'} gadget {place}"
            yield gadget, trial.effect(kind, others, texts)


def reached(policy: Policy, cohort: Cohort) -> int:
    """The rank of the tier that a match with the cohort leads to: 0 is the cheapest tier."""
    return max(policy.rank(cohort.tier), policy.rank(cohort.tier_floor or cohort.tier))


def vocabulary(tokenizer: Any) -> list[str]:
    """The whole words of a tokenizer's vocabulary, sorted."""
    return sorted(w for w in tokenizer.get_vocab() if w.isascii() and w.isalpha() and len(w) > 2)


class Search:
    """A greedy search, word by word. Everything random is drawn from `seed`."""

    def __init__(
        self,
        snapshot: Snapshot,
        memory: Memory,
        utterances: Mapping[str, Sequence[str]],
        words: Sequence[str],
        seed: int,
    ) -> None:
        """`utterances` has those of each cohort. Random words are drawn from `words`."""
        self._memory = memory
        index, policy = snapshot.index, snapshot.policy
        self._cohorts, self._index = list(index.cohorts), index
        self._ranks = np.array([reached(policy, policy.cohorts[name]) for name in self._cohorts])
        self._utterances, self._words, self._seed = utterances, words, seed

    @property
    def possible(self) -> bool:
        """Whether the cohorts lead to different tiers."""
        return bool(np.ptp(self._ranks))

    def random(self, before: bool) -> Gadget:
        """The control: as many words as a gadget has, drawn at random."""
        drawn = random.Random(f"{self._seed} control").sample(self._words, _LENGTH)
        return Gadget(" ".join(drawn), before, True)

    def best(self, prompts: Sequence[str], before: bool, up: bool) -> Gadget:
        """The gadget that moves these prompts furthest towards cohorts of the most expensive (or cheapest) tier."""
        enough = _ENOUGH if self._index.head is None else _ENOUGH_CHANCE
        goal = self._ranks == (self._ranks.max() if up else self._ranks.min())
        candidates = self._candidates(goal)
        alone = self._lead(goal, candidates)
        tried = [candidates[i] for i in np.argsort(-alone, kind="stable")[:_TRIED]]
        best, best_mean, began = Gadget("", before, up), -np.inf, time.monotonic()
        for step in range(_LENGTH):
            place = "before" if before else "after"
            self._memory.show_progress(step, _LENGTH, began, f"words of a gadget {place} the prompt")
            longer = [Gadget(f"{best.text} {word}".strip(), before, up) for word in tried]
            leads = self._lead(goal, [gadget.around(prompt) for gadget in longer for prompt in prompts])
            means = np.minimum(leads, enough).reshape(len(longer), -1).mean(axis=1)
            if means.max() <= best_mean:
                break
            best, best_mean = longer[int(means.argmax())], float(means.max())
        self._memory.show_progress(_LENGTH, _LENGTH, began)
        return best

    def _candidates(self, goal: Bools) -> list[str]:
        """Words of the goal's utterances, and some of the vocabulary."""
        utterances = [text for i in np.flatnonzero(goal) for text in self._utterances[self._cohorts[i]]]
        count = min(_DRAWN, len(self._words))
        drawn = random.Random(f"{self._seed} words").sample(self._words, count)
        return sorted({word for text in utterances for word in _CANDIDATE.findall(text.lower())} | set(drawn))

    def _lead(self, goal: Bools, texts: Sequence[str]) -> Floats:
        """float64[len(texts)]: the score of the nearest cohort of the goal, minus that of any other class.

        The score is the cohort's chance if the index has a head, otherwise its similarity.
        """
        vectors, head = self._memory.fresh().encode(texts), self._index.head
        if head is None:
            scores = vectors @ np.concatenate(list(self._index.centroids.values())).T
        else:
            scores = softmax(vectors @ head.weights.T + head.bias)
        others = np.ones(scores.shape[1], dtype=bool)  # the background, too
        others[: len(goal)] = ~goal
        lead: Floats = scores[:, np.flatnonzero(goal)].max(axis=1) - scores[:, others].max(axis=1)
        return lead
