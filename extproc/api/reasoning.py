"""Reads the client's choice of reasoning, in every field that a provider or a server has for it.

A field that says off wins over one that says on, because off is the cheaper mistake.
"""

from collections.abc import Mapping

import msgspec

from extproc.api.body import Body, Typed
from extproc.api.parts import messages_of, parts_of
from extproc.api.splice import REMOVED

# The efforts that providers name, from the least up.
LEVELS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
# Members that carry a choice of reasoning. A dot enters an object.
REASONING_MEMBERS = (
    "reasoning_effort",
    "reasoning.effort",
    "thinking",
    "output_config.effort",
    "enable_thinking",
    "thinking_budget",
    "chat_template_kwargs.enable_thinking",
    "chat_template_kwargs.thinking",
    "reasoning.enabled",
    "reasoning.max_tokens",
    "think",
    "extra_body.google.thinking_config.thinking_budget",
    "extra_body.google.thinking_config.thinking_level",
)
_OFF = (False, "none", "minimal", "disabled", "between_tools")
_BUDGETS = ("thinking_budget", "reasoning.max_tokens", "extra_body.google.thinking_config.thinking_budget")


class ReasoningChoice(msgspec.Struct, frozen=True):
    """The client's request for reasoning, or for none."""

    on: bool | None  # None: it only sets an effort, which turns nothing on or off
    level: str | None = None  # one of LEVELS
    budget_tokens: int | None = None
    # The members that make the choice, by their names in REASONING_MEMBERS. A value is true or false, an effort,
    # the type of `thinking`, or a number of tokens.
    members: Mapping[str, bool | str | int] = {}


def read_choice(body: Body, messages_api: bool) -> ReasoningChoice | None:
    """Return the client's choice, or None if it made none.

    In the Messages API, `output_config.effort` is also the effort of an answer without reasoning, so it turns
    nothing on there.
    """
    members = _members(body)
    if not members:
        return None
    deciding = [
        value
        for name, value in members.items()
        if name != "thinking_budget" and not (messages_api and name == "output_config.effort")
    ]
    budget = body.thinking.budget_tokens if isinstance(body.thinking, Typed) else None
    budgets = [budget, *(members.get(name) for name in _BUDGETS)]
    return ReasoningChoice(
        on=not any(map(is_off, deciding)) if deciding else None,
        level=next((value for value in members.values() if isinstance(value, str) and value in LEVELS), None),
        budget_tokens=next((n for n in budgets if isinstance(n, int) and n > 0), None),
        members=members,
    )


def is_off(value: bool | str | int) -> bool:
    """Whether a member with this value turns reasoning off, or nearly off. Tokens below 0 leave it to the model."""
    return value in _OFF


def _members(body: Body) -> dict[str, bool | str | int]:
    """The members that make the choice, in the order of REASONING_MEMBERS."""
    reasoning, config, thinking, think = body.reasoning, body.output_config, body.thinking, body.think
    template, extra = body.chat_template_kwargs, body.extra_body
    if (
        reasoning is None and thinking is None and template is None and config is None and extra is None
        and body.reasoning_effort is None and body.enable_thinking is None and body.thinking_budget is None
        and think is None
    ):  # fmt: skip
        return {}
    google = extra.google.thinking_config if extra is not None and extra.google is not None else None
    values = (
        _word(body.reasoning_effort),
        _word(reasoning.effort) if reasoning is not None else None,
        thinking.type if isinstance(thinking, Typed) else thinking,
        _word(config.effort) if config is not None else None,
        body.enable_thinking,
        body.thinking_budget,
        template.enable_thinking if template is not None else None,
        template.thinking if template is not None else None,
        reasoning.enabled if reasoning is not None else None,
        reasoning.max_tokens if reasoning is not None else None,
        _word(think) if isinstance(think, str) else think,
        google.thinking_budget if google is not None else None,
        _word(google.thinking_level) if google is not None else None,
    )
    return {name: value for name, value in zip(REASONING_MEMBERS, values, strict=True) if value is not None}


def _word(effort: str | None) -> str | None:
    return effort.lower() if effort is not None else None


def thinking_bars(body: Body) -> frozenset[str]:
    """Return the parts of the request that Anthropic may refuse beside `thinking`.

    They are "sampling", "tool_choice", "prefill", and "loop": a tool loop whose assistant turn may have no thinking
    block. Source: the guide to extended thinking, "Feature compatibility" and "Preserving thinking blocks".
    """
    bars = set()
    if isinstance(body.tool_choice, Typed) and body.tool_choice.type in ("any", "tool"):
        bars.add("tool_choice")
    last = next(reversed(messages_of(body.messages)), None)
    if last is not None and last.role == "assistant":
        bars.add("prefill")
    elif last is not None and any(part.type == "tool_result" for part in parts_of(last.content)):
        bars.add("loop")
    if (
        body.temperature not in (None, 1)
        or body.top_k is not None
        or (body.top_p is not None and body.top_p < 0.95)
    ):
        bars.add("sampling")
    return frozenset(bars)


def without_clearing(context_management: bytes) -> bytes | dict[str, bytes] | None:
    """The edit of `context_management` that takes out the clearing of thinking, or None if nothing is to do."""
    try:
        edits = _decode_context(context_management).edits
        kept = [raw for raw in edits if not _decode_type(raw).type.startswith("clear_thinking")]
    except msgspec.DecodeError:
        return None
    if len(kept) == len(edits):
        return None
    return {"edits": b"[" + b",".join(map(bytes, kept)) + b"]"} if kept else REMOVED


class _Context(msgspec.Struct):
    edits: list[msgspec.Raw] = []


class _Typed(msgspec.Struct):
    type: str = ""


_decode_context = msgspec.json.Decoder(_Context).decode
_decode_type = msgspec.json.Decoder(_Typed).decode
