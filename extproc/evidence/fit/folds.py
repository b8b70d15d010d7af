"""Which rows are held out together. Rows of one group (data/groups.py) are always in the same fold."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.cluster import hierarchy

from extproc.encoder.protocols import Vectors
from extproc.evidence.measure.metrics import GroupIds
from extproc.routing.centroids import mean_directions

FOLDS = 5
# Rows whose clusters have a smaller mean cosine distance are held out together. On prompts of public sources this
# does as well as holding out one source after the other. With a margin for a risk of 5 %, 15 % of the accepted
# matches of other sources are wrong. It is 21 % with rows that are held out at random.
_APART = 0.7
# All pairs of this many rows are compared. The others join the nearest cluster.
_MOST_CLUSTERED = 4000


def even_folds(texts: Sequence[str], labels: Sequence[Any] | np.ndarray, groups: GroupIds, seed: int) -> np.ndarray:
    """Return int[n]: folds with about equally many groups of each label, in an order by texts and seed."""
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    keys = [(str(labels[i]), _digest(texts[i], seed)) for i in first]
    fold = np.empty(len(first), dtype=int)
    fold[sorted(range(len(first)), key=keys.__getitem__)] = np.arange(len(first)) % FOLDS
    return fold[member]


def apart_folds(clusters: GroupIds) -> np.ndarray:
    """Return int[n]: folds of about equal size, so that rows in different folds are seldom alike.

    A match of a held-out row then shows how a request is matched that is unlike all labelled rows. `clusters` are
    those of `clusters_of`.
    """
    sizes = np.bincount(clusters)
    fold, load = np.zeros(len(sizes), dtype=int), np.zeros(FOLDS)
    for i in np.argsort(-sizes, kind="stable"):
        fold[i] = load.argmin()
        load[fold[i]] += sizes[i]
    folds: np.ndarray = fold[clusters]
    return folds


def clusters_of(vectors: Vectors, groups: GroupIds) -> GroupIds:
    """Return int64[n]: the number of each row's cluster of similar rows, from 0.

    `vectors` are float32[n, d], unit length. Rows of one group are in one cluster.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    clusters: GroupIds = _linked(vectors[first])[member]
    return clusters


def _linked(vectors: Vectors) -> np.ndarray:
    """The number of each row's cluster, from 0 (average linkage)."""
    some = vectors[:_MOST_CLUSTERED]
    if len(some) < 2:
        return np.zeros(len(vectors), dtype=int)
    tree = hierarchy.linkage(some, method="average", metric="cosine")
    cluster: np.ndarray = hierarchy.fcluster(tree, _APART, criterion="distance") - 1
    centres = mean_directions(some, cluster, cluster.max() + 1)
    return np.concatenate([cluster, (vectors[_MOST_CLUSTERED:] @ centres.T).argmax(axis=1)])


def _digest(text: str, seed: int) -> bytes:
    return hashlib.blake2b(text.encode(), key=str(seed).encode(), digest_size=8).digest()
