"""The MMLU data of RouteLLM by its own protocol: predict from the prompt which prompts need the strong model."""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from bench import surface
from bench.cache import Cache, CachedEncoder, fitted
from bench.recovery import apgr, cpt
from bench.success import Asked, asked_facts, cohort_gains, fit_stack, served_gains
from extproc.encoder.protocols import Vectors
from extproc.evidence.measure.metrics import Floats, spread

_FOLDS, _RESAMPLES = 5, 300
# This many characters of a prompt are embedded. Later text is mostly options and takes longer.
CHARS = 400


class Prompts(msgspec.Struct, frozen=True):
    """Prompts, one row each."""

    subject: np.ndarray
    vectors: Vectors
    facts: Floats
    weak: Floats  # 1 if the weak model's answer is right
    strong: Floats  # 1 if the strong model's answer is right
    asked: Vectors  # the facts that the router reads

    def as_served(self) -> Asked:
        """The prompts as `extproc calibrate --target` reads them. The subjects are the cohorts.

        No costs were recorded, so every prompt has the same extra cost.
        """
        success = np.stack([self.weak, self.strong], axis=1)
        return Asked(self.vectors, self.asked, self.subject, success, np.ones(len(self.weak)))

    @property
    def gain(self) -> Floats:
        """The gain of the strong model's answer over the weak one's: -1, 0 or 1."""
        return self.strong - self.weak

    def rows(self, chosen: np.ndarray) -> "Prompts":
        """The chosen rows."""
        return Prompts(*(getattr(self, name)[chosen] for name in self.__struct_fields__))


Way = Callable[[Prompts, Prompts], Floats]  # (prompts to fit on, prompts to predict) -> predicted gain


def read_routellm(cache: Cache, path: Path, chars: int = CHARS, most: int = 0) -> Prompts:
    """Read the prompts, without those that RouteLLM found contaminated, or `most` of them at random."""
    with gzip.open(path) as lines:
        rows = [row for row in map(msgspec.json.decode, lines) if not row["contaminated"]]
    if most:
        rows = [rows[i] for i in np.sort(np.random.default_rng(0).permutation(len(rows))[:most])]
    vectors = CachedEncoder(cache).encode([row["prompt"][:chars] for row in rows])
    return Prompts(
        np.array([row["subject"] for row in rows]),
        vectors,
        np.stack([surface.of_question(row["prompt"]) for row in rows]),
        np.array([row["weak"] for row in rows], dtype=np.float64),
        np.array([row["strong"] for row in rows], dtype=np.float64),
        asked_facts([row["prompt"] for row in rows]),
    )


def table(cache: Cache, path: Path, seed: int) -> Iterator[str]:
    """The lines of the table, each as soon as it is ready."""
    prompts = read_routellm(cache, path)
    n = len(prompts.weak)
    fold_of_row = np.random.default_rng(seed).permutation(n) % _FOLDS
    subjects = np.unique(prompts.subject)
    fold_of_subject = np.random.default_rng(seed).permutation(len(subjects)) % _FOLDS
    by_subject = fold_of_subject[np.searchsorted(subjects, prompts.subject)]
    yield f"{'':<52}{'APGR [95 %]':<23}{'CPT(50) % [95 %]':<23}CPT(80) % [95 %]"
    stack, stack_with_subject, nearest = _stack(seed), _stack(seed, subjects), _nearest(cache)
    yield f"own traffic, {_FOLDS}-fold: calibrated on prompts of the same subjects, {n:,} prompts"
    for name, scores in {
        "random": np.zeros(n),
        "cohort success rates, subject given": _predicted(_by_subject, prompts, fold_of_row),
        "cohort success rates, nearest fitted centroid": _predicted(nearest, prompts, fold_of_row),
        "stack: neighbours, ridge, boosting": _predicted(stack, prompts, fold_of_row),
        "the same, subject given": _predicted(stack_with_subject, prompts, fold_of_row),
        "by the prompt, as served, subject given": _predicted(_served(seed), prompts, fold_of_row),
        "oracle": prompts.gain,
    }.items():
        yield _line(name, scores, prompts, seed)
    yield f"out of domain, {_FOLDS}-fold over subjects: calibrated on other subjects"
    for name, scores in {
        "cohort success rates, nearest fitted centroid": _predicted(nearest, prompts, by_subject),
        "stack: neighbours, ridge, boosting": _predicted(stack, prompts, by_subject),
    }.items():
        yield _line(name, scores, prompts, seed)


def _predicted(way: Way, prompts: Prompts, fold: np.ndarray) -> Floats:
    """The predicted gain of each prompt, by a fit on the other folds."""
    gain = np.empty(len(prompts.weak))
    for k in range(_FOLDS):
        gain[fold == k] = way(prompts.rows(fold != k), prompts.rows(fold == k))
    return gain


def _by_subject(fit: Prompts, prompts: Prompts) -> Floats:
    return cohort_gains(fit.subject, fit.gain, prompts.subject)


def _nearest(cache: Cache) -> Way:
    def way(fit: Prompts, prompts: Prompts) -> Floats:
        names, labels = np.unique(fit.subject, return_inverse=True)
        centroids, _ = fitted(cache, fit.vectors, labels)
        fit_names, new_names = (names[(part.vectors @ centroids.T).argmax(axis=1)] for part in (fit, prompts))
        return cohort_gains(fit_names, fit.gain, new_names)

    return way


def _stack(seed: int, subjects: np.ndarray | None = None) -> Way:
    def facts(part: Prompts) -> Floats:
        return part.facts if subjects is None else np.hstack([part.facts, part.subject[:, None] == subjects])

    def way(fit: Prompts, prompts: Prompts) -> Floats:
        return fit_stack(fit.vectors, facts(fit), fit.gain, seed).gains(prompts.vectors, facts(prompts))

    return way


def _served(seed: int) -> Way:
    return lambda fit, prompts: served_gains(fit.as_served(), prompts.as_served(), seed)


def _line(name: str, scores: Floats, prompts: Prompts, seed: int) -> str:
    def measures(rows: np.ndarray) -> tuple[float, float, float]:
        drawn = scores[rows], prompts.weak[rows], prompts.strong[rows]
        return apgr(*drawn), 100 * cpt(*drawn, 0.5), 100 * cpt(*drawn, 0.8)

    rng, n = np.random.default_rng(seed), len(scores)
    resampled = np.array([measures(rng.integers(0, n, n)) for _ in range(_RESAMPLES)]).T
    cells = []
    for value, draws, digits in zip(measures(np.arange(n)), resampled, (3, 1, 1), strict=True):
        estimate = spread(value, draws, n)
        cells.append(f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]")
    return f"  {name:<50}" + "".join(f"{cell:<23}" for cell in cells).rstrip()
