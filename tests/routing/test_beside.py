"""Side paths: they follow the sealed state of a request, and stay in the tiers of `only`."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.api.paths import COMPACT, SIDE_PATHS, Api
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.contract.words import Course, Reason
from extproc.routing.beside import decide_beside
from extproc.routing.conversations import NEW, Continuation, Conversations, hashed_seal
from extproc.routing.decision import Decision
from extproc.routing.policy import Policy
from extproc.routing.router import Router
from extproc.routing.sticky import History
from extproc.routing.store import MemoryStore
from tests.routing.test_conversations import RESPONSES, reasoned, user
from tests.routing.test_decision import FRONTIER, LARGE, SMALL, policy
from tests.routing.test_exchange import WordEmbedder
from tests.routing.test_only import EU, IN_EU

AT_FRONTIER = History("frontier", hashed_seal(FRONTIER))
SEALED = Continuation(AT_FRONTIER, bound=True)


def outcome(decision: Decision) -> tuple[str, Reason, Course | None, bool]:
    return decision.tier.name, decision.reason, decision.course, decision.refused


def decided(model: str | None = "auto", continuation: Continuation = NEW, api: Api = "responses",
            headers: dict[str, str] | None = None, compacts: bool = False, **more: Any) -> Any:  # fmt: skip
    of: Policy = policy(**more) if "rules" not in more else policy(*more.pop("rules"), **more)
    return outcome(decide_beside(of, headers or {}, api, model, continuation, compacts))


def test_the_maker_of_sealed_state_gets_it_and_otherwise_the_default_tier() -> None:
    assert decided() == ("large", Reason.PASSTHROUGH, None, False)
    assert decided(continuation=SEALED) == ("frontier", Reason.BOUND, Course.KEPT_SEALED, False)
    assert decided(continuation=Continuation(bound=True)) == ("large", Reason.BOUND, Course.LOST, False)
    one_seal: dict[str, Any] = {
        "tiers": tuple(msgspec.structs.replace(t, seal="one") for t in (SMALL, LARGE, FRONTIER))
    }
    assert decided(continuation=Continuation(bound=True), **one_seal) == ("large", Reason.PASSTHROUGH, None, False)


def test_a_tier_that_is_named_gets_it_with_any_state() -> None:
    assert decided(SMALL.model, SEALED) == ("small", Reason.PINNED, None, False)
    assert decided("gpt-5", SEALED) == ("large", Reason.PASSTHROUGH, None, False)


def test_the_tier_that_answered_last_compacts() -> None:
    """Its prompt cache is warm, and the answer can only be read there."""
    open_state = Continuation(AT_FRONTIER)
    assert decided(continuation=open_state, compacts=True) == ("frontier", Reason.BOUND, Course.KEPT, False)
    assert decided(continuation=open_state) == ("large", Reason.PASSTHROUGH, None, False)
    assert decided(continuation=open_state, compacts=True, mode="shadow")[0] == "large"


@pytest.mark.parametrize("model", ["auto", LARGE.model, "gpt-5", None])
def test_it_stays_in_the_tiers_of_only(model: str | None) -> None:
    """For every model that is named, and for every maker of the state."""
    at_large = Continuation(History("large", hashed_seal(LARGE)), bound=True)
    for continuation in (NEW, at_large):
        found = decided(model, continuation, headers=EU, rules=[IN_EU])
        assert found[:2] == ("frontier", Reason.RESIDENCY)
    nothing = tuple(msgspec.structs.replace(t, state="out") for t in (SMALL, FRONTIER))
    assert decided(model, headers=EU, rules=[IN_EU], tiers=(*nothing, LARGE))[3]


def test_a_tier_without_the_api_is_skipped() -> None:
    chat_only = msgspec.structs.replace(LARGE, apis=frozenset({"chat"}))
    tiers = (SMALL, chat_only, FRONTIER)
    assert decided(api="messages", tiers=tiers)[:2] == ("frontier", Reason.CAPABILITY)


# Through the router


@pytest.fixture(scope="module")
def router(words: Any) -> Router:
    snapshot = compile_snapshot(load_config(Path(__file__).parents[1] / "configs/good"), words)
    return Router(snapshot, WordEmbedder(words), conversations=Conversations(MemoryStore()))


@pytest.mark.parametrize("path", SIDE_PATHS)
def test_state_of_an_unknown_tier_goes_to_the_default_tier_and_says_so(router: Any, path: str) -> None:
    """A body that cannot be read whole goes there, too."""
    sealed: dict[str, Any] = {"previous_response_id": "resp_1", "input": "x"}
    if SIDE_PATHS[path] != RESPONSES:
        thinking = {"type": "thinking", "thinking": "", "signature": "EqQB"}
        sealed = {"messages": [{"role": "assistant", "content": [thinking]}]}
    for state, reason in ((sealed, Reason.BOUND), ({"input": [0] * 20_001, "messages": []}, Reason.PASSTHROUGH)):
        body = msgspec.json.encode({"model": "auto"} | state)
        routed = asyncio.run(router.route(body, {":path": path, "authorization": "k"}))
        assert (routed.decision.tier.name, routed.decision.reason) == ("large", reason)
        assert routed.mutation.body == body.replace(b'"auto"', b'"qwen3-32b"')


@pytest.mark.parametrize("session", [{}, {"session_id": "s1"}])
def test_a_compacted_conversation_goes_on_at_the_tier_that_compacted_it(
    router: Any, session: dict[str, str]
) -> None:
    """The client sends the sealed item instead of the turns. With a session id, its opening may be another."""
    opening = user(f"Send my last invoice again {session}")

    def route(path: str, model: str, items: list[Any]) -> Any:
        body = msgspec.json.encode({"model": model, "input": items})
        return asyncio.run(router.route(body, {":path": path, "authorization": "k", **session})).decision

    turns = [opening, reasoned(f"enc {session}"), user("thanks")]
    assert route(RESPONSES, "qwen3-8b", turns).tier.name == "small"
    compacted = route(COMPACT, "auto", turns)
    assert (compacted.tier.name, compacted.course) == ("small", Course.KEPT_SEALED)
    start = user("Where were we?") if session else opening
    rest = [start, {"type": "compaction", "encrypted_content": f"sum {session}"}, user("How do I roast a chicken?")]
    follow_up = route(RESPONSES, "auto", rest)
    assert (follow_up.tier.name, follow_up.reason) == ("small", Reason.BOUND)
