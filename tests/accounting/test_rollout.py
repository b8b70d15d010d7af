"""The comparison of a candidate by the rows of a ledger, and its verdict."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc.accounting.outcome import Cost, Ending, Outcome, Rejection
from extproc.accounting.rollout import ALL, BesideCount, Comparison, RolloutReader, read_beside
from extproc.accounting.rollout_text import beside_text, comparison_text, verdict_sentence
from extproc.accounting.sequential import Counts, RolloutVerdict
from extproc.accounting.store import Store

CANDIDATE = "candidate-0123456789ab"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def outcome(revision: str | None = CANDIDATE, accepted: bool = True, **more: Any) -> Outcome:
    rejections = () if accepted else (Rejection(1, "small", "refusal"),)
    values: dict[str, Any] = {
        "time": 1.8e9, "api": "chat", "ending": Ending.ACCEPTED, "status": 200, "attempts": 1 if accepted else 2,
        "reason": "matched", "cohort": "billing", "tier": "small", "rejections": rejections, "revision": revision,
    }  # fmt: skip
    return Outcome(**values | more)


def store(place: Path, *outcomes: Outcome, cost: float = 0.001) -> None:
    with_cost = [(each, Cost(cost, (cost,) * len(each.rejections), cost)) for each in outcomes]
    ledger = Store(place, 90)
    ledger.add(with_cost)
    ledger.close()


def compared(place: Path, cohorts: tuple[str, ...] = ("billing", "cooking"), loss: float = 0.02) -> Comparison:
    return RolloutReader(place, Comparison(CANDIDATE, loss, cohorts)).read()


def pairs(count: int, start: int = 0, **candidate: Any) -> Iterator[Outcome]:
    """Conversations of both arms in turn. All answers to the policy that serves are accepted."""
    for i in range(start, start + count):
        yield outcome("r1", session=f"s{i}", cohort=candidate.get("cohort", "billing"))
        yield outcome(CANDIDATE, session=f"c{i}", **candidate)


def test_rows_count_from_the_first_one_of_the_candidate_on(place):
    """Rows of other candidates, of apps, without a decision, and about models that clients chose are in no arm."""
    store(place, *(outcome("r0", session=f"before{i}") for i in range(20)))
    assert compared(place).since is None
    store(place, *pairs(3), outcome("r2", session="edited"))  # another share is another revision
    store(
        place,
        outcome("candidate-of-before", session="a"),
        outcome(None, session="b", reason="fail_open"),
        outcome(session="c", reason="pinned"),
        outcome("r1", session="d", reason="passthrough"),
        outcome("r1", session="e", accepted=False, app="support"),  # the candidate decides about no app
    )
    assert compared(place).groups[ALL].counts == Counts(3, 3, 3, 3)


@pytest.mark.parametrize(
    ("row", "success"),
    [
        (outcome(), 1),
        (outcome(ending=Ending.DEGRADED), 0),
        (outcome(accepted=False), 0),
        (outcome(attempts=2), 0),
        (outcome(ending=Ending.FAILED, status=503), 0),
        (outcome(ending=Ending.CANCELLED, status=0), 0),
        (outcome(ending=Ending.HUMAN), 0),
    ],
)
def test_a_success_is_served_at_the_first_attempt_and_not_rejected(place, row, success):
    store(place, row)
    assert compared(place).groups["billing"].counts == Counts(1, success, 0, 0)


def test_a_conversation_is_one_trial_in_each_group(place):
    """Its first request counts. Requests without a conversation count by themselves."""
    turns = [
        outcome(session="one", accepted=False),
        outcome(session="one"),
        outcome(session="one", cohort="cooking"),
    ]
    store(place, *turns, outcome(), outcome())
    comparison = compared(place)
    assert {name: group.counts for name, group in comparison.groups.items()} == {
        ALL: Counts(3, 2, 0, 0), "billing": Counts(3, 2, 0, 0), "cooking": Counts(1, 1, 0, 0),
    }  # fmt: skip
    assert comparison.groups[ALL].candidate.requests == 5


def test_a_regression_in_one_cohort_stops_the_candidate_and_the_verdict_stays(place):
    """The rows may be read in pieces, or again after other rows."""
    reader = RolloutReader(place, Comparison(CANDIDATE, 0.02, ("billing", "cooking")))
    store(place, *pairs(40, cohort="cooking"))
    assert reader.read().verdict is RolloutVerdict.HOLD
    store(place, *pairs(14, start=100, accepted=False))
    verdict = reader.read()
    assert (verdict.verdict, verdict.decided_by) == (RolloutVerdict.STOP, "billing")
    sentence = verdict_sentence(verdict, 0.5)
    assert sentence.startswith("STOP: the candidate is worse in `billing`: 0 of 14 accepted, against 14 of 14")
    store(place, *pairs(300, start=200))
    assert reader.read().verdict is RolloutVerdict.STOP
    again = compared(place)
    assert (again.verdict, again.decided_by) == (RolloutVerdict.STOP, "billing")


def test_a_cohort_with_other_requests_in_each_arm_is_shown_and_not_tested(place):
    store(place, *pairs(10, accepted=False), *pairs(200, start=100, cohort="cooking"))
    assert compared(place, cohorts=()).groups["billing"].bounds is None
    moved = compared(place, cohorts=("cooking",))
    assert moved.groups["billing"].bounds is None
    text = comparison_text(moved, 0.5).text
    assert "| " not in text and "billing" in text


def test_a_candidate_that_is_as_good_is_promoted(place):
    store(place, *pairs(900))
    comparison = compared(place, loss=0.05)
    assert (comparison.verdict, comparison.decided_by) == (RolloutVerdict.PROMOTE, ALL)
    text = comparison_text(comparison, 0.5).text
    assert text.startswith("PROMOTE: the candidate loses less than 0.05 of the accepted share: 900 of 900 accepted")
    assert "899 of 899 (100.0%)" in text and "900 of 900 (100.0%)" in text and " 1 +- 0 " in text


def test_until_then_the_power_is_shown(place):
    assert comparison_text(Comparison(CANDIDATE, 0.02, ()), 0.2).text == (
        f"No request of {CANDIDATE} is in the ledger yet.\n"
    )
    store(place, *pairs(30))
    text = comparison_text(compared(place), 0.2).text
    assert text.startswith(
        "HOLD: it is not known yet whether the candidate loses 0.02 of the accepted share. If it is as good, about "
    )
    assert "nothing to compare" in comparison_text(compared(place), 1.0).text


def test_the_decisions_of_a_candidate_beside_are_counted(place):
    """Only rows of this revision count, and only requests about which the candidate decided."""
    same, moved = (
        f'{{"counted_as":"billing","tier":"small","candidate_cohort":"billing","candidate_tier":"{tier}"}}'
        for tier in ("small", "large")
    )
    rows = [outcome("r1", decision=text) for text in (same, moved, same, '{"tier":"small"}', None)]
    store(place, *rows, outcome("r0", decision=moved))
    counts = read_beside(place, "r1")
    assert counts == [
        BesideCount("billing", "small", "billing", "small", 2),
        BesideCount("billing", "small", "billing", "large", 1),
    ]
    assert beside_text(counts).text == (
        "The candidate chooses another tier for 1 of 3 requests (33.3%).\n\n"
        "cohort   tier   candidate cohort  candidate tier  requests\n"
        "billing  small  billing           large                  1\n"
    )
    assert beside_text([]).text == "No decision of the candidate is in the ledger yet.\n"


def test_a_hit_of_the_cache_is_no_trial(place):
    """It says nothing about its arm, and would count as a request that failed at the first attempt."""
    store(place, *pairs(4))
    before = compared(place).groups[ALL].counts
    arms = (CANDIDATE, "r1")
    store(place, *(outcome(arm, attempts=0, cache="hit", session=f"h{i}{arm}") for i in range(4) for arm in arms))
    assert compared(place).groups[ALL].counts == before == Counts(4, 4, 3, 3)
