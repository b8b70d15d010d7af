"""The price of a switch: the spend of a conversation, and when it may go to a cheaper tier."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.sticky import History, advance, choose
from extproc.settings import Price, Tier
from tests.routing.test_decision import FRONTIER, LARGE, SMALL

# A million tokens cost 1, 3 and 5 dollars, and a tenth of that in the cache.
TIERS = tuple(
    msgspec.structs.replace(tier, price=Price(tier.price.input, tier.price.output, tier.price.input / 10))
    for tier in (SMALL, LARGE, FRONTIER)
)
ABLE = (0, 1, 2)
MILLION = 1_000_000


def after(*served: int, tokens: int = MILLION, every_s: float = 60.0) -> History:
    """The history after requests to these ranks, which grow by `tokens`."""
    history = None
    for number, rank in enumerate(served, start=1):
        history = advance(history, TIERS, rank, number * tokens, number * every_s)
    assert history is not None
    return history


def chosen(history: History, proposed: int, budget: float, tokens: int | None = None, later_s: float = 60.0) -> int:
    tokens = history.tokens if tokens is None else tokens
    return choose(history, TIERS, proposed, ABLE, tokens, history.at_s + later_s, budget)


def test_a_prompt_costs_its_new_tokens_and_a_tenth_for_those_in_the_cache() -> None:
    history = after(1, 1)
    assert (history.spent, history.baseline) == pytest.approx((3 + 0.3 + 3, 3 + 0.3 + 3))
    assert (history.tier, history.anchor, history.tokens) == ("large", "large", 2 * MILLION)


def test_a_switch_gives_up_the_cache_and_the_baseline_keeps_it() -> None:
    history = after(1, 0, 1)
    assert history.spent == pytest.approx(3 + 2 * 1 + 3 * 3)
    assert history.baseline == pytest.approx(3 + (0.3 + 3) + (2 * 0.3 + 3))


def test_a_move_up_raises_the_baseline_too() -> None:
    history = after(0, 2)
    assert (history.anchor, history.spent, history.baseline) == ("frontier", pytest.approx(11), pytest.approx(11))


def test_a_cold_cache_is_worth_nothing() -> None:
    """Both pay the whole prompt after ten minutes."""
    history = after(1, 1, every_s=600.0)
    assert history.spent == history.baseline == pytest.approx(3 + 2 * 3)


def test_a_short_visit_to_a_cheaper_tier_does_not_pay() -> None:
    history = after(2, 2)
    assert chosen(history, 0, budget=0.1) == 2
    assert chosen(history, 0, budget=2.0) == 0


def test_a_long_conversation_saves_up_for_a_switch() -> None:
    history, turns = after(2), 0
    while chosen(history, 0, budget=0.1) == 2:
        history = advance(history, TIERS, 2, MILLION, history.at_s + 60)
        turns += 1
    assert turns > 10
    assert chosen(history, 0, budget=0.0) == 2


def test_a_move_up_and_a_tier_without_a_cache_need_no_budget() -> None:
    assert chosen(after(0, 0), 2, budget=0.0) == 2
    uncached = tuple(msgspec.structs.replace(tier, price=Price(tier.price.input, 1)) for tier in TIERS)
    history = advance(None, uncached, 2, MILLION, 0)
    assert choose(history, uncached, 0, ABLE, MILLION, 60, 0.0) == 0


def test_a_tier_that_cannot_serve_is_not_chosen() -> None:
    history = after(2, 2)
    assert choose(history, TIERS, 0, (0, 1), history.tokens, history.at_s + 60, 0.1) == 0


def test_a_tier_that_left_the_policy_is_forgotten() -> None:
    history = after(2, 2)
    assert choose(history, TIERS[:2], 0, (0, 1), history.tokens, history.at_s + 60, 0.1) == 0
    assert advance(history, TIERS[:2], 0, MILLION, 0).anchor == "small"


PRICES = st.floats(0.01, 100, allow_nan=False)
TURNS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 100_000), st.sampled_from([1.0, 299.0, 301.0])),
    min_size=1,
    max_size=60,
)


@given(prices=st.lists(PRICES, min_size=3, max_size=3), cached=st.floats(0, 1), turns=TURNS, budget=st.floats(0, 2))
def test_no_conversation_spends_more_than_its_budget(
    prices: list[float], cached: float, turns: list[tuple[int, int, float]], budget: float
) -> None:
    """On any replay: at most (1 + budget) times the spend without switches, after every request."""
    tiers: tuple[Tier, ...] = tuple(
        msgspec.structs.replace(tier, price=Price(price, price, price * cached))
        for tier, price in zip(TIERS, sorted(prices), strict=True)
    )
    history, tokens, now_s = None, 0, 0.0
    for proposed, more, pause_s in turns:
        tokens, now_s = tokens + more, now_s + pause_s
        rank = proposed
        if history is not None:
            rank = choose(history, tiers, proposed, ABLE, tokens, now_s, budget)
            assert rank >= proposed
        history = advance(history, tiers, rank, tokens, now_s)
        assert history.spent <= (1 + budget) * history.baseline * (1 + 1e-9) + 1e-12
