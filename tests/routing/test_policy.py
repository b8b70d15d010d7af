"""What is decided about a match: rules in order, floors that nothing lowers, tiers that can serve."""

from typing import Any

import msgspec
import pytest

from extproc.contract.words import Reason
from extproc.routing.ask import Ask
from extproc.routing.index import Match
from extproc.routing.policy import Cohort, Decision, Policy, decide, may_retarget, untouched
from extproc.routing.signals import Signals
from extproc.settings import Budget, Conditions, Price, Rule, Tier, Upgrades

SMALL = Tier("small", "qwen3-8b", "small:80", 1_000, Price(1, 2), "qwen3", capabilities=frozenset({"tools"}))
LARGE = Tier("large", "qwen3-32b", "large:80", 10_000, Price(3, 4), "qwen3", capabilities=frozenset({"tools"}))
FRONTIER = Tier("frontier", "frontier-1", "frontier:443", 100_000, Price(5, 6), "openai", tls=True)

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


def went(
    policy: Policy, match: Match | None, headers: dict[str, str] | None = None, **more: Any
) -> tuple[str, Reason]:
    decision = decide(policy, signals(**more), match, headers or {})
    return decision.tier.name, decision.reason


# The match


def test_a_clear_match_gets_what_its_cohort_says():
    """Tier, reasoning and cap are the cohort's, and the decision says where they come from."""
    match = clearly("faq")
    decided = decide(POLICY, signals(), match, {})
    assert msgspec.structs.replace(decided, ladder=()) == Decision(
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


def test_what_is_near_to_nothing_falls_back():
    """Below its floor a cohort's settings do not apply; where it would have landed is still said."""
    decided = decide(POLICY, signals(), NOWHERE, {})
    assert msgspec.structs.replace(decided, ladder=()) == Decision(
        LARGE, Reason.OUT_OF_SCOPE, cohort=FAQ, match=NOWHERE
    )


def test_what_is_too_close_to_call_falls_back():
    """A margin under the cohort's own least is not trusted, however similar."""
    match = between("faq", "code")
    decided = decide(POLICY, signals(), match, {})
    assert msgspec.structs.replace(decided, ladder=()) == Decision(LARGE, Reason.AMBIGUOUS, cohort=FAQ, match=match)


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
def test_floor_and_margin_are_the_least_that_is_trusted(similarity, margin, reason):
    """At them is enough; out of scope comes before ambiguous."""
    assert went(POLICY, Match("faq", similarity, margin, "code"))[1] is reason


@pytest.mark.parametrize("failure", [Reason.NO_TEXT, Reason.DEADLINE, Reason.ENCODER])
def test_without_a_match_the_failure_is_the_reason(failure):
    """No vector, no cohort: the default tier, and why."""
    decided = decide(POLICY, signals(), None, {}, failure)
    assert msgspec.structs.replace(decided, ladder=()) == Decision(LARGE, failure)


def test_a_single_cohort_has_no_runner_up():
    """With nothing to be confused with, an untrusted margin lands in that cohort alone."""
    alone = msgspec.structs.replace(POLICY, cohorts={"faq": FAQ})
    assert went(alone, Match("faq", 0.5, 0.05, None)) == ("large", Reason.AMBIGUOUS)


# Rules


def test_the_first_rule_that_applies_wins():
    """Later ones are not looked at, even if they say more."""
    chosen = policy(
        rule("never", {"tokens_over": 5_000}, tier="small"),
        rule("first", {}, tier="frontier"),
        rule("second", {}, tier="small", reasoning=True),
    )
    decided = decide(chosen, signals(), clearly("faq"), {})
    assert (decided.tier, decided.reason, decided.rule, decided.reasoning) == (
        FRONTIER,
        Reason.RULE,
        "first",
        False,
    )


def test_a_rule_without_a_tier_keeps_the_cohorts():
    """It may change reasoning alone, and is named; the reason stays the match."""
    decided = decide(policy(rule("think", {}, reasoning=Budget(500))), signals(), clearly("faq"), {})
    assert (decided.tier, decided.reason, decided.rule, decided.reasoning) == (
        SMALL,
        Reason.MATCHED,
        "think",
        Budget(500),
    )


@pytest.mark.parametrize("match", [NOWHERE, None, between("faq", "code")])
def test_a_rule_may_decide_what_no_match_could(match):
    """A rule on signals applies to fallbacks, too, and is then the reason."""
    assert went(policy(rule(when={"turns_over": 3}, tier="small")), match, turns=4) == ("small", Reason.RULE)


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
def test_a_rule_applies_when_all_its_conditions_hold(when, more, applies):
    """Each condition on its own, bounds excluded; a header that is not there reads as empty."""
    chosen = policy(rule(when=when, tier="frontier"))
    expected = ("frontier", Reason.RULE) if applies else ("small", Reason.MATCHED)
    if "vision" in more.get("needs", ()) and not applies:
        expected = ("frontier", Reason.CAPABILITY)
    assert went(chosen, clearly("faq"), {"x-user-tier": "gold"}, **more) == expected


def test_rules_see_both_cohorts_of_an_ambiguous_match_and_none_out_of_scope():
    """It may be in either, so a rule on either applies; what is out of scope is in none."""
    on_risk = policy(rule(when={"risk": "high"}, tier="frontier"))
    assert went(on_risk, between("faq", "legal")) == ("frontier", Reason.RULE)
    assert went(on_risk, Match("legal", 0.1, 0.0, "faq")) == ("large", Reason.OUT_OF_SCOPE)
    on_intent = policy(rule(when={"intents": ("code",)}, tier="small"))
    assert went(on_intent, between("faq", "code")) == ("small", Reason.RULE)
    assert went(on_intent, Match("faq", 0.8, 0.5, "code")) == ("small", Reason.MATCHED)


# Floors


def test_a_cohorts_floor_lifts_its_own_tier():
    """The reason is then the floor, not the match."""
    assert went(POLICY, clearly("legal")) == ("frontier", Reason.TIER_FLOOR)


def test_no_rule_lowers_a_cohorts_floor():
    """A rule that names a cheaper tier loses to it."""
    cheap = policy(rule(when={"headers": {"x-user-tier": "free"}}, tier="small", tier_floor="small"))
    assert went(cheap, clearly("legal"), {"x-user-tier": "free"}) == ("frontier", Reason.TIER_FLOOR)


def test_a_rules_floor_lifts_and_never_lowers():
    """What is above it already keeps its tier and its reason."""
    paying = policy(rule("paying", {}, tier_floor="large"))
    assert went(paying, clearly("faq")) == ("large", Reason.TIER_FLOOR)
    assert went(paying, clearly("code")) == ("large", Reason.MATCHED)
    assert went(paying, clearly("legal")) == ("frontier", Reason.TIER_FLOOR)
    assert went(policy(rule("top", {}, tier="frontier", tier_floor="large")), clearly("faq"))[1] is Reason.RULE


def test_an_ambiguous_match_is_held_by_the_floors_of_both():
    """Whichever of the two it is, no risky request goes below its floor."""
    assert went(POLICY, between("faq", "legal")) == ("frontier", Reason.TIER_FLOOR)
    assert went(POLICY, between("legal", "faq")) == ("frontier", Reason.TIER_FLOOR)
    assert went(POLICY, between("faq", "code")) == ("large", Reason.AMBIGUOUS)


def test_what_is_out_of_scope_is_held_by_no_cohorts_floor():
    """Being nearest to a risky cohort from far away is no risk."""
    assert went(POLICY, Match("legal", 0.1, 0.05, "faq")) == ("large", Reason.OUT_OF_SCOPE)


# What a tier can serve


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"tokens": 1_000}, ("small", Reason.MATCHED)),
        ({"tokens": 1_001}, ("large", Reason.CAPABILITY)),
        ({"tokens": 10_001}, ("frontier", Reason.CAPABILITY)),
        ({"needs": frozenset({"tools"})}, ("small", Reason.MATCHED)),
        ({"needs": frozenset({"tools", "vision"})}, ("frontier", Reason.CAPABILITY)),
        ({"tokens": 1_000_000}, ("frontier", Reason.CAPABILITY)),
    ],
)
def test_a_tier_that_cannot_serve_is_skipped_upward(more, expected):
    """Context and capabilities; when no tier can serve, the one that comes nearest says so to the client."""
    assert went(POLICY, clearly("faq"), **more) == expected


def test_capabilities_lift_what_a_rule_or_a_floor_chose():
    """They come last, and are then the reason."""
    cheap = policy(rule(tier="small", tier_floor="large"))
    assert went(cheap, clearly("faq"), needs=frozenset({"vision"})) == ("frontier", Reason.CAPABILITY)
    assert went(POLICY, None, tokens=50_000) == ("frontier", Reason.CAPABILITY)


# The ladder above


def test_the_ladder_holds_the_next_tier_that_can_serve():
    """A failed attempt has one place to go, none from the top."""
    assert [rung.tier for rung in decide(POLICY, signals(), clearly("faq"), {}).ladder] == [LARGE]
    assert [rung.tier for rung in decide(POLICY, signals(), clearly("legal"), {}).ladder] == []
    lengthy = decide(POLICY, signals(tokens=5_000), clearly("faq"), {})
    assert (lengthy.tier, [rung.tier for rung in lengthy.ladder]) == (LARGE, [FRONTIER])


# Shadow mode and the client's choice


def test_shadow_decides_and_lets_the_default_tier_serve():
    """Nothing but the model is written; what enforcing would have done is recorded with its reason."""
    match = clearly("legal")
    decided = decide(policy(rule("noted", {}, reasoning=True), mode="shadow"), signals(), match, {})
    assert decided == Decision(
        LARGE, Reason.TIER_FLOOR, cohort=LEGAL, match=match, rule="noted", proposed_tier="frontier"
    )


def test_shadow_still_skips_tiers_that_cannot_serve():
    """A default tier without eyes would answer a picture with an error."""
    decided = decide(policy(mode="shadow"), signals(needs=frozenset({"vision"})), clearly("faq"), {})
    assert (decided.tier, decided.proposed_tier, decided.reason) == (FRONTIER, "frontier", Reason.CAPABILITY)


@pytest.mark.parametrize(("choice", "forced"), [("client", False), ("router", True)])
def test_the_policy_says_whose_choice_of_reasoning_wins(choice, forced):
    """The decision carries it to where the body is written."""
    assert decide(policy(reasoning_choice=choice), signals(), clearly("faq"), {}).reasoning_forced is forced


# A principal that has had its upgrades


def held(policy: Policy, match: Match | None, lower_floors: bool = False, **more: Any) -> tuple[str, Reason]:
    bounded = msgspec.structs.replace(policy, upgrades=Upgrades(30, 10, lower_floors))
    decision = decide(bounded, signals(**more), match, {}, spent=True)
    return decision.tier.name, decision.reason


def test_who_has_had_its_upgrades_is_held_to_the_default_tier():
    """Whether the cohort or a rule names the dear tier; what goes no higher than the default is as it was."""
    dear = policy(rule(tier="frontier"))
    assert went(dear, clearly("faq")) == ("frontier", Reason.RULE)
    assert held(dear, clearly("faq")) == ("large", Reason.UPGRADE_RATE)
    cohorts = {**POLICY.cohorts, "code": msgspec.structs.replace(CODE, tier="frontier")}
    assert held(policy(cohorts=cohorts), clearly("code")) == ("large", Reason.UPGRADE_RATE)
    assert held(POLICY, clearly("faq")) == ("small", Reason.MATCHED)
    assert held(POLICY, NOWHERE) == ("large", Reason.OUT_OF_SCOPE)


def test_a_floor_is_held_against_the_bound_unless_the_policy_puts_cost_first():
    """By default a legal question is answered by the tier it needs, however many came before."""
    assert held(POLICY, clearly("legal")) == ("frontier", Reason.TIER_FLOOR)
    assert held(POLICY, clearly("legal"), lower_floors=True) == ("large", Reason.UPGRADE_RATE)
    assert held(policy(rule(tier_floor="large")), clearly("faq"), lower_floors=True) == (
        "large",
        Reason.TIER_FLOOR,
    )


def test_the_bound_sends_nothing_to_a_tier_that_cannot_serve_it():
    """A picture needs the tier that can see."""
    seen = held(policy(rule(tier="frontier")), clearly("faq"), needs=frozenset({"vision"}))
    assert seen == ("frontier", Reason.CAPABILITY)


# What is not ours to route


def test_a_model_that_a_tier_serves_goes_to_that_tier():
    """The client pinned it; its bytes go on as they are."""
    assert untouched(POLICY, Reason.PASSTHROUGH, "qwen3-8b") == Decision(SMALL, Reason.PINNED, rewrite=False)


@pytest.mark.parametrize("model", [None, "gpt-5", "", "QWEN3-8B", "small"])
def test_any_other_model_passes_through_to_the_default_tier(model):
    """Unknown, absent or nearly a tier's: nothing is rewritten."""
    assert untouched(POLICY, Reason.PASSTHROUGH, model) == Decision(LARGE, Reason.PASSTHROUGH, rewrite=False)


@pytest.mark.parametrize(
    ("model", "may"),
    [("auto", True), ("gpt-4o-mini", True), ("gpt-4", True), ("gpt-5", False), ("Auto", False), ("", False)],
)
def test_only_listed_models_may_be_replaced(model, may):
    """By name or by pattern, in the case that is written."""
    assert may_retarget(policy(retarget=("auto", "gpt-4*")), model) is may


# Reasons


def test_fallbacks_are_the_reasons_without_a_decision():
    """A dashboard that counts fallbacks counts exactly these."""
    assert {reason.value for reason in Reason if reason.is_fallback} == {
        "out_of_scope",
        "ambiguous",
        "no_text",
        "unreadable",
        "deadline",
        "encoder_error",
    }


def test_a_tiers_cluster_is_its_name_unless_it_says_otherwise():
    """Envoy may know the upstream by another name."""
    assert [SMALL.cluster_name, msgspec.structs.replace(SMALL, cluster="pool-a").cluster_name] == [
        "small",
        "pool-a",
    ]
