"""An execution as arrays, with one entry per row."""

from typing import Any

import msgspec
import numpy as np

from extproc.contract.words import Reason
from extproc.evidence.execution import Execution
from extproc.evidence.measure.metrics import Bools, Floats, GroupIds
from extproc.routing.trust import trust

OUT_OF_SCOPE = "out of scope"
NO_COHORT = "no cohort"  # the group of rows without a label that matched no cohort above its floors


class Columns(msgspec.Struct, frozen=True):
    """An execution as arrays, with one entry per row."""

    group: list[str]  # the label, or without one the cohort that was matched
    label: list[str | None]  # a cohort or OUT_OF_SCOPE. None: not labelled
    nearest: list[str | None]  # the nearest cohort. None: no match
    trusted: Bools  # the match is above the cohort's floors
    similarity: Floats  # NaN without a match
    scope: Floats  # how surely the row belongs to an intent. NaN without a match
    background: bool  # `scope` compares with the background. Otherwise it is the similarity
    probability: Floats  # that the match is right. NaN if the cohort is not calibrated
    fallback: Bools
    judged: Bools
    escalated: Bools
    quality: Floats  # of the answer that was served. NaN if not recorded
    first_quality: Floats  # of the first tier's answer. NaN if not recorded
    cost: Floats  # dollars per request. NaN if not recorded
    answered: Bools  # the quality of some tier's answer was recorded, and the row did not go to a person
    conversation: GroupIds  # rows of one conversation are resampled together
    weight: Floats  # rows of the traffic that the row stands for

    @property
    def labelled(self) -> Bools:
        return np.array([label is not None for label in self.label], dtype=bool)

    @property
    def outside(self) -> Bools:
        return np.array([label == OUT_OF_SCOPE for label in self.label], dtype=bool)

    @property
    def right(self) -> Bools:
        """Whether the nearest cohort is the one that the label names."""
        pairs = zip(self.label, self.nearest, strict=True)
        return np.array([label is not None and label == nearest for label, nearest in pairs], dtype=bool)


def columns(run: Execution) -> Columns:
    """The execution as arrays."""
    cohorts = run.snapshot.policy.cohorts
    labels = [_label(intent, cohorts) for intent in run.revealed.intents.column()]
    nearest = run.routed.column(lambda decision: decision.cohort.name if decision.cohort is not None else None)
    matches = np.full((4, len(labels)), np.nan)  # similarity, in scope, probability, background
    trusted = np.zeros(len(labels), dtype=np.bool_)
    for i, routed in enumerate(run.routed):
        cohort, match = routed.decision.cohort, routed.decision.match
        trusted[i] = trust(routed.snapshot.policy, match) is Reason.MATCHED
        if match is not None:
            probability = cohort.probability(match) if cohort else None
            matches[:, i] = match.similarity, match.in_scope, _number(probability), match.background
    matched = [name if above else None for name, above in zip(nearest, trusted.tolist(), strict=True)]
    return Columns(
        group=[label or cohort or NO_COHORT for label, cohort in zip(labels, matched, strict=True)],
        label=labels,
        nearest=nearest,
        trusted=trusted,
        similarity=matches[0],
        scope=matches[1],
        background=bool((matches[3] > 0).any()),
        probability=matches[2],
        fallback=np.array(run.routed.column(lambda decision: decision.reason.is_fallback), dtype=np.bool_),
        judged=run.served.where(lambda served: served.judged > 0),
        escalated=run.served.where(lambda served: bool(served.rejections)),
        quality=run.served.column("quality"),
        first_quality=run.served.column("first_quality"),
        cost=run.served.column("cost"),
        answered=_answered(run),
        conversation=run.groups,
        weight=run.weights(),
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _answered(run: Execution) -> Bools:
    answered = np.zeros(len(run.rows), dtype=np.bool_)
    for name in run.answers.names:
        answered |= ~np.isnan(run.answers.column(name, "quality"))
    return answered & ~run.served.where(lambda served: served.person)


def _label(intent: Any, cohorts: Any) -> str | None:
    if intent is msgspec.UNSET:
        return None
    return intent if intent in cohorts else OUT_OF_SCOPE
