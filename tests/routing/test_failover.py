"""The tiers that `failover` names: their order, the limits that they keep to, and where rejected answers lead."""

from typing import Any

import msgspec
import pytest

from extproc.acceptance.rules import compile_rules
from extproc.routing.conversations import Continuation, hashed_seal
from extproc.routing.decision import Decision, decide
from extproc.routing.policy import Cohort, Policy
from extproc.routing.sticky import History
from extproc.settings import Conditions, Escalate, Rule, RungSpec, Tier
from tests.routing.test_decision import FAQ, FRONTIER, LARGE, SMALL, clearly, signals

TWIN = msgspec.structs.replace(SMALL, name="twin", url="http://twin", failover=("small", "frontier"))
CHEAPER = msgspec.structs.replace(LARGE, failover=("twin", "small"))
RULES = tuple(compile_rules(["no_refusal"], None))
JUDGED = msgspec.structs.replace(FAQ, accept=RULES)


def decided(
    tiers: tuple[Tier, ...], tier: str, cohort: Cohort = FAQ, rules: tuple[Rule, ...] = (), **more: Any
) -> Decision:
    """The decision for a clear match of the cohort, whose tier is `tier`."""
    cohort = msgspec.structs.replace(cohort, tier=tier)
    policy = Policy(tiers, "large", {cohort.name: cohort}, rules)
    return decide(policy, signals(**more), clearly(cohort.name), {})


def asked(decision: Decision) -> list[str]:
    """The tiers in the order in which failed attempts reach them."""
    return [decision.tier.name, *(rung.tier.name for rung in decision.ladder)]


TIERS = (SMALL, TWIN, CHEAPER, FRONTIER)


def test_failed_requests_go_where_their_tier_says() -> None:
    """To one of the same strength, to cheaper ones, and without the key to the next one up. No list is followed."""
    assert asked(decided(TIERS, "small")) == ["small", "twin"]
    assert asked(decided(TIERS, "twin")) == ["twin", "small", "frontier"]
    assert asked(decided(TIERS, "large")) == ["large", "twin", "small"]
    assert decided(TIERS, "large").reasoning is decided(TIERS, "large").ladder[0].reasoning


def changed(name: str, **more: Any) -> tuple[Tier, ...]:
    return tuple(msgspec.structs.replace(tier, **more) if tier.name == name else tier for tier in TIERS)


@pytest.mark.parametrize(
    ("tiers", "cohort", "more", "expected"),
    [
        (changed("twin", state="out"), FAQ, {}, ["large", "small"]),
        (changed("twin", state="drain"), FAQ, {}, ["large", "small"]),
        (changed("small", apis=frozenset({"messages"})), FAQ, {}, ["large", "twin"]),
        (changed("twin", capabilities=frozenset()), FAQ, {"needs": frozenset({"tools"})}, ["large", "small"]),
        (TIERS, FAQ, {"tokens": 5_000}, ["large"]),
        (TIERS, msgspec.structs.replace(FAQ, only=("large", "small")), {}, ["large", "small"]),
        (TIERS, msgspec.structs.replace(FAQ, tier_floor="twin"), {}, ["large", "twin"]),
    ],
    ids=["out", "drain", "api", "capability", "context", "only", "floor of the intent"],
)
def test_a_failover_tier_must_be_able_and_allowed(
    tiers: tuple[Tier, ...], cohort: Cohort, more: dict[str, Any], expected: list[str]
) -> None:
    assert asked(decided(tiers, "large", cohort, **more)) == expected


def test_a_rules_floor_holds_for_failover() -> None:
    floor = Rule("r", Conditions(), tier_floor="large")
    assert asked(decided(TIERS, "large", rules=(floor,))) == ["large"]


def test_a_background_job_is_started_once() -> None:
    cohort = msgspec.structs.replace(FAQ, tier="large")
    policy = Policy(TIERS, "large", {"faq": cohort})
    job = Continuation(background=True)
    assert asked(decide(policy, signals(), clearly("faq"), {}, continuation=job)) == ["large"]


def test_state_that_only_its_maker_can_read_keeps_the_request_there() -> None:
    """Only failover tiers with the same seal are asked."""
    sealed = (*changed("small", seal="own")[:2], msgspec.structs.replace(CHEAPER, seal="own"), FRONTIER)
    cohort = msgspec.structs.replace(FAQ, tier="large")
    policy = Policy(sealed, "large", {"faq": cohort})
    bound = Continuation(bound=True, history=History("large", hashed_seal(sealed[2])))
    assert asked(decide(policy, signals(), clearly("faq"), {}, continuation=bound)) == ["large", "small"]


# Rejected answers


def test_a_rejected_answer_still_moves_up() -> None:
    """Past the failover tiers. An answer of a failover tier is judged, too, if a higher tier is left."""
    decision = decided(TIERS, "twin", JUDGED)
    assert (asked(decision), decision.climbs, decision.judged) == (
        ["twin", "small", "frontier", "large"], (3, 3, 4, 4), True,
    )  # fmt: skip
    assert [decision.is_last(at) for at in range(4)] == [False, False, True, True]


def test_a_rung_that_is_a_failover_tier_is_asked_once() -> None:
    """It comes at the earlier place, with its own reasoning, for rejected answers, too."""
    cohort = msgspec.structs.replace(
        JUDGED, escalate=Escalate(to=(RungSpec("large"), RungSpec("frontier", True)), max=2)
    )
    decision = decided(TIERS, "twin", cohort)
    assert (asked(decision), decision.climbs) == (["twin", "small", "frontier", "large"], (2, 2, 3, 4))
    assert decision.ladder[1].reasoning is True


def test_the_failover_tiers_of_a_rung_come_behind_it() -> None:
    decision = decided(TIERS, "small", msgspec.structs.replace(JUDGED, escalate=Escalate(to="large")))
    assert (asked(decision), decision.climbs) == (["small", "large", "twin"], (1, 3, 3))


def test_answers_are_not_judged_if_no_tier_is_above() -> None:
    top = (*TIERS[:3], msgspec.structs.replace(FRONTIER, failover=("large",)))
    decision = decided(top, "frontier", JUDGED)
    assert (asked(decision), decision.judged) == (["frontier", "large"], False)
