"""A way of matching, tried on labelled rows that it was not fitted on."""

from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from extproc.config.compile import encode_texts, kinds_of, matcher_index, matching
from extproc.config.load import Config
from extproc.encoder.protocols import Encoder, Vectors
from extproc.evidence.fit.centroid_kinds import PRESENT, UTTERANCES, Texts, matcher_of
from extproc.evidence.fit.labelled import LabelledRows
from extproc.evidence.measure.metrics import (
    Bools,
    Estimate,
    Floats,
    GroupIds,
    auroc,
    auroc_estimate,
    resamples,
    share,
    spread,
)
from extproc.routing.centroids import means_of
from extproc.routing.index import BACK, Index, Match, nearest
from extproc.settings import EncoderConfig


class EncoderCandidate(msgspec.Struct, frozen=True, eq=False):
    """An encoder to try."""

    config: EncoderConfig
    encoder: Encoder
    back: float = BACK  # similarity is measured this far from the nearest centroid to its cohort's mean (0 to 1)


class Vectorised(msgspec.Struct, frozen=True, eq=False):
    """The vectors by one encoder of the texts to fit on."""

    config: Config  # with this encoder
    back: float
    texts: Texts
    rows: Vectors

    def index(self, kind: str, seen: Bools, labels: np.ndarray, groups: GroupIds) -> Index:
        """Return the index of a kind, fitted on the rows marked in `seen`."""
        if kind in (UTTERANCES, PRESENT):
            config = self.config if kind == PRESENT else msgspec.structs.replace(self.config, fitted=None)
            return matching(config, self.texts.utterances, self.texts.background)[0]
        joined = self.texts.joined(self.rows[seen], labels[seen], groups[seen])
        matcher = matcher_of(kind, joined, self.texts.utterances)
        return matcher_index(matcher, means_of(self.texts.utterances), self.back, kinds_of(self.config))


class Trial(msgspec.Struct, frozen=True, eq=False):
    """One encoder with one kind of matching, and the rows as it matched them."""

    candidate: EncoderCandidate
    kind: str
    rows: LabelledRows  # the rows tried, each matched by a fit without it
    vectors: Vectorised


class TrialResult(msgspec.Struct, frozen=True):
    """How well one way of matching did on rows that it was not fitted on."""

    encoder: str
    kind: str
    accuracy: Estimate  # share of rows in scope whose nearest cohort is their label
    auroc: Estimate  # of similarity or margin, the higher one: rows in scope against rows out of scope
    routed: Estimate  # probability that a row in scope is right and surer than a row out of scope
    gain: Estimate  # in `routed`, over the first trial; the interval is paired


def vectorise(config: Config, candidate: EncoderCandidate, texts: Sequence[str]) -> Vectorised:
    """Encode the utterances, the background and the rows."""
    policy = msgspec.structs.replace(config.policy, encoder=candidate.config)
    encoded = Texts(*encode_texts(config, candidate.encoder))
    rows = candidate.encoder.encode(texts)
    return Vectorised(msgspec.structs.replace(config, policy=policy), candidate.back, encoded, rows)


def run_trials(
    config: Config,
    candidates: Sequence[EncoderCandidate],
    rows: LabelledRows,
    fold: np.ndarray,
    tried: Bools,
    kinds: Sequence[str],
    first: str = UTTERANCES,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> list[Trial]:
    """Match the rows marked in `tried` with every candidate and every one of `kinds`.

    The first trial is what serves now: `first` is UTTERANCES or PRESENT. `fold` is int[n].
    """
    trials: list[Trial] = []
    total = 1 + len(candidates) * len(kinds)
    for candidate in candidates:
        vectors = vectorise(config, candidate, rows.texts)
        # Without a file nothing records another `back`, so the first encoder alone is tried without one.
        for kind in (*((first,) if not trials else ()), *kinds):
            trials.append(Trial(candidate, kind, match_held_out(kind, vectors, rows, fold, tried), vectors))
            show(len(trials), total)
    return trials


def match_held_out(
    kind: str, vectors: Vectorised, rows: LabelledRows, fold: np.ndarray, tried: Bools
) -> LabelledRows:
    """Return the rows marked in `tried`, each matched by a fit on the rows of the other folds."""
    matches: dict[int, Match] = {}
    fits_rows, index = kind not in (UTTERANCES, PRESENT), None
    for k in np.unique(fold[tried]):
        if fits_rows or index is None:
            index = vectors.index(kind, fold != k, rows.labels, rows.groups)
        for i in np.flatnonzero(tried & (fold == k)).tolist():
            matches[i] = nearest(index, vectors.rows[i])
    return rows.subset(tried).rematched([matches[i] for i in np.flatnonzero(tried).tolist()])


def right_and_surer(rows: LabelledRows) -> float:
    """Return the probability that a row in scope is right and surer than a row out of scope."""
    return float(next(_right_and_surer(rows, None))[0])


def measure(trials: Sequence[Trial], seed: int) -> tuple[TrialResult, ...]:
    """Measure the trials."""
    draws = [np.concatenate([*_right_and_surer(trial.rows, seed)]) for trial in trials]
    values = [right_and_surer(trial.rows) for trial in trials]
    n = len(trials[0].rows.texts)
    return tuple(
        TrialResult(
            trial.candidate.config.name,
            trial.kind,
            share(trial.rows.matches.right, trial.rows.inside, _masses(trial.rows)).estimate(
                seed, trial.rows.groups
            ),
            auroc_estimate(_sureness(trial.rows), trial.rows.inside, seed, trial.rows.groups, _masses(trial.rows)),
            spread(value, resampled, n),
            spread(value - values[0], resampled - draws[0], n),
        )
        for trial, value, resampled in zip(trials, values, draws, strict=True)
    )


def _masses(rows: LabelledRows) -> Floats:
    """The weights of the rows in the traffic. Repetitions are resampled together instead."""
    mass = rows.matches.mass
    return np.ones(len(rows.texts)) if mass is None else mass


def _sureness(rows: LabelledRows) -> Floats:
    """The similarity or the margin: the one that separates the rows in scope better from those out of scope."""
    scores = rows.matches.similarity, rows.matches.margin
    above = [float(auroc(score, rows.inside)[0]) for score in scores]
    return scores[int(above[1] > above[0])]


def _right_and_surer(rows: LabelledRows, seed: int | None) -> Iterator[Floats]:
    """Yield the probability that a row in scope is right and surer than a row out of scope.

    With a seed it is that of resamples, otherwise that of the rows themselves. It is the area under the open-set
    classification rate (Dhamija et al. 2018), or the accuracy if no row is out of scope. A group counts as one row.
    """
    right, inside, sureness = rows.matches.right, rows.inside, _sureness(rows)
    counted = right | ~inside
    n, once = len(inside), rows.matches.weights
    every = iter([np.ones((1, n))]) if seed is None else resamples(n, seed, together=rows.groups)
    for drawn in every:
        weights = drawn * once
        accuracy = (weights @ right) / np.maximum(weights @ inside, 1e-9)
        above = auroc(sureness[counted], right[counted], weights[:, counted])
        yield accuracy * np.where(np.isnan(above), 1.0, above)
