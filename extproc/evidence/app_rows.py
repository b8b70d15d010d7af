"""The rows of each app of a policy, and the part of the configuration that decides about them when it serves."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from extproc.config.apps import with_apps
from extproc.config.compile import compile_snapshot, texts_of
from extproc.config.copies import app_folder
from extproc.config.load import Config, load_config
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import Row, Traffic
from extproc.evidence.execution import Arm, Execution, execute_arms, execute_compiled
from extproc.evidence.routed_rows import Memory
from extproc.routing.snapshot import AUTHORITY, AppRoute, Snapshot, host_of

log = logging.getLogger(__name__)

_NAMED = 5  # so many names in a warning at most


class Side(msgspec.Struct, frozen=True, eq=False):
    """A configuration with its apps, compiled."""

    snapshot: Snapshot
    memory: Memory
    configs: Mapping[str, Config]  # that of the policy under "", and that of each app


class FitPart(msgspec.Struct, frozen=True, eq=False):
    """One folder of intents, and the rows that it decides about."""

    app: str  # empty: the folder beside the policy
    folder: Path
    run: Execution


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


def app_of(snapshot: Snapshot, row: Row) -> AppRoute | None:
    """The app that takes the request by host and headers. Without one: that with the name of the row's source."""
    host = host_of(row.headers.get(AUTHORITY) or row.headers.get("host", ""))
    by_request = (app for app in snapshot.apps if app.takes(host, row.headers))
    by_source = (app for app in snapshot.apps if app.name == row.source)
    return next(by_request, None) or next(by_source, None)


def warn_of_sources(snapshots: Iterable[Snapshot], rows: Iterable[Row]) -> None:
    """Warn once of rows whose source is the name of no app, although there are apps."""
    snapshots = [snapshot for snapshot in snapshots if snapshot.apps]
    if not snapshots:
        return
    sources = Counter(
        row.source for row in rows if row.source and not any(app_of(snapshot, row) for snapshot in snapshots)
    )
    if sources:
        names = ", ".join(f"`{name}`" for name, _ in sources.most_common(_NAMED))
        more = f" and {len(sources) - _NAMED} more" if len(sources) > _NAMED else ""
        log.warning(
            "%d rows have a `source` that is not an app of policy.yaml (%s%s): they count as requests of no app",
            sources.total(), names, more,
        )  # fmt: skip


def execute_apps(folder: Path, memory: Memory, traffic: Traffic, tokens: Tokens) -> Execution:
    """Decide about every row as a request of its app. The cohorts of an app have its name in front.

    Raises ConfigError, and ValueError if an app with rows is off.
    """
    side = read_side(folder, memory)
    config = side.configs[""]
    if not side.snapshot.apps:
        return execute_compiled(config, side.snapshot, memory, traffic, tokens)
    warn_of_sources([side.snapshot], traffic.rows)
    places: dict[int, list[int]] = {}
    parts: dict[int, tuple[str, Snapshot]] = {}
    for at, row in enumerate(traffic.rows):
        app = app_of(side.snapshot, row)
        name, snapshot = ("", side.snapshot) if app is None else (app.name, app.of_path(row.path))
        _refuse_off(name, snapshot)
        places.setdefault(id(snapshot), []).append(at)
        parts[id(snapshot)] = name, snapshot
    arms = [
        Arm(side.configs[name], snapshot, traffic.rows.at(np.array(places[key], dtype=np.int64)), name)
        for key, (name, snapshot) in sorted(parts.items(), key=lambda item: item[1][0])
    ]
    every = [Arm(side.configs[app.name], app.snapshot, traffic.rows, app.name) for app in side.snapshot.apps
             if not app.snapshot.off]  # fmt: skip
    cohorts = dict(side.snapshot.policy.cohorts)
    for arm in every:
        cohorts |= arm.named.policy.cohorts
    policy = msgspec.structs.replace(side.snapshot.policy, cohorts=cohorts)
    whole = msgspec.structs.replace(side.snapshot, policy=policy, apps=())
    config = msgspec.structs.replace(config, intents=config.every_intent)
    return execute_arms(config, whole, arms, memory, traffic, tokens)


def fit_parts(folder: Path, memory: Memory, traffic: Traffic, tokens: Tokens) -> list[FitPart]:
    """Each folder of intents with its rows: those of the apps that have their own, and all others.

    Raises ConfigError, and ValueError if an app with rows is off.
    """
    side = read_side(folder, memory)
    warn_of_sources([side.snapshot], traffic.rows)
    own = {app.name for app in side.snapshot.apps if app.folder}
    places: dict[str, list[int]] = {}
    for at, row in enumerate(traffic.rows):
        app = app_of(side.snapshot, row)
        if app is not None:
            _refuse_off(app.name, app.snapshot)
        places.setdefault(app.name if app is not None and app.name in own else "", []).append(at)
    if len(places) == 1 and "" in places:
        return [FitPart("", folder, execute_compiled(side.configs[""], side.snapshot, memory, traffic, tokens))]
    parts = []
    for name in sorted(places):
        rows = traffic.rows.at(np.array(places[name], dtype=np.int64))
        part = msgspec.structs.replace(traffic, rows=rows)
        config, snapshot, place = side.configs[name], side.snapshot, folder
        if name:
            snapshot = side.snapshot.of_app(name)
            place = app_folder(side.configs[""].policy.apps[name], folder)
        parts.append(FitPart(name, place, execute_compiled(config, snapshot, memory, part, tokens)))
    return parts


def _refuse_off(name: str, snapshot: Snapshot) -> None:
    if snapshot.off:
        raise ValueError(
            f"rows belong to the app `{name}`, whose files have mistakes: correct them (`extproc check`)"
        )
