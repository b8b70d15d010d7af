"""Controls that a router has to beat on the same rows: one tier for all, random choice, and a fixed mix."""

import itertools
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from extproc.evidence.execution import Execution
from extproc.evidence.measure.metrics import Estimate, Floats, GroupIds, resamples, spread, static_mix
from extproc.evidence.measure.recording import (
    MISSING,
    AnswerTable,
    Bounds,
    Recorded,
    Sample,
    answer_table,
    bounds,
    estimated,
    is_known,
    recorded,
    sample_of,
)

ROUTED = "as configured"
RANDOM = "random, equal shares"
MIX = "static mix, equal cost"
ORACLE = "oracle"
# The frontier is drawn for these prices of a unit of quality, in dollars per request.
_TRADES = np.concatenate([[0.0], np.logspace(-6, 1, 60)])


class ControlLine(msgspec.Struct, frozen=True):
    """One way to serve the same rows."""

    name: str
    quality: Estimate
    per_1000: Estimate  # dollars per 1,000 requests
    per_success: Estimate  # dollars per success
    behind: Estimate | None = None  # the configuration's quality minus the quality of this line, on the same rows
    cheaper: Estimate | None = None  # what this line saves, as a share of the configuration's cost


class Point(msgspec.Struct, frozen=True):
    """A point of the cost-quality frontier."""

    per_1000: float  # dollars per 1,000 requests
    quality: float


class Controls(msgspec.Struct, frozen=True):
    """The configuration beside its controls, and what the recorded answers leave open."""

    lines: list[ControlLine]  # on all rows with outcomes. Empty if the configuration's own quality is not known
    rows: int  # with outcomes
    bounds: list[Bounds]  # of every path whose answers were recorded only on chosen rows
    paired: list[ControlLine] = []  # the same lines on the rows that have every answer, if the others lack some
    estimated: bool = False  # `lines` are doubly robust estimates from propensities


def controls(run: Execution, quality: Floats, cost: Floats, seed: int) -> Controls:
    """Compare the configuration with its controls, with paired intervals.

    `quality` and `cost` are float64[rows]: those of the configuration, NaN where they were not recorded. The line
    `RANDOM` assigns the paths that were taken to the rows at random, in the same shares. The mix buys a share of
    each tier with the same dollars. Both are exact expectations, not draws. The oracle knows all outcomes.
    """
    table, complete = answer_table(run), recorded(run, quality, cost)
    sample = sample_of(run, table, quality, seed)
    if not sample.rows.any():
        return Controls([], 0, [])
    full = _on_complete_rows(run, complete, quality, cost, seed)
    with_all = run.weights()[complete.rows & sample.rows].sum()
    rows = int(sample.rows.sum())
    lines, left_open = _on_all_rows(run, table, sample, quality, cost)
    if with_all >= (1 - MISSING) * sample.weight.sum():
        compared = {f"always {name}" for name in complete.tiers}
        return Controls(full, rows, [each for each in left_open if each.name not in {ROUTED, *compared}])
    by_chance = not np.isnan(table.propensity).all()
    return Controls(lines, rows, left_open, full if len(complete.tiers) > 1 else [], by_chance and bool(lines))


def _on_complete_rows(
    run: Execution, complete: Recorded, quality: Floats, cost: Floats, seed: int
) -> list[ControlLine]:
    rows = np.flatnonzero(complete.rows)
    if not len(rows):
        return []
    paths = list(itertools.compress(run.served.paths(), complete.rows.tolist()))
    return beside(complete, (quality[rows], cost[rows]), paths, seed, run.groups[rows], run.weights()[rows])


def _on_all_rows(
    run: Execution, table: AnswerTable, sample: Sample, quality: Floats, cost: Floats
) -> tuple[list[ControlLine], list[Bounds]]:
    """The lines that can be estimated for all rows with outcomes, and bounds on the others."""
    rows = sample.rows
    chance = run.served.column("propensity")
    columns = {ROUTED: (quality[rows], cost[rows], chance[rows])}
    for j, name in enumerate(table.names):
        columns[name] = table.quality[rows, j], table.cost[rows, j], table.propensity[rows, j]
    known = {
        name: (estimated(sample, value, odds), estimated(sample, dollars, odds))
        for name, (value, dollars, odds) in columns.items()
        if is_known(sample, value, odds)
    }
    left_open = [
        bounds(sample, name if name == ROUTED else f"always {name}", value)
        for name, (value, _, _) in columns.items()
        if name not in known
    ]
    configured = known.pop(ROUTED, None)
    if configured is None:
        return [], left_open
    shape = (len(configured[0]), len(known))
    values = (np.reshape([both[k] for both in known.values()], shape[::-1]).T for k in (0, 1))
    tiers = Recorded(list(known), rows, *values)
    return beside(tiers, configured, None, sample.seed, sample.together, sample.weight), left_open


def beside(
    table: Recorded,
    configured: tuple[Floats, Floats],
    paths: Sequence[tuple[str, ...]] | None,
    seed: int,
    together: GroupIds | None = None,
    weight: Floats | None = None,
) -> list[ControlLine]:
    """The configuration and its controls, with paired intervals.

    `configured` is (quality, dollars), float64[rows] each. `paths` has the tiers that answered each row, in order.
    None: the values are estimates, so the lines that need each row's own answers are left out. `weight` is how many
    rows of the traffic each row stands for.
    """
    n = len(configured[0])
    weight = np.ones(n) if weight is None else weight
    means = _all_lines(weight[None], table, configured, paths)
    draws = [_all_lines(w * weight, table, configured, paths) for w in resamples(n, seed, together=together)]
    return [
        _line(name, means, {k: np.concatenate([d[k] for d in draws], axis=1) for k in (name, ROUTED)}, n)
        for name in means
    ]


def _line(name: str, means: dict[str, Floats], draws: dict[str, Floats], n: int) -> ControlLine:
    (own, routed), (drawn, routed_drawn) = (means[name], means[ROUTED]), (draws[name], draws[ROUTED])
    with np.errstate(divide="ignore", invalid="ignore"):
        per_success = own[1, 0] / own[0, 0], drawn[1] / drawn[0]
        saved = float(1 - own[1, 0] / routed[1, 0]), 1 - drawn[1] / routed_drawn[1]
    is_control = name != ROUTED
    return ControlLine(
        name,
        spread(float(own[0, 0]), drawn[0], n),
        spread(float(1000 * own[1, 0]), 1000 * drawn[1], n),
        spread(float(per_success[0]), per_success[1], n),
        spread(float(routed[0, 0] - own[0, 0]), routed_drawn[0] - drawn[0], n) if is_control else None,
        spread(*saved, n) if is_control else None,
    )


def _all_lines(
    weights: Floats, table: Recorded, configured: tuple[Floats, Floats], paths: Sequence[tuple[str, ...]] | None
) -> dict[str, Floats]:
    """name -> [quality | cost, draw], each the mean per row under the weights."""
    total = weights.sum(axis=1)
    quality, cost = ((weights @ column / total[:, None]).T for column in (table.quality, table.cost))
    routed = np.stack([weights @ values / total for values in configured])
    result = {ROUTED: routed}
    for j, tier in enumerate(table.tiers):
        result[f"always {tier}"] = np.stack([quality[j], cost[j]])
    if paths is not None and (random := _random(weights, table, paths)) is not None:
        result[RANDOM] = random
    if table.tiers:
        result[MIX] = np.stack(static_mix(cost, quality, routed[1]))
    if table.tiers and paths is not None:
        best = _oracle(table)
        result[ORACLE] = np.stack(
            [weights @ column[np.arange(len(best)), best] / total for column in (table.quality, table.cost)]
        )
    return result


def _random(weights: Floats, table: Recorded, paths: Sequence[tuple[str, ...]]) -> Floats | None:
    """[quality | cost, draw] of the paths at random. None: a path has a tier with too few answers."""
    total = weights.sum(axis=1)
    quality, cost = ((weights @ column / total[:, None]).T for column in (table.quality, table.cost))
    index_of = {tier: j for j, tier in enumerate(table.tiers)}
    random = np.zeros((2, len(weights)))
    for path in sorted(set(paths)):
        if not set(path) <= set(index_of):
            return None
        portion = weights @ np.array([p == path for p in paths], dtype=float) / total
        random += portion * np.stack([quality[index_of[path[-1]]], sum(cost[index_of[tier]] for tier in path)])
    return random


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
    if (
        len(table.tiers) < 2
        or table.rows.sum() < 20
        or table.rows.sum() < (1 - MISSING) * answer_table(run).any.sum()
    ):
        return []
    weight = run.weights()[table.rows]
    number = {name: k for k, name in enumerate(dict.fromkeys(cohort))}
    names = np.array([number[name] for name in cohort])[table.rows]
    half = np.arange(len(names)) % 2
    points = []
    for trade in _TRADES:
        value = table.quality * trade - table.cost
        chosen = np.zeros(len(names), dtype=int)
        for side in (0, 1):
            overall = np.average(value[half != side], axis=0, weights=weight[half != side])
            for name in np.unique(names):
                fit = (half != side) & (names == name)
                mean = np.average(value[fit], axis=0, weights=weight[fit]) if fit.any() else overall
                chosen[(half == side) & (names == name)] = int(mean.argmax())
        rows = np.arange(len(names))
        cost, quality = (np.average(of[rows, chosen], weights=weight) for of in (table.cost, table.quality))
        points.append(Point(float(1000 * cost), float(quality)))
    return list(dict.fromkeys(points))
