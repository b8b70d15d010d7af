"""A way of making centroids, tried on labelled rows that it was not fitted on."""

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from extproc.encoder.protocols import Encoder, Vectors
from extproc.evidence.fit.centroid_kinds import KINDS, by_label, centroids_of
from extproc.evidence.fit.labelled import LabelledRows
from extproc.evidence.fit.partition import LEARN_SHARE
from extproc.evidence.measure.metrics import (
    Bools,
    Estimate,
    Floats,
    auroc,
    auroc_estimate,
    resamples,
    share,
    spread,
)
from extproc.routing.centroids import means_of
from extproc.routing.index import BACK, Index, nearest
from extproc.settings import EncoderConfig

FOLDS = 4


class EncoderCandidate(msgspec.Struct, frozen=True, eq=False):
    """An encoder to try."""

    config: EncoderConfig
    encoder: Encoder
    back: float = BACK  # similarity is measured this far from the nearest centroid to its cohort's mean (0 to 1)


class HeldOutMatches(msgspec.Struct, frozen=True):
    """Matches with centroids that were fitted without these rows. Each array has one entry per row tried."""

    similarity: Floats
    nearest: np.ndarray
    right: Bools


class Trial(msgspec.Struct, frozen=True, eq=False):
    """One encoder with one kind of centroids."""

    candidate: EncoderCandidate
    kind: str
    matches: HeldOutMatches


class TrialResult(msgspec.Struct, frozen=True):
    """How well one way of making centroids matched rows that it was not fitted on."""

    encoder: str
    kind: str
    accuracy: Estimate  # share of rows in scope whose nearest cohort is their label
    auroc: Estimate  # of similarity: rows in scope against rows out of scope
    routed: Estimate  # probability that a row in scope is right and nearer than a row out of scope
    gain: Estimate  # in `routed`, over the first trial; the interval is paired


def fold_of(fraction: Floats) -> np.ndarray:
    """Return int[n]: the fold of each row to learn from, by its `hash_fraction`."""
    fold: np.ndarray = np.minimum((fraction / LEARN_SHARE * FOLDS).astype(int), FOLDS - 1)
    return fold


def run_trials(
    candidates: Sequence[EncoderCandidate],
    utterances: Mapping[str, Sequence[str]],
    rows: LabelledRows,
    tried: Bools,
) -> list[Trial]:
    """Match the rows marked in `tried` with every candidate and every kind of centroids.

    `utterances` are texts by cohort. The first trial is what serves without a file of centroids.
    """
    fold = fold_of(rows.fraction)
    trials: list[Trial] = []
    for candidate in candidates:
        vectors_of = {name: candidate.encoder.encode(texts) for name, texts in utterances.items()}
        vectors = candidate.encoder.encode(rows.texts)
        for kind in KINDS:
            # The first trial serves without a file, so nothing records another `back`.
            back = candidate.back if trials else BACK
            matches = _match_held_out(kind, vectors_of, vectors, rows.labels, fold, tried, back)
            trials.append(Trial(candidate, kind, matches))
    return trials


def _match_held_out(
    kind: str,
    utterances: Mapping[str, Vectors],
    rows: Vectors,
    labels: np.ndarray,
    fold: np.ndarray,
    tried: Bools,
    back: float,
) -> HeldOutMatches:
    similarity, names = np.full(len(rows), np.nan), np.full(len(rows), None, dtype=object)
    for k in np.unique(fold[tried]):
        seen = fold != k
        centroids = centroids_of(kind, utterances, by_label(rows[seen], labels[seen]))
        index = Index(centroids, means_of(utterances), back)
        for i in np.flatnonzero(fold == k):
            match = nearest(index, rows[i])
            similarity[i], names[i] = match.similarity, match.cohort
    right = np.array([name == label for name, label in zip(names, labels, strict=True)], dtype=bool)
    return HeldOutMatches(similarity[tried], names[tried], right[tried])


def measure(trials: Sequence[Trial], inside: Bools, seed: int) -> tuple[TrialResult, ...]:
    """Measure the trials. `inside` marks the rows tried that are in scope."""
    draws = [np.concatenate([*_right_and_nearer(trial.matches, inside, seed)]) for trial in trials]
    values = [float(next(_right_and_nearer(trial.matches, inside, None))[0]) for trial in trials]
    n = len(inside)
    return tuple(
        TrialResult(
            trial.candidate.config.name,
            trial.kind,
            share(trial.matches.right, inside).estimate(seed),
            auroc_estimate(trial.matches.similarity, inside, seed),
            spread(value, resampled, n),
            spread(value - values[0], resampled - draws[0], n),
        )
        for trial, value, resampled in zip(trials, values, draws, strict=True)
    )


def _right_and_nearer(matches: HeldOutMatches, inside: Bools, seed: int | None) -> Iterator[Floats]:
    """Yield the probability that a row in scope is right and nearer than a row out of scope.

    With a seed it is that of resamples, otherwise that of the rows themselves. It is the area under the open-set
    classification rate (Dhamija et al. 2018), or the accuracy if no row is out of scope.
    """
    counted = matches.right | ~inside
    every = iter([np.ones((1, len(inside)))]) if seed is None else resamples(len(inside), seed)
    for weights in every:
        accuracy = (weights @ matches.right) / np.maximum(weights @ inside, 1)
        above = auroc(matches.similarity[counted], matches.right[counted], weights[:, counted])
        yield accuracy * np.where(np.isnan(above), 1.0, above)
