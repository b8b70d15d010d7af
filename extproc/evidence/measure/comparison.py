"""Two configurations on the same traffic: the rows that flip, and the change in quality and cost."""

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from scipy import special

from extproc.evidence.execution import Execution, destination, trusted_cohort
from extproc.evidence.measure.columns import NO_COHORT, OUT_OF_SCOPE
from extproc.evidence.measure.lowered import Lowered, Pairs, inverse_chances, lowered
from extproc.evidence.measure.metrics import (
    MOST_UNITS,
    Estimate,
    Floats,
    GroupIds,
    effective_rows,
    resamples,
    spread,
    units_of,
)

ROUTING, QUALITY, COST = "routed right", "quality", "cost"
ALL = "all"
# Random assignments of signs behind a p-value. Below one in this many, the p-value is a bound.
_ASSIGNMENTS = 20_000
_CHUNK = 500


class Cell(msgspec.Struct, frozen=True):
    """One measure of one group, on the rows for which both configurations have it."""

    group: str
    measure: str
    rows: int
    old: float
    new: float
    change: Estimate  # new minus old. For cost, as a share of old
    differing: int  # rows for which old and new differ
    chance: float  # p-value: the chance that a change this bad is random (one-sided sign-flip test)
    better: int = 0  # conversations that got better
    independent: float | None = None  # conversations of equal weight that are worth as much. None: one per row


class Flip(msgspec.Struct, frozen=True):
    """A row with another decision. `old` and `new` are as in `execution.destination`."""

    line: int
    group: str
    old: str
    new: str


class Comparison(msgspec.Struct, frozen=True):
    """Everything that `extproc diff` shows."""

    rows: int
    groups: dict[str, int]  # rows per group, most first
    cells: list[Cell]
    flips: list[Flip]
    estimated: bool  # no outcome was recorded, so costs are those of the input alone
    lowered: list[Lowered] = []  # the groups with rows that go to a cheaper tier or setting
    unrecorded: int = 0  # rows whose outcome was recorded for the old decision but not for the new one


def compare(old: Execution, new: Execution, seed: int = 0) -> Comparison:
    """Compare two executions of one file, on the rows that both used. The same seed gives the same intervals."""
    lines, *both = np.intersect1d(old.rows.lines, new.rows.lines, assume_unique=True, return_indices=True)
    pairs = Pairs(old, new, *both)
    groups = [_group(old, new, i) for i, _ in pairs]
    flips = []
    for line, group, (i, j) in zip(lines.tolist(), groups, pairs, strict=True):
        was, now = destination(old.routed[i]), destination(new.routed[j])
        if was != now:
            flips.append(Flip(line, group, sys.intern(was), sys.intern(now)))
    priced = any(run.served.where(lambda served: True).any() for run in (old, new))
    measures: dict[str, _Measure] = {
        ROUTING: _routed_right,
        QUALITY: _quality,
        COST: _cost if priced else _input_cost,
    }
    inverse = inverse_chances(pairs)
    columns = {name: _both(pairs, groups, measure) for name, measure in measures.items()}
    conversation, weight = old.groups[pairs.old_at], old.weights()[pairs.old_at]
    counts = Counter(groups)
    cells = []
    for name in [ALL, *dict(counts.most_common())]:
        inside = np.array([name in (ALL, group) for group in groups], dtype=bool)
        for measure, (a, b) in columns.items():
            compared = inside & ~np.isnan(a) & ~np.isnan(b)
            if compared.any():
                drawn = inverse if measure != ROUTING and priced else np.ones(len(pairs))
                sample = (weight * drawn)[compared], conversation[compared]
                cells.append(_cell(name, measure, a[compared], b[compared], sample, seed))
    was_served, is_served = (run.served.where(lambda served: True) for run in (old, new))
    unrecorded = int((was_served[pairs.old_at] & ~is_served[pairs.new_at]).sum())
    lower = lowered(pairs, groups)
    return Comparison(len(lines), dict(counts.most_common()), cells, flips, not priced, lower, unrecorded)


def _group(old: Execution, new: Execution, i: int) -> str:
    """The label if either configuration has this cohort. Without a label, the cohort that the old one matched."""
    intent = old.revealed.intents[i]
    if intent is msgspec.UNSET:
        return trusted_cohort(old.routed[i]) or NO_COHORT
    cohorts = {*old.snapshot.policy.cohorts, *new.snapshot.policy.cohorts}
    return intent if isinstance(intent, str) and intent in cohorts else OUT_OF_SCOPE


# float64[pairs]: the values of rows, given their groups and positions. NaN if there is nothing to measure.
_Measure = Callable[[Execution, Sequence[str], GroupIds], Floats]


def _both(pairs: Pairs, groups: Sequence[str], measure: _Measure) -> tuple[Floats, Floats]:
    old, new = measure(pairs.old, groups, pairs.old_at), measure(pairs.new, groups, pairs.new_at)
    return old, new


def _routed_right(run: Execution, groups: Sequence[str], at: GroupIds) -> Floats:
    """1 if a row in scope has a trusted match with its label's cohort, or a row out of scope has none."""
    values = np.full(len(at), np.nan)
    intents = run.revealed.intents
    for k, (group, i) in enumerate(zip(groups, at.tolist(), strict=True)):
        if intents[i] is not msgspec.UNSET:
            values[k] = trusted_cohort(run.routed[i]) == (None if group == OUT_OF_SCOPE else group)
    return values


def _quality(run: Execution, _: Sequence[str], at: GroupIds) -> Floats:
    return run.served.column("quality")[at]


def _cost(run: Execution, _: Sequence[str], at: GroupIds) -> Floats:
    return run.served.column("cost")[at]


def _input_cost(run: Execution, _: Sequence[str], at: GroupIds) -> Floats:
    costs = np.full(len(at), np.nan)
    for k, i in enumerate(at.tolist()):
        routed = run.routed[i]
        if routed.signals is not None:
            costs[k] = routed.signals.tokens * routed.decision.tier.price.input / 1e6
    return costs


def _cell(group: str, measure: str, old: Floats, new: Floats, sample: tuple[Floats, GroupIds], seed: int) -> Cell:
    """`sample`: (weight, conversation) of each row."""
    weight, conversation = sample
    relative = measure == COST and bool(old.any() or new.any())  # a cost that was 0 and is not rises without limit
    gained, base = weight * (new - old), weight * (old if relative else np.ones(len(old)))
    draws = resamples(len(old), seed, together=conversation)
    tops, bottoms = np.concatenate([weights @ np.stack([gained, base], axis=1) for weights in draws]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        change = spread(float(gained.sum() / base.sum()), tops / bottoms, len(old))
    worse = gained if measure == COST else -gained
    by_conversation = np.bincount(conversation, worse).astype(np.float64)
    chance = sign_flip(by_conversation, seed)
    differing = int((new != old).sum())
    before, after = (float(np.average(values, weights=weight)) for values in (old, new))
    better, independent = int((by_conversation < 0).sum()), effective_rows(weight, conversation)
    return Cell(group, measure, len(old), before, after, change, differing, chance, better, independent)


def sign_flip(worse: Floats, seed: int) -> float:
    """The chance of a sum at least as large as that of `worse`, if each difference were as likely for the better.

    A paired randomisation test. It is valid for any distribution of the differences that is symmetric about 0. For
    differences of one size, such as right and wrong, it is the exact sign test. A sum that no random assignment
    reaches gets Hoeffding's bound (1963), because hundreds of cohorts can share the gate's false alarms.
    """
    differing = worse[worse != 0]
    if not len(differing):
        return 1.0
    if np.ptp(np.abs(differing)) == 0:
        return float(special.bdtr((differing < 0).sum(), len(differing), 0.5))
    total, reached, rng = float(differing.sum()), 0, np.random.default_rng(seed)
    if len(differing) > MOST_UNITS:  # sums of random blocks are as symmetric as their parts
        differing = np.bincount(units_of(len(differing), seed)[0], differing).astype(np.float64)
    for _ in range(_ASSIGNMENTS // _CHUNK):
        signs = rng.integers(0, 2, (_CHUNK, len(differing))) * 2 - 1
        reached += int((signs @ differing >= total - 1e-12).sum())
    if not reached:
        return min(1 / (_ASSIGNMENTS + 1), math.exp(-(total**2) / (2 * float(differing @ differing))))
    return (reached + 1) / (_ASSIGNMENTS + 1)
