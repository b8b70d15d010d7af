"""Write a decision into the request: the model, the reasoning fields and a cap on output tokens."""

from collections.abc import Callable
from typing import Any

import msgspec

from extproc.acceptance.verdict import wants_logprobs
from extproc.api.members import UNDECODABLE
from extproc.api.repair import BOM, repaired
from extproc.api.request import ReasoningField, Request
from extproc.api.sealed import without_sealed
from extproc.api.splice import DuplicateMember, Patch, SpliceError, apply, patches, rebase
from extproc.routing.decision import Decision
from extproc.routing.policy import Rung
from extproc.settings import Budget, Dialect, Reasoning, Tier

# The field that sets reasoning in each dialect.
_FIELD: dict[Dialect, ReasoningField] = {
    "qwen3": "template.enable_thinking",
    "deepseek": "template.thinking",
    "gpt-oss": "effort",
    "openai": "effort",
    "anthropic": "thinking",
}
# The lowest `budget_tokens` that Anthropic accepts, and the budget of reasoning that is on without a number.
_LEAST_BUDGET, _USUAL_BUDGET = 1024, 4096
# Each effort, after the largest budget in tokens that it stands for. A larger budget is "high".
_EFFORTS = ((2048, "low"), (8192, "medium"))

_Edits = dict[str, Any]


class Mutation(msgspec.Struct, frozen=True):
    """The change to the request that Envoy makes for us."""

    clusters: tuple[str, ...]  # of the first attempt, then of each rung
    body: bytes | None = None  # None: unchanged
    # Patches that turn `body` into the body of the second attempt, the third and so on.
    rungs: tuple[tuple[Patch, ...], ...] = ()
    # The setting that was written ("on", "off", "low" ...), or whose choice is kept: "client" or "model". "none" is
    # also written if the tier has no field for reasoning.
    reasoning: str = "client"
    # The answer will contain log-probabilities that the client did not request.
    logprobs_added: bool = False

    @property
    def cluster(self) -> str:
        """The cluster of the first attempt."""
        return self.clusters[0]


def mutate(decision: Decision, request: Request | None) -> Mutation:
    """Write `decision` into the request: model, reasoning, cap on output tokens. No other byte changes.

    The changes of each rung of its ladder are patches on the body of the first attempt.
    Raises SpliceError if the body cannot be edited safely.
    """
    if request is None or not decision.rewrite:
        return Mutation((decision.tier.cluster_name,))
    first, *above = (Rung(decision.tier, decision.reasoning), *decision.ladder)
    edits, written = _edits(decision, first, request)
    first_patches = _patches(decision, first, request, edits)
    rungs = []
    for rung in above:
        wanted = _patches(decision, rung, request, _edits(decision, rung, request)[0])
        rungs.append(tuple(rebase(request.body, first_patches, wanted)))
    if any(not _is_text(patch.text) for rung in rungs for patch in rung):
        raise SpliceError("a value that a later attempt restores is not UTF-8, and metadata holds only text")
    clusters = (decision.tier.cluster_name, *(rung.tier.cluster_name for rung in decision.ladder))
    return Mutation(
        clusters, apply(request.body, first_patches), tuple(rungs), written, asks_logprobs(decision, request)
    )


def _patches(decision: Decision, rung: Rung, request: Request, edits: _Edits) -> list[Patch]:
    edits = edits | _logprobs(decision, rung, request)
    try:
        changes = patches(request.readable, edits)
    except DuplicateMember:
        raise
    except SpliceError:  # a name is not UTF-8, which reading did not need
        changes = patches(repaired(request.readable), edits)
    strip, items = decision.strip, len(request.state.sealed)
    count = strip.count(rung.tier, items) if strip is not None else 0
    return sorted([*changes, *without_sealed(request.readable, count)]) if count else changes


def rename_model(body: bytes, tier: Tier, may_replace: Callable[[str], bool]) -> bytes | None:
    """Return the body with the tier's model name, or None if the model cannot be read or may not be replaced.

    Raises SpliceError if it may be replaced and the body cannot be edited safely.
    """
    body = body.removeprefix(BOM)
    readable = repaired(body)
    try:
        model = _decode_model(readable).model
    except UNDECODABLE:
        return None
    return apply(body, patches(readable, {"model": _json(tier.model)})) if may_replace(model) else None


class _Model(msgspec.Struct):
    model: str


_decode_model = msgspec.json.Decoder(_Model).decode


def _edits(decision: Decision, rung: Rung, request: Request) -> tuple[_Edits, str]:
    """The changes for one attempt, and the word for its reasoning."""
    dialect = rung.tier.reasoning
    edits: _Edits = {"model": _json(rung.tier.model)}
    # A policy that sets no reasoning here does not override the client.
    forced = decision.reasoning_forced and rung.reasoning is not None
    clients_choice = request.reasoning is not None and not forced
    wanted = _clients_reasoning(request) if clients_choice else rung.reasoning
    # The cap is meant for answers. It would leave too few tokens for the reasoning that the client requested.
    cap = None if clients_choice and wanted is not False else decision.max_output_tokens
    edits |= _cap(request, dialect, cap)
    if wanted is None:
        return edits, "model"
    if clients_choice and request.reasoning_field == _FIELD.get(dialect):
        return edits, "client"
    room = min((n for n in (request.max_output_tokens, cap) if n is not None), default=None)
    reasoning, written = _reasoning(dialect, wanted, request, room)
    return edits | reasoning, written


def asks_logprobs(decision: Decision, request: Request) -> bool:
    """Return whether to request log-probabilities: a rule needs them and the client did not ask for them."""
    cohort = decision.cohort
    wanted = decision.judged and cohort is not None and wants_logprobs(cohort.accept)
    return wanted and request.logprobs is False


def _logprobs(decision: Decision, rung: Rung, request: Request) -> _Edits:
    """The field that requests them. The last rung gets none, because its answer is not judged."""
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
    """Lower the client's cap to ours, in the field that it used, otherwise in the field of its API."""
    clients_cap = request.max_output_tokens
    if cap is None or (clients_cap is not None and clients_cap <= cap):
        return {}
    # Every chat server knows `max_tokens`, but OpenAI's reasoning models reject it.
    newer = request.cap_field is None and request.api == "chat" and dialect == "openai"
    default = {"responses": "max_output_tokens"}.get(request.api, "max_tokens")
    field = request.cap_field or ("max_completion_tokens" if newer else default)
    return {field: str(cap).encode()}


def _reasoning(dialect: Dialect, wanted: Reasoning, request: Request, room: int | None) -> tuple[_Edits, str]:
    """The fields that set `wanted` in this dialect, and the word for it: "none" if the dialect has no field.

    `room` is the cap on output tokens, if there is one.
    """
    on = wanted is not False
    if request.api == "completions":
        return {}, "none"
    match _FIELD.get(dialect):
        case "template.enable_thinking":
            # The template only knows on and off. A budget is on.
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
        # gpt-oss cannot stop reasoning. "low" is its lowest effort, and the record shows it.
        return "low" if dialect == "gpt-oss" else "none"
    if isinstance(wanted, Budget):
        return next((word for most, word in _EFFORTS if wanted.budget_tokens <= most), "high")
    return "medium"


def _budget(wanted: Reasoning, request: Request, room: int | None) -> int | None:
    """The thinking budget in tokens, below `room` as Anthropic requires. None: thinking must be off."""
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
