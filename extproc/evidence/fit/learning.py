"""Labelled rows -> better centroids, and a better encoder, if held-out rows show that they are better.

Only the first part of the rows is used here (partition.py). Each kind of centroids is fitted on the utterances and
on all folds of these rows except one, and is tried on that fold. Floors and probabilities are fitted afterwards
(calibration.py), for the chosen centroids, on rows that were not used here.
"""

import math
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from extproc.config.checks import LEAST_UTTERANCES
from extproc.config.compile import encode_texts, matching, utterances_digest
from extproc.config.load import Config
from extproc.encoder.protocols import Encoder, Vectors
from extproc.evidence.execution import Execution
from extproc.evidence.fit.centroid_kinds import by_label, centroids_of
from extproc.evidence.fit.floors import least_rows
from extproc.evidence.fit.labelled import CalibrationSplit, LabelledRows, current_split
from extproc.evidence.fit.partition import FIT_SHARE, LEARN_SHARE
from extproc.evidence.fit.trial import EncoderCandidate, Trial, TrialResult, fold_of, measure, run_trials
from extproc.routing.centroid_file import Header, decode_centroids, encode_centroids
from extproc.routing.centroids import fit_centroids, own_floor
from extproc.routing.index import Index, nearest


class FittedCentroids(msgspec.Struct, frozen=True, eq=False):
    """The trials, and the centroids fitted by the best one if it is shown to be better than the first."""

    rows: int  # rows tried
    trials: tuple[TrialResult, ...]
    why: str  # the reason for the choice
    chosen: TrialResult | None = None  # None: the current centroids are kept
    config: Config | None = None  # with the chosen encoder and centroids
    raw: bytes = b""  # the file of centroids
    encoder: Encoder | None = None  # the chosen encoder
    astray: int = 0  # utterances that are nearest to another cohort


def needed_rows(risk: float) -> int:
    """Return how many labelled rows a cohort needs so that enough are left to fit its floor on."""
    return math.ceil((least_rows(risk) or 0) / (FIT_SHARE - LEARN_SHARE))


def too_few(run: Execution, rows: LabelledRows, risk: float) -> str | None:
    """Return why these rows are too few to fit centroids on, or None if they are enough.

    This looks only at the number of rows per cohort, so it does not bias the floors.
    """
    needed, counts = needed_rows(risk), Counter(rows.labels.tolist())
    cohorts = [*run.snapshot.policy.cohorts]
    able = sum(counts[name] >= needed for name in cohorts)
    if 2 * able > len(cohorts) > 1:
        return None
    return (
        f"fitting them, too, needs about {needed} labelled rows in most cohorts; "
        f"{able} of {len(cohorts)} cohorts have that many"
    )


def texts_for_encoder(run: Execution, rows: LabelledRows) -> dict[str, list[str]]:
    """Return cohort -> the texts that an encoder may be adapted on.

    These are the utterances, and the rows to learn from in all folds except the first.
    """
    allowed = (rows.fraction < LEARN_SHARE) & (fold_of(rows.fraction) > 0)
    texts = {intent.intent: [*intent.utterances] for intent in run.config.intents}
    for text, label, allow in zip(rows.texts, rows.labels, allowed, strict=True):
        if allow and label in texts:
            texts[label].append(text)
    return {name: list(dict.fromkeys(repeated)) for name, repeated in texts.items()}


def learn(
    run: Execution, rows: LabelledRows, candidates: Sequence[EncoderCandidate], date: str, seed: int
) -> FittedCentroids:
    """Try every kind of centroids with every encoder, and fit the best if it is better than the first.

    Every encoder except the first may have been adapted on `texts_for_encoder`. If there is more than one encoder,
    only the first fold is tried, because no adapted encoder has seen it.
    """
    rows = rows.subset(rows.fraction < LEARN_SHARE)
    inside = np.array([label is not None for label in rows.labels], dtype=bool)
    tried = fold_of(rows.fraction) == 0 if len(candidates) > 1 else np.ones(len(inside), dtype=bool)
    if not inside[tried].any():
        why = "centroids are unchanged: no labelled row in scope is left to try others on"
        return FittedCentroids(0, (), why)
    trials = run_trials(candidates, _utterances(run.config), rows, tried)
    results = measure(trials, inside[tried], seed)
    best = max(range(len(trials)), key=lambda i: results[i].routed.value)
    count = int(tried.sum())
    if not results[best].gain.low > 0:
        why = "centroids are unchanged: no others are better by more than chance; more rows may show a difference"
        return FittedCentroids(count, results, why)
    chosen = trials[best]
    config, raw = _fit_file(run, rows, chosen, date, seed)
    encoder = chosen.candidate.encoder
    index = index_of(config, encoder)
    astray = sum(
        nearest(index, row).cohort != name
        for name, vectors in _utterance_vectors(config, encoder).items()
        for row in vectors
    )
    name = f"{chosen.kind}, {chosen.candidate.config.name}"
    why = f"chosen: {name}: the best, and better than the first by more than chance"
    return FittedCentroids(count, results, why, results[best], config, raw, encoder, astray)


def split_after(run: Execution, rows: LabelledRows, learned: FittedCentroids) -> CalibrationSplit:
    """Return the split to fit floors with after `learn`. It fits on no row that `learn` used."""
    current = current_split(run, rows)
    if not learned.trials:
        return current
    fit, fit_share = current.fit & (rows.fraction >= LEARN_SHARE), FIT_SHARE - LEARN_SHARE
    if learned.config is None or learned.encoder is None:
        return msgspec.structs.replace(current, fit=fit, fit_share=fit_share)
    index = index_of(learned.config, learned.encoder)
    # The current file of centroids is replaced, so the rows that it was fitted on need no exclusion.
    fit = (rows.fraction >= LEARN_SHARE) & (rows.fraction < FIT_SHARE)
    matches = [nearest(index, row) for row in learned.encoder.encode(rows.texts)]
    return CalibrationSplit(rows.rematched(matches), fit, current.report, fit_share, learned.config)


def index_of(config: Config, encoder: Encoder) -> Index:
    """Return the index that requests are matched with under this configuration."""
    index, _, _ = matching(config, *encode_texts(config, encoder))
    return index


def _utterances(config: Config) -> dict[str, tuple[str, ...]]:
    return {intent.intent: intent.utterances for intent in config.intents}


def _utterance_vectors(config: Config, encoder: Encoder) -> dict[str, Vectors]:
    return {name: encoder.encode(texts) for name, texts in _utterances(config).items()}


def _fit_file(run: Execution, rows: LabelledRows, trial: Trial, date: str, seed: int) -> tuple[Config, bytes]:
    """Return the configuration with centroids of the trial's kind, fitted on all `rows`, and their file."""
    candidate, matches = trial.candidate, trial.matches
    policy = msgspec.structs.replace(run.config.policy, encoder=candidate.config)
    config = msgspec.structs.replace(run.config, policy=policy, fitted=None)
    utterances = _utterance_vectors(config, candidate.encoder)
    labelled = by_label(candidate.encoder.encode(rows.texts), rows.labels)
    centroids = centroids_of(trial.kind, utterances, labelled)
    floors = {name: cohort.floor for name, cohort in fit_centroids(utterances, candidate.back).items()}
    for name in floors:
        right = matches.similarity[matches.right & (matches.nearest == name)]
        if len(right) >= LEAST_UTTERANCES:
            floors[name] = own_floor(right.astype(np.float32))
    header = Header(
        kind=trial.kind,
        date=date,
        encoder=candidate.config.name,
        utterances=utterances_digest(config),
        data=run.digest,
        rows=sum(map(len, labelled.values())),
        seed=seed,
        back=candidate.back,
        cohorts={name: len(vectors) for name, vectors in centroids.items()},
    )
    raw = encode_centroids(header, centroids, floors, np.concatenate(list(utterances.values())))
    return msgspec.structs.replace(config, fitted=decode_centroids(raw)), raw
