"""Fit each cohort's centroid, mean and floor from its utterances.

The centroid alone shows which cohort is nearest. The similarity to it also uses the mean (index.py).
"""

from collections.abc import Mapping

import msgspec
import numpy as np

from extproc.encoder.protocols import Vectors, unit
from extproc.routing.index import BACK, similarity

# The fit: cosines are multiplied by this scale, and centroids move this many steps of about this length in radians.
# Chosen by cross-validation on the sample intents and on CLINC150. Results change little around these values.
_SCALE, _STEPS, _STEP = 20.0, 30, 0.02
# Gradients below this are rounding noise. The centroids of distant cohorts stay at their means.
_STILL = 1e-4
# Cross-validation folds: each utterance is held out from one fit.
_FLOOR_FOLDS = 5
# Change it when the method changes, because evidence about the old centroids is not valid for the new ones.
RECIPE = 5
# The similarity of one text may differ by this much between batches.
_ROUNDING = 1e-3
# The floor of a cohort without evidence accepts this share of its utterances that are matched to it.
_TRUSTED = 0.98


class Fitted(msgspec.Struct, frozen=True):
    """The fitted values of one cohort."""

    centroid: Vectors  # float32[d], unit length: the nearest centroid decides the cohort
    mean: Vectors  # float32[d], unit length: part of the similarity
    floor: float  # low quantile of its utterances' similarity, by fits that held them out
    back: float = BACK  # weight of the mean in the similarity

    @property
    def typical(self) -> Vectors:
        """The vector, float32[d], whose inner product with a text's vector is the similarity."""
        blend: Vectors = similarity(self.centroid, self.mean, self.back)
        return blend


def fit_centroids(utterances: Mapping[str, Vectors], back: float = BACK) -> dict[str, Fitted]:
    """Fit one centroid per cohort from its utterances, `cohort -> float32[n, d]` unit vectors.

    Unit centroids start at the means. Each step lowers the cross-entropy of softmax(scale * cosine) on the
    utterances (normalised softmax, Wang et al. 2017), so overlapping cohorts move apart. Every cohort has the same
    weight, for any number of utterances. `back` is the weight of the mean in the similarity. Deterministic.
    """
    names = list(utterances)
    rows = np.concatenate([utterances[name] for name in names])
    member = np.repeat(np.arange(len(names)), [len(utterances[name]) for name in names])
    means, each = mean_directions(rows, member, len(names)), np.arange(len(names))
    centroids = fit(rows, member, means, each)
    # Assigned in turn within each cohort, so that every fit has utterances of every cohort.
    fold = np.concatenate([np.arange(len(utterances[name])) % _FLOOR_FOLDS for name in names])
    held_out = np.empty(len(rows), dtype=np.float32)
    right = np.empty(len(rows), dtype=bool)
    for k in range(_FLOOR_FOLDS):
        seen, unseen = fold != k, fold == k
        blind = mean_directions(rows[seen], member[seen], len(names))
        held_out[unseen], nearest = _matched(rows[unseen], fit(rows[seen], member[seen], blind, each), blind, back)
        right[unseen] = nearest == member[unseen]
    listed, _ = _matched(rows, centroids, means, back, member)
    fitted = {}
    for i, name in enumerate(names):
        # Every listed utterance is accepted, even an unusual one.
        floor = min(own_floor(held_out[right & (member == i)]), float(listed[member == i].min()) - _ROUNDING)
        fitted[name] = Fitted(centroids[i], means[i], floor, back)
    return fitted


def means_of(utterances: Mapping[str, Vectors]) -> dict[str, Vectors]:
    """Return the unit mean of each cohort, float32[d], from `cohort -> float32[n, d]`."""
    return {name: mean_directions(rows, np.zeros(len(rows), dtype=int), 1)[0] for name, rows in utterances.items()}


def _matched(
    rows: Vectors, centroids: Vectors, means: Vectors, back: float, cohort: np.ndarray | None = None
) -> tuple[Vectors, np.ndarray]:
    """The similarity of each row to its cohort, and that cohort: the nearest one unless `cohort` is given."""
    cosines, at = rows @ centroids.T, np.arange(len(rows))
    nearest = cosines.argmax(axis=1) if cohort is None else cohort
    return similarity(cosines[at, nearest], (rows * means[nearest]).sum(axis=1), back), nearest


def own_floor(right_matches: Vectors) -> float:
    """Return the similarity that most right matches reach, or -1 without any, which rejects no request."""
    return float(np.quantile(right_matches, 1 - _TRUSTED)) if len(right_matches) else -1.0


def mean_directions(rows: Vectors, member: np.ndarray, groups: int) -> Vectors:
    """Return the unit mean of each group's rows, float32[groups, d]. `member` is the group of each row."""
    return unit(np.eye(groups, dtype=np.float32)[member].T @ rows)


def fit(rows: Vectors, member: np.ndarray, starts: Vectors, owner: np.ndarray) -> Vectors:
    """Move unit centroids from `starts` to lower the cross-entropy on `rows`. Returns float32[k, d].

    `member` is the cohort of each row, and `owner` is the cohort of each centroid. A row pulls each centroid of its
    cohort in proportion to how near it is. This is gradient descent on the sphere. Steps are scaled as in Adam
    (Kingma and Ba 2015), but per centroid.
    """
    cohorts = int(owner.max()) + 1
    counts = np.bincount(member, minlength=cohorts)
    weight = (1 / np.maximum(counts, 1) / cohorts)[member, None].astype(np.float32)
    same_cohort = (member[:, None] == owner).astype(np.float32)
    centroids = starts
    momentum, spread = np.zeros_like(centroids), np.zeros((len(centroids), 1), dtype=np.float32)
    for t in range(1, _STEPS + 1 if cohorts > 1 else 1):
        logits = _SCALE * (rows @ centroids.T)
        chance = np.exp(logits - logits.max(axis=1, keepdims=True))
        chance /= chance.sum(axis=1, keepdims=True)
        target = same_cohort * chance
        target /= target.sum(axis=1, keepdims=True)
        slope = _SCALE * ((chance - target) * weight).T @ rows
        slope -= (slope * centroids).sum(axis=1, keepdims=True) * centroids  # tangent to the sphere
        momentum = 0.9 * momentum + 0.1 * slope
        spread = 0.999 * spread + 0.001 * (slope**2).mean(axis=1, keepdims=True)
        pace = np.sqrt(spread / (1 - 0.999**t)) + _STILL
        centroids = unit(centroids - _STEP * momentum / (1 - 0.9**t) / pace)
    return centroids
