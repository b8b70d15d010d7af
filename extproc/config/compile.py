"""Config -> Snapshot: utterances become centroids and floors, YAML becomes policy."""

import hashlib
import logging
from collections.abc import Iterator, Mapping

import numpy as np

from extproc.acceptance.rules import compile_rules
from extproc.config.load import Config, ConfigError, Intent
from extproc.config.strict_yaml import Problem, line_of
from extproc.encoder.protocols import Encoder, Vectors
from extproc.routing.centroid_file import CENTROIDS_FILE
from extproc.routing.centroids import RECIPE, fit_centroids, means_of
from extproc.routing.index import Index, nearest
from extproc.routing.policy import Cohort, Policy
from extproc.routing.snapshot import Snapshot

log = logging.getLogger(__name__)


def compile_snapshot(config: Config, encoder: Encoder) -> Snapshot:
    """Embed every intent's utterances and compile the policy.

    Raises ConfigError when an intent's own utterances would not reach it: such an intent cannot do what its
    file says. With centroids fitted on labelled rows that is only warned of.
    """
    texts = [text for intent in config.intents for text in intent.utterances]
    vectors = encoder.encode(texts)
    ends = np.cumsum([len(intent.utterances) for intent in config.intents])
    names = [intent.intent for intent in config.intents]
    rows = dict(zip(names, np.split(vectors, ends[:-1]), strict=True))
    index, floors, centroids = matching(config, rows)
    file = config.policy
    policy = Policy(
        tiers=file.tiers,
        default_tier=file.default_tier,
        cohorts={i.intent: _cohort(i, floors[i.intent], centroids) for i in config.intents},
        rules=file.rules,
        retarget=file.retarget,
        mode=file.mode,
        reasoning_choice=file.reasoning_choice,
        upgrades=file.upgrades,
    )
    snapshot = Snapshot(
        config.revision, policy, index, file.encoder, file.escalations, file.judges, file.human, centroids
    )
    problems = list(_unreachable(config, snapshot, rows))
    if problems and centroids == utterances_digest(config):
        raise ConfigError(problems)
    if problems:  # labelled rows know better than an utterance
        log.warning("%d utterances do not reach their cohort by %s: %s", len(problems), CENTROIDS_FILE, problems[0])
    return snapshot


def matching(config: Config, rows: dict[str, Vectors]) -> tuple[Index, Mapping[str, float], str]:
    """(centroids, own floors, the hash of what made them): the fitted ones, or else the utterances' own."""
    spoken, file = utterances_digest(config), config.fitted
    if file is not None:
        stale = file.stale(config.policy.encoder.name, spoken, np.concatenate(list(rows.values())))
        if stale is None:
            return Index(file.centroids, means_of(rows), file.header.back), file.floors, centroids_digest(config)
        log.warning("%s", stale)
    found = fit_centroids(rows)
    index = Index(
        {name: cohort.centroid[None, :] for name, cohort in found.items()},
        {name: cohort.mean for name, cohort in found.items()},
    )
    return index, {name: cohort.floor for name, cohort in found.items()}, spoken


def utterances_digest(config: Config) -> str:
    """The hash of all that makes centroids where nothing is fitted on labelled rows."""
    encoder = config.policy.encoder
    spoken = [(intent.intent, intent.utterances) for intent in config.intents]
    return hashlib.sha256(repr((RECIPE, encoder.name, encoder.max_chars, spoken)).encode()).hexdigest()[:12]


def centroids_digest(config: Config) -> str:
    """The hash of all that makes the centroids: evidence about others says nothing of these."""
    spoken, file = utterances_digest(config), config.fitted
    if file is None or file.header.utterances != spoken:
        return spoken
    return hashlib.sha256(f"{spoken} {file.header.seal}".encode()).hexdigest()[:12]


def _cohort(intent: Intent, own_floor: float, centroids: str) -> Cohort:
    return Cohort(
        name=intent.intent,
        tier=intent.tier,
        floor=own_floor if intent.floor is None else intent.floor,
        margin=intent.margin,
        calibrated=intent.evidence is not None and intent.evidence.centroids == centroids,
        reasoning=intent.reasoning,
        max_output_tokens=intent.max_output_tokens,
        tier_floor=intent.tier_floor,
        risk=intent.risk,
        accept=compile_rules(intent.accept, intent.scorer),
        escalate=intent.escalate,
        stream=intent.stream,
        evidence=intent.evidence,
        chosen=intent.chosen,
    )


def _unreachable(config: Config, snapshot: Snapshot, rows: dict[str, Vectors]) -> Iterator[Problem]:
    for intent in config.intents:
        file = config.files[intent.intent]
        floor = snapshot.policy.cohorts[intent.intent].floor
        for i, vector in enumerate(rows[intent.intent]):
            match = nearest(snapshot.index, vector)
            line = line_of(config.lines, file, f".utterances[{i}]")
            if match.cohort != intent.intent:
                yield Problem(
                    file,
                    line,
                    f"this utterance of `{intent.intent}` falls to `{match.cohort}`: "
                    "reword it, move it there, or add utterances like it",
                )
            # A floor with evidence knows better than the utterance what is wrong at such a distance.
            elif match.similarity < floor and intent.evidence is None:
                yield Problem(
                    file,
                    line,
                    f"this utterance reaches {match.similarity:.2f}, below the floor of "
                    f"{floor:.2f}: lower `floor`, or leave it out",
                )
