"""Requests in every form of reasoning, through the real Envoy, to upstreams as strict as their providers."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from extproc.demo.sample_upstream import TIER, Received, SampleUpstreams
from extproc.demo.stack import Stack
from extproc.settings import Budget, Dialect, Reasoning
from tests.e2e.traffic import CHAT, MESSAGES, RESPONSES, Answer, body_of, send, small_intent
from tests.providers import refusals
from tests.routing.test_dialects import CLIENTS, MODELS, TOOL, USUAL, sent
from tests.routing.test_dialects import tier as tier_of

# The first tiers are in this order, so a failed request goes from one dialect to the next.
TIERS: dict[str, tuple[str, Dialect]] = {
    "haiku": ("claude-haiku-4-5", "anthropic"),
    "opus": ("claude-opus-4-8", "anthropic"),
    "qwen": ("qwen3-8b", "qwen3"),
    "nano": ("gpt-5-nano", "openai"),
    "gpt": ("gpt-5.6-terra", "openai"),
    "gemini": ("gemini-3.1-pro", "gemini"),
    **{
        re.sub("[^a-z0-9]", "-", model.lower()): (model, dialect)
        for dialect, (_, models) in MODELS.items()
        for model in models
    },
}
_APIS = {CHAT: "chat", RESPONSES: "responses", MESSAGES: "messages"}
# The reasoning of the policy, by its YAML.
_POLICIES: dict[str, Reasoning] = {"off": False, "on": True, "{budget_tokens: 20000}": Budget(20_000)}
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
    rules = [
        f"  - {{name: policy-{i}-{name}, when: {{headers: {{x-tier: {name}, x-policy: '{i}'}}}}, tier: {name}, "
        f"reasoning: {policy}}}"
        for name in TIERS
        for i, policy in enumerate(_POLICIES)
    ]
    rules += [f"  - {{name: {name}, when: {{headers: {{x-tier: {name}}}}}, tier: {name}}}" for name in TIERS]
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
        ("gpt", CHAT, {"tools": [TOOL], "reasoning_effort": "high"}),
        ("gpt", CHAT, {"tools": [TOOL], "extra_body": {"google": {"thinking_config": {"thinking_budget": 0}}}}),
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
        ("nano", CHAT, "gpt", {"tools": [TOOL], "reasoning_effort": "minimal"}),
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


class Row(msgspec.Struct, frozen=True):
    """A request of the table: the tier and API, the client's own members, and what the policy says."""

    tier: str
    api: str
    client: dict[str, Any]
    policy: str | None


def _table() -> list[Row]:
    """Every model and API with each choice of a client, and with each choice of the policy, also beside tools."""
    tiers = {model: name for name, (model, _) in TIERS.items()}
    rows = []
    for apis, models in MODELS.values():
        for api, model in product(apis, models):
            chosen: list[tuple[dict[str, Any], str | None]] = [({}, policy) for policy in _POLICIES] + [
                (choice, None) for choice, _ in CLIENTS
            ]
            if not (model == "gpt-6-astra" and api == "chat"):  # this model takes no tools there at all
                chosen += [({"tools": [TOOL]}, policy) for policy in (None, *_POLICIES)]
            rows += [Row(tiers[model], api, choice, policy) for choice, policy in chosen]
    return rows


def _status(stack: Stack, number: int, row: Row) -> int:
    policy = {} if row.policy is None else {"x-policy": str(list(_POLICIES).index(row.policy))}
    path = next(path for path, api in _APIS.items() if api == row.api)
    headers = {"x-row": str(number), "x-tier": row.tier, **policy}
    return send(stack.port, path, msgspec.json.encode(USUAL[row.api] | row.client), headers).status


def test_every_row_of_the_table_is_taken_through_envoy(strict: Stack) -> None:
    """Dialect, API, and reasoning that is off, on, a budget or the client's word: no strict provider refuses one.

    The body that arrives is the one that the router makes in one process, where more combinations are tested.
    """
    rows, before = _table(), len(strict.upstreams.received)
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda row: _status(strict, *row), enumerate(rows)))
    arrived = {int(r.headers["x-row"]): r for r in strict.upstreams.received[before:]}
    wrong = []
    for number, (row, status) in enumerate(zip(rows, statuses, strict=True)):
        model, dialect = TIERS[row.tier]
        policy = None if row.policy is None else _POLICIES[row.policy]
        [expected] = sent(row.api, USUAL[row.api] | row.client, [tier_of(dialect, model)], policy)
        body = msgspec.json.decode(arrived[number].body) if number in arrived else None
        if (status, body) != (200, expected):
            wrong.append((row, status, body, expected))
    assert not wrong, (len(wrong), wrong[:3])
    assert len(rows) > 2000
