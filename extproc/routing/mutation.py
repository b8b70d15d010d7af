"""What a decision writes into the request: the model, the reasoning fields, a cap on output tokens."""

from collections.abc import Callable
from typing import Any

import msgspec

from extproc.acceptance.verdict import wants_logprobs
from extproc.api.request import ReasoningField, Request
from extproc.api.splice import Patch, SpliceError, apply, patches, rebase, splice
from extproc.routing.decision import Decision
from extproc.routing.policy import Rung
from extproc.settings import Budget, Dialect, Reasoning, Tier

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

    clusters: tuple[str, ...]  # the first attempt's, then each rung's
    body: bytes | None = None  # None: as the client sent it
    # What turns `body` into the body of the second attempt, the third ...
    rungs: tuple[tuple[Patch, ...], ...] = ()
    # What reasoning was set to ("on", "off", "low" ...), or whose word stands: "client", "model".
    reasoning: str = "client"
    # The answer will hold log-probabilities that the client did not ask for.
    logprobs_added: bool = False

    @property
    def cluster(self) -> str:
        """Where the first attempt goes."""
        return self.clusters[0]


def mutate(decision: Decision, request: Request | None) -> Mutation:
    """Write `decision` into the request: model, reasoning, cap on output tokens; no other byte changes.

    Likewise for every rung of its ladder, as patches on the first attempt's body.

    Raises SpliceError when the body cannot be edited without guessing.
    """
    if request is None or not decision.rewrite:
        return Mutation((decision.tier.cluster_name,))
    first, *above = (Rung(decision.tier, decision.reasoning), *decision.ladder)
    edits, written = _edits(decision, first, request)
    made = patches(request.body, edits | _logprobs(decision, first, request))
    rungs = []
    for rung in above:
        wanted = _edits(decision, rung, request)[0] | _logprobs(decision, rung, request)
        rungs.append(tuple(rebase(request.body, made, patches(request.body, wanted))))
    if any(not _is_text(patch.text) for rung in rungs for patch in rung):
        raise SpliceError("a member that a rung restores is not UTF-8")  # metadata can carry text only
    clusters = (decision.tier.cluster_name, *(rung.tier.cluster_name for rung in decision.ladder))
    return Mutation(clusters, apply(request.body, made), tuple(rungs), written, asks_logprobs(decision, request))


def rename_model(body: bytes, tier: Tier, may_replace: Callable[[str], bool]) -> bytes | None:
    """The body with the tier's model name in place of one that may be replaced; None where that cannot be told."""
    try:
        model = _decode_model(body).model
        return splice(body, {"model": _json(tier.model)}) if may_replace(model) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, SpliceError):
        return None


class _Model(msgspec.Struct):
    model: str


_decode_model = msgspec.json.Decoder(_Model).decode


def _edits(decision: Decision, rung: Rung, request: Request) -> tuple[_Edits, str]:
    """What one attempt changes, and what it sets reasoning to."""
    dialect = rung.tier.reasoning
    edits: _Edits = {"model": _json(rung.tier.model)}
    # A policy without a wish of its own overrides nobody.
    forced = decision.reasoning_forced and rung.reasoning is not None
    clients_word = request.reasoning is not None and not forced
    wanted = _clients_reasoning(request) if clients_word else rung.reasoning
    # A cap meant for answers alone would starve the thinking that the client asked for.
    cap = None if clients_word and wanted is not False else decision.max_output_tokens
    edits |= _cap(request, dialect, cap)
    if wanted is None:
        return edits, "model"
    if clients_word and request.reasoning_field == _FIELD.get(dialect):
        return edits, "client"
    room = min((n for n in (request.max_output_tokens, cap) if n is not None), default=None)
    reasoning, written = _reasoning(dialect, wanted, request, room)
    return edits | reasoning, written


def asks_logprobs(decision: Decision, request: Request) -> bool:
    """Whether log-probabilities have to be asked for, because a rule wants them and the client did not."""
    cohort = decision.cohort
    wanted = decision.judged and cohort is not None and wants_logprobs(cohort.accept)
    return wanted and request.logprobs is False


def _logprobs(decision: Decision, rung: Rung, request: Request) -> _Edits:
    """The field that asks for them; not at the last rung, which nobody judges."""
    unjudged = decision.ladder and rung is decision.ladder[-1]
    if unjudged or not asks_logprobs(decision, request):
        return {}
    if request.api == "responses":
        return {"include": _json(["message.output_text.logprobs"])}
    return {"logprobs": b"true" if request.api == "chat" else b"1"}


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
    budget = max(wanted.budget_tokens, _LEAST_BUDGET) if isinstance(wanted, Budget) else _USUAL_BUDGET
    if room is not None:
        budget = min(budget, room - 1)
    return budget if budget >= _LEAST_BUDGET else None


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _word(on: bool) -> str:
    return "on" if on else "off"


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)
