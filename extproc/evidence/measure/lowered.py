"""Rows that a new configuration sends lower, and how many of them have the answers that would show the effect."""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from extproc.evidence.data.setting import SUFFIXES
from extproc.evidence.execution import Execution, trusted_cohort
from extproc.evidence.measure.metrics import Floats, GroupIds
from extproc.settings import Tier


class Lowered(msgspec.Struct, frozen=True):
    """The rows of one group that are served by a cheaper tier, without reasoning, or without being judged now."""

    group: str
    rows: int
    recorded: int  # of these rows: both answers were recorded
    hidden: float  # the others, as a share of the whole group: the largest drop that nothing here can show
    by_chance: bool  # the recorded ones were drawn at random, so they stand for the others


class Pairs(msgspec.Struct, frozen=True, eq=False):
    """Two executions, and the positions of the rows that both have."""

    old: Execution
    new: Execution
    old_at: GroupIds
    new_at: GroupIds

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the positions of each row in both."""
        return zip(self.old_at.tolist(), self.new_at.tolist(), strict=True)

    def __len__(self) -> int:
        return len(self.old_at)


def lowered(pairs: Pairs, groups: Sequence[str]) -> list[Lowered]:
    """The groups with lowered rows, those with the most hidden rows first."""
    old, new, weight = pairs.old, pairs.new, pairs.old.weights()[pairs.old_at]
    totals: dict[str, float] = {}
    moved: dict[str, list[tuple[int, bool, bool]]] = {}  # (position of the pair, recorded, by chance) by group
    for at, (group, (i, j)) in enumerate(zip(groups, pairs, strict=True)):
        totals[group] = totals.get(group, 0.0) + weight[at]
        if _is_lower(old, new, i, j) and not _found_its_cohort(old, new, i, j):
            seen = is_comparable(old, new, i, j)
            moved.setdefault(group, []).append((at, seen, seen and chance_of(old, new, i, j) is not None))
    result = []
    for group in [name for name in totals if name in moved]:
        recorded = [by_chance for _, seen, by_chance in moved[group] if seen]
        hidden = sum(weight[at] for at, seen, _ in moved[group] if not seen)
        by_chance = bool(recorded) and all(recorded)
        result.append(Lowered(group, len(moved[group]), len(recorded), float(hidden / totals[group]), by_chance))
    return sorted(result, key=lambda each: -each.hidden)


def is_comparable(old: Execution, new: Execution, i: int, j: int) -> bool:
    """Whether the row has the quality of the answer that served it before, and of the one that serves it now."""
    before, after = old.served[i], new.served[j]
    both = before is not None and after is not None and before.quality is not None and after.quality is not None
    return both and not _is_swapped(old, new, i, j)


def chance_of(old: Execution, new: Execution, i: int, j: int) -> float | None:
    """The chance that both answers of the row were recorded. None: it was not by chance."""
    before, after = old.served[i], new.served[j]
    if before is None or after is None:
        return None
    answers = {name: old.answers[i].get(name) for name in before.path}
    answers |= {name: new.answers[j].get(name) for name in after.path}
    chances = [a.propensity for a in answers.values() if a is not None and a.propensity is not None]
    return float(np.prod(chances)) if chances else None


def inverse_chances(pairs: Pairs) -> Floats:
    """float64[rows]: how many rows each row stands for, because the answers of others were not drawn."""
    old, new = pairs.old, pairs.new
    if not any(run.answers.any_propensity for run in (old, new)):
        return np.ones(len(pairs))
    return np.array([1 / (chance_of(old, new, i, j) or 1.0) for i, j in pairs], dtype=np.float64)


def _is_lower(old: Execution, new: Execution, i: int, j: int) -> bool:
    before, after = old.routed[i].decision, new.routed[j].decision
    if before.tier.name != after.tier.name:
        ladder = [tier.name for tier in new.snapshot.policy.tiers]
        if before.tier.name in ladder:
            return ladder.index(after.tier.name) < ladder.index(before.tier.name)
        return _price(after.tier) < _price(before.tier)
    stopped_reasoning = before.reasoning not in (None, False) and after.reasoning is False
    return stopped_reasoning or (before.judged and not after.judged) or _is_swapped(old, new, i, j)


def _found_its_cohort(old: Execution, new: Execution, i: int, j: int) -> bool:
    """Whether the row's label is its match only now, and that cohort has the settings that it had before.

    The old configuration had named this tier for the cohort, and `routed right` measures the match.
    """
    label = new.revealed.intents[j]
    if label is msgspec.UNSET or label is None or trusted_cohort(old.routed[i]) == label:
        return False
    before, after = (run.snapshot.policy.cohorts.get(label) for run in (old, new))
    if before is None or after is None or trusted_cohort(new.routed[j]) != label:
        return False
    same = (before.tier, before.reasoning, before.accept) == (after.tier, after.reasoning, after.accept)
    return same and not _is_swapped(old, new, i, j)


def _is_swapped(old: Execution, new: Execution, i: int, j: int) -> bool:
    """Whether the tier has a cheaper model now, whose own answer was not recorded."""
    before, after = old.routed[i].decision.tier, new.routed[j].decision.tier
    if before.name != after.name or before.model == after.model or _price(after) >= _price(before):
        return False
    return not any(after.model + suffix in new.revealed[j].outcomes for suffix in SUFFIXES)


def _price(tier: Tier) -> float:
    return tier.price.input + tier.price.output
