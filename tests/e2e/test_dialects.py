"""Requests in every form of reasoning, through the real Envoy, to upstreams as strict as their providers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from extproc.demo.sample_upstream import TIER, Received, SampleUpstreams
from extproc.demo.stack import Stack
from tests.e2e.traffic import CHAT, MESSAGES, RESPONSES, Answer, body_of, send, small_intent
from tests.providers import refusals

# The tiers are in this order, so a failed request goes from one dialect to the next.
TIERS = {
    "haiku": ("claude-haiku-4-5", "anthropic"),
    "opus": ("claude-opus-4-8", "anthropic"),
    "qwen": ("qwen3-8b", "qwen3"),
    "nano": ("gpt-5-nano", "openai"),
    "gpt": ("gpt-5.6-terra", "openai"),
    "gemini": ("gemini-3.1-pro", "gemini"),
}
_APIS = {CHAT: "chat", RESPONSES: "responses", MESSAGES: "messages"}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
_HIGH: dict[str, Any] = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}
_CLEARS = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}


class StrictUpstreams(SampleUpstreams):
    """Sample servers that answer 400 to requests that the provider of their model refuses."""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        tier, body = request.app[TIER], msgspec.json.decode(raw)
        reasons = refusals(self.models[tier], _APIS[request.path], body)
        if reasons:
            return web.json_response({"error": {"message": str(reasons)}}, status=400)
        if request.headers.get("x-fails-at") == tier:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.received.append(Received(tier, request.path, headers, raw))
            return web.Response(status=503)
        return await super()._answer(request)


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("strict")
    source = folder / "written"
    source.mkdir()
    _write(source)
    with StrictUpstreams({name: model for name, (model, _) in TIERS.items()}) as upstreams:
        stack = Stack(source, folder, upstreams)
        try:
            stack.start_router()
            stack.start_envoy()
            yield stack
        finally:
            stack.stop()


def _write(folder: Path) -> None:
    tiers = [
        f"  - {{name: {name}, url: 'http://{name}', model: {model}, reasoning: {dialect}, context: 100000, "
        "price: {input: 1, output: 1}}"
        for name, (model, dialect) in TIERS.items()
    ]
    rules = [f"  - {{name: {name}, when: {{headers: {{x-tier: {name}}}}}, tier: {name}}}" for name in TIERS]
    text = [
        "version: 1",
        "default_tier: haiku",
        "encoder: {deadline_ms: 20000}",
        "tiers:",
        *tiers,
        "rules:",
        *rules,
    ]
    (folder / "policy.yaml").write_text("\n".join(text) + "\n")
    (folder / "extraction.yaml").write_text(small_intent("extraction", "tier: haiku\nreasoning: off"))


def ask(stack: Stack, tier: str, path: str, fails_at: str = "", **members: Any) -> tuple[Answer, list[Received]]:
    """Send a request to this tier. Return the answer and what has reached the upstreams."""
    before = len(stack.upstreams.received)
    body = msgspec.json.encode(
        body_of(path, "Get the phone numbers from this text") | {"max_tokens": 9_000} | members
    )
    answer = send(stack.port, path, body, {"x-tier": tier, "x-fails-at": fails_at})
    return answer, stack.upstreams.received[before:]


@pytest.mark.parametrize(
    ("tier", "path", "members"),
    [
        ("haiku", MESSAGES, _HIGH | {"context_management": _CLEARS}),
        (
            "haiku",
            MESSAGES,
            {"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}, "temperature": 0},
        ),
        ("opus", MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 4_096}, "temperature": 1}),
        ("opus", MESSAGES, {"temperature": 0.2, "top_k": 5}),
        ("qwen", CHAT, _HIGH | {"top_k": 5}),
        ("nano", CHAT, {"temperature": 0.2, "top_k": 5, "chat_template_kwargs": {"enable_thinking": False}}),
        ("gpt", CHAT, {"tools": [_TOOL], "reasoning_effort": "high"}),
        ("gpt", CHAT, {"tools": [_TOOL], "extra_body": {"google": {"thinking_config": {"thinking_budget": 0}}}}),
        ("gemini", CHAT, {"reasoning_effort": "none", "top_k": 5, "thinking": {"type": "adaptive"}}),
        ("gemini", CHAT, {"extra_body": {"google": {"thinking_config": {"thinking_budget": 2_000}}}}),
    ],
)
def test_a_strict_provider_answers(strict: Stack, tier: str, path: str, members: dict[str, Any]) -> None:
    """The request that reaches it is one that it takes."""
    answer, received = ask(strict, tier, path, **members)
    assert (answer.status, [r.tier for r in received]) == (200, [tier]), answer.body


@pytest.mark.parametrize(
    ("tier", "path", "next_tier", "members"),
    [
        ("haiku", MESSAGES, "opus", _HIGH | {"context_management": _CLEARS}),
        ("qwen", CHAT, "nano", {"chat_template_kwargs": {"enable_thinking": True, "style": "x"}, "temperature": 0}),
        ("nano", CHAT, "gpt", {"tools": [_TOOL], "reasoning_effort": "minimal"}),
        ("gpt", CHAT, "gemini", {"extra_body": {"google": {"thinking_config": {"thinking_level": "low"}}}}),
    ],
)  # fmt: skip
def test_the_next_tier_gets_its_own_form(
    strict: Stack, tier: str, path: str, next_tier: str, members: dict[str, Any]
) -> None:
    """Envoy patches the body of the failed attempt. Members that the first tier lost are back for the next one."""
    alone, expected = ask(strict, next_tier, path, **members)
    answer, received = ask(strict, tier, path, fails_at=tier, **members)
    assert (alone.status, answer.status) == (200, 200), answer.body
    assert [r.tier for r in received] == [tier, next_tier]
    assert msgspec.json.decode(received[1].body) == msgspec.json.decode(expected[0].body)
