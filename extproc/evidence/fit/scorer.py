"""The acceptance score, fitted: which weights of the facts in acceptance/score.py predict that an answer is right.

All cohorts share one logistic curve. Each cohort also has its own level and weights, as far as its rows support
them. Both are added up into one list of weights per cohort, which serves.
"""

from collections.abc import Mapping

import msgspec
import numpy as np

from extproc.acceptance.score import LOGPROB_FACTS, SCORE_FACTS
from extproc.evidence.fit.edits import DIGITS
from extproc.evidence.fit.logistic import fit_weights, logistic, spread_of
from extproc.evidence.measure.metrics import Floats

# How strongly weights are shrunk towards 0: the shared ones, and those of one cohort. Chosen by cross-validation
# on the part of MMLU-Pro that bench/cascade.py fits on. Values near these do equally well.
_SHARED_RIDGE, _COHORT_RIDGE = 10.0, 100.0
_FOLDS = 5


class Answers(msgspec.Struct, frozen=True):
    """Recorded answers of one tier. Each array has one entry per answer."""

    cohort: np.ndarray  # names
    facts: Floats  # [answer, fact], in the order of SCORE_FACTS
    right: Floats  # 0 to 1
    weight: Floats | None = None  # how many answers each stands for. None: 1

    def subset(self, chosen: np.ndarray) -> "Answers":
        """Return the chosen answers."""
        weight = None if self.weight is None else self.weight[chosen]
        return Answers(self.cohort[chosen], self.facts[chosen], self.right[chosen], weight)


class Curve(msgspec.Struct, frozen=True):
    """The weights of one cohort, as the YAML has them."""

    offset: float
    weights: dict[str, float]

    def chances(self, facts: Floats) -> Floats:
        """Return float64[n]: the probability that each answer is right."""
        return logistic(facts @ np.array([self.weights.get(name, 0.0) for name in SCORE_FACTS]) + self.offset)


def fit_curves(answers: Answers, logprobs: bool) -> dict[str, Curve]:
    """Fit the curve of each cohort. Deterministic.

    `logprobs`: all answers have log-probabilities, so the facts about them may have weights.
    """
    names = np.unique(answers.cohort)
    used = np.array([logprobs or name not in LOGPROB_FACTS for name in SCORE_FACTS])
    center, scale = spread_of(answers.facts)
    rows = np.where(used, (answers.facts - center) / scale, 0.0)
    member = (answers.cohort[:, None] == names).astype(np.float64)
    by_cohort = (member[:, :, None] * rows[:, None, :]).reshape(len(rows), -1)
    ridge = np.repeat(
        [_SHARED_RIDGE, _COHORT_RIDGE, _COHORT_RIDGE], [len(SCORE_FACTS), len(names), by_cohort.shape[1]]
    )
    fitted, offset = fit_weights(np.hstack([rows, member, by_cohort]), answers.right, ridge, answers.weight)
    shared, levels, slopes = np.split(fitted, [len(SCORE_FACTS), len(SCORE_FACTS) + len(names)])
    curves = {}
    for name, level, slope in zip(names.tolist(), levels, slopes.reshape(len(names), -1), strict=True):
        weights = (shared + slope) / scale
        curves[name] = Curve(
            round(float(offset + level - weights @ center), DIGITS),
            {
                fact: weight
                for fact, w in zip(SCORE_FACTS, weights, strict=True)
                if (weight := round(float(w), DIGITS))
            },
        )
    return curves


def unseen_chances(answers: Answers, text: Floats, logprobs: bool, seed: int) -> Floats:
    """Return float64[n]: the probability that each answer is right, by a curve that was fitted without it.

    `text`: float64[n], equal for repeated requests. Their answers are left out together. NaN: no answer of the
    cohort was left to fit on.
    """
    _, first, of_text = np.unique(text, return_index=True, return_inverse=True)
    fold = np.empty(len(first), dtype=int)
    fold[first.argsort()] = np.random.default_rng(seed).permutation(len(first)) % _FOLDS
    fold = fold[of_text]
    chances = np.full(len(fold), np.nan)
    for k in range(_FOLDS):
        if (fold == k).any() and (fold != k).any():
            curves = fit_curves(answers.subset(fold != k), logprobs)
            chances[fold == k] = chances_of(curves, answers.subset(fold == k))
    return chances


def chances_of(curves: Mapping[str, Curve], answers: Answers) -> Floats:
    """Return float64[n]: the probability that each answer is right. NaN: its cohort has no curve."""
    chances = np.full(len(answers.right), np.nan)
    for name, curve in curves.items():
        rows = answers.cohort == name
        chances[rows] = curve.chances(answers.facts[rows])
    return chances
