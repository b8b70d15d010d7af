"""What holds for every request: floors and `only`. Also background calls, tool loops, and tiers that can serve."""

from typing import Any

import msgspec
import pytest

from extproc.api.request import parse_request
from extproc.api.splice import apply
from extproc.contract.words import Reason
from extproc.routing.decision import Decision, decide, decide_named, decide_unread
from extproc.routing.guard import needs_match
from extproc.routing.index import Match
from extproc.routing.mutation import mutate
from extproc.routing.policy import Policy
from extproc.settings import Escalate
from tests.routing.test_decision import (
    CODE,
    FAQ,
    FRONTIER,
    LARGE,
    LEGAL,
    NOWHERE,
    POLICY,
    SMALL,
    between,
    clearly,
    policy,
    rule,
    signals,
)

EU = {"x-region": "eu"}
IN_EU = rule("residency", {"headers": EU}, only=("small", "frontier"))


def confined(cohort: str, *names: str, **more: Any) -> Policy:
    """The policy with `only` on a cohort."""
    changed = msgspec.structs.replace(POLICY.cohorts[cohort], only=names, **more)
    return msgspec.structs.replace(POLICY, cohorts={**POLICY.cohorts, cohort: changed})


def outcome(decision: Decision) -> tuple[str, Reason, bool]:
    return decision.tier.name, decision.reason, decision.refused


def named(
    policy: Policy, model: str, match: Match | None, headers: dict[str, str] | None = None, **more: Any
) -> Decision:
    return decide_named(policy, signals(model=model, **more), match, headers or {})


# Floors


def test_a_floor_lifts_a_pinned_request_and_its_model_is_replaced() -> None:
    """The client may choose any tier from the floor up. The cohort's other settings do not apply."""
    lifted = named(POLICY, "qwen3-8b", clearly("legal"))
    assert lifted == Decision(FRONTIER, Reason.TIER_FLOOR, cohort=LEGAL, match=clearly("legal"))
    assert named(POLICY, "frontier-1", clearly("legal")) == Decision(FRONTIER, Reason.PINNED, rewrite=False)
    assert named(POLICY, "qwen3-8b", clearly("code")) == Decision(SMALL, Reason.PINNED, rewrite=False)


def test_a_floor_of_a_rule_lifts_a_pinned_request() -> None:
    """Conditions on headers and signals hold for every request. A rule's tier does not replace the client's."""
    gold = policy(rule("gold", {"headers": {"x-tier": "gold"}}, tier="small", tier_floor="large"))
    assert outcome(named(gold, "qwen3-8b", None, {"x-tier": "gold"})) == ("large", Reason.TIER_FLOOR, False)
    assert outcome(named(gold, "frontier-1", None, {"x-tier": "gold"})) == ("frontier", Reason.PINNED, False)
    long = policy(rule("long", {"tokens_over": 50}, tier_floor="large"))
    assert outcome(named(long, "qwen3-8b", None)) == ("large", Reason.TIER_FLOOR, False)


def test_a_foreign_model_goes_to_the_floor_under_its_own_name() -> None:
    """The router may not rename it. The upstream of the floor answers, or says that it does not know the model."""
    lifted = named(POLICY, "gpt-5", clearly("legal"))
    assert (outcome(lifted), lifted.rewrite) == (("frontier", Reason.TIER_FLOOR, False), False)
    assert named(POLICY, "gpt-5", clearly("faq")) == Decision(LARGE, Reason.PASSTHROUGH, rewrite=False)


def test_a_lifted_request_goes_to_a_tier_that_can_serve_it() -> None:
    """As every other request. A pinned request that stays is not checked: its upstream answers."""
    gold = policy(rule("gold", {}, tier_floor="large"))
    vision = frozenset({"vision"})
    assert outcome(named(gold, "qwen3-8b", None, needs=vision)) == ("frontier", Reason.CAPABILITY, False)
    assert outcome(named(POLICY, "qwen3-8b", None, needs=vision)) == ("small", Reason.PINNED, False)


def test_an_unreadable_request_is_lifted_by_its_headers_alone() -> None:
    """Conditions that read the body cannot be checked."""
    rules = policy(
        rule("gold", {"headers": {"x-tier": "gold"}}, tier_floor="frontier"),
        rule("long", {"tokens_over": 0}, tier_floor="frontier"),
    )
    unread = decide_unread(rules, {"x-tier": "gold"}, Reason.UNREADABLE)
    assert unread == Decision(FRONTIER, Reason.TIER_FLOOR, rewrite=False)
    assert decide_unread(rules, {}, Reason.UNREADABLE) == Decision(LARGE, Reason.UNREADABLE, rewrite=False)
    foreign = decide_unread(rules, {"x-tier": "gold"}, Reason.PASSTHROUGH)
    assert foreign == Decision(LARGE, Reason.PASSTHROUGH, rewrite=False)


def test_a_request_is_matched_only_if_a_match_could_move_it() -> None:
    """Embedding costs milliseconds."""
    assert [needs_match(POLICY, rank) for rank in range(3)] == [True, True, False]
    assert not needs_match(policy(cohorts={"faq": FAQ}), 0)
    assert needs_match(policy(rule(when={"risk": "high"}, tier_floor="large"), cohorts={"faq": FAQ}), 0)
    assert needs_match(confined("faq", "small", "frontier"), 2)


# Only


@pytest.mark.parametrize(
    ("cohort", "names", "expected"),
    [
        ("faq", ("small", "large"), ("small", Reason.MATCHED, False)),
        ("code", ("small", "frontier"), ("frontier", Reason.RESIDENCY, False)),  # the higher of the two nearest
        ("code", ("small",), ("small", Reason.RESIDENCY, False)),
        ("legal", ("small", "frontier"), ("frontier", Reason.TIER_FLOOR, False)),
        ("legal", ("small", "large"), ("frontier", Reason.RESIDENCY, True)),  # both are below the floor
    ],
)
def test_a_request_goes_to_the_nearest_allowed_tier(cohort, names, expected) -> None:
    """At or above the floor. If there is none, it is refused."""
    assert outcome(decide(confined(cohort, *names), signals(), clearly(cohort), {})) == expected


def test_a_request_that_no_allowed_tier_can_serve_is_refused() -> None:
    """No capability, no size and no rule leads out of the set."""
    only_small = confined("faq", "small")
    picture = signals(needs=frozenset({"vision"}))
    assert outcome(decide(only_small, picture, clearly("faq"), {})) == ("small", Reason.RESIDENCY, True)
    two = confined("faq", "small", "large")
    assert outcome(decide(two, signals(tokens=5_000), clearly("faq"), {})) == ("large", Reason.CAPABILITY, False)
    by_rule = msgspec.structs.replace(only_small, rules=(rule(tier="frontier"),))
    assert outcome(decide(by_rule, signals(), clearly("faq"), {})) == ("small", Reason.RESIDENCY, False)


def test_the_ladder_stays_in_the_set() -> None:
    """For failover and for escalation."""
    alone = decide(confined("faq", "small"), signals(), clearly("faq"), {})
    assert (alone.tier, alone.ladder) == (SMALL, ())
    skipping = decide(confined("faq", "small", "frontier"), signals(), clearly("faq"), {})
    assert [rung.tier for rung in skipping.ladder] == [FRONTIER]
    named_rungs = confined("faq", "small", "frontier", escalate=Escalate(("large", "frontier"), max=2))
    assert [r.tier for r in decide(named_rungs, signals(), clearly("faq"), {}).ladder] == [FRONTIER]


def test_the_sets_of_both_cohorts_hold_for_an_ambiguous_match() -> None:
    """And none holds out of scope."""
    both = confined("faq", "small", "large")
    code = msgspec.structs.replace(CODE, only=("small", "frontier"))
    both = msgspec.structs.replace(both, cohorts={**both.cohorts, "code": code})
    assert outcome(decide(both, signals(), between("code", "faq"), {})) == ("small", Reason.RESIDENCY, False)
    assert outcome(decide(confined("faq", "small"), signals(), NOWHERE, {})) == (
        "large",
        Reason.OUT_OF_SCOPE,
        False,
    )


@pytest.mark.parametrize("failure", [Reason.DEADLINE, Reason.ENCODER, Reason.NO_TEXT, Reason.BACKGROUND])
def test_a_request_without_a_match_stays_in_every_set(failure: Reason) -> None:
    """It may belong to any cohort."""
    decision = decide(confined("faq", "small"), signals(), None, {}, failure)
    assert decision.tier == SMALL and [rung.tier for rung in decision.ladder] == []
    nowhere = confined("faq", "small")
    code = msgspec.structs.replace(CODE, only=("large",))
    nowhere = msgspec.structs.replace(nowhere, cohorts={**nowhere.cohorts, "code": code})
    assert decide(nowhere, signals(), None, {}, failure).refused


def test_a_request_that_names_no_task_is_in_no_set_of_a_cohort() -> None:
    """It was not matched, but a greeting belongs to no cohort. The sets of rules hold for it."""
    greeting = signals(no_task=True)
    decision = decide(confined("faq", "small"), greeting, None, {}, Reason.OUT_OF_SCOPE)
    assert outcome(decision) == ("large", Reason.OUT_OF_SCOPE, False)
    decision = decide(policy(IN_EU), greeting, None, EU, Reason.OUT_OF_SCOPE)
    assert outcome(decision) == ("frontier", Reason.RESIDENCY, False)


def test_pinned_unreadable_and_foreign_requests_stay_in_the_set() -> None:
    """Whatever the request, a rule on headers holds. The set of a cohort holds until the request is matched."""
    by_header = policy(IN_EU)
    assert outcome(named(by_header, "qwen3-32b", None, EU)) == ("frontier", Reason.RESIDENCY, False)
    assert outcome(named(by_header, "gpt-5", None, EU)) == ("frontier", Reason.RESIDENCY, False)
    assert outcome(decide_unread(by_header, EU, Reason.UNREADABLE)) == ("frontier", Reason.RESIDENCY, False)
    assert outcome(decide_unread(by_header, EU, Reason.PASSTHROUGH)) == ("frontier", Reason.RESIDENCY, False)
    assert outcome(decide_unread(by_header, {}, Reason.UNREADABLE)) == ("large", Reason.UNREADABLE, False)
    by_cohort = confined("faq", "small")
    assert outcome(decide_unread(by_cohort, {}, Reason.UNREADABLE)) == ("small", Reason.RESIDENCY, False)
    assert outcome(named(by_cohort, "frontier-1", clearly("faq"))) == ("small", Reason.RESIDENCY, False)
    assert outcome(named(by_cohort, "frontier-1", clearly("code"))) == ("frontier", Reason.PINNED, False)


def test_a_rule_that_might_apply_confines_too() -> None:
    """Its `only` holds if the other conditions cannot be checked."""
    risky = policy(rule("risky", {"risk": "high", "headers": EU}, only=("small",)))
    assert outcome(decide(risky, signals(), None, EU, Reason.DEADLINE)) == ("small", Reason.RESIDENCY, False)
    assert outcome(decide(risky, signals(), None, {}, Reason.DEADLINE)) == ("large", Reason.DEADLINE, False)
    assert outcome(decide(risky, signals(), clearly("faq"), EU)) == ("small", Reason.MATCHED, False)
    assert outcome(decide_unread(risky, EU, Reason.UNREADABLE)) == ("small", Reason.RESIDENCY, False)


def test_shadow_mode_refuses_nothing() -> None:
    """It only records what `enforce` would do."""
    shadow = msgspec.structs.replace(confined("faq", "small"), mode="shadow")
    decision = decide(shadow, signals(needs=frozenset({"tools", "vision"})), clearly("faq"), {})
    assert (decision.refused, decision.reason, decision.proposed_tier) == (False, Reason.RESIDENCY, "none")


# Background calls


def test_a_background_call_goes_to_the_cheapest_tier_that_can_serve_it() -> None:
    """Floors of rules hold. Floors of cohorts need a match, which it does not get."""
    call = signals(background="title", model="gpt-5")
    assert outcome(decide(POLICY, call, None, {}, Reason.BACKGROUND)) == ("small", Reason.BACKGROUND, False)
    large = signals(background="memory", tokens=5_000)
    assert outcome(decide(POLICY, large, None, {}, Reason.BACKGROUND)) == ("large", Reason.CAPABILITY, False)
    gold = policy(rule("gold", {}, tier_floor="large"))
    assert outcome(decide(gold, call, None, {}, Reason.BACKGROUND)) == ("large", Reason.TIER_FLOOR, False)


def test_a_title_needs_no_room_for_the_clients_cap() -> None:
    """Agents ask for up to 64,000 tokens in every request. A tier that has no room for them gets a cap that fits.

    Each rung has the cap that fits its context. Other background calls may have long answers.
    """
    call = signals(background="title", max_output_tokens=64_000)
    decision = decide(POLICY, call, None, {}, Reason.BACKGROUND)
    assert outcome(decision) == ("small", Reason.BACKGROUND, False)
    body = b'{"model":"auto","max_tokens":64000,"messages":[{"role":"user","content":"Title?"}]}'
    mutation = mutate(decision, parse_request("/v1/chat/completions", body))
    assert mutation.body is not None
    sent = [mutation.body, *(apply(mutation.body, rung) for rung in mutation.rungs)]
    assert [msgspec.json.decode(body)["max_tokens"] for body in sent] == [250, 2_500]
    fits = signals(background="title", max_output_tokens=800)
    kept = mutate(decide(POLICY, fits, None, {}, Reason.BACKGROUND), parse_request("/v1/chat/completions", body))
    assert b'"max_tokens":64000' in (kept.body or b"")  # the signals say that the cap fits
    long = signals(background="memory", max_output_tokens=64_000)
    assert outcome(decide(POLICY, long, None, {}, Reason.BACKGROUND))[0] == "frontier"


@pytest.mark.parametrize(
    ("model", "ladder"),
    [("qwen3-8b", []), ("qwen3-9b", [LARGE]), ("qwen3-32b", [LARGE]), ("gpt-5", [LARGE]), ("frontier-2", [LARGE])],
)
def test_its_ladder_ends_at_the_class_of_model_that_was_asked_for(model: str, ladder: list[Any]) -> None:
    """A name that is unknown, or could be of several tiers, stands for the default tier."""
    decision = decide(POLICY, signals(background="title", model=model), None, {}, Reason.BACKGROUND)
    assert [rung.tier for rung in decision.ladder] == ladder


def test_a_rule_may_look_at_the_requested_model() -> None:
    """With a pattern, as for headers."""
    haiku = policy(rule("haiku", {"model": "claude-haiku-*"}, tier="frontier"))
    match = clearly("faq")
    assert decide(haiku, signals(model="claude-haiku-4-5"), match, {}).reason is Reason.RULE
    assert decide(haiku, signals(model="claude-opus-4-8"), match, {}).reason is Reason.MATCHED
    assert decide(haiku, signals(), match, {}).reason is Reason.MATCHED


# Tool loops, APIs, states and needs of agents


def test_no_cap_is_written_where_tools_are_offered() -> None:
    """The arguments of a tool call may be a whole file."""
    assert decide(POLICY, signals(), clearly("faq"), {}).max_output_tokens == 200
    assert decide(POLICY, signals(tool_loop=True), clearly("faq"), {}).max_output_tokens is None


@pytest.mark.parametrize("change", [{"apis": frozenset({"chat"})}, {"state": "drain"}, {"state": "out"}])
def test_a_tier_without_the_api_or_out_of_service_is_skipped(change: dict[str, Any]) -> None:
    """The reason is the same as for a capability."""
    tiers = (msgspec.structs.replace(SMALL, **change), LARGE, FRONTIER)
    skipping = policy(tiers=tiers)
    decision = decide(skipping, signals(api="responses"), clearly("faq"), {})
    assert outcome(decision) == ("large", Reason.CAPABILITY, False)


def test_the_needs_of_agents_count_once_a_tier_lists_them() -> None:
    """A list that was written before these needs had names loses no traffic."""
    needs = signals(needs=frozenset({"tools", "mid_system", "reasoning_state"}))
    assert outcome(decide(POLICY, needs, clearly("faq"), {})) == ("small", Reason.MATCHED, False)
    listing = msgspec.structs.replace(LARGE, capabilities=frozenset({"tools", "mid_system", "reasoning_state"}))
    listed = policy(tiers=(SMALL, listing, FRONTIER))
    assert outcome(decide(listed, needs, clearly("faq"), {})) == ("large", Reason.CAPABILITY, False)
