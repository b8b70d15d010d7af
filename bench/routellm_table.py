"""RouteLLM's MMLU by its own protocol: which prompts need the strong model, predicted from the prompt alone."""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from bench import surface
from bench.kept import Kept, KeptEncoder, fitted
from bench.recovery import apgr, cpt
from bench.success import cohort_gains, fit_stack
from extproc.encoder.protocols import Vectors
from extproc.evidence.measure.metrics import Floats, spread

_FOLDS, _RESAMPLES = 5, 300
# Of a prompt, what is embedded: past it the options are mostly over, and time is not.
CHARS = 400


class Asked(msgspec.Struct, frozen=True):
    """Prompts, a row each."""

    subject: np.ndarray
    vectors: Vectors
    facts: Floats
    weak: Floats  # 1: right
    strong: Floats

    @property
    def gain(self) -> Floats:
        """What the strong model's answer is worth over the weak one's."""
        return self.strong - self.weak

    def rows(self, chosen: np.ndarray) -> "Asked":
        """Some of them."""
        return Asked(*(getattr(self, name)[chosen] for name in self.__struct_fields__))


Way = Callable[[Asked, Asked], Floats]  # (fitted on, asked) -> predicted gain


def read_routellm(kept: Kept, path: Path) -> Asked:
    """Read it, without the prompts that RouteLLM found contaminated."""
    with gzip.open(path) as lines:
        rows = [row for row in map(msgspec.json.decode, lines) if not row["contaminated"]]
    vectors = KeptEncoder(kept).encode([row["prompt"][:CHARS] for row in rows])
    return Asked(
        np.array([row["subject"] for row in rows]),
        vectors,
        np.stack([surface.of_question(row["prompt"]) for row in rows]),
        np.array([row["weak"] for row in rows], dtype=np.float64),
        np.array([row["strong"] for row in rows], dtype=np.float64),
    )


def table(kept: Kept, path: Path, seed: int) -> Iterator[str]:
    """The lines of the table, as they are ready."""
    asked = read_routellm(kept, path)
    n = len(asked.weak)
    rows = np.random.default_rng(seed).permutation(n) % _FOLDS
    subjects = np.unique(asked.subject)
    apart = np.random.default_rng(seed).permutation(len(subjects)) % _FOLDS
    away = apart[np.searchsorted(subjects, asked.subject)]
    yield f"{'':<52}{'APGR [95 %]':<23}{'CPT(50) % [95 %]':<23}CPT(80) % [95 %]"
    yield f"own traffic, {_FOLDS}-fold: calibrated on prompts of the same subjects, {n:,} prompts"
    yield _line("random", np.zeros(n), asked, seed)
    yield _line("cohort success rates, subject given", _predicted(_by_subject, asked, rows), asked, seed)
    yield _line(
        "cohort success rates, nearest fitted centroid", _predicted(_nearest(kept), asked, rows), asked, seed
    )
    yield _line("stack: neighbours, ridge, boosting", _predicted(_stack(seed), asked, rows), asked, seed)
    yield _line("the same, subject given", _predicted(_stack(seed, subjects), asked, rows), asked, seed)
    yield _line("oracle", asked.gain, asked, seed)
    yield f"out of domain, {_FOLDS}-fold over subjects: calibrated on other subjects"
    yield _line(
        "cohort success rates, nearest fitted centroid", _predicted(_nearest(kept), asked, away), asked, seed
    )
    yield _line("stack: neighbours, ridge, boosting", _predicted(_stack(seed), asked, away), asked, seed)


def _predicted(way: Way, asked: Asked, fold: np.ndarray) -> Floats:
    """Each prompt's gain, by a fit on the other folds."""
    found = np.empty(len(asked.weak))
    for k in range(_FOLDS):
        found[fold == k] = way(asked.rows(fold != k), asked.rows(fold == k))
    return found


def _by_subject(fit: Asked, asked: Asked) -> Floats:
    return cohort_gains(fit.subject, fit.gain, asked.subject)


def _nearest(kept: Kept) -> Way:
    def way(fit: Asked, asked: Asked) -> Floats:
        names, labels = np.unique(fit.subject, return_inverse=True)
        at, _ = fitted(kept, fit.vectors, labels)
        mine, theirs = (names[(one.vectors @ at.T).argmax(axis=1)] for one in (fit, asked))
        return cohort_gains(mine, fit.gain, theirs)

    return way


def _stack(seed: int, subjects: np.ndarray | None = None) -> Way:
    def facts(of: Asked) -> Floats:
        return of.facts if subjects is None else np.hstack([of.facts, of.subject[:, None] == subjects])

    return lambda fit, asked: fit_stack(fit.vectors, facts(fit), fit.gain, seed).gains(asked.vectors, facts(asked))


def _line(name: str, scores: Floats, asked: Asked, seed: int) -> str:
    def measured(at: np.ndarray) -> tuple[float, float, float]:
        of = scores[at], asked.weak[at], asked.strong[at]
        return apgr(*of), 100 * cpt(*of, 0.5), 100 * cpt(*of, 0.8)

    rng, n = np.random.default_rng(seed), len(scores)
    again = np.array([measured(rng.integers(0, n, n)) for _ in range(_RESAMPLES)]).T
    cells = []
    for value, some, digits in zip(measured(np.arange(n)), again, (3, 1, 1), strict=True):
        found = spread(value, some, n)
        cells.append(f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]")
    return f"  {name:<50}" + "".join(f"{cell:<23}" for cell in cells).rstrip()
