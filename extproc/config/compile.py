"""Config to Snapshot: utterances become centroids and floors, and YAML becomes the policy."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np

from extproc.acceptance.rules import Gain, compile_rules
from extproc.config.fit_file import fit_once
from extproc.config.load import Config, ConfigError
from extproc.config.schema import BACKGROUND_FILE, Intent
from extproc.config.strict_yaml import Problem, line_of
from extproc.encoder.models import reads_only_english
from extproc.encoder.protocols import Encoder, Vectors
from extproc.encoder.vector_file import folder_of, storing
from extproc.routing.budget import specs_of
from extproc.routing.centroid_file import CENTROIDS_FILE, Matcher
from extproc.routing.centroids import RECIPE, means_of
from extproc.routing.gain_file import GAINS_FILE, GainFile
from extproc.routing.index import Index, Kind, nearest
from extproc.routing.policy import Cohort, Policy
from extproc.routing.snapshot import Snapshot

log = logging.getLogger(__name__)

# The keys of an intent that are not settings of its requests.
_NO_SETTINGS = {"intent", "description", "utterances", "floor", "margin", "evidence", "chosen", "by_prompt"}
_SETTINGS = [key for key in Intent.__struct_fields__ if key not in _NO_SETTINGS]


def compile_snapshot(config: Config, encoder: Encoder) -> Snapshot:
    """Embed the utterances of every intent and compile the policy.

    Raises ConfigError if an utterance is not routed to its own intent, because this intent cannot work as its file
    says. With centroids that are fitted on labelled rows this is only a warning.
    """
    rows, background = encode_texts(config, encoder)
    index, floors, centroids = matching(config, rows, background, folder_of(encoder))
    file, gains = config.policy, usable_gains(config)
    policy = Policy(
        tiers=file.tiers,
        default_tier=file.default_tier,
        cohorts={i.intent: _cohort(i, floors[i.intent], centroids, gains) for i in config.intents},
        rules=file.rules,
        retarget=file.retarget,
        mode=file.mode,
        reasoning_choice=file.reasoning_choice,
        upgrades=file.upgrades,
        max_body_bytes=file.max_body_bytes,
        sticky=file.sticky,
    )
    snapshot = Snapshot(
        config.revision, policy, index, file.encoder, file.escalations, file.judges, file.human, centroids,
        file.timeouts, reads_only_english(file.encoder.model), file.key_headers, budgets=specs_of(file.budget),
        gains=gains.gains if gains is not None else None,
    )  # fmt: skip
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


def usable_gains(config: Config) -> GainFile | None:
    """The predicted gains, or None if no intent uses them, or they are absent or stale."""
    if all(intent.by_prompt is None for intent in config.intents):
        return None
    if config.gains is None:
        usable = f"{GAINS_FILE} that this release reads"
        log.warning("intents have `by_prompt`, but there is no %s: their own tiers serve", usable)
        return None
    policy = config.policy
    stale = config.gains.stale(policy.encoder.name, utterances_digest(config), policy.tiers)
    if stale is None:
        return config.gains
    log.warning("%s is stale, so the tiers of the intents serve: %s", GAINS_FILE, stale)
    return None


def texts_of(config: Config) -> list[str]:
    """Every text that is encoded: the utterances in the order of their files, then the background."""
    return [*(text for intent in config.intents for text in intent.utterances), *config.background]


def encode_texts(config: Config, encoder: Encoder) -> tuple[dict[str, Vectors], Vectors]:
    """The vectors of each intent's utterances, float32[n, d], and of the background, float32[m, d]."""
    vectors = storing(encoder).encode(texts_of(config))
    ends = np.cumsum([len(intent.utterances) for intent in config.intents])
    *utterances, background = np.split(vectors, ends)
    return {intent.intent: rows for intent, rows in zip(config.intents, utterances, strict=True)}, background


def matching(
    config: Config, rows: Mapping[str, Vectors], background: Vectors | None = None, folder: Path | None = None
) -> tuple[Index, Mapping[str, float], str]:
    """The index, a floor for each cohort, and the hash of everything that they are made of.

    The fitted centroids are used unless they are stale. Otherwise centroids, floors and the head come from the
    utterances and the background. `rows` and `background` are vectors as `encode_texts` returns them. The
    fit is stored in `folder`.
    """
    digest, file = utterances_digest(config), config.fitted
    if file is not None:
        stale = file.stale(config.policy.encoder.name, digest, np.concatenate(list(rows.values())))
        if stale is None:
            index = matcher_index(file.matcher, means_of(rows), file.header.back, kinds_of(config))
            return index, file.floors, centroids_digest(config)
        log.warning("%s", stale)
    cohorts, head = fit_once(rows, background, folder)
    index = Index(
        {name: cohort.centroid[None, :] for name, cohort in cohorts.items()},
        {name: cohort.mean for name, cohort in cohorts.items()},
        head=head,
        kinds=kinds_of(config),
    )
    return index, {name: cohort.floor for name, cohort in cohorts.items()}, digest


def matcher_index(
    matcher: Matcher, means: Mapping[str, Vectors], back: float, kinds: Mapping[str, Kind] | None = None
) -> Index:
    """The index of values that were fitted on labelled rows."""
    return Index(matcher.centroids, means, back, matcher.head, kinds, matcher.background)


def kinds_of(config: Config) -> dict[str, Kind]:
    """The tier that each cohort needs, and the first cohort with the same settings."""
    ranks = {tier.name: rank for rank, tier in enumerate(config.policy.tiers)}
    first: dict[str, str] = {}
    kinds = {}
    for intent in config.intents:
        like = first.setdefault(repr([getattr(intent, key) for key in _SETTINGS]), intent.intent)
        needed = max(intent.tier, intent.tier_floor or intent.tier, key=ranks.__getitem__)
        kinds[intent.intent] = Kind(needed, like)
    return kinds


def utterances_digest(config: Config) -> str:
    """The hash of everything that the matching is made of where nothing is fitted on labelled rows."""
    encoder = config.policy.encoder
    utterances = [(intent.intent, intent.utterances) for intent in config.intents]
    parts = (RECIPE, encoder.name, encoder.max_chars, utterances, config.background)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def centroids_digest(config: Config) -> str:
    """The hash of everything that the centroids are made of. Evidence about other centroids is stale."""
    utterances, file = utterances_digest(config), config.fitted
    if file is None or file.header.utterances != utterances:
        return utterances
    return hashlib.sha256(f"{utterances} {file.header.seal}".encode()).hexdigest()[:12]


def _cohort(intent: Intent, own_floor: float, centroids: str, gains: GainFile | None) -> Cohort:
    evidence, choice, predictor = intent.evidence, intent.by_prompt, None
    stale = choice is not None and (gains is None or gains.header.seal != choice.fit)
    if choice is not None and gains is not None and not stale:
        predictor = gains.gains.of_answers(choice.tiers, intent.intent, choice.fit)
    return Cohort(
        name=intent.intent,
        tier=intent.tier,
        floor=own_floor if intent.floor is None else intent.floor,
        margin=intent.margin,
        calibrated=evidence is not None and not evidence.abstains and evidence.centroids == centroids,
        abstains=evidence is not None and evidence.abstains and intent.abstain,
        reasoning=intent.reasoning,
        max_output_tokens=intent.max_output_tokens,
        tier_floor=intent.tier_floor,
        only=intent.only,
        risk=intent.risk,
        accept=tuple(
            msgspec.structs.replace(rule, predictor=predictor) if isinstance(rule, Gain) else rule
            for rule in compile_rules(intent.accept, intent.scorer)
        ),
        escalate=intent.escalate,
        stream=intent.stream,
        cache=intent.cache,
        evidence=evidence,
        chosen=intent.chosen,
        operator_floor=intent.floor is not None and intent.evidence is None,
        by_prompt=intent.by_prompt,
        prompt_stale=stale,
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
            elif match.background > (match.chance or 0.0) and not snapshot.policy.cohorts[intent.intent].has_floor:
                yield Problem(
                    file,
                    line,
                    f"this utterance of `{intent.intent}` is more like the texts in {BACKGROUND_FILE}: "
                    "reword it, or remove the texts that are like it",
                )
            # Evidence says more than one utterance about how often a match at this distance is wrong.
            elif match.similarity < floor and intent.evidence is None:
                yield Problem(
                    file,
                    line,
                    f"this utterance has a similarity of {match.similarity:.2f}, below the floor of "
                    f"{floor:.2f}: lower `floor`, or remove it",
                )
