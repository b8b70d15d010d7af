"""Write a decision into the request: the model, the reasoning fields and a cap on output tokens."""

from collections.abc import Callable, Mapping

import msgspec

from extproc.acceptance.rules import Gain
from extproc.acceptance.verdict import wants_logprobs
from extproc.api.members import UNDECODABLE
from extproc.api.reasoning import ReasoningChoice, without_clearing
from extproc.api.repair import BOM, TooManyRepairs, is_wide, repaired
from extproc.api.request import Request
from extproc.api.sealed import without_sealed
from extproc.api.splice import (
    REMOVED,
    DuplicateMember,
    Layout,
    Patch,
    SpliceError,
    TooLong,
    apply,
    layout,
    patches,
    rebase,
)
from extproc.routing.ability import cap_that_fits
from extproc.routing.decision import Decision
from extproc.routing.dialects import SAMPLING
from extproc.routing.policy import Rung
from extproc.routing.reasoning import drops_sampling, gives_logprobs, wanted_by, write_choice
from extproc.routing.tier_form import Edits, TierForm, put, tier_form_of
from extproc.settings import Tier


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
    members = _layout(request)
    ladder = (Rung(decision.tier, decision.reasoning), *decision.ladder)
    attempts = [_attempt(decision, at, rung, request) for at, rung in enumerate(ladder)]
    first, *above = [
        _stripped(decision, rung.tier, request, patches(members, attempt.edits, attempt.renames))
        for rung, attempt in zip(ladder, attempts, strict=True)
    ]
    rungs = tuple(tuple(rebase(request.body, first, changes)) for changes in above)
    if any(not _is_text(patch.text) for rung in rungs for patch in rung):
        raise SpliceError("a value that a later attempt restores is not UTF-8, and metadata holds only text")
    clusters = (decision.tier.cluster_name, *(rung.tier.cluster_name for rung in decision.ladder))
    added = any(attempt.logprobs_added for attempt in attempts)
    return Mutation(clusters, apply(request.body, first), rungs, attempts[0].word, added)


def _stripped(decision: Decision, tier: Tier, request: Request, changes: list[Patch]) -> list[Patch]:
    """The changes, with those that remove the sealed items that the tier cannot read."""
    strip, items = decision.strip, len(request.state.sealed)
    count = strip.count(tier, items) if strip is not None else 0
    return sorted([*changes, *without_sealed(request.readable, count)]) if count else changes


def _layout(request: Request) -> Layout:
    try:
        return layout(request.readable)
    except (DuplicateMember, TooLong):
        raise
    except SpliceError:  # a name is not UTF-8, which reading did not need
        return layout(_repaired(request.readable))


def read_model(body: bytes) -> str | None:
    """Return the model that the body names, or None if it names none, as an empty body does.

    Raises SpliceError if the body is not a JSON object, if its model is not a text, or if a member appears twice.
    """
    if not body.strip():
        return None
    readable, model = _read(body.removeprefix(BOM))
    refuse_duplicates(readable)
    return model


def refuse_duplicates(readable: bytes) -> None:
    """Raise DuplicateMember if a member appears twice: other readers might read another model."""
    try:
        layout(readable)
    except DuplicateMember:
        raise
    except SpliceError:
        pass  # nothing is edited


def rename_model(body: bytes, tier: Tier, may_replace: Callable[[str], bool]) -> bytes | None:
    """Return the body with the tier's model name, or None if it names no model that may be replaced.

    Raises SpliceError if the model cannot be read, or may be replaced and the body cannot be edited safely.
    """
    if not body.strip():
        return None
    body = body.removeprefix(BOM)
    readable, model = _read(body)
    if model is None or not may_replace(model):
        return None
    return _with_model(body, layout(readable), tier)


def rename_read(request: Request, tier: Tier, may_replace: Callable[[str], bool]) -> bytes | None:
    """Do the same for a request that was read. Raises SpliceError also if a member appears twice."""
    if request.model is None or not may_replace(request.model):
        refuse_duplicates(request.readable)
        return None
    return _with_model(request.body, _layout(request), tier)


def _with_model(body: bytes, members: Layout, tier: Tier) -> bytes:
    return apply(body, patches(members, {"model": _json(tier.model)}))


_NO_MODEL = (
    "the body is not a JSON object whose `model` is a text: send the whole object, in UTF-8, and "
    "compressed only with the header content-encoding"
)


def _read(body: bytes) -> tuple[bytes, str | None]:
    """The body as it can be read, and the model that it names."""
    if is_wide(body):
        raise SpliceError(_NO_MODEL)
    try:
        return body, _decode_model(body).model
    except UNDECODABLE:
        pass
    readable = _repaired(body)
    try:
        return readable, _decode_model(readable).model
    except UNDECODABLE as error:
        raise SpliceError(_NO_MODEL) from error


def _repaired(body: bytes) -> bytes:
    try:
        return repaired(body)
    except TooManyRepairs as error:
        raise SpliceError(f"the body has {error}") from error


class _Model(msgspec.Struct):
    model: str | None = None


_decode_model = msgspec.json.Decoder(_Model).decode


class _Attempt(msgspec.Struct, frozen=True):
    """The changes for one attempt."""

    edits: Edits
    renames: Mapping[str, str]
    word: str  # for its reasoning
    logprobs_added: bool


def _attempt(decision: Decision, at: int, rung: Rung, request: Request) -> _Attempt:
    tier_form = tier_form_of(rung.tier, request.api)
    edits: Edits = {**tier_form.removed, "model": _json(rung.tier.model)}
    wanted, by_client = _wanted(decision, rung, request)
    # The cap is meant for answers. It would leave too few tokens for the reasoning that the client requested.
    cap = None if by_client and wanted is not None and wanted.on else decision.max_output_tokens
    fitting = cap_that_fits(rung.tier, decision.load) if decision.load is not None else None
    cap = min((tokens for tokens in (cap, fitting) if tokens is not None), default=None)
    _put_cap(edits, request, cap)
    room = min((n for n in (request.max_output_tokens, cap) if n is not None), default=None)
    written = write_choice(edits, tier_form, request, wanted, by_client, room)
    sampling_dropped = drops_sampling(tier_form, written)
    if sampling_dropped:
        edits |= dict.fromkeys(SAMPLING, REMOVED)
    if request.context_management and _stops_thinking(tier_form, written.reasons):
        cleared = without_clearing(request.context_management)
        edits |= {} if cleared is None else {"context_management": cleared}
    takes_logprobs = not sampling_dropped and gives_logprobs(tier_form, written)
    logprobs = _logprobs(decision, at, rung, request) if takes_logprobs else {}
    edits |= logprobs
    for name in tier_form.drop:
        put(edits, name, REMOVED)
    if tier_form.renames:
        edits = {tier_form.renames.get(name, name): edit for name, edit in edits.items()}
    return _Attempt(edits, tier_form.renames, written.word, bool(logprobs))


def _wanted(decision: Decision, rung: Rung, request: Request) -> tuple[ReasoningChoice | None, bool]:
    """The reasoning to ask for, and whether it is the client's choice."""
    # A policy that sets no reasoning here does not override the client.
    forced = decision.reasoning_forced and rung.reasoning is not None
    client = request.reasoning
    if client is not None and client.on is not None and not forced:
        return client, True
    # Thinking changes the shape of a message, so a client gets it only if it asks or the policy puts itself first.
    if request.api == "messages" and rung.reasoning and not forced:
        return None, False
    return wanted_by(rung.reasoning), False


def _stops_thinking(tier_form: TierForm, reasons: bool | None) -> bool:
    """Whether the model does not think, if the tier is known. Then Anthropic refuses to clear thinking."""
    if tier_form.fields is None:
        return False
    off = tier_form.form.default_off if reasons is None else reasons is False
    return off or tier_form.fields.switch != "thinking"


def asks_logprobs(decision: Decision, tier: str, request: Request) -> bool:
    """Return whether to ask this tier for log-probabilities: a rule needs them and the client did not ask.

    The rule `gain` cannot run if the prompt has no columns.
    """
    cohort, match = decision.cohort, decision.match
    if not decision.judged or cohort is None or request.logprobs is not False:
        return False
    predicted = match is not None and bool(match.columns)
    return wants_logprobs([rule for rule in cohort.accept if predicted or not isinstance(rule, Gain)], tier)


def _logprobs(decision: Decision, at: int, rung: Rung, request: Request) -> Edits:
    """The field that requests them. The last rung gets none, because its answer is not judged."""
    unjudged = decision.ladder and decision.is_last(at)
    if unjudged or not asks_logprobs(decision, rung.tier.name, request):
        return {}
    if request.api == "responses":
        return {"include": _json(["message.output_text.logprobs"])}
    return {"logprobs": b"true" if request.api == "chat" else b"1"}


def _put_cap(edits: Edits, request: Request, cap: int | None) -> None:
    """Lower the client's cap to ours, in the field that it used, otherwise in the field of its API."""
    clients_cap = request.max_output_tokens
    if cap is not None and (clients_cap is None or clients_cap > cap):
        default = "max_output_tokens" if request.api == "responses" else "max_tokens"
        edits[request.cap_field or default] = str(cap).encode()


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)
