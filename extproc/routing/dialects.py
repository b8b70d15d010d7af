"""The dialects: how models take a choice of reasoning, and what they refuse. Data only; `reasoning.py` reads it.

A dialect has several forms, one for each generation of its models. The first form whose `models` match the tier's
model applies. The last form of a dialect matches every name and is the newest. A policy changes efforts, names and
removed members with `params`.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from extproc.api.paths import Api
from extproc.api.reasoning import REASONING_MEMBERS
from extproc.api.splice import REMOVED, Edits
from extproc.settings import Dialect


class Fields(msgspec.Struct, frozen=True):
    """The members in which one API takes the choice. A dot in a name enters an object."""

    switch: str = ""  # the member that turns reasoning on and off
    on: "bytes | Edits" = b"true"
    off: bytes = b""  # empty: this member cannot turn it off
    kinds: tuple[str, ...] = ()  # values of the client's `thinking.type` that need no translation
    # "read": the client's `budget_tokens` need no translation. "needed": `on` has none without them.
    budget: Literal["", "read", "needed"] = ""
    effort: str = ""  # the member that takes an effort
    also: tuple[str, ...] = ()  # other members that the model reads, if the client sends them
    drop: tuple[str, ...] = ()  # members that this API refuses

    @property
    def own(self) -> tuple[str, ...]:
        """Every member with a choice that the model reads."""
        return tuple(filter(None, (self.switch, self.effort, *self.also)))


class Form(msgspec.Struct, frozen=True):
    """How some models of a dialect take the choice."""

    models: tuple[str, ...]  # patterns of their names, with * ? []
    source: str  # titles of the public pages that say so, and a day on which they did
    apis: Mapping[Api, Fields] = {}  # an API that is not here has no field
    # Level -> the effort that the model knows. "off" and "on" stand for a choice without a level. A model with
    # neither "off" nor a switch that has an off always reasons.
    words: Mapping[str, str] = {}
    effort_beside_off: str = ""  # highest effort that may stay when the switch is off; empty: none may
    beside_tools: Literal["any", "off", "absent"] = "any"  # efforts that Chat Completions takes beside tools
    sampling: Literal["kept", "off", "dropped"] = "kept"  # "off": dropped unless the model does not reason
    logprobs: Literal["given", "off", "refused"] = "given"  # "off": refused unless the model does not reason
    default_off: bool = False  # a request without a choice does not reason
    bars: frozenset[str] = frozenset()  # what turns thinking off, because it is refused beside it
    rename: Mapping[str, str] = {}  # member of Chat Completions -> its name here
    drop: tuple[str, ...] = ()  # members that no API of the provider knows


# Members that set how tokens are sampled.
SAMPLING = (
    "temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty",
    "logit_bias", "logprobs", "top_logprobs",
)  # fmt: skip


def _levels(*words: str, **others: str) -> dict[str, str]:
    """Efforts that are called as their levels are, and others that are not."""
    return dict(zip(words, words, strict=True)) | others


_VLLM_ONLY = ("chat_template_kwargs", "top_k", "min_p", "repetition_penalty")

# OpenAI

_O_SOURCE = "OpenAI API docs: Reasoning models, Using GPT-5.1, Using GPT-6, Deployment checklist (November 2026)"
_O_APIS: dict[Api, Fields] = {
    "chat": Fields(effort="reasoning_effort", drop=("reasoning",)),
    "responses": Fields(effort="reasoning.effort"),
}
_O_DROP = (*_VLLM_ONLY, "extra_body")
_O_RENAME = {"max_tokens": "max_completion_tokens"}


def _openai(*models: str, words: Mapping[str, str], **others: object) -> Form:
    usual = {"apis": _O_APIS, "sampling": "dropped", "rename": _O_RENAME, "drop": _O_DROP}
    return Form(models, _O_SOURCE, words=words, **(usual | others))  # type: ignore[arg-type]


_OPENAI = (
    _openai("*gpt-5.[1-9]*-chat*", words=_levels("medium", on="medium")),
    _openai(
        "*gpt-3.5*", "*gpt-4*", "chatgpt-*", "*gpt-*-chat*", "*gpt-5-search*", words={}, apis={}, sampling="kept"
    ),
    _openai("*gpt-5-pro*", words=_levels("high", on="high")),
    _openai("*gpt-5.[2-9]*-pro*", words=_levels("medium", "high", "xhigh", on="medium")),
    _openai(
        "*gpt-5.1-codex-max*", "*gpt-5.[2-9]*-codex*",
        words=_levels("low", "medium", "high", "xhigh", on="medium"),
    ),
    _openai(
        "o[134]", "o[134]-*", "*/o[134]*", "codex-mini*", "*gpt-5*-codex*",
        words=_levels("low", "medium", "high", on="medium"),
    ),
    _openai("*gpt-5", "*gpt-5-*", words=_levels("minimal", "low", "medium", "high", on="medium")),
    _openai(
        "*gpt-5.1*",
        words=_levels("low", "medium", "high", off="none", on="medium"), sampling="off", default_off=True,
    ),
    _openai(
        "*gpt-5.[2-5]*",
        words=_levels("low", "medium", "high", "xhigh", off="none", on="medium"),
        sampling="off", default_off=True, beside_tools="off",
    ),
    # Chat Completions takes no tools at all on these models, so no effort helps there. `max` is for Responses only.
    _openai(
        "*gpt-6-astra*", "*gpt-6.[1-9]*",
        words=_levels("low", "medium", "high", "xhigh", on="medium"), beside_tools="absent",
    ),
    _openai(
        "*",
        words=_levels("low", "medium", "high", "xhigh", "max", off="none", on="medium"),
        sampling="off", beside_tools="off",
    ),
)  # fmt: skip

# Anthropic

_A_SOURCE = (
    "Claude docs: Thinking, Extended thinking, Effort, Context editing, migration guides of Opus 4.7, Opus 5, "
    "Opus 5.5, Sonnet 5.5 and Haiku 5.5 (November 2026)"
)
_A_DROP = ("chat_template_kwargs", "extra_body", "reasoning", "min_p", "repetition_penalty")
_DISABLED = b'{"type":"disabled"}'
_ADAPTIVE = {"type": b'"adaptive"', "budget_tokens": REMOVED}
_BUDGET = Fields(
    "thinking", on={"type": b'"enabled"'}, off=_DISABLED, kinds=("enabled", "disabled"), budget="needed"
)
_EVERY = frozenset({"sampling", "tool_choice", "prefill", "loop"})


def _anthropic(*models: str, fields: Fields, words: Mapping[str, str], **others: object) -> Form:
    usual = {"logprobs": "refused", "drop": _A_DROP}
    return Form(models, _A_SOURCE, {"messages": fields}, words, **(usual | others))  # type: ignore[arg-type]


def _adaptive(*kinds: str, off: bytes = _DISABLED) -> Fields:
    budget: Literal["", "read"] = "read" if "enabled" in kinds else ""
    return Fields("thinking", _ADAPTIVE, off, ("adaptive", *kinds), budget, effort="output_config.effort")


_5_WORDS = _levels("low", "medium", "high", "xhigh", "max")
_ANTHROPIC = (
    _anthropic("*claude-2*", "*claude-3-[05os]*", "*claude-3.5*", "*claude-3-haiku*", fields=Fields(), words={}),
    _anthropic(
        "*opus-4[-.]5*",
        fields=msgspec.structs.replace(_BUDGET, effort="output_config.effort"),
        words=_levels("low", "medium", "high"), effort_beside_off="high", default_off=True, bars=_EVERY,
    ),
    _anthropic(
        "*claude-3[-.]7*", "*opus-4[-.][01]*", "*sonnet-4[-.][05]*", "*haiku-4*", "*opus-4", "*sonnet-4",
        "*-4-20*", "*-4@*", fields=_BUDGET, words={}, default_off=True, bars=_EVERY,
    ),
    _anthropic(
        "*-4[-.]6*", fields=_adaptive("enabled", "disabled"), words=_levels("low", "medium", "high", "max"),
        effort_beside_off="max", default_off=True, bars=frozenset({"sampling", "tool_choice"}),
    ),
    _anthropic(
        "*-4[-.][7-9]*", fields=_adaptive("disabled"), words=_5_WORDS, effort_beside_off="max", sampling="dropped",
        default_off=True, bars=frozenset({"tool_choice"}),
    ),
    _anthropic(
        "*sonnet-5[-.]5*", fields=_adaptive("between_tools", off=b'{"type":"between_tools"}'), words=_5_WORDS,
        effort_beside_off="high", sampling="dropped",
    ),
    _anthropic(
        "*opus-5", "*opus-5-20*", "*opus-5@*", "*sonnet-5", "*sonnet-5-20*", "*sonnet-5@*", "*haiku-5*",
        fields=_adaptive("disabled"), words=_5_WORDS, effort_beside_off="high", sampling="dropped",
        bars=frozenset({"tool_choice"}),
    ),
    # Opus 5.5, Fable and Mythos always think. Their depth is the effort.
    _anthropic("*", fields=_adaptive(off=b""), words=_5_WORDS, sampling="dropped"),
)  # fmt: skip

# Servers of open models, and providers with an OpenAI-compatible endpoint

_VLLM_SOURCE = "vLLM docs: Reasoning outputs (v0.26)"


def _template(name: str) -> dict[Api, Fields]:
    fields = Fields(f"chat_template_kwargs.{name}", off=b"false")
    return {"chat": fields, "responses": fields, "messages": fields}


def _gemini(*models: str, words: Mapping[str, str]) -> Form:
    return Form(
        models,
        "Gemini API docs: OpenAI compatibility, section Thinking (2026)",
        {"chat": Fields(effort="reasoning_effort", also=REASONING_MEMBERS[-2:])},
        words,
        logprobs="refused",
        drop=(*_VLLM_ONLY, "reasoning"),
    )


_DEEPSEEK_SWITCH = Fields(
    "thinking", on={"type": b'"enabled"', "budget_tokens": REMOVED}, off=_DISABLED, kinds=("enabled", "disabled")
)

DIALECTS: dict[Dialect, tuple[Form, ...]] = {
    "none": (),
    "qwen3": (
        Form(
            ("qwen*-max*", "qwen*-plus*", "qwen*-flash*", "qwen*-turbo*"),
            "Alibaba Cloud Model Studio docs: Deep thinking (2026)",
            {"chat": Fields("enable_thinking", off=b"false", also=("thinking_budget",))},
            drop=("chat_template_kwargs", "extra_body"),
        ),
        Form(("*",), _VLLM_SOURCE, _template("enable_thinking")),
    ),
    "deepseek": (
        Form(
            ("deepseek-chat*", "deepseek-reasoner*", "deepseek-v[4-9]*", "deepseek-flash*", "deepseek-pro*"),
            "DeepSeek API docs: Thinking Mode (2026)",
            {
                "chat": msgspec.structs.replace(_DEEPSEEK_SWITCH, effort="reasoning_effort"),
                "messages": msgspec.structs.replace(_DEEPSEEK_SWITCH, effort="output_config.effort"),
                "responses": Fields(effort="reasoning.effort"),
            },
            _levels("low", "high", "max", off="none", on="high", medium="high", xhigh="high"),
            logprobs="off",
            drop=("chat_template_kwargs",),
        ),
        Form(("*",), _VLLM_SOURCE, _template("thinking")),
    ),
    "gpt-oss": (
        Form(
            ("*",),
            "gpt-oss model card, Reasoning levels, and vLLM docs, Reasoning outputs (v0.26)",
            _O_APIS,
            _levels("low", "medium", "high", on="medium"),
        ),
    ),
    "openai": _OPENAI,
    "anthropic": _ANTHROPIC,
    "gemini": (
        _gemini("*gemini-2.5-flash*", words=_levels("low", "medium", "high", off="none", on="medium")),
        _gemini("*gemini-3-pro*", words=_levels("low", "high", medium="high", on="high")),
        _gemini("*", words=_levels("low", "medium", "high", on="medium")),
    ),
}
