"""Conversations that `only` keeps in some tiers: neither their state nor their cache leads out of them."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.contract.words import Course, Reason
from extproc.routing.conversations import Conversations
from extproc.routing.decision import Decision, decide_kept
from extproc.routing.routed import Routed
from extproc.routing.router import Router
from extproc.routing.sticky import Sticky
from extproc.routing.store import MemoryStore
from tests.routing.test_conversations import CACHED, FIRST, MESSAGES, SECOND, Talk, outcome, thought, user
from tests.routing.test_decision import FRONTIER, LARGE, SMALL, policy
from tests.routing.test_exchange import WordEmbedder
from tests.routing.test_only import EU, IN_EU, confined

BOUND: dict[str, Any] = {"messages": [*FIRST["messages"], thought("EqQB"), user("thanks")]}


def continued(second: Any, **more: Any) -> Decision:
    """The answer of a bound request by the policy `second`, after the frontier has answered without it."""
    talk = Talk()
    talk.send(MESSAGES, FIRST, "legal")
    talk.policy = second
    return talk.send(MESSAGES, BOUND, "faq", **more)


def test_a_bound_request_whose_maker_is_outside_the_set_moves_into_it() -> None:
    decision = continued(confined("faq", "small", "large"))
    assert outcome(decision) == ("large", Reason.RESIDENCY, Course.MOVED)
    assert decision.ladder == ()
    assert outcome(continued(confined("faq", "small", "frontier"))) == (
        "frontier", Reason.BOUND, Course.KEPT_SEALED,
    )  # fmt: skip


def test_it_is_refused_if_no_tier_of_the_set_can_serve_it() -> None:
    decision = continued(confined("faq", "small"), needs=frozenset({"vision"}))
    assert (decision.refused, decision.reason, decision.ladder) == (True, Reason.RESIDENCY, ())


@pytest.mark.parametrize("names", [("large",), ("small", "large")])
def test_a_tier_of_the_set_that_has_the_makers_seal_reads_the_request(names: tuple[str, ...]) -> None:
    """Even where the maker or the proposed tier is outside, or another tier is nearer."""
    tiers = (SMALL, *(msgspec.structs.replace(tier, seal="ours") for tier in (LARGE, FRONTIER)))
    talk = Talk(policy(tiers=tiers))
    talk.send(MESSAGES, FIRST, "legal")
    talk.policy = msgspec.structs.replace(confined("faq", *names), tiers=tiers)
    assert outcome(talk.send(MESSAGES, BOUND, "faq")) == ("large", Reason.BOUND, Course.KEPT_SEALED)


def test_a_proposed_tier_outside_the_set_is_not_taken_for_its_seal() -> None:
    tiers = (msgspec.structs.replace(SMALL, seal="ours"), LARGE, msgspec.structs.replace(FRONTIER, seal="ours"))
    talk = Talk(policy(tiers=tiers))
    talk.send(MESSAGES, FIRST, "legal")
    talk.policy = msgspec.structs.replace(confined("faq", "large", "frontier"), tiers=tiers)
    assert outcome(talk.send(MESSAGES, BOUND, "faq")) == ("frontier", Reason.BOUND, Course.KEPT_SEALED)


def test_state_of_an_unknown_tier_stays_in_the_set() -> None:
    """The default tier would get it."""
    talk = Talk(confined("faq", "small"))
    assert outcome(talk.send(MESSAGES, BOUND, "faq")) == ("small", Reason.RESIDENCY, Course.LOST)


def test_a_warm_cache_outside_the_set_keeps_nothing() -> None:
    sticky: dict[str, Any] = {"tiers": CACHED, "sticky": Sticky(switch_budget=0.1)}
    talk = Talk(policy(**sticky))
    talk.send(MESSAGES, FIRST, "code")
    talk.policy = msgspec.structs.replace(confined("faq", "small", "frontier"), **sticky)
    assert outcome(talk.send(MESSAGES, SECOND, "faq")) == ("small", Reason.MATCHED, Course.MOVED)


def test_a_request_about_a_response_stays_in_the_set_of_its_headers() -> None:
    in_eu = policy(IN_EU)
    assert outcome(decide_kept(in_eu, EU, 2)) == ("frontier", Reason.BOUND, Course.KEPT_SEALED)
    assert outcome(decide_kept(in_eu, {}, 1)) == ("large", Reason.BOUND, Course.KEPT_SEALED)
    assert outcome(decide_kept(in_eu, EU, 1)) == ("frontier", Reason.RESIDENCY, None)
    assert outcome(decide_kept(in_eu, EU, None)) == ("frontier", Reason.RESIDENCY, None)
    no_tier = msgspec.structs.replace(
        in_eu, tiers=(*[msgspec.structs.replace(t, state="out") for t in (SMALL, FRONTIER)], LARGE)
    )
    assert decide_kept(no_tier, EU, None).refused


# Through the router


@pytest.fixture(scope="module")
def router(words: Any) -> Router:
    snapshot = compile_snapshot(load_config(Path(__file__).parents[1] / "configs/good"), words)
    return Router(snapshot, WordEmbedder(words), conversations=Conversations(MemoryStore()))


def sent(router: Router, model: str, messages: list[Any], filler: int = 0) -> Routed:
    body = msgspec.json.encode({"model": model, "messages": messages, "user": "x" * filler})
    return asyncio.run(router.route(body, {":path": MESSAGES, "authorization": "k"}))


@pytest.mark.parametrize("filler", [0, 300_000])
def test_a_client_that_names_the_model_of_a_tier_gets_that_tier_with_any_state(router: Router, filler: int) -> None:
    """Also with a body that is worked on in a thread. Later the state of the conversation is at that tier."""
    ask, done = user(f"Send my last invoice again {filler}"), thought(f"EqQB{filler}")
    assert sent(router, "auto", [ask], filler).decision.tier.name in ("small", "large")
    for model, tier in (("qwen3-32b", "large"), ("qwen3-8b", "small")):
        named = sent(router, model, [ask, done, user("thanks")], filler)
        assert (named.decision.tier.name, named.decision.reason) == (tier, Reason.PINNED)
        assert named.identity is not None
        again = thought(f"{tier}{filler}")
        follow_up = sent(router, "auto", [ask, done, user("thanks"), again, user("Send my last invoice again")])
        assert (follow_up.decision.tier.name, follow_up.decision.reason) == (tier, Reason.BOUND)
