"""Ways to match, made from the vectors of utterances, labelled rows and the background."""

from collections.abc import Mapping

import msgspec
import numpy as np

from extproc.encoder.protocols import Vectors
from extproc.evidence.measure.metrics import GroupIds
from extproc.routing.centroid_file import Matcher
from extproc.routing.centroids import fit, mean_directions
from extproc.routing.head import Head, fit_head

# Ordered by complexity: of two kinds that do equally well, the first is chosen. UTTERANCES serves without a file.
UTTERANCES = "utterances alone"
PRESENT = "present"  # the file of centroids that serves now
MEANS = "means"
FITTED = "fitted"
SEVERAL = "several, fitted"
HEAD = "head"
# The mean of two heads, one of them fitted without the labelled rows in scope (weight-space ensembling, Wortsman et
# al. 2022). It gains less on rows like the labelled ones, and loses nothing on those of other sources.
BLEND = "blended head"
KINDS = (MEANS, FITTED, SEVERAL, HEAD)
WITH_CHANCES = (HEAD, BLEND)  # the kinds that know the chance of every cohort, which choose the tier in doubt
# With SEVERAL a cohort gets one more centroid for every _TEXTS_EACH texts, up to _MOST.
_TEXTS_EACH, _MOST = 12, 3
_ROUNDS = 10  # of k-means; it usually converges earlier


class Texts(msgspec.Struct, frozen=True, eq=False):
    """The vectors to fit on: of the utterances by cohort, and of the texts that belong to no cohort."""

    utterances: Mapping[str, Vectors]
    background: Vectors  # float32[n, d]; n may be 0

    def joined(self, rows: Vectors, labels: np.ndarray, groups: GroupIds) -> "Texts":
        """Return them with labelled rows. Rows with the label None belong to no cohort.

        Rows of one group with one label become one row, their mean.
        """
        pairs = list(zip(groups.tolist(), labels.tolist(), strict=True))
        first = {pair: i for i, pair in reversed([*enumerate(pairs)])}
        at = {pair: k for k, pair in enumerate(sorted(first, key=first.__getitem__))}
        if len(at) < len(pairs):
            rows = mean_directions(rows, np.array([at[pair] for pair in pairs]), len(at))
            labels = np.array([label for _, label in at], dtype=object)
        labelled = by_label(rows, labels)
        utterances = {
            name: np.concatenate([vectors, labelled[name]]) if name in labelled else vectors
            for name, vectors in self.utterances.items()
        }
        outside = rows[np.array([label is None for label in labels], dtype=bool)]
        return Texts(utterances, np.concatenate([self.background, outside]))


def kinds_for(background: bool, several_sources: bool) -> tuple[str, ...]:
    """Return the kinds to try.

    With a background, the chances of a head choose the tier of a request in doubt, so a kind without chances would
    serve worse. With rows of several sources, more sources are to be expected.
    """
    if several_sources:
        return (BLEND,)
    return WITH_CHANCES if background else KINDS


def matcher_of(kind: str, texts: Texts, utterances: Mapping[str, Vectors] | None = None) -> Matcher:
    """Fit a kind on utterances that are joined with labelled rows. BLEND needs the `utterances` alone, too."""
    count = _MOST if kind == SEVERAL else 1
    classes = [*texts.utterances.values(), *([texts.background] if len(texts.background) else [])]
    starts = [k_means(rows, max(1, min(count, len(rows) // _TEXTS_EACH))) for rows in classes]
    sizes = [len(rows) for rows in starts]
    centroids = np.concatenate(starts)
    if kind in (FITTED, SEVERAL):
        member = np.repeat(np.arange(len(classes)), [len(rows) for rows in classes])
        centroids = fit(np.concatenate(classes), member, centroids, np.repeat(np.arange(len(classes)), sizes))
    split = np.split(centroids, np.cumsum(sizes)[:-1])
    by_cohort = dict(zip(texts.utterances, split, strict=False))
    if kind in WITH_CHANCES:
        head = fit_head(texts.utterances, texts.background)
        if kind == BLEND and utterances is not None:
            head = _mean(head, fit_head(utterances, texts.background))
        return Matcher(by_cohort, None, head)
    return Matcher(by_cohort, split[-1] if len(texts.background) else None)


def _mean(first: Head, second: Head) -> Head:
    half = np.float32(0.5)
    return Head(half * (first.weights + second.weights), half * (first.bias + second.bias))


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
