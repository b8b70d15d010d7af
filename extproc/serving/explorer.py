"""Asks a second tier what a client asked, after the client's request has left the router.

The second request goes to Envoy's own port and names the model of the tier. So the tier's key, its address and TLS
stay in Envoy. The client's own key is not sent. The answer is judged by the rules of the cohort, as the verifier
judges, and is then forgotten: only its verdict, tokens, cost and time are kept.
"""

import asyncio
import contextlib
import http.client
import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import SplitResult, urlsplit

import msgspec

from extproc.acceptance.requirements import read_requirements
from extproc.acceptance.verdict import is_unjudgeable
from extproc.accounting.outcome import Explored, price_of
from extproc.api.answer import AnswerReader
from extproc.api.observation import Observation
from extproc.api.paths import APIS
from extproc.api.request import Request
from extproc.api.splice import SpliceError, apply, layout, patches
from extproc.contract.names import HeaderName
from extproc.contract.statuses import has_answer
from extproc.routing.exploration import SecondRequest
from extproc.routing.mutation import mutate
from extproc.routing.policy import Rung
from extproc.routing.routed import Routed
from extproc.verifying.judging import RuleRunner

log = logging.getLogger(__name__)

# The budget for the second requests of a router, over all of its workers. Without prices they cost nothing. Then
# only their number at the same time bounds them.
DOLLARS_PER_HOUR = 1.0
_AT_ONCE = 4
# A thread that connects cannot be woken, and the end of the process waits for it.
_CONNECT_S = 5.0
# Longer answers are not judged.
_MOST_BYTES = 4 * 1024 * 1024
# Tokens of an answer that did not say how many it has, for the budget alone.
_GUESSED_TOKENS = 1000
_PATHS = {api: path for path, api in APIS.items()}
# Anthropic requires its version, which the router does not see in the client's request.
_OWN_HEADERS = {"messages": {"anthropic-version": "2023-06-01"}}
_SESSION_HEADER = "session-id"
_WORDS = {True: "accepted", False: "rejected", None: "unjudged"}


class Budget:
    """Dollars that flow in evenly over the time. The dollars of an hour may be spent together."""

    def __init__(self, dollars_per_hour: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = dollars_per_hour, clock
        self._left, self._at_s = dollars_per_hour, clock()

    def is_left(self) -> bool:
        """Whether anything is left."""
        now_s = self._clock()
        self._left = min(self._left + (now_s - self._at_s) * self._most / 3600, self._most)
        self._at_s = now_s
        return self._left > 0

    def spend(self, dollars: float) -> None:
        """Take dollars that were spent. They may exceed the rest."""
        self._left -= dollars


class _Reply(msgspec.Struct, frozen=True):
    """Envoy's answer to a second request."""

    status: int
    headers: dict[str, str]
    body: bytes


class Explorer:
    """Asks the drawn tiers, a few at a time and within a budget."""

    def __init__(
        self,
        url: str,
        rules: RuleRunner,
        keep: Callable[[Explored], None],
        report: Callable[[str, str, str], None],
        workers: int = 1,
    ) -> None:
        """`url` leads to Envoy. `keep` stores an answer, and `report` takes its cohort, tier and outcome."""
        self._url = urlsplit(url)
        self._rules, self._keep, self._report = rules, keep, report
        self._budget = Budget(DOLLARS_PER_HOUR / workers)
        self._spent = False  # and already logged
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="explore")
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: set[socket.socket] = set()

    def has_room(self) -> bool:
        """Whether another second request may be sent now."""
        if len(self._tasks) >= _AT_ONCE:
            return False
        is_left = self._budget.is_left()
        if not is_left and not self._spent:
            log.info("exploring less: second requests have cost $%g in an hour", DOLLARS_PER_HOUR)
        self._spent = not is_left
        return is_left

    def start(self, routed: Routed, second: SecondRequest) -> None:
        """Ask the second tier in a separate task."""
        task = asyncio.create_task(self._explore(routed, second))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Give up the requests in progress."""
        for task in self._tasks:
            task.cancel()
        for connection in self._sockets.copy():
            with contextlib.suppress(OSError):  # the other side was faster
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _explore(self, routed: Routed, second: SecondRequest) -> None:
        explored = Explored(second.id, time.time(), second.tier.name, second.chance, 0, None, "no_answer")
        try:
            explored = await self._asked(explored, routed, second)
        finally:  # also of a request that `close` gave up: without its row it would count as a client's
            self._budget.spend(_guess(explored, routed, second) if explored.cost is None else explored.cost)
            failed = not has_answer(explored.status) or explored.reason in _FAILURES
            self._report(second.cohort.name, second.tier.name, "failed" if failed else _WORDS[explored.accepted])
            self._keep(explored)

    async def _asked(self, explored: Explored, routed: Routed, second: SecondRequest) -> Explored:
        """Send the second request, and judge its answer."""
        request, began_s = routed.request, time.perf_counter()
        assert request is not None, "only a request that was read is drawn"
        try:
            body = _body_for(routed, request, second)
            loop = asyncio.get_running_loop()
            timeout_s = routed.snapshot.timeouts.request_s
            reply = await loop.run_in_executor(self._threads, self._send, body, request, second, timeout_s)
        except (OSError, http.client.HTTPException, SpliceError) as error:
            return msgspec.structs.replace(explored, reason=_word(error))
        duration_s = time.perf_counter() - began_s
        answered = msgspec.structs.replace(explored, status=reply.status, duration_s=duration_s, reason=None)
        return await self._judged(answered, reply, routed, request, second)

    def _send(self, body: bytes, request: Request, second: SecondRequest, timeout_s: float) -> _Reply:
        """Send the second request. Blocks until the answer has ended."""
        connection = _connection(self._url)
        headers = second.headers | _OWN_HEADERS.get(request.api, {})
        headers |= {"content-type": "application/json", "x-request-id": second.id, _SESSION_HEADER: second.id}
        sent = {name: value.encode() for name, value in headers.items()}  # a client may send any letters
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            self._sockets.add(connection.sock)
            path = self._url.path.rstrip("/") + _PATHS[request.api]
            connection.request("POST", path, body, sent)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return _Reply(response.status, names, response.read(_MOST_BYTES + 1))
        finally:
            self._sockets.discard(connection.sock)
            connection.close()

    async def _judged(
        self, explored: Explored, reply: _Reply, routed: Routed, request: Request, second: SecondRequest
    ) -> Explored:
        """Judge the answer, and count its tokens."""
        if not has_answer(reply.status):
            return msgspec.structs.replace(explored, reason="status")
        if reply.headers.get(HeaderName.TIER) != second.tier.name:
            return msgspec.structs.replace(explored, reason="other_tier")
        observation = await asyncio.to_thread(_read, reply, request)  # a few compressed bytes may be long
        usage = observation.usage if observation.complete else None
        cost = price_of(usage, second.tier.name, routed.snapshot.policy)
        explored = msgspec.structs.replace(explored, usage=usage, cost=cost)
        if is_unjudgeable(observation) or len(reply.body) > _MOST_BYTES:
            return msgspec.structs.replace(explored, reason="unjudgeable")
        rules, judges = second.cohort.accept, routed.snapshot.judges
        match = routed.decision.match
        requirements = read_requirements(request, rules, match.columns if match is not None else ())
        verdict = await self._rules.run(rules, observation, requirements, judges, second.tier.name)
        reason = None if verdict.accept else verdict.reason
        return msgspec.structs.replace(explored, accepted=verdict.accept, reason=reason)


_FAILURES = ("status", "other_tier", "not_sent", "no_answer")


def _word(error: Exception) -> str:
    return "not_sent" if isinstance(error, SpliceError | ConnectionRefusedError) else "no_answer"


def _connection(url: SplitResult) -> http.client.HTTPConnection:
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname or "", url.port, timeout=_CONNECT_S)


def _body_for(routed: Routed, request: Request, second: SecondRequest) -> bytes:
    """Write the request for the second tier: its model, its reasoning, its cap. Raises SpliceError."""
    decision = routed.decision
    rungs = [rung for rung in decision.ladder if rung.tier.name == second.tier.name]
    [rung, *_] = [*rungs, Rung(second.tier, decision.reasoning)]
    alone = msgspec.structs.replace(
        decision, tier=rung.tier, reasoning=rung.reasoning, cohort=second.cohort, ladder=(), judged=True
    )
    body = mutate(alone, request).body
    assert body is not None, "a decision that is drawn rewrites the request"
    if request.stream and request.api in ("chat", "completions"):  # the others count tokens without being asked
        body = apply(body, patches(layout(body), {"stream_options": b'{"include_usage":true}'}))
    return body


def _read(reply: _Reply, request: Request) -> Observation:
    reader = AnswerReader(request.api, reply.headers.get("content-type"), reply.headers.get("content-encoding"))
    reader.feed(reply.body)
    reader.finish()
    return reader.observation()


def _guess(explored: Explored, routed: Routed, second: SecondRequest) -> float:
    """Return what an answer without token counts may have cost. An error costs nothing."""
    if not has_answer(explored.status) or routed.signals is None:
        return 0.0
    price, tokens = second.tier.price, routed.signals.tokens
    return (tokens * price.input + _GUESSED_TOKENS * price.output) / 1e6
