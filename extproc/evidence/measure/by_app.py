"""Two configurations on the same traffic, app by app: each row is decided as a request of its app."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np

from extproc.config.apps import with_apps
from extproc.config.compile import compile_snapshot, texts_of
from extproc.config.load import Config, load_config
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import Row, Traffic
from extproc.evidence.execution import Execution, execute_compiled
from extproc.evidence.measure.comparison import Comparison, compare
from extproc.evidence.routed_rows import Memory
from extproc.routing.snapshot import AUTHORITY, AppRoute, Snapshot, host_of


class Side(msgspec.Struct, frozen=True, eq=False):
    """A configuration with its apps, compiled."""

    snapshot: Snapshot
    memory: Memory
    configs: Mapping[str, Config]  # that of the policy under "", and that of each app


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


def read_side(folder: Path, memory: Memory, copy_of: Path | None = None, before: Side | None = None) -> Side:
    """Load and compile a configuration. An app with mistakes is as in `before`. Raises ConfigError."""
    config = load_config(folder, copy_of)
    for each in (config, *config.apps.values()):
        memory.encode_utterances(texts_of(each))
    snapshot = compile_snapshot(config, memory)
    earlier = before.snapshot if before is not None else None
    snapshot = with_apps(snapshot, config, copy_of or folder, memory, earlier)
    kept = before.configs if before is not None else {}
    return Side(snapshot, memory, {**kept, **config.apps, "": config})


def compare_apps(
    old: Side, new: Side, traffic: Traffic, tokens: Tokens, seed: int
) -> tuple[Comparison, list[Part]]:
    """Compare the requests of no app and those of each app. The groups of an app have its name in front."""
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
    app = _app_of(side.snapshot, row)
    if app is None:
        return _Arm("", side.configs[""], side.snapshot)
    return _Arm(app.name, side.configs.get(app.name, side.configs[""]), app.of_path(row.path))


def _app_of(snapshot: Snapshot, row: Row) -> AppRoute | None:
    """The app that takes the request by host and headers. Without one: that with the name of the row's source."""
    host = host_of(row.headers.get(AUTHORITY) or row.headers.get("host", ""))
    by_request = (app for app in snapshot.apps if app.takes(host, row.headers))
    by_source = (app for app in snapshot.apps if app.name == row.source)
    return next(by_request, None) or next(by_source, None)


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
