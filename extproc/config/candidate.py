"""The candidate of a configuration, compiled. Its mistakes never stop the policy that serves."""

import logging
from pathlib import Path

import msgspec

from extproc.config.apps import with_apps
from extproc.config.compile import centroids_digest, compile_snapshot
from extproc.config.load import Config, ConfigError, beside, candidate_folder, load_candidate
from extproc.config.schema import Intent
from extproc.config.signature import signature
from extproc.encoder.protocols import Encoder
from extproc.routing.snapshot import Rollout, Snapshot

log = logging.getLogger(__name__)

# The keys of an intent that say which requests count as its own.
_MATCHING = ("floor", "margin", "evidence", "abstain")


def compile_all(
    config: Config, folder: Path, encoder: Encoder, before: Snapshot | None = None, kept: Path | None = None
) -> Snapshot:
    """The snapshot of `config`, with its apps and its candidate. `folder` has the YAML. Raises ConfigError.

    With a mistake in the files of the candidate, the candidate is off, and the log says so. An app with mistakes
    keeps its snapshot of `before`, or at the start its files in `kept`, the last good configuration.
    """
    snapshot, spec = compile_snapshot(config, encoder), config.policy.candidate
    snapshot = with_apps(snapshot, config, folder, encoder, before, kept)
    if spec is None:
        return snapshot
    place = candidate_folder(config, folder)
    rollout = Rollout(spec, str(place), signature(place))
    try:
        candidate, compiled = compile_candidate(config, folder, encoder)
    except ConfigError as error:
        log.error("the candidate in %s is off, and the other intents serve everything:\n%s", place, error)
        return msgspec.structs.replace(snapshot, rollout=rollout)
    rollout = msgspec.structs.replace(rollout, snapshot=compiled, alike=alike_cohorts(config, candidate))
    return msgspec.structs.replace(snapshot, rollout=rollout)


def compile_candidate(config: Config, folder: Path, encoder: Encoder) -> tuple[Config, Snapshot]:
    """The candidate of `config` and its snapshot. Raises ConfigError with the paths of its files."""
    candidate, spec = load_candidate(config, folder), config.policy.candidate
    assert spec is not None
    try:
        return candidate, compile_snapshot(candidate, encoder)
    except ConfigError as error:
        raise ConfigError([beside(spec, problem) for problem in error.problems], folder) from None


def alike_cohorts(config: Config, candidate: Config) -> tuple[str, ...]:
    """The cohorts to which both assign the same requests. Only these can be compared one by one."""
    if centroids_digest(config) != centroids_digest(candidate):
        return ()
    others = {intent.intent: _matching(intent) for intent in candidate.intents}
    return tuple(intent.intent for intent in config.intents if others.get(intent.intent) == _matching(intent))


def _matching(intent: Intent) -> tuple[object, ...]:
    return tuple(getattr(intent, key) for key in _MATCHING)
