"""Watch the folder of intents. A change is compiled off the event loop, and serves if it is good."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from extproc.config.candidate import compile_all
from extproc.config.changes import describe
from extproc.config.last_good import keep
from extproc.config.load import Config, ConfigError, load_config
from extproc.config.schema import POLICY_FILE
from extproc.config.signature import Signature, signature
from extproc.config.standing import Standing
from extproc.config.strict_yaml import Problem, line_of
from extproc.encoder.protocols import Encoder
from extproc.routing.snapshot import Snapshot

log = logging.getLogger(__name__)

_INTERVAL_S = 1.0


class ReloadGate(Protocol):
    """The comparison that a new configuration has to pass before it may serve."""

    def copy(self, folder: Path, copy_of: Path | None = None) -> Path: ...
    def serves(self, copy: Path) -> None: ...
    def forget(self, copy: Path) -> None: ...
    async def refusal(self, new: Path) -> tuple[str, str] | None: ...


class RefusedError(ValueError):
    """The gate refuses the new configuration. `kind` is as in `Gate.refusal`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


async def watch(
    folder: Path,
    seen: Signature,
    current: Callable[[], Snapshot],
    encoder: Encoder,
    swap: Callable[[Snapshot], None],
    report: Callable[[str, str], None],
    gate: ReloadGate | None = None,
    standing: Standing | None = None,
) -> None:
    """Until cancelled: when the folder changes, compiles and passes the gate, hand the snapshot to `swap`.

    `seen` is the signature of the folder from before its first load. Every reload is reported with its outcome and
    the revision that serves afterwards. The outcomes are "applied", "invalid" (a mistake in the files),
    "regression" (a cohort is worse), "gate" (the comparison was not possible) and "error". After "unchanged" the
    files are again those that serve. `standing` is kept up to date, and knows the changes of an edit.
    """

    def refuse(kind: str, message: str) -> None:
        if standing is not None:
            standing.refuse(kind, message)
        report(kind, current().revision)

    others_seen = _other_signatures(current())
    while True:
        await asyncio.sleep(_INTERVAL_S)
        now = await asyncio.to_thread(signature, folder)
        others_now = await asyncio.to_thread(_look_at_others, current())
        if (now, others_now) == (seen, others_seen):
            continue
        seen, others_seen = now, others_now
        try:
            config, snapshot = await _admitted(folder, current(), encoder, gate)
        except (ConfigError, RefusedError) as error:
            refuse(error.kind if isinstance(error, RefusedError) else "invalid", str(error))
            log.error("reload refused, revision %s keeps serving:\n%s", current().revision, error)
            continue
        except Exception as error:
            refuse("error", f"{type(error).__name__}: see the log of the router")
            log.exception("reload failed, revision %s keeps serving", current().revision)
            continue
        is_new = snapshot.revision != current().revision
        if is_new:
            log.info("reloaded: revision %s replaces %s", snapshot.revision, current().revision)
        if is_new or snapshot.rollout is not None:  # the files of the candidate may have changed alone
            _note_candidate(current(), snapshot)
            swap(snapshot)
        # An edit of these files during the load differs from what was seen before it.
        others_seen = _other_signatures(snapshot) | {
            place: others_now[place] for place in others_now.keys() & _other_signatures(snapshot).keys()
        }
        if standing is not None:
            await asyncio.to_thread(_note, folder, config, standing, snapshot)
        report("applied" if is_new else "unchanged", snapshot.revision)


def _other_signatures(snapshot: Snapshot) -> dict[str, Signature]:
    """The folders of the candidate and of each app, with the signatures of their files when they were read."""
    candidate = {snapshot.rollout.folder: snapshot.rollout.signature} if snapshot.rollout is not None else {}
    return candidate | {app.folder: app.signature for app in snapshot.apps if app.folder}


def _look_at_others(snapshot: Snapshot) -> dict[str, Signature]:
    """The signatures of these files now."""
    return {folder: signature(Path(folder)) for folder in _other_signatures(snapshot)}


def _note_candidate(before: Snapshot, after: Snapshot) -> None:
    old, new = (snapshot.rollout and snapshot.rollout.revision for snapshot in (before, after))
    if new is not None and new != old:
        log.info("a candidate is compared: revision %s beside %s", new, after.revision)


def _note(folder: Path, config: Config, standing: Standing, snapshot: Snapshot) -> None:
    """Log what the new configuration changes, and keep it as the last good one."""
    changes = standing.changes(config)
    if changes:
        log.info("revision %s changes: %s", config.revision, describe(changes))
    if any(change.needs_envoy for change in changes):
        log.warning("Envoy has not all changes yet: run `extproc envoy` again and update Envoy")
    standing.serve(config)
    keep(folder, config, snapshot.refused_apps)


async def _admitted(
    folder: Path, current: Snapshot, encoder: Encoder, gate: ReloadGate | None
) -> tuple[Config, Snapshot]:
    """The configuration in the folder and its snapshot, if it may serve. Raises ConfigError or RefusedError."""
    if gate is None:
        return await asyncio.to_thread(_compile, folder, current, encoder)
    copy = await asyncio.to_thread(gate.copy, folder)
    try:
        config, snapshot = await asyncio.to_thread(_compile, copy, current, encoder, folder)
        if snapshot.revision != current.revision:
            log.info("revision %s compiles; the gate now compares it with the one that serves", snapshot.revision)
            refusal = await gate.refusal(copy)
            if refusal is not None:
                raise RefusedError(*refusal)
    except BaseException:
        gate.forget(copy)
        raise
    gate.serves(copy)
    return config, snapshot


def _compile(
    folder: Path, current: Snapshot, encoder: Encoder, copy_of: Path | None = None
) -> tuple[Config, Snapshot]:
    config = load_config(folder, copy_of)
    if config.policy.encoder.model != current.encoder.model:
        # Floors and centroids belong to the encoder that they were fitted for, so all of them change or none does.
        line = line_of(config.lines, POLICY_FILE, ".encoder.model")
        what = "`encoder.model` changed, and the encoder is only loaded at the start: restart the router"
        raise ConfigError([Problem(POLICY_FILE, line, what)])
    _check_against_envoy(config, current)
    return config, compile_all(config, copy_of or folder, encoder, current)


def _check_against_envoy(config: Config, current: Snapshot) -> None:
    """Raise ConfigError for a tier whose cluster Envoy lacks, because its requests would fail."""
    clusters = {tier.cluster_name for tier in current.policy.tiers}
    lines = config.lines
    missing = [
        Problem(POLICY_FILE, line_of(lines, POLICY_FILE, f".tiers[{i}]"), f"Envoy has no cluster "
                f"`{tier.cluster_name}` yet: run `extproc envoy` again, update Envoy, then restart the router")
        for i, tier in enumerate(config.policy.tiers)
        if tier.cluster_name not in clusters
    ]  # fmt: skip
    if missing:
        raise ConfigError(missing)
