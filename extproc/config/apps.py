"""The applications of a configuration, compiled. The mistakes of one never stop another."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from extproc.api.paths import Api
from extproc.config.compile import compile_snapshot
from extproc.config.copies import app_folder
from extproc.config.load import BrokenApp, Config, ConfigError, load_config, of_app, policy_of
from extproc.config.strict_yaml import Problem
from extproc.encoder.protocols import Encoder
from extproc.routing.budget import specs_of
from extproc.routing.snapshot import AppRoute, Snapshot
from extproc.settings import App

log = logging.getLogger(__name__)


def with_apps(
    snapshot: Snapshot,
    config: Config,
    folder: Path,
    encoder: Encoder,
    before: Snapshot | None = None,
    kept: Path | None = None,
) -> Snapshot:
    """Return the snapshot of `config`, with its apps. `folder` has the policy.

    An app with mistakes keeps its snapshot of `before`, if there is one that fits. At the start there is none, so
    its files in `kept` serve, the last good configuration of the folder. Without both it is off.
    """
    routes = []
    for name, app in config.policy.apps.items():
        compiled, problems = _compiled(name, snapshot, config, folder, encoder)
        if compiled is None:
            earlier = _earlier(name, before) or _kept(name, kept, folder, encoder)
            compiled = _instead(name, snapshot, config, earlier, problems)
        own = msgspec.structs.replace(
            compiled,
            policy=msgspec.structs.replace(compiled.policy, only=app.tiers),
            app=name,
            team=app.team,
            budgets=specs_of(config.policy.budget, name, app),
        )
        routes.append(
            AppRoute(
                name,
                own,
                app.hosts,
                app.headers or {},
                app.labels,
                dict(_of_apis(own, app, config)),
                str(app_folder(app, folder)) if app.intents else "",
                config.signatures.get(name, ()),
                tuple(map(str, problems)),
            )
        )
    return msgspec.structs.replace(snapshot, apps=tuple(routes))


def compile_app(name: str, snapshot: Snapshot, config: Config, folder: Path, encoder: Encoder) -> Snapshot:
    """Return the snapshot of an app. `snapshot` is that of the policy. Raises ConfigError for its files."""
    app = config.policy.apps[name]
    if name in config.broken:
        raise ConfigError([*config.broken[name].problems], folder)
    own = config.apps[name]
    if not app.intents:
        policy = msgspec.structs.replace(snapshot.policy, default_tier=own.policy.default_tier)
        return msgspec.structs.replace(snapshot, policy=policy, rollout=None, apps=())
    try:
        return compile_snapshot(own, encoder)
    except ConfigError as error:
        raise ConfigError([of_app(app, name, problem, config) for problem in error.problems], folder) from None


def _compiled(
    name: str, snapshot: Snapshot, config: Config, folder: Path, encoder: Encoder
) -> tuple[Snapshot | None, list[Problem]]:
    try:
        return compile_app(name, snapshot, config, folder, encoder), []
    except ConfigError as error:
        return None, error.problems


def _earlier(name: str, before: Snapshot | None) -> Snapshot | None:
    """The snapshot of an app in an earlier one of the whole, unless the app was off."""
    apps = before.apps if before is not None else ()
    return next((app.snapshot for app in apps if app.name == name and app.snapshot.off is None), None)


def _kept(name: str, kept: Path | None, folder: Path, encoder: Encoder) -> Snapshot | None:
    """The snapshot of an app from its files in the last good configuration."""
    try:
        own = load_config(kept, folder).apps.get(name) if kept is not None else None
        return compile_snapshot(own, encoder) if own is not None else None
    except ConfigError:  # of another release, perhaps
        return None


def _instead(
    name: str, snapshot: Snapshot, config: Config, earlier: Snapshot | None, problems: list[Problem]
) -> Snapshot:
    """The earlier snapshot of an app with mistakes. Without one: its default tier serves, or nothing does."""
    text = "\n".join(map(str, problems))
    if earlier is not None and earlier.policy.tiers == snapshot.policy.tiers:
        log.error("app %s keeps its earlier intents, because the new ones have mistakes:\n%s", name, text)
        return earlier
    broken = config.broken.get(name, BrokenApp((), confines=any(i.only for i in config.every_intent)))
    off = "closed" if broken.confines else "open"
    what = "its requests are refused" if broken.confines else "its default tier serves"
    log.error("app %s is off, and %s:\n%s", name, what, text)
    default = policy_of(config.policy.apps[name], config.policy).default_tier
    policy = msgspec.structs.replace(snapshot.policy, cohorts={}, default_tier=default)
    return msgspec.structs.replace(snapshot, policy=policy, off=off, rollout=None, apps=())


def _of_apis(snapshot: Snapshot, app: App, config: Config) -> Iterator[tuple[Api, Snapshot]]:
    """The snapshot for each API that has its own default tier."""
    tiers: Mapping[Api, str] = app.default_tier if isinstance(app.default_tier, dict) else {}
    for api, tier in tiers.items():
        if tier != snapshot.policy.default_tier:
            policy = msgspec.structs.replace(snapshot.policy, default_tier=tier)
            yield api, msgspec.structs.replace(snapshot, policy=policy)
