"""The lines that a router has to beat on the same rows: one tier for all, chance, the same money spent blindly."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from extproc.evidence.data.setting import SUFFIXES
from extproc.evidence.execution import Execution
from extproc.evidence.measure.metrics import Bools, Estimate, Floats, Places, resamples, spread, static_mix

ROUTED = "as configured"
RANDOM = "random, equal shares"
MIX = "static mix, equal cost"
ORACLE = "oracle"
# Of the rows with outcomes: a tier recorded on fewer is no line of its own.
_RECORDED = 0.5
# Prices of a unit of quality that the frontier is drawn for, in dollars a request.
_TRADES = np.concatenate([[0.0], np.logspace(-6, 1, 60)])


class ControlLine(msgspec.Struct, frozen=True):
    """One way to serve the same rows."""

    name: str
    quality: Estimate
    per_1000: Estimate  # dollars
    per_success: Estimate  # dollars
    behind: Estimate | None = None  # quality of what is configured, less this line's; on the same rows


class Point(msgspec.Struct, frozen=True):
    """A point of the cost-quality frontier."""

    per_1000: float
    quality: float


class Recorded(msgspec.Struct, frozen=True):
    """Qualities and dollars of the rows where the configured path and every compared setting are known."""

    tiers: list[str]  # and how they reasoned, where that was recorded (`setting_name`)
    rows: Bools
    quality: Floats  # [row, tier]
    cost: Floats


def recorded(run: Execution, quality: Floats, cost: Floats) -> Recorded:
    """What can be compared: the tiers recorded on most rows, and the rows that have all of them."""
    names = settings_of(run)
    table = np.full((2, len(run.rows), len(names)), np.nan)
    for i, answers in enumerate(run.answers):
        for j, name in enumerate(names):
            answer = answers.get(name)
            if answer is not None and answer.quality is not None:
                table[:, i, j] = answer.quality, answer.cost
    there = ~np.isnan(table[0])
    kept = there.sum(axis=0) > _RECORDED * max(there.any(axis=1).sum(), 1)
    rows = (
        there[:, kept].all(axis=1) & ~np.isnan(quality) & ~np.isnan(cost)
        if kept.any()
        else np.zeros(len(there), bool)
    )
    names = [name for name, keep in zip(names, kept, strict=True) if keep]
    return Recorded(names, rows, table[0][rows][:, kept], table[1][rows][:, kept])


def settings_of(run: Execution) -> list[str]:
    """Every tier that outcomes were recorded of, cheapest first, and each reasoning setting of it apart."""
    seen = {name for answers in run.answers for name in answers}
    names = [tier.name + suffix for tier in run.snapshot.policy.tiers for suffix in SUFFIXES]
    return [name for name in names if name in seen]


def lines(run: Execution, quality: Floats, cost: Floats, seed: int) -> list[ControlLine]:
    """What is configured beside its controls, with paired intervals; empty without outcomes.

    Random takes the paths that were taken, in their shares, and deals them to the rows by chance; the mix buys with
    the same dollars a share of each tier; both are exact expectations, not draws. The oracle knows every outcome.
    """
    found = recorded(run, quality, cost)
    n = int(found.rows.sum())
    if not n:
        return []
    own = quality[found.rows], cost[found.rows]
    served = [run.served[i] for i in np.flatnonzero(found.rows)]
    paths = [s.path if s is not None else () for s in served]
    return beside(found, own, paths, seed, run.conversations()[found.rows])


def beside(
    found: Recorded,
    own: tuple[Floats, Floats],
    paths: Sequence[tuple[str, ...]],
    seed: int,
    together: Places | None = None,
) -> list[ControlLine]:
    """Qualities and dollars that were had by these paths, beside the controls on the same rows."""
    n = len(paths)
    once = _all_lines(np.ones((1, n)), found, own, paths)
    again = [_all_lines(w, found, own, paths) for w in resamples(n, seed, together=together)]
    return [_line(name, once, {k: np.concatenate([a[k] for a in again], axis=1) for k in (name, ROUTED)}, n)
            for name in once]  # fmt: skip


def _line(name: str, once: dict[str, Floats], again: dict[str, Floats], n: int) -> ControlLine:
    with np.errstate(divide="ignore", invalid="ignore"):
        per_success = once[name][1, 0] / once[name][0, 0], again[name][1] / again[name][0]
    behind = None
    if name != ROUTED:
        behind = spread(float(once[ROUTED][0, 0] - once[name][0, 0]), again[ROUTED][0] - again[name][0], n)
    return ControlLine(
        name,
        spread(float(once[name][0, 0]), again[name][0], n),
        spread(float(1000 * once[name][1, 0]), 1000 * again[name][1], n),
        spread(float(per_success[0]), per_success[1], n),
        behind,
    )


def _all_lines(
    weights: Floats, found: Recorded, own: tuple[Floats, Floats], paths: Sequence[tuple[str, ...]]
) -> dict[str, Floats]:
    """name -> [quality | cost, draw], each the mean a row under the weights."""
    total = weights.sum(axis=1)
    quality, cost = ((weights @ table / total[:, None]).T for table in (found.quality, found.cost))
    routed = np.stack([weights @ values / total for values in own])
    result = {ROUTED: routed}
    for j, tier in enumerate(found.tiers):
        result[f"always {tier}"] = np.stack([quality[j], cost[j]])
    place = {tier: j for j, tier in enumerate(found.tiers)}
    random = np.zeros_like(routed)
    for path in sorted(set(paths)):
        if not set(path) <= set(place):
            break  # a tier with too few answers: its mean is not known
        portion = weights @ np.array([p == path for p in paths], dtype=float) / total
        random += portion * np.stack([quality[place[path[-1]]], sum(cost[place[tier]] for tier in path)])
    else:
        result[RANDOM] = random
    result[MIX] = np.stack(static_mix(cost, quality, routed[1]))
    best = _oracle(found)
    result[ORACLE] = np.stack(
        [weights @ table[np.arange(len(best)), best] / total for table in (found.quality, found.cost)]
    )
    return result


def _oracle(found: Recorded) -> NDArray[np.int64]:
    """The cheapest of the best answers to each row."""
    best = found.quality.max(axis=1, keepdims=True)
    chosen: NDArray[np.int64] = np.where(found.quality >= best, found.cost, np.inf).argmin(axis=1)
    return chosen


def frontier(run: Execution, cohort: Sequence[str | None]) -> list[Point]:
    """What one tier a cohort could buy, for many prices of quality.

    Tiers are chosen on one half of the rows and tried on the other. The nearest cohort counts: what is drawn can be
    had with these centroids by editing `tier` in the intents' files.
    """
    nothing = np.zeros(len(run.rows))
    found = recorded(run, nothing, nothing)
    if len(found.tiers) < 2 or found.rows.sum() < 20:
        return []
    names = np.array([str(name) for name in cohort])[found.rows]
    half = np.arange(len(names)) % 2
    points = []
    for trade in _TRADES:
        value = found.quality * trade - found.cost
        chosen = np.zeros(len(names), dtype=int)
        for side in (0, 1):
            overall = value[half != side].mean(axis=0)
            for name in np.unique(names):
                fit = (half != side) & (names == name)
                mean = value[fit].mean(axis=0) if fit.any() else overall
                chosen[(half == side) & (names == name)] = int(mean.argmax())
        rows = np.arange(len(names))
        points.append(
            Point(float(1000 * found.cost[rows, chosen].mean()), float(found.quality[rows, chosen].mean()))
        )
    return list(dict.fromkeys(points))
