"""Ways to make centroids from the vectors of utterances and labelled rows."""

from collections.abc import Mapping

import numpy as np

from extproc.encoder.protocols import Vectors
from extproc.routing.centroids import fit, mean_directions

# Ordered by complexity: of two kinds that do equally well, the first is chosen. UTTERANCES serves without a file.
UTTERANCES = "utterances alone"
MEANS = "means"
FITTED = "fitted"
SEVERAL = "several, fitted"
KINDS = (UTTERANCES, MEANS, FITTED, SEVERAL)
# With SEVERAL a cohort gets one more centroid for every _TEXTS_EACH texts, up to _MOST.
_TEXTS_EACH, _MOST = 12, 3
_ROUNDS = 10  # of k-means; it usually converges earlier


def centroids_of(
    kind: str, utterances: Mapping[str, Vectors], labelled: Mapping[str, Vectors]
) -> dict[str, Vectors]:
    """Return cohort -> float32[n, d], its unit centroids.

    Both inputs are vectors by cohort. The kind UTTERANCES uses only the first, every other kind uses both.
    """
    texts = [
        np.concatenate([vectors, labelled[name]]) if kind != UTTERANCES and name in labelled else vectors
        for name, vectors in utterances.items()
    ]
    count = _MOST if kind == SEVERAL else 1
    starts = [k_means(rows, max(1, min(count, len(rows) // _TEXTS_EACH))) for rows in texts]
    sizes = [len(rows) for rows in starts]
    centroids = np.concatenate(starts)
    if kind != MEANS:
        member = np.repeat(np.arange(len(texts)), [len(rows) for rows in texts])
        centroids = fit(np.concatenate(texts), member, centroids, np.repeat(np.arange(len(texts)), sizes))
    return dict(zip(utterances, np.split(centroids, np.cumsum(sizes)[:-1]), strict=True))


def k_means(rows: Vectors, count: int) -> Vectors:
    """Return float32[count, d]: the mean directions of `count` groups of similar rows.

    This is spherical k-means (Dhillon and Modha 2001). Each group starts from the row that is least similar to the
    starts before it, so the result is deterministic.
    """
    centres = mean_directions(rows, np.zeros(len(rows), dtype=int), 1)
    if count == 1:
        return centres
    centres = rows[[int((rows @ centres[0]).argmin())]]
    while len(centres) < count:
        centres = np.concatenate([centres, rows[[int((rows @ centres.T).max(axis=1).argmin())]]])
    for _ in range(_ROUNDS):
        member = (rows @ centres.T).argmax(axis=1)
        filled = np.bincount(member, minlength=count) > 0
        centres = np.where(filled[:, None], mean_directions(rows, member, count), centres)
    return centres


def by_label(rows: Vectors, labels: np.ndarray) -> dict[str, Vectors]:
    """Return cohort -> the rows with this label. Rows without a label are left out."""
    return {name: rows[labels == name] for name in dict.fromkeys(labels.tolist()) if name is not None}
