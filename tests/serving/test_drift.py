"""The counts for drift: which requests are counted, the comparison with the evidence, and labels of feedback."""

import random
from typing import Any, cast

import msgspec
import pytest

from extproc.accounting.drift_limits import LEAST_RECENT
from extproc.accounting.feedback import AnsweredRequest
from extproc.contract.words import Course, Reason
from extproc.routing.decision import Decision
from extproc.routing.index import Index, Match
from extproc.routing.mutation import mutate
from extproc.routing.policy import Cohort, Policy
from extproc.routing.routed import Routed
from extproc.routing.snapshot import Snapshot
from extproc.serving.drift import DriftWatch
from extproc.settings import Evidence, Price, Probability, Tier

SMALL = Tier("small", "small-1", "http://small", 8000, Price(input=1, output=2))
DECILES = tuple(tenth / 10 for tenth in range(1, 10))
EVIDENCE = Evidence(
    "2026-11-22",
    "3f2a9c0d1e4b",
    1000,
    "m",
    "c",
    0.05,
    (0.0, 0.04),
    0.9,
    Probability(1.0, 1.0, 0.0),
    deciles=DECILES,
)
COHORT = Cohort("billing", "small", 0.1, 0.0, True, evidence=EVIDENCE)
DAY_S = 86_400.0


def matched(similarity: float = 0.5, cohort: Cohort = COHORT, revision: str = "r1", **change: Any) -> Routed:
    """A request whose nearest cohort is this one."""
    match = Match(cohort.name, similarity, 0.1)
    decision = Decision(SMALL, Reason.MATCHED, cohort=cohort, match=match)
    decision = msgspec.structs.replace(decision, **change)
    snapshot = Snapshot(revision, Policy((SMALL,), "small", {cohort.name: cohort}), cast(Index, None))
    return Routed(decision, mutate(decision, None), snapshot, None, None, {})


class Watch:
    """A watch with a clock, and the values of its gauges."""

    def __init__(self) -> None:
        self.now = 0.0
        self.watch = DriftWatch(lambda: self.now)

    def see(self, similarities: list[float], cohort: Cohort = COHORT, **change: Any) -> None:
        for similarity in similarities:
            self.watch.saw(matched(similarity, cohort, **change))

    @property
    def near(self) -> dict[str, tuple[float, float]]:
        rows = zip(self.watch.nearness(), self.watch.limits(), strict=True)
        return {labels["cohort"]: (near, limit) for (near, labels), (limit, _) in rows}

    @property
    def matches(self) -> dict[tuple[str, str], float]:
        return {(labels["cohort"], labels["result"]): count for count, labels in self.watch.matches()}


def test_traffic_like_the_evidence_is_near_a_half_and_other_traffic_is_not() -> None:
    draw, watch = random.Random(1), Watch()
    watch.see([draw.random() for _ in range(400)])
    near, limit = watch.near["billing"]
    assert abs(near - 0.5) < 0.05 and limit == pytest.approx(0.1)

    far = Watch()
    far.see([draw.random() * 0.6 for _ in range(400)])
    assert far.near["billing"][0] == pytest.approx(0.3, abs=0.03)


def test_chance_explains_more_while_requests_are_few() -> None:
    """Without drift, no set of 50 requests is further from a half than its limit: 1 in 10,000 may be."""
    draw, watch = random.Random(2), Watch()
    watch.see([0.05] * (LEAST_RECENT - 1))
    assert watch.near == {}
    for _ in range(200):
        watch = Watch()
        watch.see([draw.random() for _ in range(LEAST_RECENT)])
        near, limit = watch.near["billing"]
        assert abs(near - 0.5) < limit == pytest.approx(0.163, abs=0.001)


def test_a_day_later_the_requests_are_forgotten() -> None:
    watch = Watch()
    watch.see([0.05] * 100)
    watch.now = DAY_S / 2
    watch.see([0.95] * 100)
    assert watch.near["billing"][0] == pytest.approx(0.5)
    watch.now = DAY_S
    assert watch.near["billing"][0] == pytest.approx(0.95)
    watch.now = 3 * DAY_S
    assert watch.near == {}


def test_other_evidence_begins_anew_and_none_compares_nothing() -> None:
    watch = Watch()
    watch.see([0.05] * 100)
    other = msgspec.structs.replace(EVIDENCE, deciles=tuple(tenth / 20 for tenth in range(1, 10)))
    watch.see([0.05] * 60, msgspec.structs.replace(COHORT, evidence=other))
    assert watch.near["billing"][0] == pytest.approx(0.15)

    for cohort in (
        msgspec.structs.replace(COHORT, evidence=None),
        msgspec.structs.replace(COHORT, evidence=msgspec.structs.replace(EVIDENCE, deciles=None)),
        msgspec.structs.replace(COHORT, calibrated=False),  # stale: of other centroids
    ):
        watch = Watch()
        watch.see([0.05] * 100, cohort)
        assert watch.near == {} and watch.matches[("billing", "counts")] == 100


def test_only_first_requests_that_the_serving_files_decide_are_counted() -> None:
    watch = Watch()
    watch.see([0.5] * 3)
    watch.see([0.5] * 2, unmatched=Reason.OUT_OF_SCOPE)
    for change in ({"course": Course.KEPT}, {"reason": Reason.BACKGROUND}, {"match": None}):
        watch.see([0.5], **change)
    watch.see([0.5], revision="candidate-1")
    assert watch.matches == {("billing", "counts"): 3, ("billing", "fallback"): 2}


def test_memory_is_bounded() -> None:
    watch = Watch()
    for number in range(3000):
        watch.see([0.5], msgspec.structs.replace(COHORT, name=f"c{number}"))
    assert len(watch.matches) == 2 * 2000


def test_labels_are_counted_beside_what_the_probabilities_promise() -> None:
    watch = DriftWatch()
    for label in ("billing", "cooking", "out_of_scope"):
        watch.labelled(AnsweredRequest("a", "billing", "small", "billing", 0.9), label)
    watch.labelled(AnsweredRequest("a", "billing", "small", "support/billing", 0.5), "billing")
    watch.labelled(AnsweredRequest("a", "billing", "small"), "billing")  # without a probability
    assert [(value, *labels.values()) for value, labels in watch.labels()] == [
        (1, "billing", "right"), (2, "billing", "wrong"),
        (1, "support/billing", "right"), (0, "support/billing", "wrong"),
    ]  # fmt: skip
    assert [value for value, _ in watch.expected()] == pytest.approx([2.7, 0.5])


def test_evidence_without_a_row_is_not_compared() -> None:
    """It has no error to compare with. The traffic counts as usual."""
    watch = Watch()
    cohort = msgspec.structs.replace(COHORT, evidence=msgspec.structs.replace(EVIDENCE, rows=0))
    watch.see([0.5] * LEAST_RECENT, cohort)
    assert watch.near == {}
    assert watch.matches["billing", "counts"] == LEAST_RECENT
