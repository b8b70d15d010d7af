"""A richer acceptance score than the served one, which shows how much could be gained over evidence/fit/scorer.py.

It also uses embeddings of question and answer, and 45 facts with a change of slope at each quartile. To serve it,
the verifier would have to embed every answer. All cohorts share one logistic curve. Each cohort has its own level
and slopes, as far as its rows support them.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from bench import surface
from bench.logistic import Logistic, fit_logistic
from extproc.encoder.protocols import Vectors
from extproc.evidence.measure.metrics import Floats

# How strongly weights shrink to 0: those of facts, of embeddings, and of the cohorts' own slopes. Chosen by
# cross-validation on the part of MMLU-Pro that is fitted on. The optimum is flat.
_RIDGE = (30.0, 6000.0, 1000.0)
# The slope of a fact may change at its quartiles.
_KNEES = (0.25, 0.5, 0.75)


class Judged(msgspec.Struct, frozen=True):
    """Answers to score, one row each."""

    cohort: np.ndarray  # names
    facts: Floats  # those of surface.of_question and surface.of_answer, and the verdict of the rules
    meaning: Vectors  # embeddings of question and answer, concatenated


class Scorer(msgspec.Struct, frozen=True):
    """A fitted acceptance score."""

    cohorts: tuple[str, ...]
    knees: Floats  # [quartile, fact]
    curve: Logistic

    def chances(self, judged: Judged) -> Floats:
        """float64[n]: the probability that each answer is right."""
        return self.curve.chances(_columns(judged, self.cohorts, self.knees))


def fit_scorer(judged: Judged, right: Floats, ridge: tuple[float, float, float] = _RIDGE) -> Scorer:
    """Fit on answers that are right (1) or wrong (0). Deterministic."""
    cohorts = tuple(sorted(set(judged.cohort.tolist())))
    knees = np.quantile(judged.facts, _KNEES, axis=0)
    columns = _columns(judged, cohorts, knees)
    shared = judged.facts.shape[1] * (1 + len(_KNEES))
    sizes = (shared, judged.meaning.shape[1], columns.shape[1] - shared - judged.meaning.shape[1])
    return Scorer(cohorts, knees, fit_logistic(columns, right, np.repeat(ridge, sizes)))


def read_answers(
    cohorts: Sequence[str],
    questions: Sequence[str],
    answers: Sequence[str],
    rejected: Sequence[bool],
    meaning: Vectors,
) -> Judged:
    """The inputs of the score. `rejected` has the verdicts of the cohort's rules, `meaning` is float32[n, d]."""
    facts = [
        np.concatenate([surface.of_question(question), surface.of_answer(question, answer), [float(reject)]])
        for question, answer, reject in zip(questions, answers, rejected, strict=True)
    ]
    return Judged(np.array(cohorts), np.stack(facts), meaning)


def _columns(judged: Judged, cohorts: tuple[str, ...], knees: Floats) -> Floats:
    """float64[n, columns]: facts with their changes of slope, meaning, and the level and slopes of each cohort."""
    spread = np.maximum(knees[-1] - knees[0], 1e-9)
    bent = [np.maximum(judged.facts - knee, 0) for knee in knees]
    member = (judged.cohort[:, None] == np.array(cohorts)[None, :]).astype(np.float64)
    slopes = np.clip((judged.facts - knees[1]) / spread, -3, 3)
    cohort_slopes = (member[:, :, None] * slopes[:, None, :]).reshape(len(member), -1)
    return np.hstack([judged.facts, *bent, judged.meaning, member, cohort_slopes])
