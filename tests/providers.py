"""The refusals of each provider, as scripted rules: strict upstreams for tests of the dialects.

Every rule has its source. They are written from the providers' public pages and reports, apart from the table in
`extproc/routing/dialects.py`, so that a mistake in the table is found.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

Body = dict[str, Any]

_SHARED = {"model", "tools", "tool_choice", "stream", "temperature", "top_p", "metadata", "service_tier"}
# OpenAI API reference: Create chat completion. Other members: 400 "Unknown parameter".
OPENAI_CHAT = _SHARED | {
    "messages", "max_tokens", "max_completion_tokens", "reasoning_effort", "response_format", "stop", "n",
    "logprobs", "top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty", "seed", "user", "store",
    "stream_options", "parallel_tool_calls", "functions", "verbosity", "modalities", "prediction",
    "web_search_options", "prompt_cache_key",
}  # fmt: skip
# OpenAI API reference: Create a model response.
OPENAI_RESPONSES = _SHARED | {
    "input", "instructions", "max_output_tokens", "reasoning", "text", "include", "store", "previous_response_id",
    "parallel_tool_calls", "top_logprobs", "truncation", "prompt", "conversation", "background",
    "context_management", "prompt_cache_key",
}  # fmt: skip
# Claude API reference: Create a Message. Other members: 400 "Extra inputs are not permitted".
ANTHROPIC = _SHARED | {
    "messages", "max_tokens", "system", "stop_sequences", "top_k", "thinking", "output_config",
    "context_management", "container", "mcp_servers", "cache_control",
}  # fmt: skip
# Gemini API docs: OpenAI compatibility. Other members: 400 "Unknown name ...: Cannot find field".
GEMINI = _SHARED | {
    "messages", "max_tokens", "max_completion_tokens", "reasoning_effort", "response_format", "stop", "n",
    "stream_options", "extra_body", "presence_penalty", "frequency_penalty", "seed",
}  # fmt: skip
# Members with a choice of reasoning. A server of open models ignores those of others, so they must not reach it.
REASONING = {
    "reasoning_effort", "reasoning", "thinking", "enable_thinking", "thinking_budget", "chat_template_kwargs",
    "extra_body", "output_config",
}  # fmt: skip

# Reasoning models of OpenAI -> the efforts that each knows: model pages, and the error "Supported values are: ...".
OPENAI_EFFORTS: dict[str, tuple[str, ...]] = {
    "o3*": ("low", "medium", "high"),
    "gpt-5-pro*": ("high",),
    "gpt-5-codex*": ("low", "medium", "high"),
    "gpt-5-*": ("minimal", "low", "medium", "high"),
    "gpt-5": ("minimal", "low", "medium", "high"),
    "gpt-5.1-codex-max*": ("low", "medium", "high", "xhigh"),
    "gpt-5.1*": ("none", "low", "medium", "high"),
    "gpt-5.4*": ("none", "low", "medium", "high", "xhigh"),
    "gpt-5.6*": ("none", "low", "medium", "high", "xhigh", "max"),
    "gpt-6-astra*": ("low", "medium", "high", "xhigh"),  # Chat Completions; Responses also knows max
    "gpt-6-sol*": ("none", "low", "medium", "high", "xhigh", "max"),
}
# Model pages: the meaning of an absent effort.
_DEFAULT_NONE = ("gpt-5.1*", "gpt-5.4*")
# Guide to GPT-6, section Parameters: with reasoning, only the default sampling.
_SAMPLING = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "logprobs",
    "top_logprobs",
    "logit_bias",
)


def refusals(model: str, api: str, body: Body) -> list[str]:
    """Why the provider of this model would answer 400, if at all."""
    return [*_provider(model)(model, api, body)]


def understood(model: str, api: str, body: Body) -> str | int | None:
    """The choice as the model understands it: off, an effort, on, a budget in tokens, or None for its default."""
    provider = _provider(model)
    if provider is _anthropic:
        return _claude_understands(model, body)
    if provider is _openai or provider is _gemini or provider is _gpt_oss:
        effort = (body.get("reasoning") or {}).get("effort") if api == "responses" else body.get("reasoning_effort")
        config = ((body.get("extra_body") or {}).get("google") or {}).get("thinking_config") or {}
        if effort is None and "thinking_budget" in config:
            return config["thinking_budget"] or "off"
        return "off" if effort == "none" else effort or config.get("thinking_level")
    if provider is _deepseek:
        off = (body.get("thinking") or {}).get("type") == "disabled" or effort_of(api, body) == "none"
        return "off" if off else effort_of(api, body) or ("on" if "thinking" in body else None)
    switch = _switch(model, body)
    return None if switch is None else "on" if switch else "off"


def _provider(model: str) -> Any:
    providers = {
        "claude*": _anthropic, "gemini*": _gemini, "deepseek-v4*": _deepseek, "qwen3-max*": _dashscope,
        "gpt-oss*": _gpt_oss, "qwen*": _vllm, "deepseek*": _vllm,
    }  # fmt: skip
    return next((provider for name, provider in providers.items() if fnmatchcase(model, name)), _openai)


def _openai(model: str, api: str, body: Body) -> Iterator[str]:
    known = OPENAI_CHAT if api == "chat" else OPENAI_RESPONSES
    yield from (f"unknown member {name}" for name in body.keys() - known)
    efforts = next((words for name, words in OPENAI_EFFORTS.items() if fnmatchcase(model, name)), None)
    effort = body.get("reasoning_effort") if api == "chat" else (body.get("reasoning") or {}).get("effort")
    if efforts is None:  # gpt-4.1: no reasoning at all (guide: Reasoning models)
        if effort is not None:
            yield "effort on a model that does not reason"
        return
    if model.startswith("gpt-6-astra") and api == "responses":
        efforts = (*efforts, "max")
    if effort is not None and effort not in efforts:
        yield f"effort {effort}: supported values are {efforts}"
    if api == "chat" and "max_tokens" in body:  # guide: Reasoning models, "use max_completion_tokens instead"
        yield "max_tokens"
    default = "none" if any(fnmatchcase(model, name) for name in _DEFAULT_NONE) else "medium"
    reasons = (effort or default) != "none"
    if reasons:
        yield from (f"{name} with reasoning" for name in _SAMPLING if body.get(name) not in (None, 1))
    # Error text: "Function tools with reasoning_effort are not supported ... in /v1/chat/completions".
    if api == "chat" and body.get("tools") and fnmatchcase(model, "gpt-5.[4-9]*") and reasons:
        yield "effort beside tools"
    if api == "chat" and body.get("tools") and model.startswith("gpt-6-sol") and reasons:
        yield "effort beside tools"


def _anthropic(model: str, api: str, body: Body) -> Iterator[str]:
    yield from (f"unknown member {name}" for name in body.keys() - ANTHROPIC)
    thinking, effort = body.get("thinking") or {}, (body.get("output_config") or {}).get("effort")
    kinds = next(kinds for name, kinds in CLAUDE_KINDS.items() if fnmatchcase(model, name))
    efforts = next((words for name, words in CLAUDE_EFFORTS.items() if fnmatchcase(model, name)), ())
    kind = thinking.get("type")
    if kind is not None and kind not in kinds:
        yield f"thinking.type.{kind} is not supported for this model"
    if effort is not None and effort not in efforts:
        yield f"effort {effort}"
    if "output_config" in body and not body["output_config"]:
        yield "output_config is empty"
    if kind in ("disabled", "between_tools") and effort in ("xhigh", "max") and fnmatchcase(model, "claude-*-5*"):
        yield "effort above high without thinking"  # migration guides of Opus 5 and Sonnet 5.5
    if kind == "enabled":  # guide: Extended thinking
        if not 1024 <= thinking.get("budget_tokens", 0) < body["max_tokens"]:
            yield "budget_tokens"
    elif thinking and "budget_tokens" in thinking:
        yield "thinking: extra inputs"
    thinks = kind in ("enabled", "adaptive")
    removed = (
        kinds[0] == "adaptive" and "enabled" not in kinds
    )  # Opus 4.7, list of changes: sampling parameters removed
    for name in ("temperature", "top_p", "top_k"):
        default = 1 if name == "temperature" else None
        if (removed or thinks) and body.get(name, default) != default:
            yield f"{name} with thinking"
    if thinks and (body.get("tool_choice") or {}).get("type") in ("any", "tool"):
        yield "forced tool with thinking"
    edits = (body.get("context_management") or {"edits": [{}]})["edits"]
    if not edits:
        yield "context_management without edits"
    on_by_default = fnmatchcase(model, "claude-*-5*") and "4-5" not in model
    clears = any(edit.get("type", "").startswith("clear_thinking") for edit in edits)
    if clears and not thinks and not (on_by_default and kind is None):  # error text of the Messages API
        yield "clear_thinking requires thinking to be enabled or adaptive"


# Guide: Thinking, and the migration guides: values of `thinking.type`, the first one turns it on.
CLAUDE_KINDS: dict[str, tuple[str, ...]] = {
    "claude-3-5*": ("none",),
    "claude-*-4-5*": ("enabled", "disabled"),
    "claude-*-4-6*": ("adaptive", "enabled", "disabled"),
    "claude-*-4-[78]*": ("adaptive", "disabled"),
    "claude-opus-5-5*": ("adaptive",),
    "claude-sonnet-5-5*": ("adaptive", "between_tools"),
    "claude-haiku-5-5*": ("adaptive", "disabled"),
    "claude-fable-5*": ("adaptive",),
    "claude-opus-5*": ("adaptive", "disabled"),
}
# Guide: Effort, table of levels.
CLAUDE_EFFORTS: dict[str, tuple[str, ...]] = {
    "claude-opus-4-5*": ("low", "medium", "high"),
    "claude-*-4-6*": ("low", "medium", "high", "max"),
    "claude-*-4-[78]*": ("low", "medium", "high", "xhigh", "max"),
    "claude-haiku-4-5*": (),
    "claude-*-5*": ("low", "medium", "high", "xhigh", "max"),
}


def _claude_understands(model: str, body: Body) -> str | int | None:
    thinking, effort = body.get("thinking") or {}, (body.get("output_config") or {}).get("effort")
    kind = thinking.get("type")
    if kind == "enabled":
        return int(thinking["budget_tokens"])
    if kind in ("disabled", "between_tools"):
        return "off"
    always = CLAUDE_KINDS[next(name for name in CLAUDE_KINDS if fnmatchcase(model, name))] == ("adaptive",)
    return effort or "on" if kind == "adaptive" or (always and effort) else None


def _gemini(model: str, api: str, body: Body) -> Iterator[str]:
    yield from (f"unknown member {name}" for name in body.keys() - GEMINI)
    config = ((body.get("extra_body") or {}).get("google") or {}).get("thinking_config") or {}
    effort = body.get("reasoning_effort")
    # Docs: OpenAI compatibility, section Thinking: no off for 2.5 Pro and for 3; effort or config, not both.
    efforts: tuple[str, ...] = ("low", "medium", "high")
    if "2.5-flash" in model:
        efforts = ("none", *efforts)
    if model.startswith("gemini-3-pro"):
        efforts = ("low", "high")
    if effort is not None and effort not in efforts:
        yield f"effort {effort}"
    if effort is not None and config.keys() & {"thinking_budget", "thinking_level"}:
        yield "effort and thinking_config"
    if config.get("thinking_budget") == 0 and "2.5-flash" not in model:
        yield "thinking_budget 0"


def effort_of(api: str, body: Body) -> str | None:
    """The effort in the member of each API."""
    if api == "chat":
        return body.get("reasoning_effort")
    holder = body.get("reasoning" if api == "responses" else "output_config")
    return (holder or {}).get("effort")


def _deepseek(model: str, api: str, body: Body) -> Iterator[str]:
    own = {
        "chat": {"thinking", "reasoning_effort"},
        "messages": {"thinking", "output_config"},
        "responses": {"reasoning"},
    }
    yield from (f"foreign member {name}" for name in (body.keys() & REASONING) - own[api])
    # Docs: Thinking Mode. The documented words; others are mapped for compatibility only.
    words = ("low", "high", "max", "none") if api == "responses" else ("low", "high", "max")
    if effort_of(api, body) not in (None, *words):
        yield f"effort {effort_of(api, body)}"
    kind = (body.get("thinking") or {}).get("type", "enabled")
    if kind not in ("enabled", "disabled") or "budget_tokens" in (body.get("thinking") or {}):
        yield f"thinking {kind}"
    # Docs: Thinking Mode: logprobs and top_logprobs are errors, and thinking is on by default.
    if kind == "enabled" and effort_of(api, body) != "none" and body.get("logprobs"):
        yield "logprobs while it thinks"


def _gpt_oss(model: str, api: str, body: Body) -> Iterator[str]:
    own = {"chat": {"reasoning_effort"}, "responses": {"reasoning"}}.get(api, set())
    yield from (f"foreign member {name}" for name in (body.keys() & REASONING) - own - {"chat_template_kwargs"})
    yield from (f"foreign switch {key}" for key in (body.get("chat_template_kwargs") or {}).keys() - {"style"})
    if effort_of(api, body) not in (None, "low", "medium", "high"):  # model card: Reasoning levels
        yield f"effort {effort_of(api, body)}"


def _dashscope(model: str, api: str, body: Body) -> Iterator[str]:
    # Model Studio docs: Deep thinking, enable_thinking and thinking_budget.
    own = {"enable_thinking", "thinking_budget"} if api == "chat" else set()
    yield from (f"foreign member {name}" for name in (body.keys() & REASONING) - own)


def _vllm(model: str, api: str, body: Body) -> Iterator[str]:
    # vLLM docs: Reasoning outputs: a switch in chat_template_kwargs, called by the template of the model.
    yield from (f"foreign member {name}" for name in (body.keys() & REASONING) - {"chat_template_kwargs"})
    name = "thinking" if model.startswith("deepseek") else "enable_thinking"
    yield from (
        f"foreign switch {key}" for key in (body.get("chat_template_kwargs") or {}).keys() - {name, "style"}
    )


def _switch(model: str, body: Body) -> bool | None:
    if _provider(model) is _dashscope:
        return body.get("enable_thinking")
    switches = body.get("chat_template_kwargs") or {}
    return switches.get("thinking" if model.startswith("deepseek") else "enable_thinking")
