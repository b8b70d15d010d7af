"""Measures of decisions about labelled prompts, with intervals that are resampled by source."""

import math
from collections.abc import Callable

import msgspec
import numpy as np

from extproc.evidence.measure.metrics import (
    RESAMPLES,
    Bools,
    Estimate,
    Floats,
    auroc,
    recall_at_rejection,
    resamples,
    spread,
)

OUT_OF_SCOPE = "out of scope"
# The share of rows in scope that `found @5 %` rejects, and the share of other rows that `curve` sends to the
# cheapest tier.
_ALLOWED = 0.05
# Fewer sources than this say too little about other sources, so no interval is printed.
_LEAST_SOURCES = 3


class Judged(msgspec.Struct, frozen=True):
    """Decisions about labelled rows as arrays, with one entry per row."""

    source: np.ndarray  # str[n]: rows of one source are resampled together
    language: np.ndarray  # str[n]
    label: np.ndarray  # str[n]: a cohort or OUT_OF_SCOPE
    right: Bools  # the nearest cohort has the label's name
    accepted: Bools  # the match is trusted
    scope: Floats  # a higher score is more surely in scope
    cheap: Floats  # a higher score is more surely a task of the cheapest tier
    tier: np.ndarray  # int[n]: the rank of the tier that was chosen
    wanted: np.ndarray  # int[n]: the rank of the label's tier
    destructive: Bools  # another task's output cap was set, or reasoning was turned off for it

    def at(self, rows: np.ndarray) -> "Judged":
        """The chosen rows: bool[n], or int[m] with repetitions."""
        return Judged(*(getattr(self, name)[rows] for name in self.__struct_fields__))

    @property
    def outside(self) -> Bools:
        """Whether the label is out of scope."""
        outside: Bools = self.label == OUT_OF_SCOPE
        return outside


def share(of: Bools, among: Bools) -> float:
    """The share of the rows `among` for which `of` is also true. NaN without rows."""
    return float((of & among).sum() / among.sum()) if among.any() else math.nan


def curve(scores: Floats, easy: Bools, allowed: float = _ALLOWED) -> float:
    """The largest share of `easy` rows above a threshold that at most the share `allowed` of the others exceeds.

    Rows with equal scores are taken together. A score of minus infinity is never above a threshold. NaN unless
    there are rows of both kinds.
    """
    if not easy.any() or easy.all():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(ranked[1:] != ranked[:-1], True) & np.isfinite(ranked)
    others = np.cumsum(~easy[order]) / (~easy).sum()
    within = ends & (others <= allowed + 1e-9)
    return float(np.cumsum(easy[order])[within].max() / easy.sum()) if within.any() else 0.0


# One measure per column of the table: its title, and the share (0 to 1) that is printed in per cent.
MEASURES: dict[str, Callable[[Judged], float]] = {
    "right": lambda j: share(j.right, ~j.outside),
    "AUROC": lambda j: float(auroc(j.scope, ~j.outside)[0]),
    "found @5 %": lambda j: recall_at_rejection(j.scope[~j.outside], j.scope[j.outside], _ALLOWED),
    "right tier": lambda j: share(j.tier == j.wanted, np.ones(len(j.tier), dtype=bool)),
    "hard->small": lambda j: share(j.tier == 0, ~j.outside & (j.wanted > 0)),
    "oos->small": lambda j: share(j.tier == 0, j.outside & (j.wanted > 0)),
    "destructive": lambda j: share(j.destructive, np.ones(len(j.tier), dtype=bool)),
    "curve": lambda j: curve(j.cheap, j.wanted == 0),
    "wrong": lambda j: share(~j.right, j.accepted),
    "accepted": lambda j: share(j.accepted, np.ones(len(j.tier), dtype=bool)),
}


def measure(judged: Judged) -> dict[str, float]:
    """Every measure of these rows. NaN without rows to measure."""
    return {title: of(judged) for title, of in MEASURES.items()}


def estimates(judged: Judged, seed: int = 0) -> dict[str, Estimate]:
    """Every measure with its 95 % interval over sources (a cluster bootstrap). NaN as limits with few sources."""
    values, rows = measure(judged), len(judged.label)
    together = np.unique(judged.source, return_inverse=True)[1]
    if len(np.unique(together)) < _LEAST_SOURCES:
        return {title: Estimate(value, math.nan, math.nan, rows) for title, value in values.items()}
    drawn: dict[str, list[float]] = {title: [] for title in values}
    for weights in resamples(rows, seed, RESAMPLES, together):
        for counts in weights.astype(int):
            for title, value in measure(judged.at(np.repeat(np.arange(rows), counts))).items():
                drawn[title].append(value)
    return {title: spread(value, np.array(drawn[title]), rows) for title, value in values.items()}
