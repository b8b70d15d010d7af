"""One exchange: what is done, in order, for a request. Start reading here.

`Router.route` is the whole decision as straight-line code. `RouterExchange` wraps it in the messages of one
ext_proc stream; which of them come depends on the processing mode that the operator configured.
"""

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec

from extproc.acceptance.requirements import read_requirements
from extproc.api.request import Request, RequestError, parse_request
from extproc.api.splice import SpliceError
from extproc.contract.names import CONTRACT, MAX_BODY_BYTES, HeaderName, Namespace
from extproc.contract.records import (
    BodyPatch,
    CascadeRecord,
    DecisionRecord,
    JudgedRecord,
    LedgerRecord,
    RequirementsRecord,
    RungsRecord,
    ladder_of,
)
from extproc.contract.words import JudgeMode, Reason
from extproc.encoder.protocols import DeadlineError, Embedder, EncoderError
from extproc.messages import Event, Opening, Reply
from extproc.routing.decision import Decision, decide, untouched
from extproc.routing.index import Match, nearest
from extproc.routing.limits import Rates, principal_of, session_of
from extproc.routing.mutation import Mutation, mutate, rename_model
from extproc.routing.policy import Policy, may_retarget
from extproc.routing.signals import Signals, read_signals
from extproc.routing.snapshot import Snapshot


class Routed(msgspec.Struct, frozen=True, dict=True):
    """Everything that was found out and decided about one request."""

    decision: Decision
    mutation: Mutation
    snapshot: Snapshot
    request: Request | None
    signals: Signals | None
    stages: dict[str, float]  # seconds spent in: read, embed, match, write

    @cached_property
    def record(self) -> DecisionRecord:
        """The decision's record, made once for all who tell it."""
        return decision_record(self)


class Router:
    """Routes requests by the snapshot of the moment."""

    def __init__(self, snapshot: Snapshot, embedder: Embedder, rates: Rates | None = None) -> None:
        """`rates`: what principals have left of their upgrades; without it, nobody is held to any."""
        self.snapshot = snapshot  # swapped whole on reload; a stream binds it once
        self.embedder = embedder
        self._rates = rates

    def swap(self, snapshot: Snapshot) -> None:
        """Route what comes from now on by `snapshot`."""
        self.snapshot = snapshot

    async def route(self, body: bytes, headers: Mapping[str, str]) -> Routed:
        """Decide about one request, by its body and its headers (":path", and those that rules trust)."""
        snapshot, clock = self.snapshot, _Stopwatch()
        policy = snapshot.policy
        try:
            request = parse_request(headers.get(":path", ""), body)
        except RequestError:
            return Routed(*_unreadable(policy, body), snapshot, None, None, clock.laps)
        if request is None:
            return Routed(*_unrouted(policy, Reason.PASSTHROUGH), snapshot, None, None, clock.laps)
        if request.model is None or not may_retarget(policy, request.model):
            gone = _unrouted(policy, Reason.PASSTHROUGH, request.model)
            return Routed(*gone, snapshot, request, None, clock.laps)
        signals = read_signals(request, snapshot.encoder.max_chars)
        clock.lap("read")
        match, failure = await self._match(snapshot, signals, clock)
        decision = self._bounded(snapshot, signals, match, headers, failure)
        clock.lap("match")
        try:
            mutation = mutate(decision, request)
        except SpliceError:
            return Routed(*_unreadable(policy, body), snapshot, request, signals, clock.laps)
        clock.lap("write")
        return Routed(decision, mutation, snapshot, request, signals, clock.laps)

    def _bounded(
        self, snapshot: Snapshot, signals: Signals, match: Match | None, headers: Mapping[str, str], failure: Reason
    ) -> Decision:
        """Decide; above the default tier, only as often as the principal may go there."""
        policy, limits = snapshot.policy, snapshot.policy.upgrades
        decision = decide(policy, signals, match, headers, failure)
        above = policy.rank(decision.tier.name) > policy.rank(policy.default_tier)
        if limits is None or self._rates is None or not above:
            return decision
        held = decide(policy, signals, match, headers, failure, spent=True)
        if held.tier == decision.tier:  # a floor or a capability: no bound changes that
            return decision
        principal = principal_of(_key(snapshot, headers))
        allowed = self._rates.take(principal, limits.per_minute, limits.burst, time.monotonic())
        return decision if allowed else held

    async def _match(
        self, snapshot: Snapshot, signals: Signals, clock: "_Stopwatch"
    ) -> tuple[Match | None, Reason]:
        if not signals.ask.text:
            return None, Reason.NO_TEXT
        try:
            vector = await self.embedder.embed(signals.ask.text, snapshot.encoder.deadline_ms / 1000)
        except DeadlineError:
            return None, Reason.DEADLINE
        except EncoderError:
            return None, Reason.ENCODER
        finally:
            clock.lap("embed")
        return nearest(snapshot.index, vector), Reason.MATCHED


def _unrouted(policy: Policy, reason: Reason, model: str | None = None) -> tuple[Decision, Mutation]:
    decision = untouched(policy, reason, model)
    return decision, mutate(decision, None)


def _unreadable(policy: Policy, body: bytes) -> tuple[Decision, Mutation]:
    """To the default tier, under its model name if at least the model that was asked for can be read."""
    decision, mutation = _unrouted(policy, Reason.UNREADABLE)
    renamed = rename_model(body, decision.tier, lambda model: may_retarget(policy, model))
    return decision, msgspec.structs.replace(mutation, body=renamed)


class _Stopwatch:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = now - self._since
        self._since = now


def decision_record(routed: Routed) -> DecisionRecord:
    """What the decision says of itself, everywhere it is seen: metadata, access log, span. No prompt text."""
    decision, signals = routed.decision, routed.signals
    cohort, match, ask = decision.cohort, decision.match, signals.ask if signals is not None else None
    probability = cohort.probability(match) if cohort is not None and match is not None else None
    evidence = cohort.evidence if cohort is not None and probability is not None else None
    return DecisionRecord(
        cluster=routed.mutation.cluster,
        tier=decision.tier.name,
        reason=decision.reason,
        reasoning=routed.mutation.reasoning,
        revision=routed.snapshot.revision,
        mode=routed.snapshot.policy.mode,
        cohort=cohort.name if cohort is not None else None,
        similarity=round(match.similarity, 4) if match is not None else None,
        margin=round(match.margin, 4) if match is not None else None,
        calibrated=cohort.calibrated if cohort is not None else None,
        probability=round(probability, 4) if probability is not None else None,
        evidence=evidence.stamp if evidence is not None else None,
        ask=ask.source if ask is not None else None,
        ask_chars=ask.chars if ask is not None else None,
        ask_cut=ask.cut if ask is not None else None,
        tokens=signals.tokens if signals is not None else None,
        rule=decision.rule,
        proposed_tier=decision.proposed_tier,
    )


class RouterExchange:
    """The router's side of one ext_proc stream."""

    def __init__(self, router: Router, opening: Opening) -> None:
        self._router = router
        self._opening = opening
        self._held: list[bytes] = []  # of a FULL_DUPLEX_STREAMED body
        self._held_bytes = 0
        # Decided, or given up: the rest passes. A streamed body has left before it is whole.
        # A partial one may be cut anywhere.
        self._done = opening.request_body_mode in ("NONE", "STREAMED", "BUFFERED_PARTIAL", "GRPC")
        self._headers_passed = False
        self._headers_held = False
        self.routed: Routed | None = None

    async def answer(self, event: Event) -> list[Reply]:
        """Answer one message: one reply each, but for a full-duplex body, which is answered at its end."""
        mode = self._opening.request_body_mode
        if event.kind == "response_body" and self._opening.response_body_mode == "FULL_DUPLEX_STREAMED":
            return [Reply("response_body", body=event.body, streamed=True, end=event.end)]
        if self._done or not event.kind.startswith("request_"):
            return [self._passing(event)]
        if event.kind == "request_headers":
            if mode == "FULL_DUPLEX_STREAMED" and not event.end:
                self._headers_held = True  # answered at the body's end, when the route is known
                return []
            self._done = event.end  # no body will come
            self._headers_passed = True
            return [Reply("request_headers")]
        if mode == "FULL_DUPLEX_STREAMED":
            return await self._full_duplex(event)
        if event.kind == "request_body":
            self._done = True
            return [await self._whole_body(event)]
        return [self._passing(event)]

    async def _whole_body(self, event: Event) -> Reply:
        routed = await self._route(event.body)
        return Reply(
            "request_body",
            headers={HeaderName.CLUSTER: routed.mutation.cluster},
            # Where Envoy holds the headers for us, it also holds the length of the body that was.
            remove=("content-length",) if self._headers_passed and routed.mutation.body is not None else (),
            body=routed.mutation.body,
            metadata=_metadata(routed, self._opening.headers),
        )

    async def _full_duplex(self, event: Event) -> list[Reply]:
        if event.kind == "request_body":
            self._held.append(event.body)
        self._held_bytes += len(event.body)
        too_long = self._held_bytes > MAX_BODY_BYTES
        if not event.end and not too_long:
            return []
        self._done = True
        body, asked, trailers = b"".join(self._held), bool(self._held), event.kind == "request_trailers"
        self._held.clear()
        replies = []
        headers: dict[str, str] | None = None
        metadata: dict[str, Any] | None = None
        if not too_long:
            routed = await self._route(body)
            body = body if routed.mutation.body is None else routed.mutation.body
            headers = {HeaderName.CLUSTER: routed.mutation.cluster}
            metadata = _metadata(routed, self._opening.headers)
        if self._headers_held:  # they have waited for the route
            replies.append(Reply("request_headers", headers=headers, metadata=metadata))
            headers = metadata = None
        if asked:  # trailers may come without a body
            end = event.end and not trailers
            replies.append(Reply("request_body", headers, body, metadata=metadata, streamed=True, end=end))
        if trailers:
            replies.append(Reply("request_trailers"))
        return replies

    async def _route(self, body: bytes) -> Routed:
        self.routed = await self._router.route(body, self._opening.headers)
        return self.routed

    def _passing(self, event: Event) -> Reply:
        if event.kind == "request_body" and self._opening.request_body_mode == "FULL_DUPLEX_STREAMED":
            return Reply("request_body", body=event.body, streamed=True, end=event.end)
        return Reply(event.kind)


def _metadata(routed: Routed, headers: Mapping[str, str]) -> dict[str, Any]:
    """The decision for Envoy: the record, the ladder of clusters, what the rungs above need, and who asks."""
    decision, mutation, request = routed.decision, routed.mutation, routed.request
    judge: dict[str, str] | None = None
    metadata: dict[str, Any] = {Namespace.LADDER: ladder_of(mutation.clusters)}
    metadata[Namespace.LEDGER] = _asker(routed, headers).to_metadata()
    if mutation.rungs:
        attempts = [[BodyPatch(at=p.at, length=p.length, text=p.text.decode()) for p in r] for r in mutation.rungs]
        metadata[Namespace.RUNGS] = RungsRecord(attempts=attempts).to_metadata()
    record = routed.record.to_metadata()
    if decision.judged and request is not None and decision.cohort is not None:
        tiers = [decision.tier, *(rung.tier for rung in decision.ladder)]
        if decision.cohort.escalate is None or not decision.cohort.escalate.human:
            tiers.pop()  # nobody is above the last rung
        judge = dict.fromkeys((tier.name for tier in tiers), JudgeMode.STREAM if request.stream else JudgeMode.BODY)
        judged = JudgedRecord(
            cohort=decision.cohort.name,
            rungs=list(mutation.clusters),
            api=request.api,
            escalations=0,
            logprobs_added=mutation.logprobs_added,
        )
        record |= judged.to_metadata()
        facts = msgspec.json.encode(read_requirements(request, decision.cohort.accept)).decode()
        metadata[Namespace.REQUIREMENTS] = RequirementsRecord(facts=facts).to_metadata()
    cascade = CascadeRecord(contract=CONTRACT, max_retries=len(mutation.clusters) - 1, escalations=0, judge=judge)
    metadata[Namespace.DECISION] = record | cascade.to_metadata()
    return metadata


def _asker(routed: Routed, headers: Mapping[str, str]) -> LedgerRecord:
    """Who asks, and in which conversation, as hashes."""
    key = _key(routed.snapshot, headers)
    opened = next((turn for turn in routed.request.turns if turn.role == "user"), None) if routed.request else None
    session = session_of(key, opened.texts) if opened is not None else None
    return LedgerRecord(principal=principal_of(key), session=session)


def _key(snapshot: Snapshot, headers: Mapping[str, str]) -> str | None:
    """What tells principals apart, as it came."""
    return next((headers[name] for name in snapshot.escalations.principal if name in headers), None)
