"""Labelled rows -> a better way of matching, and a better encoder, if held-out rows show that they are better.

Every way of matching is fitted on the utterances, the background and all folds of the rows except one, and is tried
on that fold. The chosen one is fitted on all rows. For its floors, rows are held out together with the rows like
them (folds.py). A request of another source is not as near to the labelled rows as these are to each other.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from extproc.config.checks import LEAST_UTTERANCES
from extproc.config.compile import encode_texts, matching, utterances_digest
from extproc.config.load import Config
from extproc.config.schema import BACKGROUND_FILE
from extproc.encoder.protocols import Encoder
from extproc.evidence.execution import Execution
from extproc.evidence.fit.centroid_kinds import PRESENT, UTTERANCES, kinds_for, matcher_of
from extproc.evidence.fit.folds import apart_folds, clusters_of, even_folds
from extproc.evidence.fit.labelled import LabelledRows
from extproc.evidence.fit.trial import (
    EncoderCandidate,
    Trial,
    TrialResult,
    match_held_out,
    measure,
    right_and_surer,
    run_trials,
)
from extproc.evidence.measure.metrics import Bools
from extproc.routing.centroid_file import Header, decode_centroids, encode_centroids
from extproc.routing.centroids import fit_centroids, own_floor
from extproc.routing.index import Index, nearest

# The folds of rows that no adapted encoder is trained on.
_KEPT_FROM_ADAPTING = (0, 1)
# A better way of matching may do this much worse than the first on rows of sources that are held out. With one
# source it may do no worse on rows that are held out with the rows like them.
_LOSS = 0.01
# With more rows than this, only one fold is tried: the comparison is sharp enough, and fits take minutes.
_MOST_ROWS = 5000


class FittedCentroids(msgspec.Struct, frozen=True, eq=False):
    """The trials, and what was fitted in the best way if it is shown to be better than the first."""

    rows: LabelledRows  # to fit floors on, matched as they will be served, by fits without them
    fold: np.ndarray  # int[n], of these rows: those of a fold are judged by floors that are fitted on the others
    config: Config  # with the encoder and the centroids that will serve
    floors: Mapping[str, float]  # of the cohorts without evidence
    trials: tuple[TrialResult, ...]
    why: str  # the reason for the choice
    chosen: TrialResult | None = None  # None: nothing changes
    raw: bytes = b""  # the file of centroids
    astray: int = 0  # utterances that are nearest to another cohort


def texts_for_encoder(run: Execution, rows: LabelledRows, seed: int) -> dict[str, list[str]]:
    """Return cohort -> the texts that an encoder may be adapted on, with the background as a cohort.

    These are the utterances, the background, and the rows of all folds except those that it is tried on.
    """
    allowed = ~_kept_from_adapting(rows, seed)
    background = BACKGROUND_FILE  # no cohort has this name, because it ends like a file of YAML
    texts = {intent.intent: [*intent.utterances] for intent in run.config.intents}
    texts[background] = [*run.config.background]
    for text, label, allow in zip(rows.texts, rows.labels, allowed, strict=True):
        if allow:
            texts[background if label is None else label].append(text)
    return {name: list(dict.fromkeys(repeated)) for name, repeated in texts.items() if repeated}


def learn(
    run: Execution,
    rows: LabelledRows,
    candidates: Sequence[EncoderCandidate],
    date: str,
    seed: int,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> FittedCentroids:
    """Try every way of matching with every encoder, and fit the best if it is better than the first.

    Every encoder except the first may have been adapted on `texts_for_encoder`. Then all are tried on the rows that
    no adapted encoder has seen. A better way must not do worse than the first on rows that are held out with the
    rows like them, as requests of another source are.

    The present way is the first. If that is a file of centroids, it is tried on rows
    that it was not fitted on. If these are fewer than half of the rows, the utterances alone are the first.
    """
    new = 2 * rows.matches.subset(~rows.seen).distinct >= rows.matches.distinct
    first = PRESENT if run.config.fitted is not None and new else UTTERANCES
    usable = ~rows.seen if first == PRESENT else np.ones(len(rows.texts), dtype=bool)
    if len(candidates) > 1:
        usable &= _kept_from_adapting(rows, seed)
    fold = even_folds(rows.texts, rows.labels, rows.groups, seed)
    tried = usable & ((fold == fold[usable].min(initial=0)) | (len(rows.texts) <= _MOST_ROWS))
    if not (tried & rows.inside).any():
        why = "matching is unchanged: no labelled row in scope is left to try others on"
        unseen = ~rows.seen
        return FittedCentroids(rows.subset(unseen), fold[unseen], run.config, floors_of(run), (), why)
    kinds = kinds_for(bool(run.config.background), rows.sources is not None)
    trials = run_trials(run.config, candidates, rows, fold, tried, kinds, first, show)
    results = measure(trials, seed)
    better = [i for i in range(len(trials)) if results[i].gain.low > 0]
    present = match_held_out(trials[0].kind, trials[0].vectors, rows, fold, usable)
    for i in sorted(better, key=lambda i: -results[i].routed.value):
        vectors = trials[i].vectors
        clusters = clusters_of(vectors.rows, rows.groups)
        apart = apart_folds(clusters) if rows.source_folds is None else rows.source_folds
        held_out = match_held_out(trials[i].kind, vectors, rows, apart, usable)
        held_out = msgspec.structs.replace(held_out, clusters=clusters[usable])
        loss = _LOSS if rows.sources is not None else 0.0
        if right_and_surer(held_out) >= right_and_surer(present) - loss:
            return _settled(run, rows, trials[i], results, results[i], held_out, fold[usable], date, seed)
    why = "no other is better by more than chance; more rows may show a difference"
    if better:
        why = "others are better only on requests that are like the labelled rows; more kinds of rows may help"
    unseen = usable & ~rows.seen
    why = f"matching is unchanged: {why}"
    rows = msgspec.structs.replace(rows, clusters=clusters_of(trials[0].vectors.rows, rows.groups))
    return FittedCentroids(rows.subset(unseen), fold[unseen], run.config, floors_of(run), results, why)


def _settled(
    run: Execution,
    rows: LabelledRows,
    trial: Trial,
    results: tuple[TrialResult, ...],
    result: TrialResult,
    held_out: LabelledRows,
    fold: np.ndarray,
    date: str,
    seed: int,
) -> FittedCentroids:
    """The chosen way of matching, fitted on all rows, and the matches of held-out rows to fit its floors on."""
    config, raw = _fit_file(run, rows, trial, held_out, date, seed)
    assert config.fitted is not None
    index = index_of(config, trial.candidate.encoder)
    astray = sum(
        nearest(index, row).cohort != name
        for name, vectors in trial.vectors.texts.utterances.items()
        for row in vectors
    )
    why = f"chosen: {trial.kind}, {trial.candidate.config.name}: better than the first by more than chance"
    floors = config.fitted.floors
    return FittedCentroids(held_out, fold, config, floors, results, why, result, raw, astray)


def floors_of(run: Execution) -> dict[str, float]:
    """Return the floors that serve now, by cohort."""
    return {name: cohort.floor for name, cohort in run.snapshot.policy.cohorts.items()}


def index_of(config: Config, encoder: Encoder) -> Index:
    """Return the index that requests are matched with under this configuration."""
    index, _, _ = matching(config, *encode_texts(config, encoder))
    return index


def _kept_from_adapting(rows: LabelledRows, seed: int) -> Bools:
    return np.isin(even_folds(rows.texts, rows.labels, rows.groups, seed), _KEPT_FROM_ADAPTING)


def _fit_file(
    run: Execution, rows: LabelledRows, trial: Trial, held_out: LabelledRows, date: str, seed: int
) -> tuple[Config, bytes]:
    """Return the configuration with centroids of the trial's kind, fitted on all `rows`, and their file."""
    candidate, vectors = trial.candidate, trial.vectors
    config = msgspec.structs.replace(vectors.config, fitted=None)
    utterances = vectors.texts.utterances
    joined = vectors.texts.joined(vectors.rows, rows.labels, rows.groups)
    matcher = matcher_of(trial.kind, joined, utterances)
    floors = {name: cohort.floor for name, cohort in fit_centroids(utterances, candidate.back).items()}
    for name in floors:
        right = held_out.matches.similarity[held_out.matches.right & (held_out.landed == name)]
        if len(right) >= LEAST_UTTERANCES:
            own = own_floor(right.astype(np.float32))
            # The rows of one source may all be nearer than those of the next one. The margin keeps the risk.
            floors[name] = own if rows.sources is None else min(own, floors[name])
    header = Header(
        kind=trial.kind,
        date=date,
        encoder=candidate.config.name,
        utterances=utterances_digest(config),
        data=run.digest,
        rows=rows.matches.distinct,
        seed=seed,
        back=candidate.back,
        cohorts={name: len(vectors) for name, vectors in matcher.centroids.items()},
    )
    probed = np.concatenate(list(utterances.values()))
    raw = encode_centroids(header, matcher, floors, probed, rows.texts)
    return msgspec.structs.replace(config, fitted=decode_centroids(raw)), raw
