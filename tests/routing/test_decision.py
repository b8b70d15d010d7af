"""Decisions: cohorts, rules in order, tier floors, caps on upgrades, tiers that can serve, ladders."""

from typing import Any

import msgspec
import pytest

from extproc.contract.words import Reason
from extproc.routing.ask import Ask
from extproc.routing.decision import Decision, decide, untouched
from extproc.routing.index import Match
from extproc.routing.policy import Cohort, Policy
from extproc.routing.signals import Signals
from extproc.settings import Budget, Conditions, Price, Rule, Tier, Upgrades

SMALL = Tier("small", "qwen3-8b", "http://small", 1_000, Price(1, 2), "qwen3", capabilities=frozenset({"tools"}))
LARGE = Tier("large", "qwen3-32b", "http://large", 10_000, Price(3, 4), "qwen3", capabilities=frozenset({"tools"}))
FRONTIER = Tier("frontier", "frontier-1", "https://frontier", 100_000, Price(5, 6), "openai")

FAQ = Cohort("faq", "small", floor=0.4, margin=0.1, calibrated=True, reasoning=False, max_output_tokens=200)
CODE = Cohort("code", "large", floor=0.4, margin=0.1, calibrated=True, reasoning=Budget(2_000))
LEGAL = Cohort(
    "legal", "small", floor=0.4, margin=0.1, calibrated=False, reasoning=True, tier_floor="frontier", risk="high"
)
POLICY = Policy((SMALL, LARGE, FRONTIER), "large", {c.name: c for c in (FAQ, CODE, LEGAL)})


def signals(**more: Any) -> Signals:
    usual = {"tokens": 100, "turns": 1, "needs": frozenset(), "strict_output": False, "stream": False}
    return Signals(ask=Ask("Where is my parcel?", "last_user", 19, False), **{**usual, **more})


def policy(*rules: Rule, **more: Any) -> Policy:
    return msgspec.structs.replace(POLICY, rules=rules, **more)


def rule(name: str = "r", when: dict[str, Any] | None = None, **does: Any) -> Rule:
    return Rule(name, Conditions(**when or {}), **does)


def clearly(cohort: str) -> Match:
    return Match(cohort, similarity=0.8, margin=0.5, runner_up="faq" if cohort != "faq" else "code")


def between(cohort: str, other: str) -> Match:
    return Match(cohort, similarity=0.8, margin=0.01, runner_up=other)


NOWHERE = Match("faq", similarity=0.1, margin=0.05, runner_up="legal")


def chosen(
    policy: Policy, match: Match | None, headers: dict[str, str] | None = None, **more: Any
) -> tuple[str, Reason]:
    """The tier's name and the reason."""
    decision = decide(policy, signals(**more), match, headers or {})
    return decision.tier.name, decision.reason


# The cohort


def test_a_clear_match_gets_the_settings_of_its_cohort():
    """The cohort sets tier, reasoning and cap, and the decision names the cohort."""
    match = clearly("faq")
    decision = decide(POLICY, signals(), match, {})
    assert msgspec.structs.replace(decision, ladder=()) == Decision(
        tier=SMALL,
        reason=Reason.MATCHED,
        rewrite=True,
        cohort=FAQ,
        match=match,
        rule=None,
        reasoning=False,
        reasoning_forced=False,
        max_output_tokens=200,
        proposed_tier=None,
    )


def test_a_request_near_to_no_cohort_falls_back():
    """The settings of the nearest cohort do not apply, but the decision still names it."""
    decision = decide(POLICY, signals(), NOWHERE, {})
    assert msgspec.structs.replace(decision, ladder=()) == Decision(
        LARGE, Reason.OUT_OF_SCOPE, cohort=FAQ, unmatched=Reason.OUT_OF_SCOPE, match=NOWHERE
    )


def test_an_ambiguous_match_falls_back():
    """A margin below the cohort's own is not trusted, at any similarity."""
    match = between("faq", "code")
    decision = decide(POLICY, signals(), match, {})
    assert msgspec.structs.replace(decision, ladder=()) == Decision(
        LARGE, Reason.AMBIGUOUS, cohort=FAQ, unmatched=Reason.AMBIGUOUS, match=match
    )


@pytest.mark.parametrize(
    ("similarity", "margin", "reason"),
    [
        (0.4, 0.1, Reason.MATCHED),
        (0.399, 0.1, Reason.OUT_OF_SCOPE),
        (0.4, 0.099, Reason.AMBIGUOUS),
        (0.399, 0.099, Reason.OUT_OF_SCOPE),
        (-1.0, -2.0, Reason.OUT_OF_SCOPE),
        (1.0, 2.0, Reason.MATCHED),
    ],
)
def test_floor_and_margin_are_the_lowest_trusted_values(similarity, margin, reason):
    """Equal values are trusted. Out of scope is checked before ambiguous."""
    assert chosen(POLICY, Match("faq", similarity, margin, "code"))[1] is reason


@pytest.mark.parametrize("failure", [Reason.NO_TEXT, Reason.DEADLINE, Reason.ENCODER])
def test_without_a_match_the_failure_is_the_reason(failure):
    """The default tier serves."""
    decision = decide(POLICY, signals(), None, {}, failure)
    assert msgspec.structs.replace(decision, ladder=()) == Decision(LARGE, failure, unmatched=failure)


def test_a_single_cohort_has_no_runner_up():
    """An untrusted margin is ambiguous even if there is no second cohort."""
    alone = msgspec.structs.replace(POLICY, cohorts={"faq": FAQ})
    assert chosen(alone, Match("faq", 0.5, 0.05, None)) == ("large", Reason.AMBIGUOUS)


# Rules


def test_the_first_rule_that_applies_wins():
    """Later rules are ignored, even if they set more."""
    rules = policy(
        rule("never", {"tokens_over": 5_000}, tier="small"),
        rule("first", {}, tier="frontier"),
        rule("second", {}, tier="small", reasoning=True),
    )
    decision = decide(rules, signals(), clearly("faq"), {})
    assert (decision.tier, decision.reason, decision.rule, decision.reasoning) == (
        FRONTIER,
        Reason.RULE,
        "first",
        False,
    )


def test_a_rule_without_a_tier_keeps_the_tier_of_the_cohort():
    """It changes only the reasoning. The decision names it, and the reason is still the match."""
    decision = decide(policy(rule("think", {}, reasoning=Budget(500))), signals(), clearly("faq"), {})
    assert (decision.tier, decision.reason, decision.rule, decision.reasoning) == (
        SMALL,
        Reason.MATCHED,
        "think",
        Budget(500),
    )


@pytest.mark.parametrize("match", [NOWHERE, None, between("faq", "code")])
def test_a_rule_may_decide_without_a_trusted_match(match):
    """A rule on signals also applies to fallbacks, and becomes the reason."""
    assert chosen(policy(rule(when={"turns_over": 3}, tier="small")), match, turns=4) == ("small", Reason.RULE)


@pytest.mark.parametrize(
    ("when", "more", "applies"),
    [
        ({}, {}, True),
        ({"intents": ("code", "faq")}, {}, True),
        ({"intents": ("code",)}, {}, False),
        ({"intents": ()}, {}, False),
        ({"risk": "low"}, {}, True),
        ({"risk": "high"}, {}, False),
        ({"tokens_over": 99}, {}, True),
        ({"tokens_over": 100}, {}, False),
        ({"tokens_under": 101}, {}, True),
        ({"tokens_under": 100}, {}, False),
        ({"tokens_over": 0}, {"tokens": 0}, False),
        ({"turns_over": 0}, {}, True),
        ({"turns_over": 1}, {}, False),
        ({"tools": True}, {"needs": frozenset({"tools"})}, True),
        ({"tools": True}, {}, False),
        ({"tools": False}, {}, True),
        ({"tools": False}, {"needs": frozenset({"tools"})}, False),
        ({"images": True}, {"needs": frozenset({"vision"})}, True),
        ({"images": False}, {"needs": frozenset({"vision"})}, False),
        ({"strict_output": True}, {"strict_output": True}, True),
        ({"strict_output": True}, {}, False),
        ({"strict_output": False}, {}, True),
        ({"headers": {"x-user-tier": "gold"}}, {}, True),
        ({"headers": {"x-user-tier": "g*"}}, {}, True),
        ({"headers": {"x-user-tier": "Gold"}}, {}, False),
        ({"headers": {"x-user-tier": "gold", "x-region": "eu"}}, {}, False),
        ({"headers": {"x-region": "*"}}, {}, True),
        ({"tokens_over": 99, "turns_over": 5}, {}, False),
    ],
)
def test_a_rule_applies_if_all_its_conditions_are_met(when, more, applies):
    """Limits are exclusive, and an absent header counts as empty."""
    one_rule = policy(rule(when=when, tier="frontier"))
    expected = ("frontier", Reason.RULE) if applies else ("small", Reason.MATCHED)
    if "vision" in more.get("needs", ()) and not applies:
        expected = ("frontier", Reason.CAPABILITY)
    assert chosen(one_rule, clearly("faq"), {"x-user-tier": "gold"}, **more) == expected


def test_rules_use_both_cohorts_of_an_ambiguous_match_and_no_cohort_out_of_scope():
    """An ambiguous request may belong to either cohort, so rules on either one apply."""
    on_risk = policy(rule(when={"risk": "high"}, tier="frontier"))
    assert chosen(on_risk, between("faq", "legal")) == ("frontier", Reason.RULE)
    assert chosen(on_risk, Match("legal", 0.1, 0.0, "faq")) == ("large", Reason.OUT_OF_SCOPE)
    on_intent = policy(rule(when={"intents": ("code",)}, tier="small"))
    assert chosen(on_intent, between("faq", "code")) == ("small", Reason.RULE)
    assert chosen(on_intent, Match("faq", 0.8, 0.5, "code")) == ("small", Reason.MATCHED)


# Tier floors


def test_a_cohorts_floor_raises_its_own_tier():
    """The reason is the floor and not the match."""
    assert chosen(POLICY, clearly("legal")) == ("frontier", Reason.TIER_FLOOR)


def test_no_rule_lowers_a_cohorts_floor():
    """The floor overrides a rule that names a cheaper tier."""
    cheap = policy(rule(when={"headers": {"x-user-tier": "free"}}, tier="small", tier_floor="small"))
    assert chosen(cheap, clearly("legal"), {"x-user-tier": "free"}) == ("frontier", Reason.TIER_FLOOR)


def test_a_rules_floor_raises_and_never_lowers():
    """A request that is already above it keeps its tier and its reason."""
    paying = policy(rule("paying", {}, tier_floor="large"))
    assert chosen(paying, clearly("faq")) == ("large", Reason.TIER_FLOOR)
    assert chosen(paying, clearly("code")) == ("large", Reason.MATCHED)
    assert chosen(paying, clearly("legal")) == ("frontier", Reason.TIER_FLOOR)
    assert chosen(policy(rule("top", {}, tier="frontier", tier_floor="large")), clearly("faq"))[1] is Reason.RULE


def test_the_floors_of_both_cohorts_apply_to_an_ambiguous_match():
    """A risky request stays above its floor, whether its cohort is first or second."""
    assert chosen(POLICY, between("faq", "legal")) == ("frontier", Reason.TIER_FLOOR)
    assert chosen(POLICY, between("legal", "faq")) == ("frontier", Reason.TIER_FLOOR)
    assert chosen(POLICY, between("faq", "code")) == ("large", Reason.AMBIGUOUS)


def test_no_cohorts_floor_applies_out_of_scope():
    """A request that is far from a risky cohort is not risky, even if that cohort is the nearest."""
    assert chosen(POLICY, Match("legal", 0.1, 0.05, "faq")) == ("large", Reason.OUT_OF_SCOPE)


# Tiers that can serve


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"tokens": 800}, ("small", Reason.MATCHED)),  # the cohort's cap leaves 200 tokens for the answer
        ({"tokens": 801}, ("large", Reason.CAPABILITY)),
        ({"tokens": 801, "max_output_tokens": 199}, ("small", Reason.MATCHED)),
        ({"tokens": 800, "max_output_tokens": 32_000}, ("small", Reason.MATCHED)),
        ({"tokens": 800, "max_output_tokens": 32_000, "tool_loop": True}, ("frontier", Reason.CAPABILITY)),
        ({"tokens": 751, "tool_loop": True}, ("large", Reason.CAPABILITY)),  # a quarter, without any cap
        ({"tokens": 9_801}, ("frontier", Reason.CAPABILITY)),
        ({"needs": frozenset({"tools"})}, ("small", Reason.MATCHED)),
        ({"needs": frozenset({"tools", "vision"})}, ("frontier", Reason.CAPABILITY)),
        ({"tokens": 1_000_000}, ("frontier", Reason.CAPABILITY)),
    ],
)
def test_a_tier_that_cannot_serve_is_skipped_upward(more, expected):
    """Context and capabilities count. If no tier can serve, the largest capable one reports the error."""
    assert chosen(POLICY, clearly("faq"), **more) == expected


def test_capabilities_raise_the_tier_of_a_rule_or_a_floor():
    """They are checked last, and become the reason."""
    cheap = policy(rule(tier="small", tier_floor="large"))
    assert chosen(cheap, clearly("faq"), needs=frozenset({"vision"})) == ("frontier", Reason.CAPABILITY)
    assert chosen(POLICY, None, tokens=50_000) == ("frontier", Reason.CAPABILITY)


# The ladder


def test_the_ladder_holds_the_next_tier_that_can_serve():
    """A failed attempt has one rung to go to, and no rung above the top tier."""
    assert [rung.tier for rung in decide(POLICY, signals(), clearly("faq"), {}).ladder] == [LARGE]
    assert [rung.tier for rung in decide(POLICY, signals(), clearly("legal"), {}).ladder] == []
    lengthy = decide(POLICY, signals(tokens=5_000), clearly("faq"), {})
    assert (lengthy.tier, [rung.tier for rung in lengthy.ladder]) == (LARGE, [FRONTIER])


# Shadow mode, and whose choice of reasoning applies


def test_in_shadow_mode_the_default_tier_serves():
    """Only the model is written. The decision records the tier that `enforce` would use, and the reason."""
    match = clearly("legal")
    decision = decide(policy(rule("noted", {}, reasoning=True), mode="shadow"), signals(), match, {})
    assert decision == Decision(
        LARGE, Reason.TIER_FLOOR, cohort=LEGAL, match=match, rule="noted", proposed_tier="frontier"
    )


def test_shadow_mode_skips_tiers_that_cannot_serve():
    """A default tier without vision would answer a picture with an error."""
    decision = decide(policy(mode="shadow"), signals(needs=frozenset({"vision"})), clearly("faq"), {})
    assert (decision.tier, decision.proposed_tier, decision.reason) == (FRONTIER, "frontier", Reason.CAPABILITY)


@pytest.mark.parametrize(("choice", "forced"), [("client", False), ("router", True)])
def test_the_policy_sets_whose_choice_of_reasoning_applies(choice, forced):
    """The decision passes it on to the mutation."""
    assert decide(policy(reasoning_choice=choice), signals(), clearly("faq"), {}).reasoning_forced is forced


# A principal that has used up its upgrades


def chosen_when_spent(
    policy: Policy, match: Match | None, lower_floors: bool = False, **more: Any
) -> tuple[str, Reason]:
    limited = msgspec.structs.replace(policy, upgrades=Upgrades(30, 10, lower_floors))
    decision = decide(limited, signals(**more), match, {}, spent=True)
    return decision.tier.name, decision.reason


def test_without_upgrades_left_the_default_tier_serves():
    """Whether a cohort or a rule names the expensive tier. Tiers up to the default do not change."""
    expensive = policy(rule(tier="frontier"))
    assert chosen(expensive, clearly("faq")) == ("frontier", Reason.RULE)
    assert chosen_when_spent(expensive, clearly("faq")) == ("large", Reason.UPGRADE_RATE)
    cohorts = {**POLICY.cohorts, "code": msgspec.structs.replace(CODE, tier="frontier")}
    assert chosen_when_spent(policy(cohorts=cohorts), clearly("code")) == ("large", Reason.UPGRADE_RATE)
    assert chosen_when_spent(POLICY, clearly("faq")) == ("small", Reason.MATCHED)
    assert chosen_when_spent(POLICY, NOWHERE) == ("large", Reason.OUT_OF_SCOPE)


def test_a_floor_holds_against_the_cap_unless_the_policy_puts_cost_first():
    """By default, a legal question always gets the tier that it needs."""
    assert chosen_when_spent(POLICY, clearly("legal")) == ("frontier", Reason.TIER_FLOOR)
    assert chosen_when_spent(POLICY, clearly("legal"), lower_floors=True) == ("large", Reason.UPGRADE_RATE)
    assert chosen_when_spent(policy(rule(tier_floor="large")), clearly("faq"), lower_floors=True) == (
        "large",
        Reason.TIER_FLOOR,
    )


def test_the_cap_sends_no_request_to_a_tier_that_cannot_serve_it():
    """A picture needs a tier with vision."""
    picture = chosen_when_spent(policy(rule(tier="frontier")), clearly("faq"), needs=frozenset({"vision"}))
    assert picture == ("frontier", Reason.CAPABILITY)


# Requests that are not routed


def test_a_model_that_a_tier_serves_goes_to_that_tier():
    """The client pinned the tier, and its bytes do not change."""
    assert untouched(POLICY, Reason.PASSTHROUGH, "qwen3-8b") == Decision(SMALL, Reason.PINNED, rewrite=False)


@pytest.mark.parametrize("model", [None, "gpt-5", "", "QWEN3-8B", "small"])
def test_any_other_model_passes_through_to_the_default_tier(model):
    """Unknown, absent, or almost the name of a tier: the body does not change."""
    assert untouched(POLICY, Reason.PASSTHROUGH, model) == Decision(LARGE, Reason.PASSTHROUGH, rewrite=False)


@pytest.mark.parametrize(
    ("needs", "lists", "tier"),
    [
        ({"files"}, ({"tools"}, {"tools", "files"}, {"tools"}), "large"),
        ({"hosted:web_search"}, ({"tools"}, {"hosted:web_search"}, {"hosted"}), "large"),
        ({"hosted:mcp"}, ({"tools"}, {"hosted:web_search"}, {"hosted"}), "frontier"),
        ({"video"}, ({"tools"}, {"tools"}, {"tools"}), "frontier"),
        ({"unknown part"}, ({"tools"}, {"tools"}, {"tools"}), "frontier"),
        ({"unknown part", "files"}, (None, {"tools"}, None), "small"),
    ],
)
def test_a_need_goes_to_a_tier_that_has_it_or_to_the_last(needs, lists, tier):
    """A tier without a list has every capability. A need that no tier lists is left to the last tier."""
    tiers = tuple(
        msgspec.structs.replace(t, capabilities=None if names is None else frozenset(names))
        for t, names in zip((SMALL, LARGE, FRONTIER), lists, strict=True)
    )
    policy = msgspec.structs.replace(POLICY, tiers=tiers)
    assert decide(policy, signals(needs=frozenset(needs)), clearly("faq"), {}).tier.name == tier
