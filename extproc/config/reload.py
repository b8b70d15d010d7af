"""Watch the folder of intents. A change is compiled off the event loop, and serves if it is good."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from extproc.config.compile import compile_snapshot
from extproc.config.load import Config, ConfigError, load_config, yaml_files
from extproc.config.residency import refused_headers
from extproc.config.schema import POLICY_FILE
from extproc.config.strict_yaml import Problem, line_of
from extproc.encoder.protocols import Encoder
from extproc.routing.centroid_file import CENTROIDS_FILE
from extproc.routing.snapshot import Snapshot

log = logging.getLogger(__name__)

_INTERVAL_S = 1.0

# Name, time of change, inode and size of each file. `stat` follows the symbolic links that Kubernetes swaps under a
# ConfigMap. inotify does not see those swaps on every volume.
Signature = tuple[tuple[str, int, int, int], ...]


def signature(folder: Path) -> Signature:
    """Differs after any YAML file or the centroids in `folder` are edited, added, removed or swapped."""
    files = []
    for path in (*yaml_files(folder), folder / CENTROIDS_FILE):
        try:
            stat = path.stat()
        except OSError:
            continue  # it is not there now: if it comes back, the next look sees it
        files.append((path.name, stat.st_mtime_ns, stat.st_ino, stat.st_size))
    return tuple(files)


class ReloadGate(Protocol):
    """The comparison that a new configuration has to pass before it may serve."""

    def copy(self, folder: Path) -> Path: ...
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
) -> None:
    """Until cancelled: when the folder changes, compiles and passes the gate, hand the snapshot to `swap`.

    `seen` is the signature of the folder from before its first load. Every reload is reported with its outcome and
    the revision that serves afterwards. The outcome is "applied", "invalid" (a mistake in the files), "regression"
    (a cohort is worse), "gate" (the comparison was not possible) or "error".
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
            report(error.kind if isinstance(error, RefusedError) else "invalid", current().revision)
            log.error("reload refused, revision %s keeps serving:\n%s", current().revision, error)
            continue
        except Exception:
            report("error", current().revision)
            log.exception("reload failed, revision %s keeps serving", current().revision)
            continue
        if snapshot.revision != current().revision:
            log.info("reloaded: revision %s replaces %s", snapshot.revision, current().revision)
            swap(snapshot)
            report("applied", snapshot.revision)


async def _admitted(folder: Path, current: Snapshot, encoder: Encoder, gate: ReloadGate | None) -> Snapshot:
    """The snapshot of the folder, if it may serve. Raises ConfigError or RefusedError."""
    if gate is None:
        return await asyncio.to_thread(_compile, folder, current, encoder)
    copy = await asyncio.to_thread(gate.copy, folder)
    try:
        snapshot = await asyncio.to_thread(_compile, copy, current, encoder, folder)
        if snapshot.revision != current.revision:
            log.info("revision %s compiles; the gate now compares it with the one that serves", snapshot.revision)
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
        # Floors and centroids belong to the encoder that they were fitted for, so all of them change or none does.
        line = line_of(config.lines, POLICY_FILE, ".encoder.model")
        what = "`encoder.model` changed, and the encoder is only loaded at the start: restart the router"
        raise ConfigError([Problem(POLICY_FILE, line, what)])
    _check_against_envoy(config, current)
    return compile_snapshot(config, encoder)


def _check_against_envoy(config: Config, current: Snapshot) -> None:
    """Compare with the current configuration, which Envoy's was rendered from.

    Raises ConfigError for a tier whose cluster Envoy lacks. Warns about changes that only Envoy can carry out.
    """
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
    sent = {header for rule in current.policy.rules for header in rule.when.headers or {}}
    new = {header for rule in config.policy.rules for header in rule.when.headers or {}} - sent
    if new or config.policy.escalations.principal != current.escalations.principal:
        names = ", ".join(sorted(new | set(config.policy.escalations.principal)))
        log.warning("Envoy may not send these headers yet, run `extproc envoy` again and update Envoy: %s", names)
    if config.policy.encoder.deadline_ms > current.encoder.deadline_ms:
        log.warning("Envoy keeps the shorter encoder.deadline_ms: run `extproc envoy` again and update Envoy")
    refused = refused_headers(config.policy, config.intents)
    if refused != refused_headers(current.policy, list(current.policy.cohorts.values())):
        log.warning(
            "Envoy refuses by the old `only` while no router runs: run `extproc envoy` again and update Envoy"
        )
