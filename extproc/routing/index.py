"""Find the cohort of a vector: an exact search for inner products with the centroids or the head's weights."""

import weakref
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from extproc.encoder.protocols import Vectors
from extproc.routing.head import Head, softmax
from extproc.routing.products import Products

# The weight of the mean in the similarity, for an encoder that is not adapted. A higher weight rejects more of
# CLINC150's out-of-scope validation rows, but fewer rows of left-out intents, which are near to a cohort. Above
# this weight, that loss grows faster.
BACK = 0.3
# Up to this many values, sorting all of them is faster than finding the highest first.
_FEW = 256
# As many as the vectors that the encoder remembers.
_KEPT_MATCHES = 1024


class Match(msgspec.Struct, frozen=True):
    """The nearest cohort, with its similarity and margin, and with chances if the index has a head."""

    cohort: str
    similarity: float
    # Lead over every other cohort and the background, at least 0: in chances if the index has a head, otherwise in
    # cosines of the nearest centroids.
    margin: float
    runner_up: str | None = None  # that other cohort; None if there is only one cohort
    chance: float | None = None  # that the text belongs to the cohort. None: there is no head
    runner_up_chance: float = 0.0
    alike: float = 0.0  # chance of all cohorts with the same settings, with that of the cohort itself
    background: float = 0.0  # chance that the text belongs to no cohort
    tiers: Mapping[str, float] = {}  # chance of the cohorts that need each tier, by the tier's name
    # Predicted gain in quality of the costlier of the cohort's two tiers. None: the prompt does not choose.
    gain: float | None = None
    columns: tuple[float, ...] = ()  # of the prompt, if a rule predicts the gain again with the answer
    # If this is the match of a follow-up alone: that with the asks before it. Its guard holds, too.
    joined: "Match | None" = None
    place: int = 0  # of its ask among those that were matched

    @property
    def in_scope(self) -> float:
        """The chance of the cohort against that of the background, from 0 to 1. No background: the similarity."""
        if self.chance is None or self.background <= 0:
            return self.similarity
        return self.chance / (self.chance + self.background)


class Kind(msgspec.Struct, frozen=True):
    """The settings of a cohort, as far as the matching needs them."""

    tier: str  # the tier that it needs
    like: str  # the first cohort with the same settings


class Index:
    """The centroids of all cohorts, one or more each, and the head if there is one."""

    def __init__(
        self,
        centroids: Mapping[str, Vectors],
        means: Mapping[str, Vectors] | None = None,
        back: float = BACK,
        head: Head | None = None,
        kinds: Mapping[str, Kind] | None = None,
        background: Vectors | None = None,
    ) -> None:
        """`centroids`: cohort -> float32[n, d]. `means`: cohort -> float32[d]. All are unit vectors.

        `back` is the weight of the mean in the similarity. Without means, similarity is the cosine of the nearest
        centroid. The classes of `head` are the cohorts, in order, and the background after them. With it, the
        cohort with the highest chance is the nearest. `kinds` has the settings of each cohort. Without them each
        cohort has its own kind. `background` has centroids of the background, float32[n, d]. They count
        in the margin. Raises ValueError if there is no cohort.
        """
        if not centroids:
            raise ValueError("the index has no cohort: give at least one cohort with its centroids")
        self.centroids, self.means, self.back, self.head = centroids, means, back, head
        self.background = background
        if head is None:
            self.cohorts = [name for name, rows in centroids.items() for _ in range(len(rows))]
            # As many results as the search needs to reach a second cohort behind all centroids of the first one.
            self.neighbours = min(len(self.cohorts), 1 + max(len(rows) for rows in centroids.values()))
        else:
            self.cohorts = list(centroids)
            kinds = kinds or {name: Kind(name, name) for name in centroids}
            self.tiers = list(dict.fromkeys(kinds[name].tier for name in centroids))
            # The number of the tier and of the settings of each class. The background has its own numbers.
            classes = len(head.bias)
            self.tier_of = np.array([*(self.tiers.index(kinds[n].tier) for n in centroids), len(self.tiers)])
            number = {name: i for i, name in enumerate(centroids)}
            self.like_of = np.array([*(number[kinds[n].like] for n in centroids), len(number)])
            self.tier_of, self.like_of = self.tier_of[:classes], self.like_of[:classes]
        self._products = Products(self.stacked())
        # Matches of vectors that cannot change, by their id. A reference that is dead, or to another vector, is one
        # to a vector that is gone.
        self._matches: dict[int, tuple[weakref.ref[Vectors], Match]] = {}

    def stacked(self) -> Vectors:
        """Return the rows that a vector is compared with, float32[n, d]: the head's weights or the centroids."""
        return np.concatenate(list(self.centroids.values())) if self.head is None else self.head.weights

    def scores(self, vector: Vectors) -> Vectors:
        """Return the cosine of each centroid, float32[n], or the score of each class if there is a head."""
        products = self._products.with_vector(vector)
        return products if self.head is None else products + self.head.bias

    def recall(self, vector: Vectors) -> Match | None:
        """Return the match that was kept for this vector."""
        kept = self._matches.get(id(vector))
        return kept[1] if kept is not None and kept[0]() is vector else None

    def keep(self, vector: Vectors, match: Match) -> None:
        """Keep the match of a vector that cannot change."""
        if len(self._matches) >= _KEPT_MATCHES:
            self._matches.clear()
        self._matches[id(vector)] = weakref.ref(vector), match


def nearest(index: Index, vector: Vectors) -> Match:
    """Return the cohort nearest to `vector` (float32[d], unit length).

    With a head it is the one with the highest chance. With a single cohort, the margin is the cosine of its
    centroid. The margin is never negative. An array that is read-only is searched for once: the encoder's cache
    returns the same one each time for a text.
    """
    if vector.flags.writeable:
        return _searched(index, vector)
    match = index.recall(vector)
    if match is None:
        match = _searched(index, vector)
        index.keep(vector, match)
    return match


def _searched(index: Index, vector: Vectors) -> Match:
    if index.head is not None:
        return _likeliest(index, vector)
    cosines = index.scores(vector)
    ranked = [(index.cohorts[row], float(cosines[row])) for row in _highest(cosines, index.neighbours)]
    cohort, best = ranked[0]
    runner_up, second = next(((name, cosine) for name, cosine in ranked if name != cohort), (None, 0.0))
    if index.background is not None:
        second = max(second, float((index.background @ vector).max()))
    return Match(cohort, _similarity(index, cohort, vector, best), max(0.0, best - second), runner_up)


def _likeliest(index: Index, vector: Vectors) -> Match:
    """The cohort with the highest chance."""
    chances, cohorts = softmax(index.scores(vector)), index.cohorts
    first, *others = _highest(chances[: len(cohorts)], 2)
    second = others[0] if others else None
    chance, runner_up_chance = float(chances[first]), float(chances[second]) if second is not None else 0.0
    background = float(chances[len(cohorts) :].sum())
    cohort = cohorts[first]
    by_tier = np.bincount(index.tier_of, chances)
    return Match(
        cohort,
        _similarity(index, cohort, vector, _cosine(index, cohort, vector)),
        max(0.0, chance - max(runner_up_chance, background)),
        cohorts[second] if second is not None else None,
        chance,
        runner_up_chance,
        float(chances[index.like_of == index.like_of[first]].sum()),
        background,
        dict(zip(index.tiers, by_tier.tolist(), strict=False)),
    )


def _highest(values: Vectors, count: int) -> list[int]:
    """Return the places of the highest values, the highest first. Equal values come in reverse."""
    if count < len(values) and len(values) > _FEW:
        at = np.flatnonzero(values >= np.partition(values, -count)[-count])
    else:
        at = np.arange(len(values))
    places: list[int] = at[np.argsort(values[at], kind="stable")[: -count - 1 : -1]].tolist()
    return places


def chances(index: Index, vector: Vectors) -> dict[str | None, float]:
    """Return the chance of every cohort and of the background (None), the highest first. Empty without a head."""
    if index.head is None:
        return {}
    values, names = softmax(index.scores(vector)), [*index.cohorts, None]
    return {names[row]: float(values[row]) for row in _highest(values, len(values))}


def similarities(index: Index, vector: Vectors) -> dict[str, float]:
    """Return the similarity of every cohort to `vector`, the nearest cohort first."""
    best = {cohort: _cosine(index, cohort, vector) for cohort in index.centroids}
    ranked = sorted(best.items(), key=lambda pair: -pair[1])
    return {cohort: _similarity(index, cohort, vector, cosine) for cohort, cosine in ranked}


def _cosine(index: Index, cohort: str, vector: Vectors) -> float:
    """The cosine of the cohort's nearest centroid."""
    return float((index.centroids[cohort] @ vector).max())


def _similarity(index: Index, cohort: str, vector: Vectors, cosine: float) -> float:
    return cosine if index.means is None else float(similarity(cosine, index.means[cohort] @ vector, index.back))


def similarity(to_centroid: Any, to_mean: Any, back: float) -> Any:
    """Return the similarity of texts to a cohort, from -1 to 1, from two cosines (floats or arrays).

    Centroids are fitted to differ from each other, so they show best which cohort is nearest. This fit turns them
    away from the direction that all cohorts share. The mean keeps that direction, so it shows better whether a text
    belongs to any cohort.
    """
    return (1 - back) * to_centroid + back * to_mean
