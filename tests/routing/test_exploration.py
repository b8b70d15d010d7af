"""The draw of a second tier: who has a chance, how large it is, and how often it is drawn."""

import asyncio
import math
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.routing.exploration import Exploration, Lottery
from extproc.routing.router import Router
from extproc.settings import Conditions, Escalations, Rule

CHAT = {":path": "/v1/chat/completions"}
RESPONSES = {":path": "/v1/responses"}
ASK = "Send my last invoice again"


class WordEmbedder:
    def __init__(self, encoder) -> None:
        self.encoder = encoder

    async def embed(self, text, deadline_s, principal=""):
        return self.encoder.encode([text])[0]


@pytest.fixture(scope="module")
def snapshot(words):
    """The folder configs/good, whose cohort `billing` is judged at the small tier. `cooking` has no rules."""
    config = load_config(Path(__file__).parents[1] / "configs/good")
    intents = tuple(
        msgspec.structs.replace(
            intent, floor=0.1, accept=["complete", "non_empty"] if intent.intent == "billing" else []
        )
        for intent in config.intents
    )
    return compile_snapshot(msgspec.structs.replace(config, intents=intents), words)


def drawn(
    snapshot, words, share: float = 1.0, headers: dict[str, str] = CHAT, room: bool = True, **body: Any
) -> Exploration | None:
    """The draw for a request with this body."""
    router = Router(snapshot, WordEmbedder(words))
    router.lottery = Lottery(share, lambda: room, random.Random(7))
    is_chat = headers[":path"] == CHAT[":path"]
    ask = {"messages": [{"role": "user", "content": ASK}]} if is_chat else {"input": ASK}
    return asyncio.run(router.route(msgspec.json.encode({"model": "auto"} | ask | body), headers)).exploration


def test_the_other_tier_has_the_whole_share_if_rules_judge_the_served_one(snapshot, words):
    draw = drawn(snapshot, words)
    assert draw is not None and draw.second is not None
    assert (draw.chances, draw.second.tier.name, draw.second.chance) == ({"large": 1.0}, "large", 1.0)
    assert draw.second.cohort.name == "billing"


def test_a_request_that_is_not_drawn_keeps_its_chance(snapshot, words):
    assert drawn(snapshot, words, share=1e-9) == Exploration({"large": 1e-9})


def test_all_tiers_share_the_chance_if_no_rule_judges_the_served_one(snapshot, words):
    """In shadow mode the default tier serves, and nothing is judged."""
    policy = msgspec.structs.replace(snapshot.policy, mode="shadow")
    draw = drawn(msgspec.structs.replace(snapshot, policy=policy), words, share=0.5)
    assert draw is not None and draw.chances == {"small": 0.25, "large": 0.25}


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (CHAT, {"tools": [{"type": "web_search_preview"}]}),
        (CHAT, {"model": "qwen3-32b"}),
        (CHAT, {"messages": [{"role": "user", "content": "Cook rice with beans"}]}),  # no rule judges its cohort
        (CHAT, {"user": "x" * 300_000}),
        (RESPONSES, {}),
        (RESPONSES, {"background": True, "store": False}),
        (RESPONSES, {"previous_response_id": "resp_1", "store": False}),
    ],
)
def test_these_have_no_chance(snapshot, words, headers, body):
    """They have effects, or state of one upstream, or nothing that judges their answers."""
    assert drawn(snapshot, words, headers=headers, **body) is None


def test_nothing_has_a_chance_without_room(snapshot, words):
    assert drawn(snapshot, words, room=False) is None
    assert drawn(snapshot, words, headers=RESPONSES, store=False) is not None


@pytest.mark.parametrize(
    ("change", "chances"),
    [
        ({"rules": (Rule("all", Conditions(), tier_floor="large"),)}, {"large": 1.0}),
        ({"rules": (Rule("all", Conditions(), only=("small",)),)}, {"small": 1.0}),
        ({"retarget": ("auto", "qwen3-*")}, None),
    ],
)
def test_only_tiers_that_a_request_for_their_model_reaches_have_a_chance(snapshot, words, change, chances):
    """Floors and sets hold. A model that the policy replaces does not lead to its own tier."""
    policy = msgspec.structs.replace(snapshot.policy, **change)
    draw = drawn(msgspec.structs.replace(snapshot, policy=policy), words)
    assert (draw.chances if draw is not None else None) == chances


def test_only_headers_that_rules_read_go_along(snapshot, words):
    headers = CHAT | {"x-user-tier": "gold", "authorization": "Bearer sk-1", "session-id": "s1", "x-other": "1"}
    draw = drawn(snapshot, words, headers=headers)
    assert draw is not None and draw.second is not None
    assert draw.second.headers == {"x-user-tier": "gold"}


def test_no_key_goes_along_even_if_a_rule_reads_it(snapshot, words):
    """The headers that name the principal may be others than those with keys."""
    names = ("authorization", "cookie", "x-mine", "x-user", "x-team")
    rule = Rule("all", Conditions(headers=dict.fromkeys(names, "1")), tier="large")
    policy = msgspec.structs.replace(snapshot.policy, rules=(rule,))
    changed = msgspec.structs.replace(
        snapshot, policy=policy, escalations=Escalations(("x-user",)), key_headers=(*snapshot.key_headers, "x-mine")
    )
    draw = drawn(changed, words, headers=CHAT | dict.fromkeys(names, "2"))
    assert draw is not None and draw.second is not None and draw.second.headers == {"x-team": "2"}


def test_a_model_that_the_client_named_has_no_chance_where_a_rule_moves_it(snapshot, words):
    rules = (Rule("all", Conditions(), only=("large",)),)
    policy = msgspec.structs.replace(snapshot.policy, rules=rules)
    changed = msgspec.structs.replace(snapshot, policy=policy)
    assert drawn(changed, words) is not None
    assert drawn(changed, words, model="qwen3-8b") is None


def test_the_share_is_drawn(snapshot, words):
    """With a fixed seed, 800 requests are within three standard deviations of 5 %, and ids differ."""
    router = Router(snapshot, WordEmbedder(words))
    router.lottery = Lottery(0.05, lambda: True, random.Random(1))
    body = msgspec.json.encode({"model": "auto", "messages": [{"role": "user", "content": ASK}]})

    async def ask_all(count: int) -> list[Exploration | None]:
        return [(await router.route(body, CHAT)).exploration for _ in range(count)]

    draws = asyncio.run(ask_all(800))
    ids = [draw.second.id for draw in draws if draw is not None and draw.second is not None]
    assert all(draw is not None and draw.chances == {"large": 0.05} for draw in draws)
    assert abs(len(ids) - 40) <= 3 * math.sqrt(800 * 0.05 * 0.95)
    assert len(set(ids)) == len(ids)
