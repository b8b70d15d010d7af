"""Watch the intents' folder; compile what changed off the event loop; swap it in, or keep the last good one."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from extproc.config.compile import compile_snapshot
from extproc.config.load import POLICY_FILE, Config, ConfigError, load_config, yaml_files
from extproc.config.strict_yaml import Problem, line_of
from extproc.encoder.protocols import Encoder
from extproc.routing.centroid_file import CENTROIDS_FILE
from extproc.routing.snapshot import Snapshot

log = logging.getLogger(__name__)

_INTERVAL_S = 1.0

# A file's identity as stat sees it: follows the symlinks that Kubernetes swaps under a ConfigMap, and needs no
# inotify, which does not see those swaps on every volume.
Signature = tuple[tuple[str, int, int, int], ...]


def signature(folder: Path) -> Signature:
    """What changes whenever a YAML file or the centroids in `folder` are edited, added, removed or swapped."""
    found = []
    for path in (*yaml_files(folder), folder / CENTROIDS_FILE):
        try:
            stat = path.stat()
        except OSError:
            continue  # removed meanwhile, a dangling link, or never there: the next look sees what it became
        found.append((path.name, stat.st_mtime_ns, stat.st_ino, stat.st_size))
    return tuple(found)


class Gate(Protocol):
    """What a new configuration has to pass before it may serve."""

    def copy(self, folder: Path) -> Path: ...
    def serves(self, copy: Path) -> None: ...
    def forget(self, copy: Path) -> None: ...
    async def refusal(self, new: Path) -> tuple[str, str] | None: ...


class RefusedError(ValueError):
    """The gate refuses: `why` in one word."""

    def __init__(self, why: str, what: str) -> None:
        super().__init__(what)
        self.why = why


async def watch(
    folder: Path,
    seen: Signature,
    current: Callable[[], Snapshot],
    encoder: Encoder,
    swap: Callable[[Snapshot], None],
    report: Callable[[str, str], None],
    gate: Gate | None = None,
) -> None:
    """Until cancelled: whenever the folder changes, compiles and passes the gate, hand the snapshot to `swap`.

    `seen` is the folder's signature from before its first load. Every reload is reported with its outcome (applied;
    or why it was refused: invalid, regression, gate: it could not tell, error) and the revision that then serves.
    """
    while True:
        await asyncio.sleep(_INTERVAL_S)
        now = await asyncio.to_thread(signature, folder)
        if now == seen:
            continue
        seen = now
        try:
            snapshot = await _admitted(folder, current(), encoder, gate)
        except (ConfigError, RefusedError) as error:
            report(error.why if isinstance(error, RefusedError) else "invalid", current().revision)
            log.error("reload refused, revision %s serves on:\n%s", current().revision, error)
            continue
        except Exception:
            report("error", current().revision)
            log.exception("reload failed, revision %s serves on", current().revision)
            continue
        if snapshot.revision != current().revision:
            log.info("reloaded: revision %s replaces %s", snapshot.revision, current().revision)
            swap(snapshot)
            report("applied", snapshot.revision)


async def _admitted(folder: Path, current: Snapshot, encoder: Encoder, gate: Gate | None) -> Snapshot:
    """What the folder compiles to, if it may serve. Raises ConfigError or RefusedError."""
    if gate is None:
        return await asyncio.to_thread(_compile, folder, current, encoder)
    copy = await asyncio.to_thread(gate.copy, folder)
    try:
        snapshot = await asyncio.to_thread(_compile, copy, current, encoder, folder)
        if snapshot.revision != current.revision:
            log.info("revision %s compiles; the gate is asked whether it may serve", snapshot.revision)
            refusal = await gate.refusal(copy)
            if refusal is not None:
                raise RefusedError(*refusal)
    except BaseException:
        gate.forget(copy)
        raise
    gate.serves(copy)
    return snapshot


def _compile(folder: Path, current: Snapshot, encoder: Encoder, copy_of: Path | None = None) -> Snapshot:
    config = load_config(folder, copy_of)
    if config.policy.encoder.model != current.encoder.model:
        # Floors and centroids come with the encoder that they were fitted for: half of a change serves neither.
        line = line_of(config.lines, POLICY_FILE, ".encoder.model")
        what = "`encoder.model` changed: it is loaded when the router starts, restart it"
        raise ConfigError([Problem(POLICY_FILE, line, what)])
    _check_against_envoy(config, current)
    return compile_snapshot(config, encoder)


def _check_against_envoy(config: Config, current: Snapshot) -> None:
    """Envoy's side was rendered from what was current: what it does not know must not be routed to.

    Raises ConfigError for a tier whose cluster Envoy lacks; warns of what only Envoy could carry out.
    """
    known = {tier.cluster_name for tier in current.policy.tiers}
    lines = config.lines
    missing = [
        Problem(POLICY_FILE, line_of(lines, POLICY_FILE, f".tiers[{i}]"), f"Envoy has no cluster "
                f"`{tier.cluster_name}` yet: render its configuration again, then restart the router")
        for i, tier in enumerate(config.policy.tiers)
        if tier.cluster_name not in known
    ]  # fmt: skip
    if missing:
        raise ConfigError(missing)
    asked = {h for rule in current.policy.rules for h in rule.when.headers or {}}
    new = {h for rule in config.policy.rules for h in rule.when.headers or {}} - asked
    if new or config.policy.escalations.principal != current.escalations.principal:
        names = ", ".join(sorted(new | set(config.policy.escalations.principal)))
        log.warning("Envoy may not send these headers yet, render its configuration again: %s", names)
    if config.policy.encoder.deadline_ms > current.encoder.deadline_ms:
        log.warning("encoder.deadline_ms rose: Envoy waits no longer than before until it is rendered again")
