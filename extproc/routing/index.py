"""Which cohort a request's vector is nearest to: an exact inner-product search over the centroids (FAISS)."""

from collections.abc import Mapping, Sequence
from typing import Any

import faiss
import msgspec
import numpy as np

from extproc.encoder.protocols import Vectors

# One query is too little work to share among threads.
faiss.omp_set_num_threads(1)
# Similarity is measured this part of the way from the nearest centroid back to its cohort's mean, by an encoder as
# it comes. The further back, the more of CLINC150's out-of-scope validation rows are found, and the fewer of those
# that are near one (whole intents left out): from here on, that cost grows faster.
BACK = 0.3


class Match(msgspec.Struct, frozen=True):
    """The nearest cohort, and how clearly it is nearest."""

    cohort: str
    similarity: float
    margin: float  # of its centroid over the best centroid of any *other* cohort
    runner_up: str | None = None  # that other cohort; None when there is only one


class Index:
    """Unit centroids of cohorts, one or more each, searched exactly."""

    def __init__(
        self, centroids: Mapping[str, Vectors], means: Mapping[str, Vectors] | None = None, back: float = BACK
    ) -> None:
        """Take `cohort -> float32[n, d]` unit vectors, and the cohorts' means, `cohort -> float32[d]`, unit length.

        `back` is the part of the way that similarity is measured back to the mean; without means, similarity is
        that to the nearest centroid alone. Raises ValueError when there is no cohort.
        """
        if not centroids:
            raise ValueError("an index needs at least one cohort")
        self.cohorts = [name for name, rows in centroids.items() for _ in range(len(rows))]
        # The runner-up of another cohort is found even if all of the best one's centroids come first.
        self.neighbours = min(len(self.cohorts), 1 + max(len(rows) for rows in centroids.values()))
        self.means, self.back = means, back
        stacked = np.concatenate(list(centroids.values()))
        self.faiss = faiss.IndexFlatIP(stacked.shape[1])
        self.faiss.add(np.ascontiguousarray(stacked, dtype=np.float32))


def nearest(index: Index, vector: Vectors) -> Match:
    """The cohort nearest to `vector` (float32[d], unit length).

    With a single cohort the margin is the similarity itself: there is no other to be confused with.
    """
    ranked = _search(index, vector, index.neighbours)
    cohort, best = ranked[0]
    runner_up, other = next(((n, value) for n, value in ranked if n != cohort), (None, 0.0))
    return Match(cohort, _similarity(index, cohort, vector, best), best - other, runner_up)


def similarities(index: Index, vector: Vectors) -> dict[str, float]:
    """Every cohort's similarity to `vector`, the nearest cohort first."""
    best: dict[str, float] = {}
    for cohort, cosine in _search(index, vector, len(index.cohorts)):
        best.setdefault(cohort, cosine)
    return {cohort: _similarity(index, cohort, vector, cosine) for cohort, cosine in best.items()}


def _similarity(index: Index, cohort: str, vector: Vectors, cosine: float) -> float:
    return cosine if index.means is None else float(similarity(cosine, index.means[cohort] @ vector, index.back))


def similarity(to_centroid: Any, to_mean: Any, back: float) -> Any:
    """How similar a text is to its nearest cohort, from -1 to 1, by its cosines (floats or arrays).

    Which cohort is nearest, the centroids say: they are moved apart. Whether the text belongs to any of them they
    say less well, since they have turned away from what their cohorts have in common; the mean has not.
    """
    return (1 - back) * to_centroid + back * to_mean


def _search(index: Index, vector: Vectors, count: int) -> Sequence[tuple[str, float]]:
    values, rows = index.faiss.search(vector[None, :], count)
    return [(index.cohorts[row], float(v)) for v, row in zip(values[0], rows[0], strict=True)]
