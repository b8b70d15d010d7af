"""Which cohort a request's vector is nearest to: an exact inner-product search over the centroids (FAISS)."""

from collections.abc import Mapping, Sequence

import faiss
import msgspec
import numpy as np

from extproc.vectors import Vectors

# One query is too little work to share among threads.
faiss.omp_set_num_threads(1)


class Match(msgspec.Struct, frozen=True):
    """The nearest cohort, and how clearly it is nearest."""

    cohort: str
    similarity: float
    margin: float  # over the best centroid of any *other* cohort
    runner_up: str | None = None  # that other cohort; None when there is only one


class Index:
    """Unit centroids of cohorts, one or more each, searched exactly."""

    def __init__(self, centroids: Mapping[str, Vectors]) -> None:
        """Take `cohort -> float32[n, d]` unit vectors. Raises ValueError when there is no cohort."""
        if not centroids:
            raise ValueError("an index needs at least one cohort")
        self.cohorts = [name for name, rows in centroids.items() for _ in range(len(rows))]
        # The runner-up of another cohort is found even if all of the best one's centroids come first.
        self.neighbours = min(len(self.cohorts), 1 + max(len(rows) for rows in centroids.values()))
        stacked = np.concatenate(list(centroids.values()))
        self.faiss = faiss.IndexFlatIP(stacked.shape[1])
        self.faiss.add(np.ascontiguousarray(stacked, dtype=np.float32))


def nearest(index: Index, vector: Vectors) -> Match:
    """The cohort nearest to `vector` (float32[d], unit length).

    With a single cohort the margin is the similarity itself: there is no other to be confused with.
    """
    ranked = _search(index, vector, index.neighbours)
    cohort, similarity = ranked[0]
    runner_up, other = next(((n, value) for n, value in ranked if n != cohort), (None, 0.0))
    return Match(cohort, similarity, similarity - other, runner_up)


def similarities(index: Index, vector: Vectors) -> dict[str, float]:
    """Every cohort's best similarity to `vector`, best first."""
    best: dict[str, float] = {}
    for cohort, similarity in _search(index, vector, len(index.cohorts)):
        best.setdefault(cohort, similarity)
    return best


def _search(index: Index, vector: Vectors, count: int) -> Sequence[tuple[str, float]]:
    values, rows = index.faiss.search(vector[None, :], count)
    return [(index.cohorts[row], float(v)) for v, row in zip(values[0], rows[0], strict=True)]
