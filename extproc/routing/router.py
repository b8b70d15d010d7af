"""The whole path of one request, from its bytes to the change in it. Start reading at `Router.route`."""

import time
from collections.abc import Mapping
from functools import cached_property

import msgspec

from extproc.api.request import Request, RequestError, parse_request
from extproc.api.splice import DuplicateMember, SpliceError, patches
from extproc.contract.records import DecisionRecord
from extproc.contract.words import Reason
from extproc.encoder.protocols import DeadlineError, Embedder, EncoderError, Vectors
from extproc.routing.ask import Ask
from extproc.routing.decision import Decision, decide, decide_named, decide_unread, untouched
from extproc.routing.guard import needs_match
from extproc.routing.index import Match, nearest
from extproc.routing.limits import Rates, principal_header, principal_of
from extproc.routing.mutation import Mutation, mutate, rename_model
from extproc.routing.policy import is_named, may_retarget
from extproc.routing.record import decision_record
from extproc.routing.signals import Signals, read_signals
from extproc.routing.snapshot import Snapshot

_CONFINED = "The policy keeps this request to some of its tiers, and none of them can serve it."


class Refusal(msgspec.Struct, frozen=True):
    """The error that the client gets instead of an answer."""

    status: int
    message: str


class Routed(msgspec.Struct, frozen=True, dict=True):
    """One routed request: the decision about it, and the values that led to it."""

    decision: Decision
    mutation: Mutation
    snapshot: Snapshot
    request: Request | None  # None: the body could not be read, or the API is unknown
    signals: Signals | None
    stages: dict[str, float]  # seconds spent in: read, embed, match, write
    refusal: Refusal | None = None  # None: the request is sent on

    @cached_property
    def record(self) -> DecisionRecord:
        """The decision's record, built once for metadata, logs and spans."""
        return decision_record(self.decision, self.mutation, self.snapshot, self.signals)


class Router:
    """Routes requests by the current snapshot."""

    def __init__(self, snapshot: Snapshot, embedder: Embedder, rates: Rates | None = None) -> None:
        """`rates` counts the upgrades of each principal. Without it, upgrades are not limited."""
        self.snapshot = snapshot  # replaced as a whole by a reload; each request uses one snapshot
        self.embedder = embedder
        self._rates = rates

    def swap(self, snapshot: Snapshot) -> None:
        """Use `snapshot` for all requests from now on."""
        self.snapshot = snapshot

    async def route(self, body: bytes, headers: Mapping[str, str]) -> Routed:
        """Decide about one request, from its body and its headers (":path" and the ones that rules may name)."""
        snapshot, clock = self.snapshot, _Stopwatch()
        try:
            request = parse_request(headers.get(":path", ""), body)
        except RequestError:
            return _unreadable(snapshot, body, headers, clock)
        if request is None:
            decision = decide_unread(snapshot.policy, headers, Reason.PASSTHROUGH)
            return _written(snapshot, decision, None, None, clock)

        signals = read_signals(request, snapshot.encoder.max_chars)  # the ask is one of them
        clock.lap("read")
        match, failure = await self._match(request, signals, snapshot, clock)
        decision = self._decide(snapshot, signals, match, headers, failure)
        clock.lap("match")
        if not decision.rewrite and not decision.refused:
            return _untouched(snapshot, decision, request, signals, clock)
        try:
            return _written(snapshot, decision, request, signals, clock)
        except SpliceError:
            unread = Decision(decision.tier, Reason.UNREADABLE, rewrite=False)
            return _renamed(snapshot, unread, body, clock, request, signals)

    def unread(self, headers: Mapping[str, str]) -> Routed:
        """Decide about a request whose body is too large to be read."""
        snapshot = self.snapshot
        return _written(
            snapshot, decide_unread(snapshot.policy, headers, Reason.UNREADABLE), None, None, _Stopwatch()
        )

    async def _match(
        self, request: Request, signals: Signals, snapshot: Snapshot, clock: "_Stopwatch"
    ) -> tuple[Match | None, Reason]:
        """The match of the ask, or None and the reason why there is none."""
        policy = snapshot.policy
        if is_named(policy, request.model):
            if not needs_match(policy, policy.rank(untouched(policy, Reason.PASSTHROUGH, request.model).tier.name)):
                return None, Reason.NO_TEXT
        elif signals.background is not None:
            return None, Reason.BACKGROUND
        vector, failure = await self._embed(signals.ask, snapshot, clock)
        return (nearest(snapshot.index, vector), failure) if vector is not None else (None, failure)

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
        self, snapshot: Snapshot, signals: Signals, match: Match | None, headers: Mapping[str, str], failure: Reason
    ) -> Decision:
        """Decide. A tier above the default takes one of the principal's upgrades, if the policy limits them.

        A client that names the model of a tier takes none.
        """
        policy, upgrades = snapshot.policy, snapshot.policy.upgrades
        choose = decide_named if is_named(policy, signals.model) else decide
        decision = choose(policy, signals, match, headers, failure)
        above = policy.rank(decision.tier.name) > policy.rank(policy.default_tier)
        chosen_by_client = decision.reason in (Reason.PINNED, Reason.PASSTHROUGH)
        if upgrades is None or self._rates is None or not above or decision.refused or chosen_by_client:
            return decision
        capped = choose(policy, signals, match, headers, failure, spent=True)
        if capped.tier == decision.tier:  # a floor or a capability that no cap lowers
            return decision
        principal = principal_of(principal_header(headers, snapshot.escalations.principal))
        allowed = self._rates.take(principal, upgrades.per_minute, upgrades.burst, time.monotonic())
        return decision if allowed else capped


class _Stopwatch:
    """Measures the time of each stage, in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = now - self._since
        self._since = now


def _written(
    snapshot: Snapshot, decision: Decision, request: Request | None, signals: Signals | None, clock: _Stopwatch
) -> Routed:
    """The request with the decision written into it, or the error of a refusal. Raises SpliceError."""
    mutation = mutate(decision, request)
    clock.lap("write")
    refusal = Refusal(503, _CONFINED) if decision.refused else None
    return Routed(decision, mutation, snapshot, request, signals, clock.laps, refusal)


def _untouched(
    snapshot: Snapshot, decision: Decision, request: Request, signals: Signals, clock: _Stopwatch
) -> Routed:
    """The request is sent on with every byte: its model may not be replaced."""
    try:
        patches(request.readable, {})
    except DuplicateMember as error:  # the upstream might read another model
        return _bad_request(snapshot, error, clock, request, signals)
    except SpliceError:
        pass  # nothing is edited
    return Routed(decision, mutate(decision, None), snapshot, request, signals, clock.laps)


def _unreadable(snapshot: Snapshot, body: bytes, headers: Mapping[str, str], clock: _Stopwatch) -> Routed:
    """The default tier serves, or the one that the headers require."""
    decision = decide_unread(snapshot.policy, headers, Reason.UNREADABLE)
    if decision.refused:
        return _written(snapshot, decision, None, None, clock)
    return _renamed(snapshot, decision, body, clock)


def _renamed(
    snapshot: Snapshot,
    decision: Decision,
    body: bytes,
    clock: _Stopwatch,
    request: Request | None = None,
    signals: Signals | None = None,
) -> Routed:
    """If the requested model can be read and replaced, only its name is rewritten.

    If it cannot be rewritten, the request is refused: no upstream knows the name.
    """
    policy = snapshot.policy
    try:
        renamed = rename_model(body, decision.tier, lambda model: may_retarget(policy, model))
    except SpliceError as error:
        return _bad_request(snapshot, error, clock, request, signals)
    mutation = msgspec.structs.replace(mutate(decision, None), body=renamed)
    return Routed(decision, mutation, snapshot, request, signals, clock.laps)


def _bad_request(
    snapshot: Snapshot,
    error: SpliceError,
    clock: _Stopwatch,
    request: Request | None = None,
    signals: Signals | None = None,
) -> Routed:
    """The client gets an error. The default tier is only named in the record."""
    decision = untouched(snapshot.policy, Reason.BAD_REQUEST)
    refusal = Refusal(400, str(error))
    return Routed(decision, mutate(decision, None), snapshot, request, signals, clock.laps, refusal)
