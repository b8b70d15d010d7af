"""Rulings: the word, the limit, the next rung, and their effects on headers and metadata."""

from typing import Any

import pytest

from extproc.acceptance.verdict import Verdict
from extproc.api.observation import Usage
from extproc.contract.names import Namespace
from extproc.contract.records import ladder_of
from extproc.contract.words import Bound, VerdictWord
from extproc.verifying.ruling import JudgedAttempt, Ladder, Ruling, rule, rule_early, rule_late

ACCEPTED, REFUSED = Verdict(True), Verdict(False, "no_refusal", "refusal")
USAGE = Usage(9, 4, 3)
THREE = ["small", "large", "frontier"]


class Limits:
    """Limits that always give the same result, and count how often they were asked."""

    def __init__(self, bound: Bound | None = None) -> None:
        self.bound = bound
        self.asked = 0

    def __call__(self) -> Bound | None:
        self.asked += 1
        return self.bound


def ruled(
    verdict: Verdict = REFUSED, number: int = 1, limits: Limits | None = None, clusters: Any = THREE, **ladder: Any
) -> Ruling:
    attempt = JudgedAttempt("faq", number, "small")
    return rule(verdict, attempt, Ladder(clusters, **ladder), limits or Limits(), USAGE)


def test_an_accepted_answer_takes_nothing_from_the_limits() -> None:
    limits = Limits()
    ruling = ruled(ACCEPTED, limits=limits)
    assert ruling == Ruling("faq", 1, VerdictWord.ACCEPT, ACCEPTED, tier="small", usage=USAGE)
    assert limits.asked == 0
    assert ruling.headers == {"x-cascade-verdict": "accept"}
    entry = {"verdict": "accept", "tier": "small", "input": 9, "output": 4, "cached": 3}
    assert ruling.metadata == {Namespace.DECISION: {"verdict": "accept"}, Namespace.LEDGER: {"1": entry}}


def test_a_rejected_answer_escalates_by_one_rung() -> None:
    limits = Limits()
    ruling = ruled(number=2, limits=limits, escalations=1)
    assert (ruling.word, ruling.rung, ruling.bound, limits.asked) == (VerdictWord.ESCALATE, 2, None, 1)
    assert ruling.headers == {"x-cascade-verdict": "escalate", "x-cascade-reason": "refusal"}
    entry = {"verdict": "escalate", "tier": "small", "reason": "refusal", "input": 9, "output": 4, "cached": 3}
    assert ruling.metadata == {
        Namespace.DECISION: {"verdict": "escalate", "verdict_reason": "refusal", "escalations": 2},
        Namespace.LEDGER: {"2": entry},
    }


@pytest.mark.parametrize("bound", [Bound.COHORT_SHARE, Bound.PRINCIPAL_RATE])
def test_a_limit_stops_the_escalation(bound: Bound) -> None:
    ruling = ruled(limits=Limits(bound))
    assert (ruling.word, ruling.rung, ruling.bound) == (VerdictWord.DEGRADED, None, bound)
    assert ruling.metadata[Namespace.DECISION] == {
        "verdict": "degraded", "verdict_reason": "refusal", "bound": bound.value,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("human", "review", "word"),
    [(False, False, "degraded"), (False, True, "degraded"), (True, False, "degraded"), (True, True, "human")],
)
def test_the_last_rung_is_served_or_queued_for_review(human: bool, review: bool, word: str) -> None:
    """A case is queued if the ladder ends with a person and there is a queue. The limits are not asked."""
    limits = Limits()
    ruling = ruled(number=3, limits=limits, human=human, review=review)
    assert (ruling.word, ruling.bound, ruling.escalations, limits.asked) == (word, Bound.LAST_RUNG, None, 0)
    assert ruling.headers == {"x-cascade-verdict": word, "x-cascade-reason": "refusal"}


def test_a_limit_never_queues_a_case() -> None:
    assert ruled(limits=Limits(Bound.COHORT_SHARE), human=True, review=True).word is VerdictWord.DEGRADED


@pytest.mark.parametrize(
    ("number", "skipped", "clusters", "rung", "total", "ladder"),
    [
        (1, 0, THREE, 2, 1, ["large", "frontier"]),
        (2, 0, [*THREE, "best"], 3, 1, ["large", "frontier", "best"]),
        (2, 1, [*THREE, "best", "last"], 4, 2, ["frontier", "best", "last"]),
        (2, 0, THREE, 2, None, None),  # no rung is above the next one
        (1, 1, THREE, 2, None, None),  # an earlier verdict skipped the rung below
    ],
)
def test_a_rule_may_skip_a_rung(
    number: int, skipped: int, clusters: list[str], rung: int, total: int | None, ladder: list[str] | None
) -> None:
    """Envoy sends attempt n to the nth cluster, so a skipped rung moves the clusters above it down by one."""
    ruling = ruled(number=number, clusters=clusters, skipped=skipped, skip=("no_refusal",))
    assert (ruling.word, ruling.rung, ruling.skipped, ruling.escalations) == ("escalate", rung, total, 1)
    expected = None if ladder is None else ladder_of(ladder)
    assert ruling.metadata.get(Namespace.LADDER) == expected
    if ladder is not None:
        assert ladder[number] == clusters[rung]  # the cluster of the next attempt


@pytest.mark.parametrize(
    ("number", "skipped", "ladder"),
    [(1, 0, THREE), (2, -1, [THREE[0], *THREE])],
    ids=["at the first attempt", "at a repeated one"],
)
def test_an_escalation_leaves_repeated_attempts_out(number: int, skipped: int, ladder: list[str]) -> None:
    """The next attempt is at the next rung, regardless of repeated attempts at this one."""
    ruling = ruled(number=number, clusters=THREE, skipped=skipped, repeats=True)
    assert (ruling.word, ruling.rung, ruling.skipped, ruling.ladder) == ("escalate", 1, skipped, ladder)
    assert ruling.ladder is not None and ruling.ladder[number] == THREE[1]


@pytest.mark.parametrize(
    ("number", "skipped", "rung"),
    [
        (1, 0, 2),  # from the first tier past `large`, which is asked only after failures
        (2, 0, 3),  # from `large` to a tier above it
        (4, -2, 3),  # from `large`, after repeated attempts at the first tier
    ],
)
def test_a_rejection_leads_past_failover_tiers(number: int, skipped: int, rung: int) -> None:
    clusters = [*THREE, "best"]
    ruling = ruled(number=number, skipped=skipped, clusters=clusters, climbs=(2, 3, 3, 4))
    assert (ruling.word, ruling.rung) == ("escalate", rung)
    assert ruling.ladder is not None and ruling.ladder[number] == clusters[rung]  # the cluster of the next attempt


def test_a_rejection_that_leads_nowhere_is_the_last() -> None:
    assert ruled(number=2, clusters=THREE, climbs=(2, 3, 3)).bound is Bound.LAST_RUNG


@pytest.mark.parametrize("rejection", ["non_empty", None])
def test_another_rule_skips_no_rung(rejection: str | None) -> None:
    ruling = ruled(Verdict(False, rejection, "empty"), skip=("no_refusal",))
    assert (ruling.rung, ruling.skipped) == (1, None)


def test_a_rule_may_skip_the_last_model_if_a_person_is_above_it() -> None:
    ladder: dict[str, Any] = {"skip": ("no_refusal",), "human": True, "review": True}
    assert ruled(number=2, **ladder).word is VerdictWord.HUMAN


@pytest.mark.parametrize(("full", "word"), [(False, "accept"), (True, "degraded")])
def test_an_early_ruling_has_no_reason_and_no_ledger_entry(full: bool, word: str) -> None:
    ruling = rule_early(JudgedAttempt("faq", 1, "small"), Verdict(True), full)
    assert ruling.headers == {"x-cascade-verdict": word}
    assert ruling.metadata == {Namespace.DECISION: {"verdict": word}}
    assert not ruling.final


@pytest.mark.parametrize(("verdict", "word"), [(ACCEPTED, "accept"), (REFUSED, "recorded")])
def test_a_late_ruling_is_recorded(verdict: Verdict, word: str) -> None:
    ruling = rule_late(verdict, JudgedAttempt("faq", 2), Usage(9))
    rejection = {} if verdict.accept else {"verdict_reason": "refusal"}
    entry = {"verdict": word, "input": 9} | ({} if verdict.accept else {"reason": "refusal"})
    assert ruling.metadata == {
        Namespace.DECISION: {"verdict": word} | rejection, Namespace.LEDGER: {"2": entry},
    }  # fmt: skip
