"""Takes the feedback of clients, and answers it. No upstream sees it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from extproc.accounting.feedback import AnsweredRequest, Feedback, find_answer, read_feedback
from extproc.accounting.signals import AnswerSignal
from extproc.api.errors import error_body
from extproc.contract.words import Signal
from extproc.messages import Event, Opening, Reply
from extproc.routing.limits import Rates, principal_header, principal_of
from extproc.routing.policy import Policy

# The limit for one principal, over all workers of a router. An application sends the feedback of all its users.
PER_MINUTE, BURST = 600.0, 100
# Envoy waits a little longer for our answer. Without the ledger's one, the feedback is kept and compared later.
_LOOK_S = 0.1
_NO_LEDGER = "this gateway keeps no feedback: its operator starts the router with --ledger to keep it"
_NOT_YOURS = "you sent no request with this id: send the same key as with the request whose answer you rate"
_TOO_MANY = f"too much feedback: at most {PER_MINUTE:g} in a minute; send it again later"
_FULL = "the feedback cannot be kept now: send it again later"


class FeedbackDesk:
    """Checks feedback, and passes it to the ledger."""

    def __init__(
        self,
        place: Path | str | None,
        keep: Callable[[AnswerSignal], bool],
        report: Callable[[AnsweredRequest | None, Feedback], None],
        workers: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`place` is the ledger, if there is one. `report` gets the request, or None if it is not known yet."""
        self._place, self._keep, self._report = place, keep, report
        self._rates, self._clock = Rates(workers), clock
        self._looking = False

    async def take(self, body: bytes, headers: dict[str, str], policy: Policy, names: Sequence[str]) -> "Taken":
        """Keep the feedback in this body. `names` are the headers that identify a principal."""
        if self._place is None:
            return Taken(404, _NO_LEDGER)
        principal = principal_of(principal_header(headers, names))
        if not await self._rates.take(principal, PER_MINUTE, BURST, time.monotonic()):
            return Taken(429, _TOO_MANY)
        try:
            feedback = read_feedback(body, policy.cohorts)
        except ValueError as error:
            return Taken(400, str(error))
        answer = await self._look(feedback.request)
        if answer is not None and (answer.principal or principal_of(None)) != principal:
            return Taken(404, _NOT_YOURS)
        kept = AnswerSignal(
            feedback.request, Signal.FEEDBACK, principal, self._clock(), feedback.score, feedback.label
        )
        if not self._keep(kept):
            return Taken(503, _FULL)
        self._report(answer, feedback)
        return Taken(202)

    async def _look(self, request: str) -> AnsweredRequest | None:
        """Look the request up, one at a time. None: it is not in the ledger yet, or the ledger is too slow."""
        if self._looking:
            return None
        self._looking = True
        look = asyncio.ensure_future(asyncio.to_thread(find_answer, self._place or "", request))
        look.add_done_callback(self._looked)
        try:
            return await asyncio.wait_for(asyncio.shield(look), _LOOK_S)
        except (OSError, TimeoutError):
            return None

    def _looked(self, look: "asyncio.Future[AnsweredRequest | None]") -> None:
        self._looking = False
        if not look.cancelled():
            look.exception()  # it was handled, or came too late


class Taken(msgspec.Struct, frozen=True):
    """The answer to feedback."""

    status: int
    message: str = ""  # what is wrong

    def body(self, path: str) -> bytes:
        """Return it as JSON."""
        return error_body(path, self.status, self.message) if self.message else b'{"status":"accepted"}'


class FeedbackExchange:
    """Answers one request to the path of feedback."""

    def __init__(self, desk: FeedbackDesk, policy: Policy, names: Sequence[str], opening: Opening) -> None:
        self._desk, self._policy, self._names, self._opening = desk, policy, names, opening
        self._chunks: list[bytes] = []
        self._headers_waiting = False
        self._done = False

    async def answer(self, event: Event) -> list[Reply]:
        """Return the reply to one message. The last message of the request gets the answer."""
        if self._done or not event.kind.startswith("request_"):
            return [Reply(event.kind)]
        full_duplex = self._opening.request_body_mode == "FULL_DUPLEX_STREAMED"
        if event.kind == "request_headers" and not event.end:
            self._headers_waiting = full_duplex
            return [] if full_duplex else [Reply(event.kind)]
        if event.kind == "request_body":
            self._chunks.append(event.body)
        if full_duplex and not event.end and event.kind != "request_trailers":
            return []
        self._done = True
        headers = self._opening.headers
        taken = await self._desk.take(b"".join(self._chunks), headers, self._policy, self._names)
        return [
            Reply(
                "request_headers" if self._headers_waiting else event.kind,
                headers={"content-type": "application/json"},
                body=taken.body(headers.get(":path", "")),
                status=taken.status,
            )
        ]
