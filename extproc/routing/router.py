"""The whole path of one request, from its bytes to the change in it. Start reading at `Router.route`."""

import time
from collections.abc import Mapping
from functools import cached_property

import msgspec

from extproc.api.request import Request, RequestError, parse_request
from extproc.api.splice import DuplicateMember, SpliceError, patches
from extproc.contract.records import DecisionRecord
from extproc.contract.words import Course, Reason
from extproc.encoder.protocols import DeadlineError, Embedder, EncoderError, Vectors
from extproc.routing.ask import Ask
from extproc.routing.conversations import (
    NEW,
    Answered,
    Continuation,
    Conversations,
    Identity,
    id_key,
    identify,
    kept_id,
)
from extproc.routing.decision import Decision, decide, untouched
from extproc.routing.index import Match, nearest
from extproc.routing.limits import Rates, principal_header, principal_of
from extproc.routing.mutation import Mutation, mutate, rename_model
from extproc.routing.policy import may_retarget
from extproc.routing.record import decision_record
from extproc.routing.signals import Signals, read_signals
from extproc.routing.snapshot import Snapshot
from extproc.routing.sticky import seal_of


class Routed(msgspec.Struct, frozen=True, dict=True):
    """One routed request: the decision about it, and the values that led to it."""

    decision: Decision
    mutation: Mutation
    snapshot: Snapshot
    request: Request | None  # None: the body could not be read, or the API is unknown
    signals: Signals | None
    stages: dict[str, float]  # seconds spent in: read, embed, match, write
    refusal: str | None = None  # the message of a 400 to the client; None: the request is sent on
    identity: Identity | None = None  # of the conversation; None: the body could not be read

    @cached_property
    def record(self) -> DecisionRecord:
        """The decision's record, built once for metadata, logs and spans."""
        return decision_record(self.decision, self.mutation, self.snapshot, self.signals)


class Router:
    """Routes requests by the current snapshot."""

    def __init__(
        self,
        snapshot: Snapshot,
        embedder: Embedder,
        rates: Rates | None = None,
        conversations: Conversations | None = None,
    ) -> None:
        """`rates` counts the upgrades of each principal. Without it, upgrades are not limited.

        Without `conversations`, each request is routed as if it were the first of its conversation.
        """
        self.snapshot = snapshot  # replaced as a whole by a reload; each request uses one snapshot
        self.embedder = embedder
        self._rates = rates
        self._conversations = conversations

    @property
    def remembers(self) -> bool:
        """Whether the router remembers conversations."""
        return self._conversations is not None

    def swap(self, snapshot: Snapshot) -> None:
        """Use `snapshot` for all requests from now on."""
        self.snapshot = snapshot

    async def route(self, body: bytes, headers: Mapping[str, str]) -> Routed:
        """Decide about one request, from its body and its headers (":path" and the ones that rules may name)."""
        snapshot, clock = self.snapshot, _Stopwatch()
        try:
            request = parse_request(headers.get(":path", ""), body)
        except RequestError:
            return _unreadable(snapshot, body, clock)
        identity = _identity(snapshot, request, headers)
        if request is None or request.model is None or not may_retarget(snapshot.policy, request.model):
            return self._noted(_passed_through(snapshot, request, clock), identity)

        signals = read_signals(request, snapshot.encoder.max_chars)  # the ask is one of them
        clock.lap("read")
        vector, failure = await self._embed(signals.ask, snapshot, clock)
        match = nearest(snapshot.index, vector) if vector is not None else None
        continuation = Continuation(background=request.state.background)
        if self._conversations is not None and identity is not None:
            continuation = await self._conversations.recall(request, identity)
        decision = self._decide(snapshot, signals, match, headers, failure, continuation)
        clock.lap("match")
        try:
            mutation = mutate(decision, request)
        except SpliceError:
            return self._noted(_unreadable(snapshot, body, clock, request, signals), identity)
        clock.lap("write")
        routed = Routed(decision, mutation, snapshot, request, signals, clock.laps)
        return self._noted(routed, identity, continuation)

    def _noted(self, routed: Routed, identity: Identity | None, continuation: Continuation = NEW) -> Routed:
        """Remember the tier of this request for those that continue it."""
        if self._conversations is not None and identity is not None and routed.refusal is None:
            policy, tier = routed.snapshot.policy, routed.decision.tier
            tokens = routed.signals.tokens if routed.signals is not None else 0
            strip = routed.decision.strip
            stripped = strip is not None and strip.seal != seal_of(tier)
            self._conversations.note(identity, continuation, policy.tiers, policy.rank(tier.name), tokens, stripped)
        return msgspec.structs.replace(routed, identity=identity)

    async def route_kept(self, headers: Mapping[str, str]) -> Routed:
        """Decide about a request that names a response by its id in the path. It has no body to read."""
        snapshot, kept = self.snapshot, kept_id(headers.get(":path", ""))
        policy, maker = snapshot.policy, None
        if self._conversations is not None and kept is not None:
            principal = principal_of(principal_header(headers, snapshot.escalations.principal))
            maker = await self._conversations.maker_of(id_key(principal, kept), policy.tiers)
        tier = policy.tiers[maker] if maker is not None else policy.tier(policy.default_tier)
        course = Course.KEPT_SEALED if maker is not None else Course.LOST
        decision = Decision(tier, Reason.BOUND, rewrite=False, course=course)
        return Routed(decision, mutate(decision, None), snapshot, None, None, {})

    async def answered(self, message: bytes) -> None:
        """Note which tier answered, from a message of Envoy."""
        answer = Answered.read(message)
        if answer is not None and self._conversations is not None:
            await self._conversations.answered(answer, self.snapshot.policy.tiers)

    async def _embed(self, ask: Ask, snapshot: Snapshot, clock: "_Stopwatch") -> tuple[Vectors | None, Reason]:
        """The vector of the ask, or None and the reason why there is none."""
        if not ask.text:
            return None, Reason.NO_TEXT
        try:
            return await self.embedder.embed(ask.text, snapshot.encoder.deadline_ms / 1000), Reason.MATCHED
        except DeadlineError:
            return None, Reason.DEADLINE
        except EncoderError:
            return None, Reason.ENCODER
        finally:
            clock.lap("embed")

    def _decide(
        self,
        snapshot: Snapshot,
        signals: Signals,
        match: Match | None,
        headers: Mapping[str, str],
        failure: Reason,
        continuation: Continuation,
    ) -> Decision:
        """Decide. A tier above the default takes one of the principal's upgrades, if the policy limits them."""
        policy, upgrades = snapshot.policy, snapshot.policy.upgrades
        decision = decide(policy, signals, match, headers, failure, continuation=continuation)
        above = policy.rank(decision.tier.name) > policy.rank(policy.default_tier)
        if upgrades is None or self._rates is None or not above:
            return decision
        capped = decide(policy, signals, match, headers, failure, spent=True, continuation=continuation)
        if capped.tier == decision.tier:  # a floor or a capability that no cap lowers
            return decision
        principal = principal_of(principal_header(headers, snapshot.escalations.principal))
        allowed = self._rates.take(principal, upgrades.per_minute, upgrades.burst, time.monotonic())
        return decision if allowed else capped


def _identity(snapshot: Snapshot, request: Request | None, headers: Mapping[str, str]) -> Identity | None:
    if request is None:
        return None
    every_item = snapshot.policy.sticky.on_switch == "strip"
    return identify(request, headers, principal_header(headers, snapshot.escalations.principal), every_item)


class _Stopwatch:
    """Measures the time of each stage, in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = now - self._since
        self._since = now


def _passed_through(snapshot: Snapshot, request: Request | None, clock: _Stopwatch) -> Routed:
    """The request is sent on unchanged: its API is unknown, or its model may not be replaced."""
    if request is not None:
        try:
            patches(request.readable, {})
        except DuplicateMember as error:  # the upstream might read another model
            return _refused(snapshot, error, clock, request)
        except SpliceError:
            pass  # nothing is edited
    decision = untouched(snapshot.policy, Reason.PASSTHROUGH, request.model if request is not None else None)
    return Routed(decision, mutate(decision, None), snapshot, request, None, clock.laps)


def _unreadable(
    snapshot: Snapshot,
    body: bytes,
    clock: _Stopwatch,
    request: Request | None = None,
    signals: Signals | None = None,
) -> Routed:
    """The default tier serves. If the requested model can be read and replaced, only its name is rewritten.

    If it cannot be rewritten, the request is refused: no upstream knows the name.
    """
    policy = snapshot.policy
    decision = untouched(policy, Reason.UNREADABLE)
    try:
        renamed = rename_model(body, decision.tier, lambda model: may_retarget(policy, model))
    except SpliceError as error:
        return _refused(snapshot, error, clock, request, signals)
    mutation = msgspec.structs.replace(mutate(decision, None), body=renamed)
    return Routed(decision, mutation, snapshot, request, signals, clock.laps)


def _refused(
    snapshot: Snapshot,
    error: SpliceError,
    clock: _Stopwatch,
    request: Request | None = None,
    signals: Signals | None = None,
) -> Routed:
    """The client gets an error. The default tier is only named in the record."""
    decision = untouched(snapshot.policy, Reason.BAD_REQUEST)
    return Routed(decision, mutate(decision, None), snapshot, request, signals, clock.laps, str(error))
