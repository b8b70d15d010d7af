"""Counts from which Prometheus sees drift: whether matches count, how near they are, and whether labels agree.

The router compares with the evidence itself, for the last day and without a store. Comparisons with an earlier week
are left to Prometheus, which remembers more than a process. A request costs some additions, and a cohort some
hundred bytes. Other processes count by themselves.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator

from extproc.accounting.drift_limits import LEAST_RANK, LEAST_RECENT
from extproc.accounting.feedback import AnsweredRequest
from extproc.contract.names import CANDIDATE_PREFIX
from extproc.contract.words import Reason
from extproc.routing.routed import Routed
from extproc.settings import Evidence

# A day of traffic, in slots of which the oldest is forgotten as a whole.
_SLOT_S, _SLOTS = 6 * 3600.0, 4
# Standard errors: chance exceeds them with a probability of 1 in 10,000.
_SURE = 3.9
# The value of a series, and its labels.
Sample = tuple[float, dict[str, str]]
# More names are not counted. A policy has far fewer cohorts, and those of earlier revisions stay.
_MOST = 2000


class _Slot:
    """The requests of six hours."""

    def __init__(self, number: int) -> None:
        self.number, self.requests, self.ranks = number, 0, 0.0


class _Cohort:
    """The counts of one cohort."""

    def __init__(self) -> None:
        self.counts = self.fell_back = 0
        self.labels = {True: 0, False: 0}
        self.expected = 0.0
        self.evidence: Evidence | None = None
        self.slots = [_Slot(-1) for _ in range(_SLOTS)]

    def place(self, evidence: Evidence, similarity: float, number: int) -> None:
        """Count the rank of a similarity among those of the evidence: 0 below all, 1 above all."""
        if evidence is not self.evidence:
            if self.evidence is None or evidence.deciles != self.evidence.deciles:
                self.slots = [_Slot(-1) for _ in range(_SLOTS)]
            self.evidence = evidence
        slot = self.slots[number % _SLOTS]
        if slot.number != number:
            slot = self.slots[number % _SLOTS] = _Slot(number)
        assert evidence.deciles is not None
        slot.requests += 1
        slot.ranks += (bisect_right(evidence.deciles, similarity) + 0.5) / (len(evidence.deciles) + 1)

    def nearness(self, number: int) -> tuple[float, float] | None:
        """(the chance that a request is nearer than a row of the evidence, the difference that chance explains).

        None: there are too few requests, or the evidence has no row.
        """
        slots = [slot for slot in self.slots if slot.number > number - _SLOTS]
        requests = sum(slot.requests for slot in slots)
        if self.evidence is None or requests < LEAST_RECENT or self.evidence.rows < 1:
            return None
        # The standard error of Mann and Whitney's statistic.
        error = math.sqrt((1 / requests + 1 / self.evidence.rows) / 12)
        return sum(slot.ranks for slot in slots) / requests, max(LEAST_RANK, _SURE * error)


class DriftWatch:
    """Counts the matches of one process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._cohorts: dict[str, _Cohort] = {}

    def saw(self, routed: Routed) -> None:
        """Count the match of a conversation's first request, unless a candidate decided about it."""
        decision, snapshot = routed.decision, routed.snapshot
        match = decision.match
        if match is None or decision.course is not None or decision.reason is Reason.BACKGROUND:
            return
        if snapshot.revision.startswith(CANDIDATE_PREFIX):
            return
        seen = self._of(snapshot.name_of(match.cohort))
        if seen is None:
            return
        # Each number only rises, also between two lines: Prometheus takes a smaller one for a restart.
        if decision.unmatched is None:
            seen.counts += 1
        else:
            seen.fell_back += 1
        cohort = snapshot.policy.cohorts.get(match.cohort)
        evidence = cohort.evidence if cohort is not None and cohort.calibrated else None
        if evidence is not None and evidence.deciles is not None:
            seen.place(evidence, match.similarity, int(self._clock() / _SLOT_S))

    def labelled(self, answer: AnsweredRequest, label: str) -> None:
        """Count a label of feedback on a match whose probability is known."""
        seen = self._of(answer.nearest) if answer.nearest and answer.probability is not None else None
        if seen is not None and answer.nearest is not None:
            seen.labels[answer.nearest.rpartition("/")[2] == label] += 1
            seen.expected += answer.probability or 0.0

    def _of(self, name: str) -> _Cohort | None:
        seen = self._cohorts.get(name)
        if seen is None and len(self._cohorts) < _MOST:
            seen = self._cohorts[name] = _Cohort()
        return seen

    def matches(self) -> list[Sample]:
        """How many matches count, and how many do not, by nearest cohort. Exporters read from other threads."""
        return [
            (count, {"cohort": name, "result": result})
            for name, seen in list(self._cohorts.items())
            for result, count in (("counts", seen.counts), ("fallback", seen.fell_back))
        ]

    def nearness(self) -> list[Sample]:
        """The chance that a request of the last day is nearer to its cohort than a row of the evidence."""
        return [(near, {"cohort": name}) for name, (near, _) in self._near()]

    def limits(self) -> list[Sample]:
        """The differences of `nearness` from a half above which it is drift."""
        return [(limit, {"cohort": name}) for name, (_, limit) in self._near()]

    def _near(self) -> Iterator[tuple[str, tuple[float, float]]]:
        number = int(self._clock() / _SLOT_S)
        for name, seen in list(self._cohorts.items()):
            near = seen.nearness(number)
            if near is not None:
                yield name, near

    def labels(self) -> list[Sample]:
        """The labels of feedback, by nearest cohort, and whether they agree with it."""
        return [
            (seen.labels[right], {"cohort": name, "result": result})
            for name, seen in list(self._cohorts.items())
            for right, result in ((True, "right"), (False, "wrong"))
        ]

    def expected(self) -> list[Sample]:
        """How many of these labels should agree."""
        return [(seen.expected, {"cohort": name}) for name, seen in list(self._cohorts.items())]
