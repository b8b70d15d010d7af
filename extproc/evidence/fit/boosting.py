"""Boosted oblivious trees in NumPy: least squares, with the same comparison for all nodes of a level.

Such trees are shallow, hard to overfit and fast to walk (CatBoost, Prokhorenkova et al. 2018). Depth, shrinkage and
number were chosen on MMLU-Pro and on 6,000 prompts of RouteLLM's MMLU, where the optimum is flat.
"""

import math

import numpy as np

from extproc.encoder.protocols import Vectors
from extproc.evidence.measure.metrics import Floats
from extproc.routing.prompt_gain import NO_CUT, Trees

_ROUNDS, _DEPTH, _RATE = 120, 4, 0.06
_RIDGE = 20.0  # rows with no error that are added to each leaf
_BINS = 32
_ROWS, _COLUMNS = 0.7, 0.5  # shares that are drawn for each tree
_REPEATS = 4  # boosted with other draws, and averaged


def boost(rows: Vectors, target: Floats, seed: int, repeats: int | None = None, times: int = 1) -> Trees:
    """Fit trees on float32[n, columns] and float64[n]. Deterministic.

    More repeats give more trees, which are averaged. `times` is how much longer each boosting goes on.
    """
    repeats = _REPEATS if repeats is None else repeats
    cuts = np.quantile(rows, np.linspace(0, 1, _BINS + 1)[1:-1], axis=0).astype(np.float32).T
    cuts[np.ptp(rows, axis=0) == 0] = NO_CUT
    binned = np.stack([np.searchsorted(edges, column) for edges, column in zip(cuts, rows.T, strict=True)])
    base = float(target.mean())
    trees = [
        tree
        for repeat in range(repeats)
        for tree in _boosted(binned, target - base, np.random.default_rng((seed, repeat)), times * _ROUNDS)
    ]
    features, at, leaves = (np.array(part) for part in zip(*trees, strict=True))
    return Trees(base, features, cuts[features, at], (leaves / repeats).astype(np.float32))


_Tree = tuple[list[int], list[int], Floats]  # (column, bin) of each level, and the leaves


def difference(up: Trees, down: Trees) -> Trees:
    """Return the trees that predict one target minus the other."""
    return Trees(
        up.base - down.base,
        np.concatenate([up.features, down.features]),
        np.concatenate([up.cuts, down.cuts]),
        np.concatenate([up.leaves, -down.leaves]),
    )


def _boosted(binned: np.ndarray, error: Floats, rng: np.random.Generator, rounds: int) -> list[_Tree]:
    """One tree after the other, each on the error that the trees before it leave."""
    columns, n = binned.shape
    trees = []
    for _ in range(rounds):
        drawn = np.sort(rng.permutation(n)[: max(1, int(_ROWS * n))])
        tried = np.sort(rng.permutation(columns)[: max(1, int(_COLUMNS * columns))])
        features, at, leaf = _grown(binned[:, drawn], error[drawn], tried)
        sums = np.bincount(leaf, weights=error[drawn], minlength=2**_DEPTH)
        leaves = _RATE * sums / (np.bincount(leaf, minlength=2**_DEPTH) + _RIDGE)
        place = np.zeros(n, dtype=np.int64)
        for column, cut in zip(features, at, strict=True):
            place = 2 * place + (binned[column] > cut)
        error = error - leaves[place]
        trees.append((features, at, leaves))
    return trees


def _grown(binned: np.ndarray, error: Floats, tried: np.ndarray) -> tuple[list[int], list[int], np.ndarray]:
    """The comparison of each level that explains most of the error, and the leaf of each row."""
    leaf = np.zeros(len(error), dtype=np.int64)
    features, at = [], []
    offsets, errors = np.arange(len(tried))[:, None], np.tile(error, len(tried))
    for depth in range(_DEPTH):
        shape = (len(tried), 2**depth, _BINS)
        places = ((offsets * 2**depth + leaf) * _BINS + binned[tried]).ravel()
        sums = np.bincount(places, errors, math.prod(shape)).reshape(shape).cumsum(axis=2)
        counts = np.bincount(places, minlength=math.prod(shape)).reshape(shape).cumsum(axis=2)
        below, above = sums[:, :, :-1], sums[:, :, -1:] - sums[:, :, :-1]
        fewer, more = counts[:, :, :-1], counts[:, :, -1:] - counts[:, :, :-1]
        explained = (below**2 / (fewer + _RIDGE) + above**2 / (more + _RIDGE)).sum(axis=1)
        best, cut = np.unravel_index(int(explained.argmax()), explained.shape)
        features.append(int(tried[best]))
        at.append(int(cut))
        leaf = 2 * leaf + (binned[tried[best]] > cut)
    return features, at, leaf
