"""Cases from real use, where they are beside the checkout: each request is routed as its file wants."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.encoder.backends import load_encoder
from extproc.encoder.batcher import Batcher
from extproc.routing.conversations import Conversations
from extproc.routing.routed import Routed
from extproc.routing.router import Router
from extproc.routing.store import MemoryStore

ROOT = Path(__file__).parents[2]
CASES = ROOT.parent / "shared" / "cases" / "requests"
# Number of the case -> reason, tier. None: any reason but a fallback for a body that cannot be read.
EXPECTED: dict[str, tuple[str | None, str | None]] = {
    # No request of these conversations came before: no router knows which tier made their state.
    "07": ("bound", "large"), "08": ("bound", "large"), "09": ("bound", "large"),
    "11": (None, None), "12": (None, None), "13": (None, None), "14": ("bad_request", None), "16": (None, None),
    "17": (None, None), "18": (None, None), "19": (None, "frontier"), "20": ("capability", "frontier"),
    "21": ("capability", "frontier"), "22": ("capability", "frontier"), "23": (None, "frontier"),
    "24": ("capability", "frontier"), "29": (None, "frontier"),
    "31": (None, None), "33": ("passthrough", "large"), "39": (None, None), "45": (None, None),
}  # fmt: skip


@pytest.fixture(scope="module")
def router() -> Router:
    config = load_config(ROOT / "intents")
    encoder = load_encoder(config.policy.encoder.model)
    snapshot = compile_snapshot(config, encoder)
    patient = msgspec.structs.replace(snapshot.encoder, deadline_ms=60_000)
    return Router(msgspec.structs.replace(snapshot, encoder=patient), Batcher(encoder))


def routed(router: Router, case: dict[str, Any]) -> Routed:
    body = case["raw_body"].encode() if "raw_body" in case else msgspec.json.encode(case["body"])
    alone = Router(router.snapshot, router.embedder, conversations=Conversations(MemoryStore()))
    return asyncio.run(alone.route(body.replace(b"claude-x", b"auto"), {":path": case["path"]}))


# Number of the case -> the members that its upstream must get, and those that it must not get.
REASONING: dict[str, tuple[dict[str, Any], set[str]]] = {
    "03": ({"max_completion_tokens": 100}, {"max_tokens"}),
    "04": ({"reasoning_effort": "none"}, set()),
    "05": ({"reasoning_effort": "low"}, {"thinking"}),
    "06": ({"max_tokens": 9000}, {"thinking", "chat_template_kwargs"}),
}


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout")
@pytest.mark.parametrize("number", REASONING)
def test_a_case_reaches_its_upstream_in_the_form_of_its_model(router: Router, number: str) -> None:
    """Foreign members are removed, and members that the provider calls otherwise have its names."""
    [file] = CASES.glob(f"{number}-*.json")
    body = routed(router, msgspec.json.decode(file.read_bytes())).mutation.body
    assert body is not None
    sent, (expected, absent) = msgspec.json.decode(body), REASONING[number]
    assert {name: sent.get(name) for name in expected} == expected
    assert not sent.keys() & absent


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout")
@pytest.mark.parametrize("number", EXPECTED)
def test_a_case_is_routed_as_it_wants(router: Router, number: str) -> None:
    """No case is unreadable, and no upstream gets the name that only the router knows."""
    [file] = CASES.glob(f"{number}-*.json")
    reason, tier = EXPECTED[number]
    result = routed(router, msgspec.json.decode(file.read_bytes()))
    assert result.decision.reason not in ("unreadable", "no_text")
    assert reason is None or result.decision.reason == reason
    assert tier is None or result.decision.tier.name == tier
    assert result.refusal is not None or b'"auto"' not in (result.mutation.body or b'"auto"')
