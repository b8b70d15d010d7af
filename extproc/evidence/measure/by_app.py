"""Two configurations on the same traffic, app by app: each row is decided as a request of its app."""

from collections.abc import Iterator

import msgspec
import numpy as np

from extproc.config.load import Config
from extproc.evidence.app_rows import Side, app_of, warn_of_sources
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import Row, Traffic
from extproc.evidence.execution import Execution, execute_compiled
from extproc.evidence.measure.comparison import Comparison, compare
from extproc.routing.snapshot import Snapshot


class Part(msgspec.Struct, frozen=True, eq=False):
    """The rows that one snapshot of each side decides about, decided by both."""

    app: str  # empty: they belong to no app
    old: Execution
    new: Execution


class _Arm(msgspec.Struct, frozen=True, eq=False):
    """The part of a side that decides about a row."""

    app: str
    config: Config
    snapshot: Snapshot


def compare_apps(
    old: Side, new: Side, traffic: Traffic, tokens: Tokens, seed: int
) -> tuple[Comparison, list[Part]]:
    """Compare the requests of no app and those of each app. The groups of an app have its name in front."""
    warn_of_sources((old.snapshot, new.snapshot), traffic.rows)
    parts = list(_parts(old, new, traffic, tokens))
    comparisons = [_named(part.app, compare(part.old, part.new, seed)) for part in parts]
    return _together(comparisons), parts


def _parts(old: Side, new: Side, traffic: Traffic, tokens: Tokens) -> Iterator[Part]:
    if not old.snapshot.apps and not new.snapshot.apps:
        whole = [_Arm("", side.configs[""], side.snapshot) for side in (old, new)]
        yield Part("", _run(old, whole[0], traffic, tokens), _run(new, whole[1], traffic, tokens))
        return
    positions: dict[tuple[int, int], list[int]] = {}
    arms: dict[tuple[int, int], tuple[_Arm, _Arm]] = {}
    for at, row in enumerate(traffic.rows):
        pair = _arm(old, row), _arm(new, row)
        key = id(pair[0].snapshot), id(pair[1].snapshot)
        positions.setdefault(key, []).append(at)
        arms.setdefault(key, pair)
    # The requests of no app come first. Without apps they are all.
    for key in sorted(positions, key=lambda key: [arm.app for arm in reversed(arms[key])]):
        before, after = arms[key]
        if before.snapshot.off or after.snapshot.off:
            continue  # no intent decides about its requests, so there is nothing to compare
        rows = msgspec.structs.replace(traffic, rows=traffic.rows.at(np.array(positions[key], dtype=np.int64)))
        yield Part(after.app or before.app, _run(old, before, rows, tokens), _run(new, after, rows, tokens))


def _run(side: Side, arm: _Arm, traffic: Traffic, tokens: Tokens) -> Execution:
    return execute_compiled(arm.config, arm.snapshot, side.memory, traffic, tokens)


def _arm(side: Side, row: Row) -> _Arm:
    app = app_of(side.snapshot, row)
    if app is None:
        return _Arm("", side.configs[""], side.snapshot)
    return _Arm(app.name, side.configs.get(app.name, side.configs[""]), app.of_path(row.path))


def _named(app: str, comparison: Comparison) -> Comparison:
    """The comparison, with the name of the app in its groups."""
    if not app:
        return comparison
    named = [
        [msgspec.structs.replace(each, group=f"{app}/{each.group}") for each in values]
        for values in (comparison.cells, comparison.flips, comparison.lowered)
    ]
    groups = {f"{app}/{group}": rows for group, rows in comparison.groups.items()}
    return msgspec.structs.replace(comparison, groups=groups, cells=named[0], flips=named[1], lowered=named[2])


def _together(comparisons: list[Comparison]) -> Comparison:
    """All comparisons as one, so that they share the false alarms of the gate."""
    if len(comparisons) == 1:
        return comparisons[0]
    return Comparison(
        rows=sum(each.rows for each in comparisons),
        groups={name: rows for each in comparisons for name, rows in each.groups.items()},
        cells=[cell for each in comparisons for cell in each.cells],
        flips=[flip for each in comparisons for flip in each.flips],
        estimated=all(each.estimated for each in comparisons),
        lowered=[lowered for each in comparisons for lowered in each.lowered],
        unrecorded=sum(each.unrecorded for each in comparisons),
    )
