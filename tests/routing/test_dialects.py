"""Every dialect, API and choice of reasoning, against strict upstreams: see tests/providers.py."""

from itertools import product
from typing import Any, get_args

import msgspec
import pytest

from extproc.acceptance.rules import compile_rules
from extproc.api.paths import APIS
from extproc.api.reasoning import LEVELS
from extproc.api.request import parse_request
from extproc.api.splice import apply
from extproc.contract.words import Reason
from extproc.routing.decision import Decision
from extproc.routing.dialects import DIALECTS
from extproc.routing.mutation import mutate
from extproc.routing.policy import Cohort, Rung
from extproc.routing.tier_form import form_of
from extproc.settings import Budget, Dialect, Efforts, Params, Price, Reasoning, Tier
from tests.providers import Body, refusals, understood

PATHS: dict[str, str] = {api: path for path, api in APIS.items()}
# Dialect -> its APIs and models, one model for each form.
MODELS: dict[Dialect, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "openai": (
        ("chat", "responses"),
        (
            "gpt-4.1", "o3", "gpt-5-pro", "gpt-5-codex", "gpt-5-nano", "gpt-5", "gpt-5.1", "gpt-5.1-codex-max",
            "gpt-5.4", "gpt-5.6-terra", "gpt-6-astra", "gpt-6-sol",
        ),
    ),
    "anthropic": (
        ("messages",),
        (
            "claude-3-5-haiku-latest", "claude-haiku-4-5", "claude-opus-4-5-20251101", "claude-sonnet-4-6",
            "claude-opus-4-7", "claude-opus-4-8", "claude-opus-5", "claude-haiku-5-5", "claude-sonnet-5-5",
            "claude-opus-5-5", "claude-fable-5-1",
        ),
    ),
    "gemini": (("chat",), ("gemini-2.5-flash", "gemini-2.5-pro", "gemini-3-pro-preview", "gemini-3.1-pro")),
    "deepseek": (("chat", "responses", "messages"), ("deepseek-v4-pro", "deepseek-ai/DeepSeek-V3.1")),
    "qwen3": (("chat", "responses", "messages"), ("qwen3-8b", "qwen3-max")),
    "gpt-oss": (("chat", "responses"), ("gpt-oss-120b",)),
}  # fmt: skip
TIERS = [(dialect, api, model) for dialect, (apis, models) in MODELS.items() for api in apis for model in models]

# The choice of a client in every form: its members, and off, on, an effort or tokens.
CLIENTS: list[tuple[Body, str | int | None]] = [
    ({}, None),
    *(({"reasoning_effort": level}, level) for level in LEVELS),
    *(({"reasoning": {"effort": level}}, level) for level in LEVELS),
    ({"thinking": {"type": "disabled"}}, "none"),
    ({"thinking": {"type": "adaptive"}}, "on"),
    *(({"thinking": {"type": "adaptive"}, "output_config": {"effort": word}}, word) for word in LEVELS[2:]),
    *(({"thinking": {"type": "enabled", "budget_tokens": n}}, n) for n in (1_024, 4_096, 16_384, 31_999)),
    ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, "none"),
    *(({"chat_template_kwargs": {"enable_thinking": on, "style": "terse"}}, on) for on in (True, False)),
    *(({"chat_template_kwargs": {"thinking": on}}, on) for on in (True, False)),
    *(({"enable_thinking": on}, on) for on in (True, False)),
    *(
        ({"extra_body": {"google": {"thinking_config": {"thinking_budget": n}}}}, n if n else False)
        for n in (0, 1_024, 16_384)
    ),
    ({"extra_body": {"google": {"thinking_config": {"thinking_level": "low"}}}}, "low"),
    (
        {"reasoning_effort": "high", "thinking": {"type": "adaptive"}, "chat_template_kwargs": {"thinking": True}},
        "high",
    ),
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
# Other members of the request.
BESIDE: list[Body] = [{}, {"tools": [TOOL]}, {"temperature": 0.2, "top_p": 0.5, "top_k": 5, "min_p": 0.1}]
# The reasoning of the policy, and whether the policy puts itself first.
POLICIES: list[tuple[Reasoning | None, bool]] = [
    (None, False), (False, False), (True, False), (False, True), (Budget(20_000), True),
]  # fmt: skip
USUAL: dict[str, Body] = {
    "chat": {"model": "auto", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40_000},
    "responses": {"model": "auto", "input": "Hi", "max_output_tokens": 40_000},
    "messages": {
        "model": "auto",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 40_000,
        "context_management": {
            "edits": [{"type": "clear_thinking_20251015", "keep": "all"}, {"type": "clear_tool_uses"}]
        },
    },
}  # fmt: skip


def tier(dialect: Dialect, model: str, name: str = "small", params: Params | None = None) -> Tier:
    known = Tier(name, model, "http://host", 8_000, Price(1, 2), dialect)
    return known if params is None else msgspec.structs.replace(known, params=params)


def sent(api: str, body: Body, tiers: list[Tier], policy: Reasoning | None, forced: bool = False) -> list[Body]:
    """The body of each attempt."""
    request = parse_request(PATHS[api], msgspec.json.encode(body))
    first, *above = tiers
    ladder = tuple(Rung(one, policy) for one in above)
    mutation = mutate(
        Decision(first, Reason.MATCHED, reasoning=policy, reasoning_forced=forced, ladder=ladder), request
    )
    assert mutation.body is not None
    return [
        msgspec.json.decode(b) for b in (mutation.body, *(apply(mutation.body, rung) for rung in mutation.rungs))
    ]


def bodies(api: str) -> list[tuple[Body, Body]]:
    """Every client's choice with everything beside it, except the client's own mistakes."""
    rows = [(USUAL[api] | choice | beside, choice) for (choice, _), beside in product(CLIENTS, BESIDE)]
    if api != "messages":
        return rows
    return [(body, choice) for body, choice in rows if "thinking" in choice or "temperature" not in body]


@pytest.mark.parametrize(("dialect", "api", "model"), TIERS)
def test_no_request_is_refused_for_its_reasoning(dialect: Dialect, api: str, model: str) -> None:
    """The provider takes any choice of client and policy."""
    refused = []
    for (body, _), (policy, forced) in product(bodies(api), POLICIES):
        if model == "gpt-6-astra" and api == "chat" and "tools" in body:
            continue  # this model takes no tools there at all
        if "thinking" in body and "temperature" in body and model.startswith("claude") and not forced:
            continue  # the client's own mistake
        (attempt,) = sent(api, body, [tier(dialect, model)], policy, forced)
        for why in refusals(model, api, attempt):
            refused.append((why, body, policy, attempt))
    assert not refused, (len(refused), refused[:3])


@pytest.mark.parametrize(("dialect", "api", "model"), TIERS)
def test_log_probabilities_are_asked_for_only_where_they_are_given(dialect: Dialect, api: str, model: str) -> None:
    """A rule that needs them never causes a refusal. Without the rule, nothing is added."""
    judged = Cohort("c", "small", 0.0, 0.0, True, accept=compile_rules([{"logprob": -1}]))
    asked = set()
    for policy in (None, False, True):
        decision = Decision(tier(dialect, model), Reason.MATCHED, cohort=judged, judged=True, reasoning=policy)
        mutation = mutate(decision, parse_request(PATHS[api], msgspec.json.encode(USUAL[api])))
        body = msgspec.json.decode(mutation.body or b"")
        assert not refusals(model, api, body), (policy, body)
        added = "logprobs" in body or "message.output_text.logprobs" in body.get("include", [])
        assert mutation.logprobs_added == added
        asked |= {policy} if added else set()
    assert asked == _ASKED.get(model, {None, False, True}) - ({None, False, True} if api == "messages" else set())


# Model -> the reasoning of the policy with which it is asked. The others always are, or never on Messages.
_ASKED: dict[str, set[bool | None]] = {
    **{model: set() for model in ("o3", "gpt-5-pro", "gpt-5-codex", "gpt-5-nano", "gpt-5", "gpt-5.1-codex-max")},
    "gpt-5.1": {None, False},
    "gpt-5.4": {None, False},
    "gpt-5.6-terra": {False},
    "gpt-6-astra": set(),
    "gpt-6-sol": {False},
    "deepseek-v4-pro": {False},
    **{model: set() for model in MODELS["gemini"][1]},
}


@pytest.mark.parametrize(("dialect", "api", "model"), TIERS)
def test_off_is_off_and_on_is_on(dialect: Dialect, api: str, model: str) -> None:
    """The client's choice reaches the model. A model that always reasons gets its lowest effort."""
    form = form_of(dialect, model)
    fields = form.apis.get(api)  # type: ignore[call-overload]
    for choice, wanted in CLIENTS:
        if wanted is None or fields is None or not fields.own:
            continue
        (attempt,) = sent(api, USUAL[api] | choice, [tier(dialect, model)], None)
        word = understood(model, api, attempt)
        off = wanted is False or wanted in ("none", "minimal")
        lowest = next((form.words[level] for level in LEVELS if level in form.words), None)
        if off:
            assert word in ("off", lowest) if not fields.off and "off" not in form.words else word == "off", choice
        else:
            assert word not in ("off", None), (choice, attempt)


@pytest.mark.parametrize(("dialect", "api", "model"), TIERS)
def test_more_stays_more(dialect: Dialect, api: str, model: str) -> None:
    """A higher effort or budget of the client is never a lower one for the model."""
    order = {"off": 0} | {level: i + 1 for i, level in enumerate(LEVELS)}
    for name in ("reasoning_effort", "reasoning"):
        known: list[float] = []
        for level in LEVELS:
            choice = {name: level} if name == "reasoning_effort" else {name: {"effort": level}}
            (attempt,) = sent(api, USUAL[api] | choice, [tier(dialect, model)], None)
            word = understood(model, api, attempt)
            known.append(word if isinstance(word, int) else order.get(str(word), 0.5))
        assert known == sorted(known), (name, known)


BUDGETS = (1_024, 2_048, 2_049, 8_192, 8_193, 32_768, 32_769, 65_536, 65_537)


def test_a_budget_becomes_an_effort_and_an_effort_a_budget() -> None:
    """More tokens are never a lower effort, and every effort comes back as itself."""

    def effort(tokens: int) -> Any:
        thinking = {"thinking": {"type": "enabled", "budget_tokens": tokens}}
        (attempt,) = sent("chat", USUAL["chat"] | thinking, [tier("openai", "gpt-5.6")], None)
        return attempt["reasoning_effort"]

    words = [effort(tokens) for tokens in BUDGETS]
    assert words == ["low", "low", "medium", "medium", "high", "high", "xhigh", "xhigh", "max"]
    roomy = USUAL["messages"] | {"max_tokens": 200_000}
    for level in LEVELS[2:]:
        (attempt,) = sent(
            "messages", roomy | {"reasoning_effort": level}, [tier("anthropic", "claude-haiku-4-5")], None
        )
        assert effort(attempt["thinking"]["budget_tokens"]) == level


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_each_attempt_has_the_form_of_its_tier(api: str) -> None:
    """Every rung gets the body of a request to its tier alone, with the members that other tiers lost."""
    tiers = [
        tier(dialect, model) for dialect, (apis, models) in MODELS.items() if api in apis for model in models
    ]  # fmt: skip
    tiers.append(tier("none", "some-model"))
    for body, _ in bodies(api)[::3]:
        alone = [sent(api, body, [one], True, forced=True)[0] for one in tiers]
        for first in (0, len(tiers) // 2, len(tiers) - 1):
            turned = tiers[first:] + tiers[:first]
            assert sent(api, body, turned, True, forced=True) == alone[first:] + alone[:first]


# One form by one


def only(api: str, body: Body, dialect: Dialect, model: str, policy: Reasoning | None = None, **more: Any) -> Body:
    """The members of the request that is sent, without model and messages."""
    params = more.pop("params", None)
    (attempt,) = sent(api, USUAL[api] | body, [tier(dialect, model, params=params)], policy, **more)
    return {name: value for name, value in attempt.items() if name not in ("model", "messages", "input")}


TOKENS = {"max_completion_tokens": 40_000}
CLEARS = USUAL["messages"]["context_management"]


@pytest.mark.parametrize(
    ("body", "model", "policy", "expected"),
    [
        ({}, "gpt-5-nano", False, {"reasoning_effort": "minimal"}),
        ({}, "gpt-5.1", False, {"reasoning_effort": "none"}),
        ({}, "o3", False, {"reasoning_effort": "low"}),
        ({}, "gpt-4.1", True, {}),
        ({"tools": [TOOL]}, "gpt-5.4", True, {"tools": [TOOL], "reasoning_effort": "none"}),
        ({"tools": [TOOL]}, "gpt-5.4", None, {"tools": [TOOL]}),
        ({"tools": [TOOL]}, "gpt-5.6-sol", None, {"tools": [TOOL], "reasoning_effort": "none"}),
        ({"tools": [TOOL]}, "gpt-5.1", True, {"tools": [TOOL], "reasoning_effort": "medium"}),
        ({"tools": [TOOL], "reasoning_effort": "high"}, "gpt-6-astra", None, {"tools": [TOOL]}),
        ({"temperature": 0}, "gpt-5.1", None, {"temperature": 0}),
        ({"temperature": 0}, "gpt-5.1", True, {"reasoning_effort": "medium"}),
        ({"temperature": 0}, "gpt-5", False, {"reasoning_effort": "minimal"}),
        ({"temperature": 0}, "gpt-4.1", True, {"temperature": 0}),
        ({"thinking": {"type": "enabled", "budget_tokens": 2_000}}, "gpt-5", None, {"reasoning_effort": "low"}),
        ({"reasoning_effort": "xhigh"}, "gpt-5.1", None, {"reasoning_effort": "high"}),
        ({"reasoning_effort": "xhigh"}, "azure/gpt-5.4-2026-03-05", None, {"reasoning_effort": "xhigh"}),
        ({"reasoning_effort": "ultra"}, "gpt-5.1", None, {"reasoning_effort": "ultra"}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, "gpt-5", None, {"reasoning_effort": "low"}),
    ],
)
def test_openai_by_example(body: Body, model: str, policy: Reasoning | None, expected: Body) -> None:
    """The names, the efforts and the refusals of each generation."""
    assert only("chat", body, "openai", model, policy) == TOKENS | expected


ADAPTIVE = {"thinking": {"type": "adaptive"}}
HIGH = {"output_config": {"effort": "high"}}


@pytest.mark.parametrize(
    ("body", "model", "expected"),
    [
        (ADAPTIVE | HIGH, "claude-opus-4-8", ADAPTIVE | HIGH),
        (ADAPTIVE | HIGH, "claude-haiku-4-5", {"thinking": {"type": "enabled", "budget_tokens": 16_384}}),
        (ADAPTIVE | {"output_config": {"effort": "xhigh"}}, "claude-opus-4-6", ADAPTIVE | HIGH),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 20_000, "display": "summarized"}},
            "claude-opus-4-7",
            {"thinking": {"type": "adaptive", "display": "summarized"}} | HIGH,
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 3_000}},
            "claude-opus-4-6",
            {"thinking": {"type": "enabled", "budget_tokens": 3_000}},
        ),
        (HIGH, "claude-opus-4-6", HIGH),
        ({"output_config": {"effort": "low", "format": {"type": "json_schema"}}}, "claude-haiku-4-5",
         {"output_config": {"format": {"type": "json_schema"}}}),
        ({"temperature": 0.5}, "claude-opus-4-7", {}),
        ({"temperature": 0.5}, "claude-haiku-4-5", {"temperature": 0.5}),
    ],
)  # fmt: skip
def test_anthropic_by_example(body: Body, model: str, expected: Body) -> None:
    """Adaptive thinking with an effort, or a budget."""
    edits = CLEARS["edits"] if "thinking" in expected else CLEARS["edits"][1:]
    usual = {"max_tokens": 40_000, "context_management": {"edits": edits}}
    assert only("messages", body, "anthropic", model, True) == usual | expected


@pytest.mark.parametrize(
    ("model", "off"),
    [
        ("claude-haiku-4-5", {"thinking": {"type": "disabled"}}),
        ("claude-opus-4-8", {"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}),
        ("claude-opus-5", {"thinking": {"type": "disabled"}} | HIGH),
        ("claude-sonnet-5-5", {"thinking": {"type": "between_tools"}} | HIGH),
        ("claude-opus-5-5", {"output_config": {"effort": "low"}}),
    ],
)
def test_off_in_each_generation_of_claude(model: str, off: Body) -> None:
    """No edit that clears thinking is left beside a thinking that is off, because Anthropic refuses it."""
    asked = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}
    kept = CLEARS["edits"] if "thinking" not in off else CLEARS["edits"][1:]
    expected = {"max_tokens": 40_000, "context_management": {"edits": kept}} | off
    assert only("messages", asked, "anthropic", model, False, forced=True) == expected


def test_an_only_clearing_of_thinking_is_taken_out_whole() -> None:
    """No empty list is left."""
    body = {"context_management": {"edits": CLEARS["edits"][:1]}} | ADAPTIVE
    expected = {"max_tokens": 40_000, "chat_template_kwargs": {"enable_thinking": True}}
    assert only("messages", body, "qwen3", "qwen3-8b") == expected


# The policy's `params`


@pytest.mark.parametrize(
    ("params", "body", "expected"),
    [
        (Params(rename={"max_tokens": "max_new_tokens"}), {}, {"max_new_tokens": 40_000}),
        (Params(rename={"seed": "random_seed"}), {"seed": 5}, TOKENS | {"random_seed": 5}),
        (
            Params(drop=("seed", "metadata.user")), {"seed": 5, "metadata": {"user": "x", "y": 1}},
            TOKENS | {"metadata": {"y": 1}},
        ),
        (Params(drop=("reasoning_effort",)), {"reasoning_effort": "high"}, TOKENS),
        (
            Params(effort=Efforts(high="very_high")), {"reasoning_effort": "high"},
            TOKENS | {"reasoning_effort": "very_high"},
        ),
        (Params(effort=Efforts(off="low")), {"reasoning_effort": "none"}, TOKENS | {"reasoning_effort": "low"}),
        (Params(effort=Efforts(on="low")), {"enable_thinking": True}, TOKENS | {"reasoning_effort": "low"}),
    ],
)  # fmt: skip
def test_a_policy_adds_to_what_the_dialect_knows(params: Params, body: Body, expected: Body) -> None:
    """Names, members that this tier refuses, and its efforts."""
    assert only("chat", body, "openai", "gpt-5.1", params=params) == expected


def test_a_tier_without_a_dialect_can_rename_and_drop() -> None:
    """All other members stay."""
    params = Params(rename={"max_tokens": "n_predict"}, drop=("top_k",))
    expected = {"n_predict": 40_000, "thinking": {"type": "adaptive"}}
    assert only("chat", {"top_k": 5} | ADAPTIVE, "none", "m", False, params=params) == expected


# The table


@pytest.mark.parametrize("dialect", get_args(Dialect))
def test_the_table_is_complete(dialect: Dialect) -> None:
    """Every form has its source, the last one matches every name, and no earlier one hides another."""
    forms = DIALECTS[dialect]
    assert all(form.source for form in forms)
    assert not forms or forms[-1].models == ("*",)
    assert all("*" not in form.models for form in forms[:-1])
    for form in forms:
        assert all(level in LEVELS or level in ("off", "on") for level in form.words)
        assert form.beside_tools != "off" or "off" in form.words
