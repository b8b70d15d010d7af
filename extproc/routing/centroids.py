"""Utterances -> one unit centroid a cohort, their mean, and the floor that they speak for.

Which cohort, and how similar to it, are two questions: match.py answers them by the centroid and by both.
"""

from collections.abc import Mapping

import msgspec
import numpy as np

from extproc.encoder.protocols import Vectors, unit
from extproc.routing.index import BACK, similarity

# The fit: cosines are sharpened to this scale, and moved for this many steps of this length (radians, about).
# Chosen by cross-validation on the sample intents and on CLINC150; results are flat around them.
_SCALE, _STEPS, _STEP = 20.0, 30, 0.02
# Slopes below this are rounding noise: cohorts that are well apart stay at their means.
_STILL = 1e-4
# Folds by which every utterance is seen once by a fit that did not have it.
_FOLDS = 5
# Change it when the method changes: evidence about what was fitted before says nothing of what is fitted now.
RECIPE = 3
# By so much the similarity of one text differs from one batch to another.
_ROUNDING = 1e-3
# A cohort without evidence trusts what is as similar as this share of its utterances' right matches are.
_TRUSTED = 0.98


class Fitted(msgspec.Struct, frozen=True):
    """The centroid of one cohort."""

    centroid: Vectors  # float32[d], unit length: the nearest one says which cohort
    mean: Vectors  # float32[d], unit length: similarity is measured part of the way back to it
    floor: float  # a low quantile of its utterances' similarity by fits that had not seen them
    back: float = BACK  # part of the way to the mean that similarity is measured at

    @property
    def typical(self) -> Vectors:
        """An inner product with it is the similarity."""
        found: Vectors = similarity(self.centroid, self.mean, self.back)
        return found


def fit_centroids(utterances: Mapping[str, Vectors], back: float = BACK) -> dict[str, Fitted]:
    """Fit centroids that tell cohorts apart: `cohort -> float32[n, d]` unit vectors in, one centroid each out.

    Starting from the means, unit centroids are moved to lower the cross-entropy of softmax(scale * cosine) on
    the utterances (normalised softmax, Wang et al. 2017): the means, sharpened where cohorts overlap. Every
    cohort weighs the same, however many utterances it has. Similarity is measured `back` of the way to the mean
    (match.py). Deterministic.
    """
    names = list(utterances)
    rows = np.concatenate([utterances[name] for name in names])
    member = np.repeat(np.arange(len(names)), [len(utterances[name]) for name in names])
    means, each = mean_directions(rows, member, len(names)), np.arange(len(names))
    centroids = fit(rows, member, means, each)
    # Dealt in turn within each cohort, so that none is missing from any fold's fit.
    fold = np.concatenate([np.arange(len(utterances[name])) % _FOLDS for name in names])
    held_out = np.empty(len(rows), dtype=np.float32)
    right = np.empty(len(rows), dtype=bool)
    for k in range(_FOLDS):
        seen, unseen = fold != k, fold == k
        blind = mean_directions(rows[seen], member[seen], len(names))
        held_out[unseen], nearest = _like(rows[unseen], fit(rows[seen], member[seen], blind, each), blind, back)
        right[unseen] = nearest == member[unseen]
    listed, _ = _like(rows, centroids, means, back, member)
    found = {}
    for i, name in enumerate(names):
        # What somebody listed as an utterance is accepted, however odd.
        floor = min(own_floor(held_out[right & (member == i)]), float(listed[member == i].min()) - _ROUNDING)
        found[name] = Fitted(centroids[i], means[i], floor, back)
    return found


def means_of(utterances: Mapping[str, Vectors]) -> dict[str, Vectors]:
    """Each cohort's mean, `cohort -> float32[n, d]` in, float32[d] of unit length out."""
    return {name: mean_directions(rows, np.zeros(len(rows), dtype=int), 1)[0] for name, rows in utterances.items()}


def _like(
    rows: Vectors, centroids: Vectors, means: Vectors, back: float, cohort: np.ndarray | None = None
) -> tuple[Vectors, np.ndarray]:
    """(similarity of each row to its cohort, that cohort): the nearest one, unless it is told."""
    cosines, at = rows @ centroids.T, np.arange(len(rows))
    nearest = cosines.argmax(axis=1) if cohort is None else cohort
    return similarity(cosines[at, nearest], (rows * means[nearest]).sum(axis=1), back), nearest


def own_floor(right_matches: Vectors) -> float:
    """The similarity that most right matches reach; -1 where there is none, so that nothing is rejected."""
    return float(np.quantile(right_matches, 1 - _TRUSTED)) if len(right_matches) else -1.0


def mean_directions(rows: Vectors, member: np.ndarray, groups: int) -> Vectors:
    """float32[groups, d]: the unit mean of each group's rows; `member` tells the group of each row."""
    return unit(np.eye(groups, dtype=np.float32)[member].T @ rows)


def fit(rows: Vectors, member: np.ndarray, starts: Vectors, owner: np.ndarray) -> Vectors:
    """float32[k, d]: unit centroids, moved from `starts` to lower the cross-entropy on `rows`.

    `member` is the cohort of each row, `owner` that of each centroid. Of several centroids, a row pulls those of
    its cohort in proportion to how near they are. Gradient descent on the sphere, with steps scaled as Adam does,
    but per centroid.
    """
    cohorts = int(owner.max()) + 1
    counts = np.bincount(member, minlength=cohorts)
    weight = (1 / np.maximum(counts, 1) / cohorts)[member, None].astype(np.float32)
    own = (member[:, None] == owner).astype(np.float32)
    centroids = starts
    momentum, spread = np.zeros_like(centroids), np.zeros((len(centroids), 1), dtype=np.float32)
    for t in range(1, _STEPS + 1 if cohorts > 1 else 1):
        logits = _SCALE * (rows @ centroids.T)
        chance = np.exp(logits - logits.max(axis=1, keepdims=True))
        chance /= chance.sum(axis=1, keepdims=True)
        target = own * chance
        target /= target.sum(axis=1, keepdims=True)
        slope = _SCALE * ((chance - target) * weight).T @ rows
        slope -= (slope * centroids).sum(axis=1, keepdims=True) * centroids  # along the sphere
        momentum = 0.9 * momentum + 0.1 * slope
        spread = 0.999 * spread + 0.001 * (slope**2).mean(axis=1, keepdims=True)
        pace = np.sqrt(spread / (1 - 0.999**t)) + _STILL
        centroids = unit(centroids - _STEP * momentum / (1 - 0.9**t) / pace)
    return centroids
