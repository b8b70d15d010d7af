"""How much of the quality gap between two models a router recovers (RouteLLM, Ong et al. 2024)."""

import math

import numpy as np

from extproc.evidence.measure.metrics import Floats


def recovered(scores: Floats, weak: Floats, strong: Floats) -> tuple[Floats, Floats]:
    """The curve of a router by its scores: (share of calls to the strong model, share of the gap recovered).

    `scores`, `weak` and `strong` are float64[n]: the router's score for each request, and each model's quality.
    Requests with the highest scores go to the strong model first. Requests with equal scores go together, in random
    order. The gap recovered is (quality - weak) / (strong - weak), or NaN when there is no gap.
    """
    _, place = np.unique(-scores, return_inverse=True)
    count = np.bincount(place)
    gain = np.bincount(place, weights=strong - weak)
    calls = np.concatenate([[0.0], np.cumsum(count)]) / len(scores)
    gap = float((strong - weak).sum())
    won = np.concatenate([[0.0], np.cumsum(gain)])
    return calls, (won / gap if gap else np.full(len(won), np.nan))


def apgr(scores: Floats, weak: Floats, strong: Floats) -> float:
    """Average performance gap recovered: the area under the curve. A random router has 0.5. NaN without a gap."""
    calls, gap = recovered(scores, weak, strong)
    return float((np.diff(calls) * (gap[1:] + gap[:-1]) / 2).sum())


def cpt(scores: Floats, weak: Floats, strong: Floats, target: float) -> float:
    """Call-performance threshold: the smallest share of calls to the strong model that recovers `target`."""
    calls, gap = recovered(scores, weak, strong)
    reached = np.flatnonzero(gap >= target - 1e-12)
    if not len(reached):
        return math.nan
    at = int(reached[0])
    if at == 0:
        return 0.0
    part = (target - gap[at - 1]) / (gap[at] - gap[at - 1])
    return float(calls[at - 1] + part * (calls[at] - calls[at - 1]))
