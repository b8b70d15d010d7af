"""The ext_proc service: the loop that answers one stream."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc

from extproc.accounting.signals import AnswerSignal
from extproc.accounting.store import Store
from extproc.api.paths import FEEDBACK, canonical
from extproc.contract.names import HeaderName
from extproc.contract.words import Role
from extproc.messages import Opening
from extproc.pb import ext_proc_pb2 as pb
from extproc.routing.asks import Asks
from extproc.routing.exchange import RouterExchange
from extproc.routing.limits import principal_header, principal_of
from extproc.routing.routed import Routed
from extproc.routing.router import Router
from extproc.serving import wire
from extproc.serving.explorer import Explorer
from extproc.serving.feedback import FeedbackDesk, FeedbackExchange
from extproc.serving.telemetry import Telemetry
from extproc.verifying.exchange import Verifier, VerifierExchange
from extproc.verifying.rescue import RescueExchange
from extproc.verifying.ruling import Ruling

log = logging.getLogger(__name__)

_Exchange = RouterExchange | VerifierExchange | RescueExchange | FeedbackExchange


class ExternalProcessor:
    """Answers Envoy's ext_proc streams. Streams end without an answer until `router` and `verifier` are set."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.router: Router | None = None
        self.verifier: Verifier | None = None
        self.explorer: Explorer | None = None  # None: no second tier is ever asked
        self.desk: FeedbackDesk | None = None  # None: no feedback is taken, and its path is one of an unknown API
        self.asks: Asks | None = None  # None: conversations are not watched for asks that come again
        self.keep: Callable[[AnswerSignal], bool] | None = None  # where such signals go
        self._following: set[asyncio.Task[None]] = set()
        self.stopping = False  # the server is draining
        self._telemetry = telemetry

    def take_feedback(self, keep: Callable[[AnswerSignal], bool], store: Store | None, workers: int) -> None:
        """Take the feedback of clients and the signals of later requests from now on, if there is a ledger."""
        place = store.place if store is not None else None
        self.desk = FeedbackDesk(place, keep, self._telemetry.rated, workers)
        self.keep = keep if place is not None else None

    async def process(
        self, messages: AsyncIterator[pb.ProcessingRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ProcessingResponse]:
        """Answer the messages of one exchange in order, until Envoy ends the stream."""
        if self.router is None or self.verifier is None:
            return  # the stream ends without an error, and Envoy sends the request to the default tier
        metadata = {str(k): str(v) for k, v in context.invocation_metadata() or ()}
        self._telemetry.open_exchanges += 1
        exchange: _Exchange | None = None
        reported: object = None
        try:
            async for message in messages:
                if exchange is None:
                    role = metadata.get(HeaderName.ROLE)
                    opening = wire.read_opening(message, metadata)
                    exchange = _open(role, opening, self.router, self.verifier, self.desk)
                event = wire.read_event(message)
                if event is None:
                    continue  # a kind that a newer Envoy sends; Envoy goes on after its timeout
                for reply in await exchange.answer(event):
                    yield wire.write_reply(reply)
                reported = self._report_new(exchange, reported, metadata)
                if isinstance(exchange, VerifierExchange) and exchange.over:
                    return  # Envoy sends the rest of the answer without us
        except Exception as error:
            if self.stopping and isinstance(error, grpc.aio.BaseError):
                return  # gRPC raises it in a stream that waits for its next message when the server stops
            # After any error, Envoy continues without us, and the client gets an answer.
            log.exception("an exchange failed: Envoy sends the request to the default tier")
            self._telemetry.failed(metadata, error)
            exchange = None  # Envoy does not follow its decision
            await context.abort(grpc.StatusCode.INTERNAL, type(error).__name__)
        finally:
            self._telemetry.open_exchanges -= 1
            self._report_new(exchange, reported, metadata)  # Envoy may cancel a stream as soon as it has the reply
            if isinstance(exchange, RouterExchange) and exchange.routed is not None:
                self._explore(exchange.routed)
                self._follow(exchange.routed, exchange.headers)

    def _explore(self, routed: Routed) -> None:
        """Ask the second tier that was drawn. The client's request has left the router."""
        exploration = routed.exploration
        if self.explorer is not None and exploration is not None and exploration.second is not None:
            self.explorer.start(routed, exploration.second)

    def _follow(self, routed: Routed, headers: Mapping[str, str]) -> None:
        """Compare the ask with the one before. The client's request has left the router."""
        if self.asks is not None and not self.stopping:
            task = asyncio.create_task(self._compare(self.asks, routed, headers))
            self._following.add(task)
            task.add_done_callback(self._following.discard)

    async def _compare(self, asks: Asks, routed: Routed, headers: Mapping[str, str]) -> None:
        again = await asks.follow(routed, headers)
        if again is None or self.keep is None:
            return
        principal = principal_of(principal_header(headers, routed.snapshot.escalations.principal))
        if self.keep(AnswerSignal(again.request, again.kind, principal, again.at_s)):
            self._telemetry.signalled(again.cohort, again.tier, again.kind)

    async def answered(self, message: bytes, _context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """Take Envoy's message about the tier that answered. Envoy does not read the reply."""
        if self.router is not None:
            await self.router.answered(message)
        return b""

    def _report_new(self, exchange: _Exchange | None, reported: object, metadata: Mapping[str, str]) -> object:
        """Report the result of the exchange, unless it is the one that was `reported`. Return the last reported."""
        if isinstance(exchange, RouterExchange):
            result: Routed | Ruling | None = exchange.routed
        else:
            result = exchange.ruling if isinstance(exchange, VerifierExchange | RescueExchange) else None
        if result is None or result is reported:
            return reported
        self._report(result, metadata)
        return result

    def _report(self, result: Routed | Ruling, metadata: Mapping[str, str]) -> None:
        if isinstance(result, Ruling):
            self._telemetry.ruled(
                metadata, result.cohort, result.attempt, result.word, result.verdict.reason, result.bound,
                result.verdict.unavailable, result.usage,
            )  # fmt: skip
            return
        self._telemetry.decided(metadata, result.record, result.stages, result.request)
        self._telemetry.drift.saw(result)


def _open(
    role: str | None, opening: Opening, router: Router, verifier: Verifier, desk: FeedbackDesk | None
) -> _Exchange:
    """Begin the exchange of the filter that opened the stream. A stream without a known role is for the router."""
    match role:
        case Role.VERIFIER:
            return VerifierExchange(verifier, opening)
        case Role.RESCUE:
            return RescueExchange(opening)
        case _ if desk is not None and canonical(opening.headers.get(":path", "")) == FEEDBACK:
            snapshot = router.snapshot.of_request(opening.headers)
            return FeedbackExchange(desk, snapshot.policy, snapshot.escalations.principal, opening)
        case _:
            return RouterExchange(router, opening)
