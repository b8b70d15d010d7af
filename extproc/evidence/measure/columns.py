"""An execution as arrays, one entry a row."""

from typing import Any

import msgspec
import numpy as np

from extproc.contract.words import Reason
from extproc.evidence.execution import Execution
from extproc.evidence.measure.metrics import Bools, Floats, Places
from extproc.routing.decision import trust

OUT_OF_SCOPE = "out of scope"
NO_COHORT = "no cohort"  # neither labelled nor trusted to be in one


class Columns(msgspec.Struct, frozen=True):
    """An execution as arrays, one entry a row."""

    group: list[str]  # the label, or the cohort where it landed, if nobody labelled it
    label: list[str | None]  # OUT_OF_SCOPE, or None: not labelled
    nearest: list[str | None]
    trusted: Bools  # above its cohort's floors
    similarity: Floats  # NaN without a match
    probability: Floats  # NaN without evidence
    fallback: Bools
    judged: Bools
    escalated: Bools
    quality: Floats  # of what was served; NaN where it is not known
    first_quality: Floats
    cost: Floats  # dollars a request; NaN where it is not known
    conversation: Places  # rows of one are resampled together

    @property
    def labelled(self) -> Bools:
        return np.array([label is not None for label in self.label], dtype=bool)

    @property
    def outside(self) -> Bools:
        return np.array([label == OUT_OF_SCOPE for label in self.label], dtype=bool)

    @property
    def right(self) -> Bools:
        """Nearest to its label's cohort."""
        pairs = zip(self.label, self.nearest, strict=True)
        return np.array([label is not None and label == nearest for label, nearest in pairs], dtype=bool)


def columns(run: Execution) -> Columns:
    """The execution as arrays."""
    cohorts = run.snapshot.policy.cohorts
    decisions = [one.decision for one in run.routed]
    labels = [_label(known.intent, cohorts) for known in run.known]
    trusted = [trust(d.cohort, d.match) is Reason.MATCHED for d in decisions]
    nearest = [d.cohort.name if d.cohort is not None else None for d in decisions]
    landed = [name if sure else None for name, sure in zip(nearest, trusted, strict=True)]
    chances = [d.cohort.probability(d.match) if d.cohort and d.match else None for d in decisions]

    def served(member: str) -> Floats:
        values = [getattr(s, member) if s is not None else None for s in run.served]
        return np.array(values, dtype=np.float64)  # None becomes NaN

    return Columns(
        group=[a or b or NO_COHORT for a, b in zip(labels, landed, strict=True)],
        label=labels,
        nearest=nearest,
        trusted=np.array(trusted, dtype=bool),
        similarity=np.array([d.match.similarity if d.match else None for d in decisions], dtype=np.float64),
        probability=np.array(chances, dtype=np.float64),
        fallback=np.array([d.reason.is_fallback for d in decisions], dtype=bool),
        judged=np.array([s is not None and s.judged > 0 for s in run.served], dtype=bool),
        escalated=np.array([s is not None and bool(s.rejections) for s in run.served], dtype=bool),
        quality=served("quality"),
        first_quality=served("first_quality"),
        cost=served("cost"),
        conversation=run.conversations(),
    )


def _label(intent: Any, cohorts: Any) -> str | None:
    if intent is msgspec.UNSET:
        return None
    return intent if intent in cohorts else OUT_OF_SCOPE
