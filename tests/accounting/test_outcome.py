"""The cost of an exchange: measured tokens at the prices of the tiers, never a guess."""

import pytest

from extproc.accounting.outcome import Cost, Outcome, Rejection, cost_of
from extproc.api.observation import Usage
from extproc.routing.policy import Policy
from extproc.settings import Price, Tier


def tier(name: str, **price: float) -> Tier:
    return Tier(name, f"{name}-1", f"http://{name}:80", 1000, Price(**price))


POLICY = Policy((tier("small", input=1, output=2), tier("large", input=10, output=40, cached_input=1)), "large", {})


def outcome(**what: object) -> Outcome:
    plain = {"time": 0.0, "api": "chat", "ending": "accepted", "status": 200, "attempts": 1, "reason": "matched"}
    return Outcome(**plain | {"tier": "small"} | what)  # type: ignore[arg-type]


def test_an_answer_costs_its_tokens_at_its_tier_and_is_compared_with_the_default() -> None:
    """Prices are in dollars per million tokens, for input and for output."""
    assert cost_of(outcome(usage=Usage(1000, 100)), POLICY) == Cost(1200e-6, (), 14_000e-6)


@pytest.mark.parametrize(
    ("cached", "default"), [(None, 14_000e-6), (0, 14_000e-6), (600, 8_600e-6), (5000, 5_000e-6)]
)
def test_cached_input_has_its_own_price(cached: int | None, default: float) -> None:
    """If the tier has one. Cached tokens are a part of the input, so there are never more of them."""
    cost = cost_of(outcome(usage=Usage(1000, 100, cached)), POLICY)
    assert cost.last == pytest.approx(1200e-6)
    assert cost.default == pytest.approx(default)


def test_rejected_answers_are_priced_each_at_its_own_tier() -> None:
    """They were also paid for, and their cost is kept apart."""
    rejections = (Rejection(1, "small", "refusal", Usage(10, 5)), Rejection(2, "large", "empty", Usage(10, 1)))
    priced = cost_of(outcome(tier="large", attempts=3, rejections=rejections, usage=Usage(10, 1)), POLICY)
    assert priced == Cost(140e-6, (20e-6, 140e-6), 140e-6)


@pytest.mark.parametrize("usage", [None, Usage(10, None), Usage(None, 10)])
def test_without_tokens_there_is_no_cost(usage: Usage | None) -> None:
    """An unknown cost is not zero."""
    rejections = (Rejection(1, "small", "refusal", usage),)
    assert cost_of(outcome(usage=usage, rejections=rejections), POLICY) == Cost(None, (None,), None)


def test_a_tier_that_the_policy_no_longer_has_is_not_priced() -> None:
    cost = cost_of(outcome(tier="gone", usage=Usage(10, 1)), POLICY)
    assert (cost.last, cost.default) == (None, pytest.approx(140e-6))


@pytest.mark.parametrize("ending", ["human", "failed", "cancelled"])
def test_an_answer_that_was_not_served_saves_nothing(ending: str) -> None:
    """It has a cost, but no answer of the default tier to compare it with."""
    assert cost_of(outcome(ending=ending, usage=Usage(10, 5)), POLICY) == Cost(20e-6, (), None)


@pytest.mark.parametrize("reason", ["pinned", "passthrough"])
def test_a_tier_that_the_client_chose_is_compared_with_itself(reason: str) -> None:
    """The router neither saves nor loses money there."""
    assert cost_of(outcome(reason=reason, usage=Usage(10, 5)), POLICY) == Cost(20e-6, (), 20e-6)


def test_attempts_without_an_answer_are_counted_as_failed() -> None:
    """They were not rejected, and another attempt followed: an error, a reset, a dead server."""
    rejections = (Rejection(2, "small", "refusal"),)
    assert outcome(attempts=4, rejections=rejections).failed_attempts == 2
    assert outcome(attempts=1).failed_attempts == 0
    assert outcome(attempts=0, status=413).failed_attempts == 0


@pytest.mark.parametrize(
    ("what", "due"),
    [
        ({}, True),
        ({"ending": "failed", "status": 200}, True),
        ({"ending": "accepted", "status": 201}, True),
        ({"ending": "failed", "status": 204}, False),
        ({"ending": "cancelled", "status": 0}, True),
        ({"ending": "human", "status": 422}, True),
        ({"ending": "failed", "status": 503}, False),
        ({"ending": "failed", "status": 413, "attempts": 0}, False),
        ({"ending": "cancelled", "status": 0, "attempts": 0}, False),
    ],
)
def test_usage_is_due_if_an_upstream_may_have_been_paid(what: dict[str, object], due: bool) -> None:
    """An error has no usage, so its usage is not unknown."""
    assert outcome(**what).usage_due is due


def test_a_hit_of_the_cache_costs_nothing_and_saves_the_answer_of_its_tier() -> None:
    hit = outcome(tier="small", attempts=0, usage=None, cache="hit", reused=Usage(1_000_000, 1_000_000))
    assert hit.is_hit and not hit.usage_due
    assert cost_of(hit, POLICY) == Cost(0.0, (), 50.0, 3.0)
    checked = outcome(tier="small", attempts=1, usage=Usage(1_000_000, 0), cache="checked")
    assert not checked.is_hit and cost_of(checked, POLICY).saved is None
