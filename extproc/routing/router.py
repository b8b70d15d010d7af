"""The whole path of one request, from its bytes to the change in it. Start reading at `Router.route`."""

from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

import msgspec

from extproc.api.paths import COMPACT, SIDE_PATHS, canonical, kept_id
from extproc.api.request import Request, RequestError, TooLarge, parse_request
from extproc.api.splice import SpliceError, TooLong
from extproc.contract.words import Reason
from extproc.encoder.protocols import Embedder, Vectors
from extproc.routing.answer_cache import AnswerCache, CacheLook
from extproc.routing.budget import Payment
from extproc.routing.conversations import NEW, Answered, Continuation, Conversations, Identity, id_key, identify
from extproc.routing.decision import Decision, decide_kept, decide_unread, refused, untouched
from extproc.routing.exploration import Lottery
from extproc.routing.large import LARGE_BYTES, LargeBodies
from extproc.routing.limits import RateLimit, principal_header, principal_of
from extproc.routing.mutation import mutate
from extproc.routing.paying import Budgets, Choose, chooser, within_upgrades
from extproc.routing.policy import is_named
from extproc.routing.rollout import arm_of, decide_candidate
from extproc.routing.routed import (
    Routed,
    Stopwatch,
    bad_request,
    beside,
    opened,
    passed_on,
    renamed,
    unpaid,
    unreadable,
    written,
)
from extproc.routing.signals import Signals, read_signals
from extproc.routing.snapshot import Snapshot
from extproc.routing.sticky import seal_of
from extproc.routing.vector import match_ask

P = ParamSpec("P")
R = TypeVar("R")


class Router:
    """Routes requests by the current snapshot."""

    def __init__(
        self,
        snapshot: Snapshot,
        embedder: Embedder,
        rates: RateLimit | None = None,
        conversations: Conversations | None = None,
        budgets: Budgets | None = None,
        cache: AnswerCache | None = None,
    ) -> None:
        """`rates` counts the upgrades of each principal. Without it, upgrades are not limited.

        Without `budgets`, no budget is used up.
        Without `conversations`, each request is routed as if it were the first of its conversation.
        Without `cache`, no answer is served again.
        """
        self.snapshot = snapshot  # replaced as a whole by a reload; each request uses one snapshot
        self.embedder = embedder
        self._rates = rates
        self.budgets = budgets
        self._conversations = conversations
        self.cache = cache
        self.lottery: Lottery | None = None  # None: no second tier is ever asked
        self.shares: Mapping[str, float] = {}  # candidate's revision -> its share, after a verdict on it
        self._large = LargeBodies("large-body")

    @property
    def remembers(self) -> bool:
        """Whether the router remembers conversations."""
        return self._conversations is not None

    def swap(self, snapshot: Snapshot) -> None:
        """Use `snapshot` for all requests from now on."""
        self.snapshot = snapshot

    async def route(self, body: bytes, headers: Mapping[str, str]) -> Routed:
        """Decide about one request, from its body and its headers (":path" and the ones that rules may name)."""
        snapshot, clock, path = self.snapshot.of_request(headers), Stopwatch(), headers.get(":path", "")
        if snapshot.off == "closed":
            return _closed(snapshot, clock)
        size = len(body)
        try:
            request = await self.work(size, parse_request, path, body)
        except TooLarge as error:
            return bad_request(snapshot, str(error), clock)
        except RequestError:
            return await self._unread(snapshot, body, headers, clock)
        if request is None:
            if canonical(path) in SIDE_PATHS:
                return await self._route_beside(snapshot, canonical(path), body, headers, clock)
            return await self.work(size, opened, snapshot, body, headers, clock)

        signals = await self.work(size, read_signals, request, snapshot.encoder.max_chars)  # the ask is one of them
        identity = await self.work(size, _identity, snapshot, request, headers)
        snapshot = arm_of(snapshot, identity.session, self.shares)
        clock.lap("read")
        principal = principal_of(principal_header(headers, snapshot.escalations.principal))
        matched = await match_ask(self.embedder, snapshot, signals, headers, principal, clock)
        signals, vector, failure = matched.signals, matched.vector, matched.failure
        continuation = await self._recall(snapshot, request, identity)
        choose = chooser(snapshot, signals, matched.match, headers, failure, continuation)
        decision = choose()
        candidate = decide_candidate(snapshot, matched, headers, continuation)
        clock.lap("match")

        async def look_for(decision: Decision) -> CacheLook | None:
            if self.cache is None:
                return None
            return await self.cache.look(snapshot, decision, request, signals, vector, headers)

        # A kept answer costs nothing, so it is looked for before an upgrade or a budget is used.
        look = await look_for(decision)
        paid, payment = decision, Payment()
        if look is None or look.answer is None:
            paid, choose = await within_upgrades(self._rates, snapshot, principal, decision, choose)
            paid, payment = await self._pay(snapshot, principal, paid, choose, signals)
        if paid is not decision:  # a limit has lowered the tier, or refused the request
            look = look.instead if look is not None else None
            if look is None:
                decision = paid
                look = await look_for(decision)
        if look is not None:
            decision = msgspec.structs.replace(decision, cache=look.word)
            clock.lap("cache")
        if look is not None and look.answer is not None:
            if self.budgets is not None:
                self.budgets.give_back(payment)
            decision = msgspec.structs.replace(decision, judged=False)
            return Routed(
                decision, mutate(decision, None), snapshot, request, signals, clock.laps, None, identity, candidate,
                _bytes_of(vector), cached=look,
            )  # fmt: skip
        if decision.reason is Reason.BUDGET and decision.refused:
            routed = unpaid(snapshot, decision, payment, request, signals, clock)
        else:
            routed = await self._sent(snapshot, decision, body, request, signals, clock)
        routed = msgspec.structs.replace(routed, payment=payment, candidate=candidate, cached=look)
        return self._noted(self._drawn(routed, headers), identity, continuation, vector)

    def refuse(self, message: str, headers: Mapping[str, str]) -> Routed:
        """Refuse a request with this message, because its body did not arrive whole."""
        snapshot, clock = self.snapshot.of_request(headers), Stopwatch()
        return _closed(snapshot, clock) if snapshot.off == "closed" else bad_request(snapshot, message, clock)

    async def route_kept(self, headers: Mapping[str, str]) -> Routed:
        """Decide about a request that names a response by its id in the path. It has no body to read."""
        snapshot, kept, clock = self.snapshot.of_request(headers), kept_id(headers.get(":path", "")), Stopwatch()
        if snapshot.off == "closed":
            return _closed(snapshot, clock)
        maker = None
        if self._conversations is not None and kept is not None:
            principal = principal_of(principal_header(headers, snapshot.escalations.principal))
            maker = await self._conversations.maker_of(id_key(principal, kept), snapshot.policy.tiers)
        return written(snapshot, decide_kept(snapshot.policy, headers, maker), None, None, clock)

    async def _unread(
        self, snapshot: Snapshot, body: bytes, headers: Mapping[str, str], clock: Stopwatch
    ) -> Routed:
        """Decide about a request whose body cannot be read."""

        def choose(ceiling: int | None = None, spent: bool = False) -> Decision:
            del spent  # no upgrade is taken
            return decide_unread(snapshot.policy, headers, Reason.UNREADABLE, ceiling)

        principal = principal_of(principal_header(headers, snapshot.escalations.principal))
        decision, payment = await self._pay(snapshot, principal, choose(), choose, len(body))
        if decision.reason is Reason.BUDGET and decision.refused:
            return unpaid(snapshot, decision, payment, None, None, clock)
        routed = await self.work(len(body), unreadable, snapshot, decision, body, clock)
        return msgspec.structs.replace(routed, payment=payment)

    async def _pay(
        self, snapshot: Snapshot, principal: str, decision: Decision, choose: Choose, load: Signals | int
    ) -> tuple[Decision, Payment]:
        if self.budgets is None:
            return decision, Payment()
        return await self.budgets.pay(snapshot, principal, decision, choose, load)

    async def _route_beside(
        self, snapshot: Snapshot, path: str, body: bytes, headers: Mapping[str, str], clock: Stopwatch
    ) -> Routed:
        """Decide about a request on a side path. Its sealed state counts, and nothing else of it is matched."""
        size = len(body)
        try:
            request = await self.work(size, parse_request, SIDE_PATHS[path], body)
        except TooLarge as error:
            return bad_request(snapshot, str(error), clock)
        except RequestError:
            request = None  # its model may be readable
        identity, continuation = None, NEW
        if request is not None and self._conversations is not None:
            identity = await self.work(size, _identity, snapshot, request, headers)
            continuation = await self._conversations.recall(request, identity)
        routed = await self.work(size, beside, snapshot, path, body, headers, request, continuation, clock)
        if path == COMPACT and identity is not None and routed.refusal is None:
            assert self._conversations is not None
            self._conversations.compact(identity, routed.decision.tier)
        return routed

    async def answered(self, message: bytes) -> None:
        """Note which tier answered, from a message of Envoy."""
        answer = Answered.read(message)
        if answer is not None and self._conversations is not None:
            await self._conversations.answered(answer, self.snapshot.policy.tiers)

    async def _sent(
        self,
        snapshot: Snapshot,
        decision: Decision,
        body: bytes,
        request: Request,
        signals: Signals,
        clock: Stopwatch,
    ) -> Routed:
        """The request as it goes to the tier of the decision, or the error for the client."""
        size = len(body)
        if not decision.rewrite and not decision.refused:
            return await self.work(size, passed_on, snapshot, decision, request, signals, clock)
        try:
            return await self.work(size, written, snapshot, decision, request, signals, clock)
        except TooLong as error:  # the name of the model could not be replaced either
            return bad_request(snapshot, str(error), clock, request, signals)
        except SpliceError:
            unread = Decision(decision.tier, Reason.UNREADABLE, rewrite=False, course=decision.course)
            return await self.work(size, renamed, snapshot, unread, body, clock, request, signals)

    async def _recall(self, snapshot: Snapshot, request: Request, identity: Identity) -> Continuation:
        """How the request continues its conversation. The model that a client names decides by itself."""
        if self._conversations is None or is_named(snapshot.policy, request.model):
            return Continuation(background=request.state.background)
        return await self._conversations.recall(request, identity)

    def _drawn(self, routed: Routed, headers: Mapping[str, str]) -> Routed:
        """Draw whether a second tier is asked, too. The client's answer does not depend on it."""
        request, signals = routed.request, routed.signals
        if self.lottery is None or request is None or signals is None or routed.refusal is not None:
            return routed
        if routed.payment.budget is not None:  # it is used up
            return routed
        exploration = self.lottery.draw(routed.snapshot, routed.decision, request, signals, headers)
        return msgspec.structs.replace(routed, exploration=exploration)

    def _noted(
        self, routed: Routed, identity: Identity, continuation: Continuation, vector: Vectors | None
    ) -> Routed:
        """Remember the tier of this request for those that continue it."""
        if self._conversations is not None and routed.refusal is None:
            policy, tier = routed.snapshot.policy, routed.decision.tier
            tokens = routed.signals.tokens if routed.signals is not None else 0
            strip = routed.decision.strip
            stripped = strip is not None and strip.seal != seal_of(tier)
            if routed.request is not None and routed.request.state.compacts:
                self._conversations.compact(identity, tier)
            self._conversations.note(identity, continuation, policy.tiers, policy.rank(tier.name), tokens, stripped)
        return msgspec.structs.replace(routed, identity=identity, vector=_bytes_of(vector))

    async def work(self, size: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function that works on a body of `size` bytes: for a large body in a thread, a few at a time."""
        return await self._large.work(size >= LARGE_BYTES, function, *args, **kwargs)


def _closed(snapshot: Snapshot, clock: Stopwatch) -> Routed:
    """The files of the app have mistakes and may confine its requests, so they are refused."""
    first = untouched(snapshot.policy, Reason.APP_OFF)
    return written(snapshot, refused(first, Reason.APP_OFF), None, None, clock)


def _bytes_of(vector: Vectors | None) -> bytes:
    return vector.tobytes() if vector is not None else b""


def _identity(snapshot: Snapshot, request: Request, headers: Mapping[str, str]) -> Identity:
    every_item = snapshot.policy.sticky.on_switch == "strip"
    return identify(request, headers, principal_header(headers, snapshot.escalations.principal), every_item)
