"""What a decision writes into the request: the model, the reasoning fields, a cap on output tokens."""

from typing import Any

import msgspec

from extproc.policy import Budget, Decision, Dialect, Reasoning
from extproc.request import ReasoningField, Request
from extproc.splice import splice

# The field by which each dialect sets reasoning.
_FIELD: dict[Dialect, ReasoningField] = {
    "qwen3": "template.enable_thinking",
    "deepseek": "template.thinking",
    "gpt-oss": "effort",
    "openai": "effort",
    "anthropic": "thinking",
}
# Anthropic's least `budget_tokens`, and what "on" without a number gets.
_LEAST_BUDGET, _USUAL_BUDGET = 1024, 4096
# The efforts that stand for a budget: its upper bound in tokens.
_EFFORTS = ((2048, "low"), (8192, "medium"))

_Edits = dict[str, Any]


class Mutation(msgspec.Struct, frozen=True):
    """The change we ask of Envoy."""

    cluster: str
    body: bytes | None = None  # None: as the client sent it
    # What reasoning was set to ("on", "off", "low" ...), or whose word stands: "client", "model".
    reasoning: str = "client"


def mutate(decision: Decision, request: Request | None) -> Mutation:
    """Write `decision` into the request: model, reasoning, cap on output tokens; no other byte changes.

    Raises SpliceError when the body cannot be edited without guessing.
    """
    tier = decision.tier
    if request is None or not decision.rewrite:
        return Mutation(tier.cluster_name)
    edits: _Edits = {"model": msgspec.json.encode(tier.model)}
    clients_word = request.reasoning is not None and not decision.reasoning_forced
    wanted = _clients_reasoning(request) if clients_word else decision.reasoning
    # A cap meant for answers alone would starve the thinking that the client asked for.
    cap = None if clients_word and wanted is not False else decision.max_output_tokens
    edits |= _cap(request, tier.reasoning, cap)
    if wanted is None:
        return Mutation(tier.cluster_name, splice(request.body, edits), "model")
    if clients_word and request.reasoning_field == _FIELD.get(tier.reasoning):
        return Mutation(tier.cluster_name, splice(request.body, edits), "client")
    room = min((n for n in (request.max_output_tokens, cap) if n is not None), default=None)
    reasoning, written = _reasoning(tier.reasoning, wanted, request, room)
    return Mutation(tier.cluster_name, splice(request.body, edits | reasoning), written)


def _clients_reasoning(request: Request) -> Reasoning | None:
    chosen = request.reasoning
    return chosen if chosen is None or isinstance(chosen, bool) else Budget(chosen)


def _cap(request: Request, dialect: Dialect, cap: int | None) -> _Edits:
    """Lower the client's cap to ours, in the field it used, or in the one its API has."""
    own = request.max_output_tokens
    if cap is None or (own is not None and own <= cap):
        return {}
    # `max_tokens` is the field that every chat server knows; OpenAI's reasoning models refuse it.
    newer = request.cap_field is None and request.api == "chat" and dialect == "openai"
    default = {"responses": "max_output_tokens"}.get(request.api, "max_tokens")
    field = request.cap_field or ("max_completion_tokens" if newer else default)
    return {field: str(cap).encode()}


def _reasoning(dialect: Dialect, wanted: Reasoning, request: Request, room: int | None) -> tuple[_Edits, str]:
    """The dialect's way to say `wanted`, and the word for what it said; ("none") where it has no way.

    `room` is the cap on output tokens in force, if any.
    """
    on = wanted is not False
    if request.api == "completions":
        return {}, "none"
    match _FIELD.get(dialect):
        case "template.enable_thinking":
            # The template knows on and off only: a budget is on.
            return {"chat_template_kwargs": {"enable_thinking": _json(on)}}, _word(on)
        case "template.thinking":
            return {"chat_template_kwargs": {"thinking": _json(on)}}, _word(on)
        case "effort" if request.api in ("chat", "responses"):
            effort = _effort(dialect, wanted)
            if request.api == "responses":
                return {"reasoning": {"effort": _json(effort)}}, effort
            return {"reasoning_effort": _json(effort)}, effort
        case "thinking" if request.api == "messages":
            budget = _budget(wanted, request, room)
            if budget is None:
                return {"thinking": _json({"type": "disabled"})}, "off"
            return {"thinking": _json({"type": "enabled", "budget_tokens": budget})}, "on"
    return {}, "none"


def _effort(dialect: Dialect, wanted: Reasoning) -> str:
    if wanted is False:
        # gpt-oss cannot stop reasoning: "low" is its least, and the record says so.
        return "low" if dialect == "gpt-oss" else "none"
    if isinstance(wanted, Budget):
        return next((word for most, word in _EFFORTS if wanted.budget_tokens <= most), "high")
    return "medium"


def _budget(wanted: Reasoning, request: Request, room: int | None) -> int | None:
    """Tokens to think with, below `room` as Anthropic demands; None: thinking has to stay off."""
    if wanted is False or request.thinking_barred:
        return None
    budget = wanted.budget_tokens if isinstance(wanted, Budget) else _USUAL_BUDGET
    if room is not None:
        budget = min(max(budget, _LEAST_BUDGET), room - 1)
    return budget if budget >= _LEAST_BUDGET else None


def _word(on: bool) -> str:
    return "on" if on else "off"


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)
