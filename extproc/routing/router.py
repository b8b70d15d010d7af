"""The whole path of one request, from its bytes to the change in it. Start reading at `Router.route`."""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import ParamSpec, TypeVar

import msgspec

from extproc.api.paths import APIS, SIDE_PATHS, canonical
from extproc.api.request import Request, RequestError, TooLarge, parse_request
from extproc.api.splice import DuplicateMember, SpliceError, TooLong, layout
from extproc.contract.records import DecisionRecord
from extproc.contract.words import Reason
from extproc.encoder.protocols import DeadlineError, Embedder, EncoderError, Vectors
from extproc.routing.ask import Ask
from extproc.routing.decision import Decision, decide, decide_named, decide_unread, untouched
from extproc.routing.guard import needs_match
from extproc.routing.index import Match, nearest
from extproc.routing.limits import Rates, principal_header, principal_of
from extproc.routing.mutation import Mutation, mutate, read_model, rename_model
from extproc.routing.policy import is_named, may_retarget
from extproc.routing.record import decision_record
from extproc.routing.signals import Signals, read_signals
from extproc.routing.snapshot import Snapshot

P = ParamSpec("P")
R = TypeVar("R")

# A larger body is worked on in a thread, a few at a time. NumPy releases the GIL while it counts. The decoder keeps
# it, for 6 ms a megabyte at most, but the event loop runs between two steps.
_LARGE_BYTES = 256 * 1024
_LARGE_THREADS = 2

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
        self._large = ThreadPoolExecutor(_LARGE_THREADS, thread_name_prefix="large-body")

    def swap(self, snapshot: Snapshot) -> None:
        """Use `snapshot` for all requests from now on."""
        self.snapshot = snapshot

    async def route(self, body: bytes, headers: Mapping[str, str]) -> Routed:
        """Decide about one request, from its body and its headers (":path" and the ones that rules may name)."""
        snapshot, clock, path = self.snapshot, _Stopwatch(), headers.get(":path", "")
        size = len(body)
        try:
            request = await self.work(size, parse_request, path, body)
        except TooLarge as error:
            return _bad_request(snapshot, str(error), clock)
        except RequestError:
            return await self.work(size, _unreadable, snapshot, body, headers, clock)
        if request is None:
            passed = _side_path if canonical(path) in SIDE_PATHS else _opened
            return await self.work(size, passed, snapshot, body, headers, clock)

        signals = await self.work(size, read_signals, request, snapshot.encoder.max_chars)  # the ask is one of them
        clock.lap("read")
        principal = principal_of(principal_header(headers, snapshot.escalations.principal))
        match, failure = await self._match(request, signals, principal, snapshot, clock)
        decision = self._decide(snapshot, signals, match, headers, failure)
        clock.lap("match")
        if not decision.rewrite and not decision.refused:
            return _untouched(snapshot, decision, request, signals, clock)
        try:
            return await self.work(size, _written, snapshot, decision, request, signals, clock)
        except TooLong as error:  # the name of the model could not be replaced either
            return _bad_request(snapshot, str(error), clock, request, signals)
        except SpliceError:
            unread = Decision(decision.tier, Reason.UNREADABLE, rewrite=False)
            return await self.work(size, _renamed, snapshot, unread, body, clock, request, signals)

    async def _match(
        self, request: Request, signals: Signals, principal: str, snapshot: Snapshot, clock: "_Stopwatch"
    ) -> tuple[Match | None, Reason]:
        """The match of the ask, or None and the reason why there is none."""
        policy = snapshot.policy
        if is_named(policy, request.model):
            if not needs_match(policy, policy.rank(untouched(policy, Reason.PASSTHROUGH, request.model).tier.name)):
                return None, Reason.NO_TEXT
        elif signals.background is not None:
            return None, Reason.BACKGROUND
        vector, failure = await self._embed(signals.ask, principal, snapshot, clock)
        return (nearest(snapshot.index, vector), failure) if vector is not None else (None, failure)

    async def work(self, size: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function that works on a body of `size` bytes: for a large body in a thread, a few at a time."""
        if size < _LARGE_BYTES:
            return function(*args, **kwargs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._large, lambda: function(*args, **kwargs))

    async def _embed(
        self, ask: Ask, principal: str, snapshot: Snapshot, clock: "_Stopwatch"
    ) -> tuple[Vectors | None, Reason]:
        """The vector of the ask, or None and the reason why there is none."""
        if not ask.text:
            return None, Reason.NO_TEXT
        try:
            deadline_s = snapshot.encoder.deadline_ms / 1000
            return await self.embedder.embed(ask.text, deadline_s, principal), Reason.MATCHED
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


def _foreign(snapshot: Snapshot, headers: Mapping[str, str], clock: _Stopwatch) -> Routed:
    """The request is sent on unchanged: its API is unknown."""
    return _written(snapshot, decide_unread(snapshot.policy, headers, Reason.PASSTHROUGH), None, None, clock)


def _side_path(snapshot: Snapshot, body: bytes, headers: Mapping[str, str], clock: _Stopwatch) -> Routed:
    """The path generates no answer, so there is nothing to decide: only the model's name is replaced."""
    try:
        named = untouched(snapshot.policy, Reason.PASSTHROUGH, read_model(body))
    except SpliceError as error:
        return _bad_request(snapshot, str(error), clock)
    confined = decide_unread(snapshot.policy, headers, Reason.PASSTHROUGH)
    if confined.refused:
        return _written(snapshot, confined, None, None, clock)
    return _renamed(snapshot, named if confined.reason is Reason.PASSTHROUGH else confined, body, clock)


def _opened(snapshot: Snapshot, body: bytes, headers: Mapping[str, str], clock: _Stopwatch) -> Routed:
    """The policy opens this path. A model name that no upstream knows is refused, and nothing is replaced."""
    try:
        model = read_model(body)
    except SpliceError as error:
        if _starts_an_object(body):
            return _bad_request(snapshot, str(error), clock)
        return _foreign(snapshot, headers, clock)
    if model in snapshot.policy.private_models:
        what = f"no upstream of this path knows the model `{model}`: name a model of the upstream"
        return _bad_request(snapshot, f"{what}, or send the request to {', '.join(APIS)}", clock)
    return _foreign(snapshot, headers, clock)


def _starts_an_object(body: bytes) -> bool:
    """Whether the body starts as a JSON object does, in UTF-8 or UTF-16."""
    return body[:64].lstrip(b"\xef\xbb\xbf\xfe\xff\x00 \t\r\n").startswith(b"{")


def _untouched(
    snapshot: Snapshot, decision: Decision, request: Request, signals: Signals, clock: _Stopwatch
) -> Routed:
    """The request is sent on with every byte: its model may not be replaced."""
    try:
        layout(request.readable)
    except DuplicateMember as error:  # the upstream might read another model
        return _bad_request(snapshot, str(error), clock, request, signals)
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
        return _bad_request(snapshot, str(error), clock, request, signals)
    mutation = msgspec.structs.replace(mutate(decision, None), body=renamed)
    return Routed(decision, mutation, snapshot, request, signals, clock.laps)


def _bad_request(
    snapshot: Snapshot,
    message: str,
    clock: _Stopwatch,
    request: Request | None = None,
    signals: Signals | None = None,
) -> Routed:
    """The client gets an error. The default tier is only named in the record."""
    decision = untouched(snapshot.policy, Reason.BAD_REQUEST)
    refusal = Refusal(400, message)
    return Routed(decision, mutate(decision, None), snapshot, request, signals, clock.laps, refusal)
