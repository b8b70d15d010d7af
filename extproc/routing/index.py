"""Find the cohort nearest to a vector: an exact inner-product search over the centroids (FAISS)."""

from collections.abc import Mapping, Sequence
from typing import Any

import faiss
import msgspec
import numpy as np

from extproc.encoder.protocols import Vectors

# One query is too little work for several threads.
faiss.omp_set_num_threads(1)
# The weight of the mean in the similarity, for an encoder that is not adapted. A higher weight rejects more of
# CLINC150's out-of-scope validation rows, but fewer rows of left-out intents, which are near to a cohort. Above
# this weight, that loss grows faster.
BACK = 0.3


class Match(msgspec.Struct, frozen=True):
    """The nearest cohort, with its similarity and margin."""

    cohort: str
    similarity: float
    margin: float  # cosine of the nearest centroid minus that of the best centroid of any *other* cohort
    runner_up: str | None = None  # that other cohort; None if there is only one cohort


class Index:
    """The centroids of all cohorts, one or more each."""

    def __init__(
        self, centroids: Mapping[str, Vectors], means: Mapping[str, Vectors] | None = None, back: float = BACK
    ) -> None:
        """`centroids`: cohort -> float32[n, d]. `means`: cohort -> float32[d]. All are unit vectors.

        `back` is the weight of the mean in the similarity. Without means, similarity is the cosine of the nearest
        centroid. Raises ValueError if there is no cohort.
        """
        if not centroids:
            raise ValueError("the index has no cohort: give at least one cohort with its centroids")
        self.cohorts = [name for name, rows in centroids.items() for _ in range(len(rows))]
        # As many results as the search needs to reach a second cohort behind all centroids of the first one.
        self.neighbours = min(len(self.cohorts), 1 + max(len(rows) for rows in centroids.values()))
        self.means, self.back = means, back
        stacked = np.concatenate(list(centroids.values()))
        self.faiss = faiss.IndexFlatIP(stacked.shape[1])
        self.faiss.add(np.ascontiguousarray(stacked, dtype=np.float32))


def nearest(index: Index, vector: Vectors) -> Match:
    """Return the cohort nearest to `vector` (float32[d], unit length).

    With a single cohort, the margin is the cosine of its centroid.
    """
    ranked = _search(index, vector, index.neighbours)
    cohort, best = ranked[0]
    runner_up, second = next(((name, cosine) for name, cosine in ranked if name != cohort), (None, 0.0))
    return Match(cohort, _similarity(index, cohort, vector, best), best - second, runner_up)


def similarities(index: Index, vector: Vectors) -> dict[str, float]:
    """Return the similarity of every cohort to `vector`, the nearest cohort first."""
    best: dict[str, float] = {}
    for cohort, cosine in _search(index, vector, len(index.cohorts)):
        best.setdefault(cohort, cosine)
    return {cohort: _similarity(index, cohort, vector, cosine) for cohort, cosine in best.items()}


def _similarity(index: Index, cohort: str, vector: Vectors, cosine: float) -> float:
    return cosine if index.means is None else float(similarity(cosine, index.means[cohort] @ vector, index.back))


def similarity(to_centroid: Any, to_mean: Any, back: float) -> Any:
    """Return the similarity of texts to a cohort, from -1 to 1, from two cosines (floats or arrays).

    Centroids are fitted to differ from each other, so they show best which cohort is nearest. This fit turns them
    away from the direction that all cohorts share. The mean keeps that direction, so it shows better whether a text
    belongs to any cohort.
    """
    return (1 - back) * to_centroid + back * to_mean


def _search(index: Index, vector: Vectors, count: int) -> Sequence[tuple[str, float]]:
    cosines, rows = index.faiss.search(vector[None, :], count)
    return [(index.cohorts[row], float(cosine)) for cosine, row in zip(cosines[0], rows[0], strict=True)]
