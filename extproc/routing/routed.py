"""One routed request, and the ways in which it is sent on or refused."""

import re
import time
from collections.abc import Mapping
from functools import cached_property
from urllib.parse import unquote_plus

import msgspec

from extproc.api.paths import APIS, COMPACT, SIDE_PATHS
from extproc.api.request import Request
from extproc.api.splice import DuplicateMember, SpliceError
from extproc.contract.records import DecisionRecord
from extproc.contract.words import Reason
from extproc.routing.answer_cache import CacheLook
from extproc.routing.batch import model_in_batch
from extproc.routing.beside import decide_beside
from extproc.routing.budget import Payment
from extproc.routing.cache_store import KeptAnswer
from extproc.routing.conversations import Continuation, Identity
from extproc.routing.decision import Decision, decide_unread, untouched
from extproc.routing.exploration import Exploration
from extproc.routing.mutation import Mutation, mutate, read_model, refuse_duplicates, rename_model, rename_read
from extproc.routing.policy import may_retarget
from extproc.routing.record import decision_record
from extproc.routing.signals import Signals
from extproc.routing.snapshot import Snapshot

# The field `model` of a form without files. No name of a model is longer.
_FORM_MODEL = re.compile(rb"(?:^|&)model=([^&]{0,512})")
# A client that tries again gets the same answer for days, so its library must not.
_NO_RETRY = {"x-should-retry": "false"}
_SPENT = "The budget `{}` is used up until the month ends (UTC). Ask the operator of this gateway to raise it."
_OFF = "The configuration of this application has a mistake, and it confines requests to some tiers."
_CONFINED = "The policy keeps this request to some of its tiers, and none of them can serve it."


class Refusal(msgspec.Struct, frozen=True):
    """The error that the client gets instead of an answer."""

    status: int
    message: str
    headers: Mapping[str, str] = {}


class Routed(msgspec.Struct, frozen=True, dict=True):
    """One routed request: the decision about it, and the values that led to it."""

    decision: Decision
    mutation: Mutation
    snapshot: Snapshot
    request: Request | None  # None: the body could not be read, or the API is unknown
    signals: Signals | None
    stages: dict[str, float]  # seconds spent in: read, embed, match, cache, write
    refusal: Refusal | None = None  # None: the request is sent on
    identity: Identity | None = None  # of the conversation; None: the body could not be read
    candidate: Decision | None = None  # of a candidate that only decides beside
    vector: bytes = b""  # of the ask, float32; empty: it was not encoded
    payment: Payment = Payment()
    exploration: Exploration | None = None  # None: the request had no chance to be asked of a second tier
    cached: CacheLook | None = None  # what the cache found; None: the cohort has none

    @property
    def kept(self) -> KeptAnswer | None:
        """The kept answer that is served in place of an upstream's."""
        return self.cached.answer if self.cached is not None else None

    @cached_property
    def record(self) -> DecisionRecord:
        """The decision's record, built once for metadata, logs and spans."""
        return decision_record(
            self.decision, self.mutation, self.snapshot, self.signals, self.candidate, self.kept, self.payment
        )


class Stopwatch:
    """Measures the time of each stage, in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Note the time since the last lap as that of `stage`."""
        now = time.perf_counter()
        self.laps[stage] = now - self._since
        self._since = now


def written(
    snapshot: Snapshot, decision: Decision, request: Request | None, signals: Signals | None, clock: Stopwatch
) -> Routed:
    """The request with the decision written into it, or the error of a refusal. Raises SpliceError."""
    mutation = mutate(decision, request)
    clock.lap("write")
    refusal = Refusal(503, _OFF if decision.reason is Reason.APP_OFF else _CONFINED) if decision.refused else None
    return Routed(decision, mutation, snapshot, request, signals, clock.laps, refusal)


def unpaid(
    snapshot: Snapshot,
    decision: Decision,
    payment: Payment,
    request: Request | None,
    signals: Signals | None,
    clock: Stopwatch,
) -> Routed:
    """The budgets pay for no tier that may get the request: the client gets an error."""
    headers = {"retry-after": str(payment.retry_after_s), **_NO_RETRY}
    refusal = Refusal(429, _SPENT.format(payment.budget), headers)
    return Routed(
        decision, mutate(decision, None), snapshot, request, signals, clock.laps, refusal, payment=payment
    )


def _foreign(snapshot: Snapshot, headers: Mapping[str, str], clock: Stopwatch) -> Routed:
    """The request is sent on unchanged: its API is unknown."""
    return written(snapshot, decide_unread(snapshot.policy, headers, Reason.PASSTHROUGH), None, None, clock)


def beside(
    snapshot: Snapshot,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    request: Request | None,
    continuation: Continuation,
    clock: Stopwatch,
) -> Routed:
    """The path generates no answer: only the model's name is replaced, by that of the chosen tier."""
    policy = snapshot.policy
    try:
        model = request.model if request is not None else read_model(body)
        decision = decide_beside(
            policy, headers, APIS[SIDE_PATHS[path]], model, continuation, compacts=path == COMPACT
        )
        if decision.refused:
            return written(snapshot, decision, None, None, clock)

        tier, models = decision.tier, {tier.model for tier in policy.tiers}

        def may_replace(name: str) -> bool:
            """The model of one tier is not known at another."""
            return name != tier.model and (name in models or may_retarget(policy, name))

        if request is None:
            body_renamed = rename_model(body, tier, may_replace)
        else:
            body_renamed = rename_read(request, tier, may_replace)
    except SpliceError as error:
        return bad_request(snapshot, str(error), clock)
    mutation = msgspec.structs.replace(mutate(decision, None), body=body_renamed)
    return Routed(decision, mutation, snapshot, None, None, clock.laps)


def opened(snapshot: Snapshot, body: bytes, headers: Mapping[str, str], clock: Stopwatch) -> Routed:
    """The policy opens this path. A model name that no upstream knows is refused, and nothing is replaced."""
    try:
        model = read_model(body)
    except SpliceError as error:
        if _starts_an_object(body):
            return bad_request(snapshot, str(error), clock)
        model = _form_model(body)
    private = snapshot.policy.private_models
    model = model if model in private else model_in_batch(body, private)
    if model is not None:
        what = f"no upstream of this path knows the model `{model}`: name a model of the upstream"
        return bad_request(snapshot, f"{what}, or send the request to {', '.join(APIS)}", clock)
    return _foreign(snapshot, headers, clock)


def _form_model(body: bytes) -> str | None:
    field = _FORM_MODEL.search(body)
    return unquote_plus(field[1].decode(errors="replace")) if field is not None else None


def _starts_an_object(body: bytes) -> bool:
    """Whether the body starts as a JSON object does, in UTF-8 or UTF-16."""
    return body[:64].lstrip(b"\xef\xbb\xbf\xfe\xff\x00 \t\r\n").startswith(b"{")


def passed_on(
    snapshot: Snapshot, decision: Decision, request: Request, signals: Signals, clock: Stopwatch
) -> Routed:
    """The request is sent on with every byte: its model may not be replaced."""
    try:
        refuse_duplicates(request.readable)
    except DuplicateMember as error:
        return bad_request(snapshot, str(error), clock, request, signals)
    return Routed(decision, mutate(decision, None), snapshot, request, signals, clock.laps)


def unreadable(snapshot: Snapshot, decision: Decision, body: bytes, clock: Stopwatch) -> Routed:
    """The default tier serves, or the one that headers and budgets require."""
    if decision.refused:
        return written(snapshot, decision, None, None, clock)
    return renamed(snapshot, decision, body, clock)


def renamed(
    snapshot: Snapshot,
    decision: Decision,
    body: bytes,
    clock: Stopwatch,
    request: Request | None = None,
    signals: Signals | None = None,
) -> Routed:
    """If the requested model can be read and replaced, only its name is rewritten.

    If it cannot be rewritten, the request is refused: no upstream knows the name.
    """
    policy = snapshot.policy
    try:
        body_renamed = rename_model(body, decision.tier, lambda model: may_retarget(policy, model))
    except SpliceError as error:
        return bad_request(snapshot, str(error), clock, request, signals)
    mutation = msgspec.structs.replace(mutate(decision, None), body=body_renamed)
    return Routed(decision, mutation, snapshot, request, signals, clock.laps)


def bad_request(
    snapshot: Snapshot,
    message: str,
    clock: Stopwatch,
    request: Request | None = None,
    signals: Signals | None = None,
) -> Routed:
    """The client gets an error. The default tier is only named in the record."""
    decision = untouched(snapshot.policy, Reason.BAD_REQUEST)
    refusal = Refusal(400, message)
    return Routed(decision, mutate(decision, None), snapshot, request, signals, clock.laps, refusal)
