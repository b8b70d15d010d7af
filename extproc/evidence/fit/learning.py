"""Labelled rows -> better centroids, where held-out rows show that they are; and an adapted encoder likewise.

Only the rows of the first part are looked at here. Each way of making centroids is fitted on the utterances and
all but one fold of them and tried on that fold. Floors and probabilities are fitted afterwards, for the centroids
that were chosen, on rows that had no part in it (calibration.py).
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from extproc.config.checks import LEAST_UTTERANCES
from extproc.config.compile import matching, utterances_digest
from extproc.config.load import Config
from extproc.encoder.protocols import Encoder, Vectors
from extproc.evidence.execution import Execution
from extproc.evidence.fit.calibration import (
    FIT_SHARE,
    LEARN_SHARE,
    Ground,
    Labelled,
    ground_of_now,
    least_rows,
)
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
from extproc.routing.centroid_file import Header, decode_centroids, encode_centroids
from extproc.routing.centroids import fit, fit_centroids, mean_directions, means_of, own_floor
from extproc.routing.index import BACK, Index, nearest
from extproc.settings import EncoderConfig

# Simplest first: of two that do equally well, the first is taken. The first of all is what serves without a file.
UTTERANCES = "utterances alone"
KINDS = (UTTERANCES, "means", "fitted", "several, fitted")
FOLDS = 4
# A cohort gets another centroid for every so many texts, up to the most.
_TEXTS_EACH, _MOST = 12, 3
_ROUNDS = 10  # of k-means; it stands still earlier


class Candidate(msgspec.Struct, frozen=True, eq=False):
    """An encoder to try."""

    config: EncoderConfig
    vectors: Encoder
    back: float = BACK  # part of the way from a centroid to its cohort's mean that similarity is measured at


class Tried(msgspec.Struct, frozen=True):
    """One way of making centroids, on rows that it was not fitted on."""

    encoder: str
    kind: str
    accuracy: Estimate  # in scope: the nearest cohort is the label's
    auroc: Estimate  # of similarity: in scope against out of scope
    routed: Estimate  # chance that a row in scope is right, and nearer than one out of scope
    gain: Estimate  # in `routed`, over the first that was tried; the interval is paired


class Learned(msgspec.Struct, frozen=True, eq=False):
    """What came of it."""

    rows: int  # that were tried
    tried: tuple[Tried, ...]
    why: str  # the choice
    chosen: Tried | None = None  # None: centroids stay as they are
    config: Config | None = None  # with the chosen encoder and centroids
    raw: bytes = b""  # the file of centroids
    vectors: Encoder | None = None  # the chosen encoder
    astray: int = 0  # utterances that are nearest to another cohort


def needed_rows(risk: float) -> int:
    """How many labelled rows a cohort needs so that enough are left for its floor."""
    return math.ceil((least_rows(risk) or 0) / (FIT_SHARE - LEARN_SHARE))


def too_few(run: Execution, rows: Labelled, risk: float) -> str | None:
    """Why nothing can be learned from these rows; None when it can. Counts alone decide: nothing is given away."""
    needed, counts = needed_rows(risk), Counter(rows.labels.tolist())
    cohorts = [*run.snapshot.policy.cohorts]
    able = sum(counts[name] >= needed for name in cohorts)
    if 2 * able > len(cohorts) > 1:
        return None
    return (
        f"fitting them, too, needs about {needed} labelled rows in most cohorts; "
        f"{able} of {len(cohorts)} have so many"
    )


def texts_for_encoder(run: Execution, rows: Labelled) -> dict[str, list[str]]:
    """Cohort -> what an encoder may be adapted on: the utterances, and rows of all folds but the first."""
    learned = rows.place < LEARN_SHARE
    texts = {intent.intent: [*intent.utterances] for intent in run.config.intents}
    for text, label, may in zip(rows.texts, rows.labels, learned & (_fold(rows.place) > 0), strict=True):
        if may and label in texts:
            texts[label].append(text)
    return {name: list(dict.fromkeys(some)) for name, some in texts.items()}


def learn(run: Execution, rows: Labelled, encoders: Sequence[Candidate], date: str, seed: int) -> Learned:
    """Try every kind with every encoder, and fit the best; it must be shown to be better than the first.

    All encoders but the first may have been adapted on `texts_for_encoder`: where there are such, the first fold
    alone is tried on, which none of them has seen.
    """
    rows = rows.some(rows.place < LEARN_SHARE)
    inside = np.array([label is not None for label in rows.labels], dtype=bool)
    fold = _fold(rows.place)
    tried_on = fold == 0 if len(encoders) > 1 else np.ones(len(fold), dtype=bool)
    if not inside[tried_on].any():
        return Learned(0, (), "centroids stay as they are: no labelled row in scope is left to try others on")
    ways = [(encoder, kind) for encoder in encoders for kind in KINDS]
    found: list[_HeldOut] = []
    for encoder in encoders:
        spoken, vectors = _spoken(run.config, encoder.vectors), encoder.vectors.encode(rows.texts)
        for kind in KINDS:
            # The first is what serves without a file, which tells nobody how far back.
            back = encoder.back if found else BACK
            found.append(_held_out(kind, spoken, vectors, rows.labels, fold, tried_on, back))
    tried = _measured(ways, found, inside[tried_on], seed)
    best = max(range(len(ways)), key=lambda i: tried[i].routed.value)
    count = int(tried_on.sum())
    if not tried[best].gain.low > 0:
        why = "centroids stay as they are: chance explains that another is better, or none is; more rows would tell"
        return Learned(count, tried, why)
    encoder, kind = ways[best]
    config, raw = _file(run, rows, encoder, kind, found[best], date, seed)
    index = index_of(config, encoder.vectors)
    astray = sum(
        nearest(index, row).cohort != name
        for name, some in _spoken(config, encoder.vectors).items()
        for row in some
    )
    why = f"chosen: {kind}, {encoder.config.name}: best, and better than the first by more than chance"
    return Learned(count, tried, why, tried[best], config, raw, encoder.vectors, astray)


def ground_for(run: Execution, rows: Labelled, learned: Learned) -> Ground:
    """What floors are then fitted for, on rows that nothing was learned from."""
    now = ground_of_now(run, rows)
    if not learned.tried:
        return now
    fit, part = now.fit & (rows.place >= LEARN_SHARE), FIT_SHARE - LEARN_SHARE
    if learned.config is None or learned.vectors is None:
        return msgspec.structs.replace(now, fit=fit, part=part)
    index = index_of(learned.config, learned.vectors)
    fit = (rows.place >= LEARN_SHARE) & (rows.place < FIT_SHARE)  # whatever the file of now was fitted on
    found = [nearest(index, row) for row in learned.vectors.encode(rows.texts)]
    return Ground(rows.landing(found), fit, now.report, part, learned.config)


def index_of(config: Config, encoder: Encoder) -> Index:
    """What requests are matched with under this configuration."""
    index, _, _ = matching(config, _spoken(config, encoder))
    return index


def _fold(place: Floats) -> np.ndarray:
    fold: np.ndarray = np.minimum((place / LEARN_SHARE * FOLDS).astype(int), FOLDS - 1)
    return fold


def _spoken(config: Config, encoder: Encoder) -> dict[str, Vectors]:
    return {intent.intent: encoder.encode(intent.utterances) for intent in config.intents}


# --- ways to make centroids -------------------------------------------------------------------------------------


def centroids_of(kind: str, spoken: Mapping[str, Vectors], labelled: Mapping[str, Vectors]) -> dict[str, Vectors]:
    """Cohort -> float32[n, d] unit centroids, from vectors of its utterances and, but for the first kind, rows."""
    texts = [
        np.concatenate([some, labelled[name]]) if kind != UTTERANCES and name in labelled else some
        for name, some in spoken.items()
    ]
    count = _MOST if kind == "several, fitted" else 1
    starts = [split(some, max(1, min(count, len(some) // _TEXTS_EACH))) for some in texts]
    sizes = [len(some) for some in starts]
    found = np.concatenate(starts)
    if kind != "means":
        member = np.repeat(np.arange(len(texts)), [len(some) for some in texts])
        found = fit(np.concatenate(texts), member, found, np.repeat(np.arange(len(texts)), sizes))
    return dict(zip(spoken, np.split(found, np.cumsum(sizes)[:-1]), strict=True))


def split(rows: Vectors, count: int) -> Vectors:
    """float32[count, d]: the means of so many groups of alike rows (spherical k-means, Dhillon and Modha 2001).

    Each group starts from the row that is least like those before it: no draw is made.
    """
    centres = mean_directions(rows, np.zeros(len(rows), dtype=int), 1)
    if count == 1:
        return centres
    centres = rows[[int((rows @ centres[0]).argmin())]]
    while len(centres) < count:
        centres = np.concatenate([centres, rows[[int((rows @ centres.T).max(axis=1).argmin())]]])
    for _ in range(_ROUNDS):
        member = (rows @ centres.T).argmax(axis=1)
        kept = np.bincount(member, minlength=count) > 0
        centres = np.where(kept[:, None], mean_directions(rows, member, count), centres)
    return centres


# --- trying them ------------------------------------------------------------------------------------------------


class _HeldOut(msgspec.Struct, frozen=True):
    """Rows as centroids see them that were fitted without; an entry a row that was tried."""

    similarity: Floats
    nearest: np.ndarray
    right: Bools


def _held_out(
    kind: str,
    spoken: Mapping[str, Vectors],
    rows: Vectors,
    labels: np.ndarray,
    fold: np.ndarray,
    tried: Bools,
    back: float,
) -> _HeldOut:
    similarity, names = np.full(len(rows), np.nan), np.full(len(rows), None, dtype=object)
    for k in np.unique(fold[tried]):
        seen = fold != k
        index = Index(centroids_of(kind, spoken, by_label(rows[seen], labels[seen])), means_of(spoken), back)
        for i in np.flatnonzero(fold == k):
            match = nearest(index, rows[i])
            similarity[i], names[i] = match.similarity, match.cohort
    right = np.array([a == b for a, b in zip(names, labels, strict=True)], dtype=bool)
    return _HeldOut(similarity[tried], names[tried], right[tried])


def by_label(rows: Vectors, labels: np.ndarray) -> dict[str, Vectors]:
    """Cohort -> the rows that are labelled so."""
    return {name: rows[labels == name] for name in dict.fromkeys(labels.tolist()) if name is not None}


def _measured(
    ways: Sequence[tuple[Candidate, str]], found: Sequence[_HeldOut], inside: Bools, seed: int
) -> tuple[Tried, ...]:
    draws = [np.concatenate([*_routed_right(one, inside, seed)]) for one in found]
    values = [float(next(_routed_right(one, inside, None))[0]) for one in found]
    n = len(inside)
    return tuple(
        Tried(
            encoder.config.name,
            kind,
            share(one.right, inside).estimate(seed),
            auroc_estimate(one.similarity, inside, seed),
            spread(value, again, n),
            spread(value - values[0], again - draws[0], n),
        )
        for (encoder, kind), one, value, again in zip(ways, found, values, draws, strict=True)
    )


def _routed_right(one: _HeldOut, inside: Bools, seed: int | None) -> Iterator[Floats]:
    """The chance that a row in scope is right and nearer than one out of scope, in resamples or (None) as it is.

    The area under the open-set classification rate (Dhamija et al. 2018); accuracy where nothing is out of scope.
    """
    telling = one.right | ~inside
    every = iter([np.ones((1, len(inside)))]) if seed is None else resamples(len(inside), seed)
    for weights in every:
        accuracy = (weights @ one.right) / np.maximum(weights @ inside, 1)
        above = auroc(one.similarity[telling], one.right[telling], weights[:, telling])
        yield accuracy * np.where(np.isnan(above), 1.0, above)


# --- the file ---------------------------------------------------------------------------------------------------


def _file(
    run: Execution, rows: Labelled, encoder: Candidate, kind: str, held_out: _HeldOut, date: str, seed: int
) -> tuple[Config, bytes]:
    """The configuration with centroids of this kind, fitted on all of `rows`, and the bytes of their file."""
    policy = msgspec.structs.replace(run.config.policy, encoder=encoder.config)
    config = msgspec.structs.replace(run.config, policy=policy, fitted=None)
    spoken = _spoken(config, encoder.vectors)
    labelled = by_label(encoder.vectors.encode(rows.texts), rows.labels)
    centroids = centroids_of(kind, spoken, labelled)
    floors = {name: cohort.floor for name, cohort in fit_centroids(spoken, encoder.back).items()}
    for name in floors:
        right = held_out.similarity[held_out.right & (held_out.nearest == name)]
        if len(right) >= LEAST_UTTERANCES:
            floors[name] = own_floor(right.astype(np.float32))
    header = Header(
        kind=kind,
        date=date,
        encoder=encoder.config.name,
        utterances=utterances_digest(config),
        data=run.digest,
        rows=sum(map(len, labelled.values())),
        seed=seed,
        back=encoder.back,
        cohorts={name: len(some) for name, some in centroids.items()},
    )
    raw = encode_centroids(header, centroids, floors, np.concatenate(list(spoken.values())))
    return msgspec.structs.replace(config, fitted=decode_centroids(raw)), raw
