"""A richer acceptance score than the one that serves (evidence/fit/scorer.py): how much is left to gain.

It also reads embeddings of question and answer, and 45 facts, bent at their quartiles; the verifier would have to
embed every answer for it. All cohorts share one logistic curve, and each has a level and slopes of its own as far
as its rows speak for them.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from bench import surface
from bench.logistic import Logistic, fit_logistic
from extproc.encoder.protocols import Vectors
from extproc.evidence.measure.metrics import Floats

# How much weights are drawn to 0: of facts, of embeddings, of cohorts' own slopes. By cross-validation on the part
# of MMLU-Pro that is fitted on; flat around them.
_RIDGE = (30.0, 6000.0, 1000.0)
# Where the slope of a fact may change: its quartiles.
_KNEES = (0.25, 0.5, 0.75)


class Judged(msgspec.Struct, frozen=True):
    """Answers to score, a row each."""

    cohort: np.ndarray  # names
    facts: Floats  # of surface.of_question and surface.of_answer, and of the rules
    meaning: Vectors  # embeddings of question and answer, side by side


class Scorer(msgspec.Struct, frozen=True):
    """A fitted acceptance score."""

    cohorts: tuple[str, ...]
    knees: Floats  # [quartile, fact]
    curve: Logistic

    def chances(self, judged: Judged) -> Floats:
        """float64[n]: how likely each answer is right."""
        return self.curve.chances(_columns(judged, self.cohorts, self.knees))


def fit_scorer(judged: Judged, right: Floats, ridge: tuple[float, float, float] = _RIDGE) -> Scorer:
    """Fit on answers known to be right (1) or wrong (0). Deterministic."""
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
    """What the score reads; `rejected`: by the cohort's rules. `meaning`: float32[n, d]."""
    facts = [
        np.concatenate([surface.of_question(question), surface.of_answer(question, answer), [float(no)]])
        for question, answer, no in zip(questions, answers, rejected, strict=True)
    ]
    return Judged(np.array(cohorts), np.stack(facts), meaning)


def _columns(judged: Judged, cohorts: tuple[str, ...], knees: Floats) -> Floats:
    """float64[n, columns]: facts, bent at their quartiles; meaning; and each cohort's own level and slopes."""
    spread = np.maximum(knees[-1] - knees[0], 1e-9)
    bent = [np.maximum(judged.facts - knee, 0) for knee in knees]
    member = (judged.cohort[:, None] == np.array(cohorts)[None, :]).astype(np.float64)
    slopes = np.clip((judged.facts - knees[1]) / spread, -3, 3)
    own = (member[:, :, None] * slopes[:, None, :]).reshape(len(member), -1)
    return np.hstack([judged.facts, *bent, judged.meaning, member, own])
