"""Trust by cost: without a floor, the chances choose the cheapest tier that is likely to be enough."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.contract.words import Reason
from extproc.routing.ask import Ask
from extproc.routing.decision import Decision, decide
from extproc.routing.index import Match
from extproc.routing.policy import Cohort, Policy
from extproc.routing.signals import Signals
from extproc.routing.trust import DOUBT, Trust, chance_above, is_likely, needed_rank, trust, weigh
from extproc.settings import Evidence, Price, Probability, Tier

TIERS = (
    Tier("small", "qwen3-8b", "http://small", 1_000, Price(1, 2), "qwen3"),
    Tier("large", "qwen3-32b", "http://large", 10_000, Price(3, 4), "qwen3"),
    Tier("frontier", "frontier-1", "https://frontier", 100_000, Price(5, 6), "openai"),
)
FAQ = Cohort("faq", "small", floor=0.1, margin=0.0, calibrated=False, reasoning=False, max_output_tokens=200)
SUMMARY = Cohort("summary", "small", floor=0.1, margin=0.0, calibrated=False)
CODE = Cohort("code", "large", floor=0.1, margin=0.0, calibrated=False, reasoning=True)
LEGAL = Cohort("legal", "large", floor=0.1, margin=0.0, calibrated=False, tier_floor="frontier", risk="high")
SIGNALS = Signals(Ask("Where is my parcel?", "last_user", 19, False), 100, 1, frozenset(), False, False)
NEEDS = {"faq": "small", "summary": "small", "code": "large", "legal": "frontier"}
POLICY = Policy(TIERS, "large", {c.name: c for c in (FAQ, SUMMARY, CODE, LEGAL)})


def with_cohort(cohort: Cohort) -> Policy:
    """The policy with another cohort in place of the one with its name."""
    return msgspec.structs.replace(POLICY, cohorts={**POLICY.cohorts, cohort.name: cohort})


def match(background: float = 0.0, similarity: float = 0.5, **chances: float) -> Match:
    """The match of a request with these chances. `faq` has the rest, if its chance is not given."""
    chances = {"faq": 1 - background - sum(chances.values())} | chances if "faq" not in chances else chances
    best, second, *_ = [*sorted(chances, key=chances.__getitem__, reverse=True), "faq", "summary"]
    tiers = dict.fromkeys(("small", "large", "frontier"), 0.0)
    for name, chance in chances.items():
        tiers[NEEDS[name]] += chance
    return Match(
        best, similarity, 0.2, second, chances[best], chances.get(second, 0.0), chances[best], background, tiers
    )


@pytest.mark.parametrize(
    ("chances", "reason", "tier"),
    [
        ({"faq": 0.9, "background": 0.1}, Reason.MATCHED, "small"),
        ({"faq": 0.76, "code": 0.24}, Reason.MATCHED, "small"),
        ({"faq": 0.65, "code": 0.35}, Reason.AMBIGUOUS, "large"),
        ({"faq": 0.65, "legal": 0.35}, Reason.AMBIGUOUS, "frontier"),
        ({"faq": 0.65, "background": 0.35}, Reason.OUT_OF_SCOPE, "large"),
        ({"faq": 0.2, "background": 0.8}, Reason.OUT_OF_SCOPE, "large"),
        ({"code": 0.2, "background": 0.8}, Reason.OUT_OF_SCOPE, "large"),
        ({"legal": 0.35, "background": 0.65}, Reason.AMBIGUOUS, "frontier"),
        ({"legal": 0.25, "background": 0.75}, Reason.OUT_OF_SCOPE, "large"),
        ({"legal": 0.45, "faq": 0.55}, Reason.AMBIGUOUS, "frontier"),
        ({"code": 0.9, "faq": 0.1}, Reason.MATCHED, "large"),
        ({"code": 0.35, "faq": 0.33, "summary": 0.32}, Reason.AMBIGUOUS, "large"),
        ({"code": 0.28, "faq": 0.24, "summary": 0.24, "background": 0.24}, Reason.AMBIGUOUS, "large"),
        ({"faq": 0.39, "summary": 0.38, "background": 0.23}, Reason.AMBIGUOUS, "small"),
        ({"faq": 0.55, "summary": 0.45}, Reason.MATCHED, "small"),
    ],
)  # fmt: skip
def test_the_tier_is_the_cheapest_that_is_likely_to_be_enough(chances: dict[str, float], reason: Reason, tier: str):
    """Doubt between a cheap and a costly cohort goes up, and the background needs the default tier."""
    assert weigh(POLICY, match(**{"faq": 0.0} | chances)) == Trust(reason, POLICY.rank(tier))


def test_cohorts_with_the_same_settings_are_not_ambiguous_between_each_other():
    """Their chances count together."""
    third = msgspec.structs.replace(match(faq=0.39, summary=0.38, background=0.23), alike=0.77)
    assert weigh(POLICY, third) == Trust(Reason.MATCHED, 0)


def test_a_similarity_below_the_floor_is_out_of_scope_at_any_chance():
    """A softmax gives high chances to some texts that are like nothing."""
    assert weigh(POLICY, match(similarity=0.09, faq=1.0)) == Trust(Reason.OUT_OF_SCOPE, 1)


@pytest.mark.parametrize("how", [{"calibrated": True}, {"operator_floor": True}])
def test_a_floor_of_the_operator_or_of_evidence_decides_alone(how: dict[str, Any]):
    """The chances of other cohorts and of the background do not count."""
    floored = msgspec.structs.replace(FAQ, floor=0.5, **how)
    policy = with_cohort(floored)
    doubtful = match(faq=0.51, code=0.49)
    assert trust(policy, doubtful) is Reason.MATCHED
    assert trust(policy, msgspec.structs.replace(doubtful, similarity=0.49)) is Reason.OUT_OF_SCOPE


def test_an_explicit_margin_holds():
    """It is checked before the chances."""
    wary = msgspec.structs.replace(FAQ, margin=0.3)
    policy = with_cohort(wary)
    assert weigh(policy, match(faq=1.0)) == Trust(Reason.AMBIGUOUS, 1)


def evidence(abstains: bool, pool: int | None = None) -> Evidence:
    curve = Probability(1.0, 1.0, 0.0)
    return Evidence("2026-11-22", "d", 50, "e", "c", 0.05, (0.0, 0.1), 0.5, curve, pool=pool, abstains=abstains)


@pytest.mark.parametrize(
    ("chances", "reason", "tier"),
    [
        ({"faq": 0.76, "code": 0.24}, Reason.MATCHED, "small"),
        ({"faq": 0.65, "code": 0.35}, Reason.AMBIGUOUS, "large"),
        ({"faq": 0.65, "legal": 0.35}, Reason.AMBIGUOUS, "frontier"),
        ({"faq": 0.65, "background": 0.35}, Reason.OUT_OF_SCOPE, "large"),
        ({"faq": 0.55, "summary": 0.45}, Reason.MATCHED, "small"),
        ({"faq": 0.39, "summary": 0.38, "background": 0.23}, Reason.AMBIGUOUS, "small"),
    ],
)
def test_a_match_above_a_shared_margin_must_also_be_likely_enough(
    chances: dict[str, float], reason: Reason, tier: str
):
    """A margin of the cohort itself decides alone. A shared one does if there are no chances."""
    own = msgspec.structs.replace(FAQ, margin=0.1, calibrated=True, evidence=evidence(False))
    shared = msgspec.structs.replace(own, evidence=evidence(False, pool=200))
    doubtful = match(**chances)
    assert weigh(with_cohort(shared), doubtful) == Trust(reason, POLICY.rank(tier))
    assert is_likely(with_cohort(shared), doubtful) == (reason is Reason.MATCHED)
    assert weigh(with_cohort(own), doubtful) == Trust(Reason.MATCHED, 0)
    plain = Match("faq", 0.5, 0.2, "summary")
    assert weigh(with_cohort(shared), plain) == Trust(Reason.MATCHED, 0)
    assert is_likely(with_cohort(shared), plain)
    narrow = msgspec.structs.replace(doubtful, margin=0.09)
    assert trust(with_cohort(shared), narrow) is Reason.AMBIGUOUS


def test_cohorts_of_a_pool_with_the_same_settings_are_not_ambiguous_between_each_other():
    """Their chances count together, and all settings apply."""
    shared = msgspec.structs.replace(FAQ, margin=0.01, calibrated=True, evidence=evidence(False, pool=200))
    third = msgspec.structs.replace(match(faq=0.39, summary=0.38, background=0.23), alike=0.77)
    decision = decided(with_cohort(shared), third)
    assert (decision.reason, decision.tier, decision.withheld) == (Reason.MATCHED, TIERS[0], ())


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"margin": 0.3, "calibrated": True, "evidence": evidence(False)}, Reason.AMBIGUOUS),
        ({"abstains": True, "evidence": evidence(True)}, Reason.ABSTAINED),
    ],
)
@pytest.mark.parametrize(
    ("chances", "tier"),
    [
        ({"faq": 0.8, "code": 0.1, "background": 0.1}, "small"),
        ({"faq": 0.6, "code": 0.3, "background": 0.1}, "large"),
        ({"faq": 0.6, "legal": 0.3, "background": 0.1}, "frontier"),
        ({"faq": 0.6, "background": 0.4}, "large"),
        ({"faq": 0.8, "code": 0.2}, "large"),
    ],
)
def test_the_chances_choose_the_tier_of_a_match_that_fitted_floors_reject(
    how: dict[str, Any], reason: Reason, chances: dict[str, float], tier: str
):
    """The settings of the cohort do not apply. Without a background the default tier serves."""
    policy = with_cohort(msgspec.structs.replace(FAQ, **how))
    assert weigh(policy, match(**chances)) == Trust(reason, policy.rank(tier))


def shares() -> st.SearchStrategy[list[float]]:
    """Chances of faq, summary, code, legal and the background."""
    weights = st.lists(st.floats(0.001, 1), min_size=5, max_size=5)
    return weights.map(lambda values: [value / sum(values) for value in values])


def matched(values: list[float], similarity: float = 0.5) -> Match:
    faq, summary, code, legal, background = values
    return match(background=background, similarity=similarity, faq=faq, summary=summary, code=code, legal=legal)


@given(shares(), st.sampled_from(["small", "large", "frontier"]))
def test_the_tier_is_never_cheaper_than_what_is_likely_to_be_enough(values: list[float], default: str):
    """For any chances and any reason."""
    policy = msgspec.structs.replace(POLICY, default_tier=default)
    found = matched(values)
    rank = served_rank(policy, found)
    assert rank >= needed_rank(policy, found)
    assert chance_above(policy, found, rank) <= DOUBT
    if trust(policy, found) is Reason.OUT_OF_SCOPE:
        assert rank >= policy.rank(default)


@given(shares(), st.integers(0, 1), st.integers(2, 4), st.floats(0, 1))
def test_doubt_never_lowers_a_tier(values: list[float], cheap: int, costly: int, share: float):
    """Chance that moves from a cheap cohort to a costly one or to the background keeps the tier or raises it."""
    doubtful = [*values]
    doubtful[costly] += share * values[cheap]
    doubtful[cheap] -= share * values[cheap]
    frontier = Cohort("legal", "frontier", floor=0.1, margin=0.0, calibrated=False)
    policy = with_cohort(frontier)
    assert served_rank(policy, matched(doubtful)) >= served_rank(policy, matched(values))


# What a guess may set


def served_rank(policy: Policy, found: Match) -> int:
    """The rank of the tier that serves, after the floors of the likely cohorts."""
    return policy.rank(decided(policy, found).tier.name)


def decided(policy: Policy, found: Match) -> Decision:
    return msgspec.structs.replace(decide(policy, SIGNALS, found, {}), ladder=())


def test_a_guess_sets_no_cap_and_does_not_turn_reasoning_off():
    """The decision names what was left out."""
    certain = match(faq=0.9, code=0.1)
    assert decided(POLICY, certain) == Decision(
        TIERS[0], Reason.MATCHED, cohort=FAQ, match=certain, withheld=("max_output_tokens", "reasoning")
    )


def test_a_guess_may_turn_reasoning_on():
    """It costs tokens, and no answer gets worse."""
    certain = match(faq=0.1, code=0.9)
    assert decided(POLICY, certain) == Decision(
        TIERS[1], Reason.MATCHED, cohort=CODE, match=certain, reasoning=True
    )


@pytest.mark.parametrize("how", [{"calibrated": True}, {"operator_floor": True}])
def test_with_a_floor_all_settings_apply(how: dict[str, Any]):
    """A floor that was fitted or written says which requests are meant."""
    floored = msgspec.structs.replace(FAQ, **how)
    policy = with_cohort(floored)
    certain = match(faq=0.9, code=0.1)
    assert decided(policy, certain) == Decision(
        TIERS[0], Reason.MATCHED, cohort=floored, match=certain, reasoning=False, max_output_tokens=200
    )


def test_only_a_likely_second_cohort_raises_the_tier_to_its_floor():
    """`legal` has a chance of 20 % and needs the frontier tier."""
    assert decided(POLICY, match(faq=0.39, legal=0.2, summary=0.19, code=0.12, background=0.1)).tier is TIERS[1]
