"""Config to Snapshot: utterances become centroids and floors, and YAML becomes the policy."""

import hashlib
import logging
from collections.abc import Iterator, Mapping

import numpy as np

from extproc.acceptance.rules import compile_rules
from extproc.config.load import Config, ConfigError
from extproc.config.schema import Intent
from extproc.config.strict_yaml import Problem, line_of
from extproc.encoder.protocols import Encoder, Vectors
from extproc.routing.centroid_file import CENTROIDS_FILE
from extproc.routing.centroids import RECIPE, fit_centroids, means_of
from extproc.routing.index import Index, nearest
from extproc.routing.policy import Cohort, Policy
from extproc.routing.snapshot import Snapshot

log = logging.getLogger(__name__)


def compile_snapshot(config: Config, encoder: Encoder) -> Snapshot:
    """Embed the utterances of every intent and compile the policy.

    Raises ConfigError if an utterance is not routed to its own intent, because this intent cannot work as its file
    says. With centroids that are fitted on labelled rows this is only a warning.
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
        max_body_bytes=file.max_body_bytes,
        sticky=file.sticky,
    )
    snapshot = Snapshot(
        config.revision, policy, index, file.encoder, file.escalations, file.judges, file.human, centroids
    )
    problems = list(_unreachable(config, snapshot, rows))
    if problems and centroids == utterances_digest(config):
        raise ConfigError(problems)
    if problems:  # labelled rows say more about a cohort than one utterance
        log.warning(
            "%d utterances do not reach their intent with the centroids in %s; the first: %s",
            len(problems),
            CENTROIDS_FILE,
            problems[0],
        )
    return snapshot


def matching(config: Config, rows: dict[str, Vectors]) -> tuple[Index, Mapping[str, float], str]:
    """The index, a floor for each cohort, and the hash of everything that they are made of.

    The fitted centroids are used unless they are stale. Otherwise centroids and floors come from the utterances.
    `rows` are the vectors of each intent's utterances, float32[n, d].
    """
    digest, file = utterances_digest(config), config.fitted
    if file is not None:
        stale = file.stale(config.policy.encoder.name, digest, np.concatenate(list(rows.values())))
        if stale is None:
            return Index(file.centroids, means_of(rows), file.header.back), file.floors, centroids_digest(config)
        log.warning("%s", stale)
    cohorts = fit_centroids(rows)
    index = Index(
        {name: cohort.centroid[None, :] for name, cohort in cohorts.items()},
        {name: cohort.mean for name, cohort in cohorts.items()},
    )
    return index, {name: cohort.floor for name, cohort in cohorts.items()}, digest


def utterances_digest(config: Config) -> str:
    """The hash of everything that the matching is made of where nothing is fitted on labelled rows."""
    encoder = config.policy.encoder
    utterances = [(intent.intent, intent.utterances) for intent in config.intents]
    return hashlib.sha256(
        repr((RECIPE, encoder.name, encoder.max_chars, utterances, config.background)).encode()
    ).hexdigest()[:12]


def centroids_digest(config: Config) -> str:
    """The hash of everything that the centroids are made of. Evidence about other centroids is stale."""
    utterances, file = utterances_digest(config), config.fitted
    if file is None or file.header.utterances != utterances:
        return utterances
    return hashlib.sha256(f"{utterances} {file.header.seal}".encode()).hexdigest()[:12]


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
        only=intent.only,
        risk=intent.risk,
        accept=compile_rules(intent.accept, intent.scorer),
        escalate=intent.escalate,
        stream=intent.stream,
        evidence=intent.evidence,
        chosen=intent.chosen,
    )


def _unreachable(config: Config, snapshot: Snapshot, rows: dict[str, Vectors]) -> Iterator[Problem]:
    """Utterances that would not be routed to their own intent."""
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
                    f"this utterance of `{intent.intent}` is nearer to `{match.cohort}`: "
                    "reword it, move it there, or add utterances like it",
                )
            # Evidence says more than one utterance about how often a match at this distance is wrong.
            elif match.similarity < floor and intent.evidence is None:
                yield Problem(
                    file,
                    line,
                    f"this utterance has a similarity of {match.similarity:.2f}, below the floor of "
                    f"{floor:.2f}: lower `floor`, or remove it",
                )
