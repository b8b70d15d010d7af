"""An execution as arrays, with one entry per row."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from extproc.contract.words import Reason
from extproc.evidence.data.answers import ReplayedAnswer, Served
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
    decisions = [routed.decision for routed in run.routed]
    labels = [_label(row.intent, cohorts) for row in run.revealed]
    trusted = [trust(run.snapshot.policy, d.match) is Reason.MATCHED for d in decisions]
    nearest = [d.cohort.name if d.cohort is not None else None for d in decisions]
    matched = [name if above else None for name, above in zip(nearest, trusted, strict=True)]
    probabilities = [d.cohort.probability(d.match) if d.cohort and d.match else None for d in decisions]

    def served(member: str) -> Floats:
        values = [getattr(s, member) if s is not None else None for s in run.served]
        return np.array(values, dtype=np.float64)  # None becomes NaN

    return Columns(
        group=[label or cohort or NO_COHORT for label, cohort in zip(labels, matched, strict=True)],
        label=labels,
        nearest=nearest,
        trusted=np.array(trusted, dtype=bool),
        similarity=np.array([d.match.similarity if d.match else None for d in decisions], dtype=np.float64),
        scope=np.array([d.match.in_scope if d.match else None for d in decisions], dtype=np.float64),
        background=any(d.match is not None and d.match.background > 0 for d in decisions),
        probability=np.array(probabilities, dtype=np.float64),
        fallback=np.array([d.reason.is_fallback for d in decisions], dtype=bool),
        judged=np.array([s is not None and s.judged > 0 for s in run.served], dtype=bool),
        escalated=np.array([s is not None and bool(s.rejections) for s in run.served], dtype=bool),
        quality=served("quality"),
        first_quality=served("first_quality"),
        cost=served("cost"),
        answered=np.array(list(map(_answered, run.answers, run.served)), dtype=bool),
        conversation=run.groups,
        weight=run.weights(),
    )


def _answered(answers: Mapping[str, ReplayedAnswer], served: Served | None) -> bool:
    person = served is not None and served.person
    return not person and any(answer.quality is not None for answer in answers.values())


def _label(intent: Any, cohorts: Any) -> str | None:
    if intent is msgspec.UNSET:
        return None
    return intent if intent in cohorts else OUT_OF_SCOPE
