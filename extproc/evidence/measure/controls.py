"""Controls that a router has to beat on the same rows: one tier for all, random choice, and a fixed mix."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from extproc.evidence.data.setting import SUFFIXES
from extproc.evidence.execution import Execution
from extproc.evidence.measure.metrics import Bools, Estimate, Floats, GroupIds, resamples, spread, static_mix

ROUTED = "as configured"
RANDOM = "random, equal shares"
MIX = "static mix, equal cost"
ORACLE = "oracle"
# A tier needs answers on at least this share of the rows with outcomes to be a control.
_RECORDED = 0.5
# The frontier is drawn for these prices of a unit of quality, in dollars per request.
_TRADES = np.concatenate([[0.0], np.logspace(-6, 1, 60)])


class ControlLine(msgspec.Struct, frozen=True):
    """One way to serve the same rows."""

    name: str
    quality: Estimate
    per_1000: Estimate  # dollars per 1,000 requests
    per_success: Estimate  # dollars per success
    behind: Estimate | None = None  # the configuration's quality minus the quality of this line, on the same rows


class Point(msgspec.Struct, frozen=True):
    """A point of the cost-quality frontier."""

    per_1000: float  # dollars per 1,000 requests
    quality: float


class Recorded(msgspec.Struct, frozen=True):
    """Quality and cost of the rows for which the configured path and every compared setting were recorded."""

    tiers: list[str]  # with the reasoning setting, if it was recorded (`setting_name`)
    rows: Bools
    quality: Floats  # [row, tier]
    cost: Floats  # [row, tier], dollars


def recorded(run: Execution, quality: Floats, cost: Floats) -> Recorded:
    """The tiers that were recorded on most rows, and the rows that have all of them.

    `quality` and `cost` are float64[rows]: those of the configuration, NaN where they were not recorded.
    """
    names = settings_of(run)
    table = np.full((2, len(run.rows), len(names)), np.nan)
    for i, answers in enumerate(run.answers):
        for j, name in enumerate(names):
            answer = answers.get(name)
            if answer is not None and answer.quality is not None:
                table[:, i, j] = answer.quality, answer.cost
    present = ~np.isnan(table[0])
    kept = present.sum(axis=0) > _RECORDED * max(present.any(axis=1).sum(), 1)
    rows = (
        present[:, kept].all(axis=1) & ~np.isnan(quality) & ~np.isnan(cost)
        if kept.any()
        else np.zeros(len(present), bool)
    )
    names = [name for name, keep in zip(names, kept, strict=True) if keep]
    return Recorded(names, rows, table[0][rows][:, kept], table[1][rows][:, kept])


def settings_of(run: Execution) -> list[str]:
    """Every tier with recorded outcomes, cheapest first. Each reasoning setting of a tier is a separate entry."""
    seen = {name for answers in run.answers for name in answers}
    names = [tier.name + suffix for tier in run.snapshot.policy.tiers for suffix in SUFFIXES]
    return [name for name in names if name in seen]


def lines(run: Execution, quality: Floats, cost: Floats, seed: int) -> list[ControlLine]:
    """The configuration and its controls, with paired intervals. Empty without outcomes.

    The line `RANDOM` assigns the paths that were taken to the rows at random, in the same shares. The mix buys a
    share of each tier with the same dollars. Both are exact expectations, not draws. The oracle knows all outcomes.
    """
    table = recorded(run, quality, cost)
    n = int(table.rows.sum())
    if not n:
        return []
    configured = quality[table.rows], cost[table.rows]
    served = [run.served[i] for i in np.flatnonzero(table.rows)]
    paths = [s.path if s is not None else () for s in served]
    return beside(table, configured, paths, seed, run.conversations()[table.rows])


def beside(
    table: Recorded,
    configured: tuple[Floats, Floats],
    paths: Sequence[tuple[str, ...]],
    seed: int,
    together: GroupIds | None = None,
) -> list[ControlLine]:
    """The configuration and its controls, with paired intervals.

    `configured` is (quality, dollars), float64[rows] each. `paths` has the tiers that answered each row, in order.
    """
    n = len(paths)
    means = _all_lines(np.ones((1, n)), table, configured, paths)
    draws = [_all_lines(w, table, configured, paths) for w in resamples(n, seed, together=together)]
    return [
        _line(name, means, {k: np.concatenate([d[k] for d in draws], axis=1) for k in (name, ROUTED)}, n)
        for name in means
    ]


def _line(name: str, means: dict[str, Floats], draws: dict[str, Floats], n: int) -> ControlLine:
    with np.errstate(divide="ignore", invalid="ignore"):
        per_success = means[name][1, 0] / means[name][0, 0], draws[name][1] / draws[name][0]
    behind = None
    if name != ROUTED:
        behind = spread(float(means[ROUTED][0, 0] - means[name][0, 0]), draws[ROUTED][0] - draws[name][0], n)
    return ControlLine(
        name,
        spread(float(means[name][0, 0]), draws[name][0], n),
        spread(float(1000 * means[name][1, 0]), 1000 * draws[name][1], n),
        spread(float(per_success[0]), per_success[1], n),
        behind,
    )


def _all_lines(
    weights: Floats, table: Recorded, configured: tuple[Floats, Floats], paths: Sequence[tuple[str, ...]]
) -> dict[str, Floats]:
    """name -> [quality | cost, draw], each the mean per row under the weights."""
    total = weights.sum(axis=1)
    quality, cost = ((weights @ column / total[:, None]).T for column in (table.quality, table.cost))
    routed = np.stack([weights @ values / total for values in configured])
    result = {ROUTED: routed}
    for j, tier in enumerate(table.tiers):
        result[f"always {tier}"] = np.stack([quality[j], cost[j]])
    index_of = {tier: j for j, tier in enumerate(table.tiers)}
    random = np.zeros_like(routed)
    for path in sorted(set(paths)):
        if not set(path) <= set(index_of):
            break  # a tier with too few answers: its mean is not known
        portion = weights @ np.array([p == path for p in paths], dtype=float) / total
        random += portion * np.stack([quality[index_of[path[-1]]], sum(cost[index_of[tier]] for tier in path)])
    else:
        result[RANDOM] = random
    result[MIX] = np.stack(static_mix(cost, quality, routed[1]))
    best = _oracle(table)
    result[ORACLE] = np.stack(
        [weights @ column[np.arange(len(best)), best] / total for column in (table.quality, table.cost)]
    )
    return result


def _oracle(table: Recorded) -> NDArray[np.int64]:
    """int64[rows]: the cheapest of the best answers to each row."""
    best = table.quality.max(axis=1, keepdims=True)
    chosen: NDArray[np.int64] = np.where(table.quality >= best, table.cost, np.inf).argmin(axis=1)
    return chosen


def frontier(run: Execution, cohort: Sequence[str | None]) -> list[Point]:
    """The quality and cost of one tier per cohort, for many prices of quality. `cohort` is the nearest of each row.

    Tiers are chosen on one half of the rows and tried on the other. Editing `tier` in the intents' files reaches
    these points with the same centroids.
    """
    nothing = np.zeros(len(run.rows))
    table = recorded(run, nothing, nothing)
    if len(table.tiers) < 2 or table.rows.sum() < 20:
        return []
    names = np.array([str(name) for name in cohort])[table.rows]
    half = np.arange(len(names)) % 2
    points = []
    for trade in _TRADES:
        value = table.quality * trade - table.cost
        chosen = np.zeros(len(names), dtype=int)
        for side in (0, 1):
            overall = value[half != side].mean(axis=0)
            for name in np.unique(names):
                fit = (half != side) & (names == name)
                mean = value[fit].mean(axis=0) if fit.any() else overall
                chosen[(half == side) & (names == name)] = int(mean.argmax())
        rows = np.arange(len(names))
        points.append(
            Point(float(1000 * table.cost[rows, chosen].mean()), float(table.quality[rows, chosen].mean()))
        )
    return list(dict.fromkeys(points))
