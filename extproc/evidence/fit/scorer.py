"""The acceptance score's fit: which weights of extproc/acceptance/score.py's facts predict that an answer is right.

All cohorts share one logistic curve, and each has a level and weights of its own as far as its rows speak for them;
the two are folded into one list of weights a cohort, which serves.
"""

from collections.abc import Mapping

import msgspec
import numpy as np

from extproc.acceptance.score import LOGPROB_FACTS, SCORE_FACTS
from extproc.evidence.fit.edits import DIGITS
from extproc.evidence.fit.logistic import fit_weights, logistic, spread_of
from extproc.evidence.measure.metrics import Floats

# How much weights are drawn to 0: the shared ones, and a cohort's own. By cross-validation on the part of MMLU-Pro
# that bench/cascade.py fits on; flat around them.
_SHARED, _OWN = 10.0, 100.0
_FOLDS = 5


class Answers(msgspec.Struct, frozen=True):
    """Recorded answers of one tier, a row each."""

    cohort: np.ndarray  # names
    facts: Floats  # [row, fact], as SCORE_FACTS has them
    right: Floats  # from 0 to 1

    def rows(self, at: np.ndarray) -> "Answers":
        """Some of them."""
        return Answers(self.cohort[at], self.facts[at], self.right[at])


class Curve(msgspec.Struct, frozen=True):
    """One cohort's weights, as the YAML has them."""

    offset: float
    weights: dict[str, float]

    def chances(self, facts: Floats) -> Floats:
        """float64[n]: how likely each answer is right."""
        return logistic(facts @ np.array([self.weights.get(name, 0.0) for name in SCORE_FACTS]) + self.offset)


def fit_curves(answers: Answers, logprobs: bool) -> dict[str, Curve]:
    """Each cohort's curve. Deterministic. `logprobs`: all answers have them, so that they may be weighed."""
    names = np.unique(answers.cohort)
    used = np.array([logprobs or name not in LOGPROB_FACTS for name in SCORE_FACTS])
    center, scale = spread_of(answers.facts)
    rows = np.where(used, (answers.facts - center) / scale, 0.0)
    member = (answers.cohort[:, None] == names).astype(np.float64)
    own = (member[:, :, None] * rows[:, None, :]).reshape(len(rows), -1)
    ridge = np.repeat([_SHARED, _OWN, _OWN], [len(SCORE_FACTS), len(names), own.shape[1]])
    found, offset = fit_weights(np.hstack([rows, member, own]), answers.right, ridge)
    shared, level, slopes = np.split(found, [len(SCORE_FACTS), len(SCORE_FACTS) + len(names)])
    curves = {}
    for name, up, mine in zip(names.tolist(), level, slopes.reshape(len(names), -1), strict=True):
        weights = (shared + mine) / scale
        curves[name] = Curve(
            round(float(offset + up - weights @ center), DIGITS),
            {
                fact: weight
                for fact, w in zip(SCORE_FACTS, weights, strict=True)
                if (weight := round(float(w), DIGITS))
            },
        )
    return curves


def unseen_chances(answers: Answers, text: Floats, logprobs: bool, seed: int) -> Floats:
    """float64[n]: what curves say of each answer that were fitted without it. NaN for a cohort of one fold.

    `text`: float64[n], equal where requests repeat each other; their answers are left out together.
    """
    _, first, which = np.unique(text, return_index=True, return_inverse=True)
    fold = np.empty(len(first), dtype=int)
    fold[first.argsort()] = np.random.default_rng(seed).permutation(len(first)) % _FOLDS
    fold = fold[which]
    chances = np.full(len(fold), np.nan)
    for k in range(_FOLDS):
        if (fold == k).any() and (fold != k).any():
            chances[fold == k] = chances_of(fit_curves(answers.rows(fold != k), logprobs), answers.rows(fold == k))
    return chances


def chances_of(curves: Mapping[str, Curve], answers: Answers) -> Floats:
    """float64[n], each by its own cohort's curve; NaN where it has none."""
    chances = np.full(len(answers.right), np.nan)
    for name, curve in curves.items():
        mine = answers.cohort == name
        chances[mine] = curve.chances(answers.facts[mine])
    return chances
