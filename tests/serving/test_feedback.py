"""The desk for feedback: its limit, a ledger that is slow or full, and the order of messages."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from extproc.accounting.feedback import AnsweredRequest, Feedback
from extproc.accounting.signals import AnswerSignal
from extproc.messages import BodyMode, Event, Opening
from extproc.routing.index import Index
from extproc.routing.limits import principal_of
from extproc.routing.policy import Cohort
from extproc.routing.policy import Policy as RoutingPolicy
from extproc.routing.snapshot import AUTHORITY, AppRoute, Snapshot
from extproc.serving import feedback
from extproc.serving.feedback import BURST, FeedbackDesk, FeedbackExchange
from extproc.serving.processor import _open
from extproc.settings import Price, Tier

UP = b'{"request_id":"5-5","thumbs":"up"}'
HEADERS = {":path": "/v1/feedback", "authorization": "Bearer mine"}


class Policy:
    cohorts = frozenset({"billing"})


class Desk:
    """A desk with a ledger that keeps what it gets."""

    def __init__(self, place: Path | None = Path("ledger"), keeps: bool = True) -> None:
        self.kept: list[AnswerSignal] = []
        self.reports: list[tuple[AnsweredRequest | None, Feedback]] = []
        self.keeps = keeps
        self.desk = FeedbackDesk(place, self.keep, lambda *report: self.reports.append(report))

    def keep(self, signal: AnswerSignal) -> bool:
        self.kept.append(signal)
        return self.keeps

    async def take(self, body: bytes = UP) -> int:
        policy: Any = Policy()
        return (await self.desk.take(body, HEADERS, policy, ("authorization",))).status


@pytest.fixture(autouse=True)
def answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is not in the ledger yet."""
    monkeypatch.setattr(feedback, "find_answer", lambda *_: None)


def test_one_principal_may_send_only_so_much() -> None:
    """Feedback that is refused counts, too."""
    desk = Desk()

    async def run() -> list[int]:
        return [await desk.take(UP if i else b"{}") for i in range(BURST + 5)]

    statuses = asyncio.run(run())
    assert statuses[:2] == [400, 202] and statuses[-1] == 429 and len(desk.kept) < BURST + 4


def test_without_a_ledger_nothing_is_taken() -> None:
    assert asyncio.run(Desk(None).take()) == 404
    assert asyncio.run(Desk(keeps=False).take()) == 503


def test_a_ledger_that_cannot_be_read_does_not_stop_feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept, and joined by its principal later."""

    def broken(*_: object) -> None:
        raise OSError("locked")

    monkeypatch.setattr(feedback, "find_answer", broken)
    desk = Desk()
    assert asyncio.run(desk.take()) == 202 and len(desk.kept) == 1


def test_a_slow_ledger_is_asked_one_question_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client does not wait for it."""
    goes_on, asked = threading.Event(), []

    def slow(*_: object) -> None:
        asked.append(1)
        goes_on.wait(30)

    monkeypatch.setattr(feedback, "find_answer", slow)
    monkeypatch.setattr(feedback, "_LOOK_S", 0.01)
    desk = Desk()

    async def run() -> list[int]:
        statuses = [await desk.take() for _ in range(3)]
        goes_on.set()
        return statuses

    assert asyncio.run(run()) == [202, 202, 202] and len(asked) == 1


def test_the_decision_about_the_request_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = principal_of(HEADERS["authorization"])
    monkeypatch.setattr(feedback, "find_answer", lambda *_: AnsweredRequest(mine, "billing", "small"))
    desk = Desk()
    assert asyncio.run(desk.take()) == 202
    assert desk.reports == [(AnsweredRequest(mine, "billing", "small"), Feedback("5-5", 1.0, None))]
    monkeypatch.setattr(feedback, "find_answer", lambda *_: AnsweredRequest("theirs", "billing", "small"))
    assert asyncio.run(desk.take()) == 404 and len(desk.kept) == 1


@pytest.mark.parametrize(
    ("mode", "events", "replies"),
    [
        ("BUFFERED", [Event("request_body", True, UP)], ["request_body"]),
        (
            "BUFFERED",
            [Event("request_headers"), Event("request_body", True, UP)],
            ["request_headers", "request_body"],
        ),
        ("BUFFERED", [Event("request_headers", True)], ["request_headers"]),
        (
            "FULL_DUPLEX_STREAMED",
            [Event("request_headers"), Event("request_body", body=UP[:9]), Event("request_body", True, UP[9:])],
            ["request_headers"],
        ),
        (
            "FULL_DUPLEX_STREAMED",
            [Event("request_headers"), Event("request_body", body=UP), Event("request_trailers")],
            ["request_headers"],
        ),
    ],
)
def test_the_last_message_of_the_request_gets_the_answer(
    mode: BodyMode, events: list[Event], replies: list[str]
) -> None:
    """In a full duplex stream, it is the reply to the headers."""
    policy: Any = Policy()
    exchange = FeedbackExchange(Desk().desk, policy, ("authorization",), Opening(HEADERS, mode, "NONE"))

    async def run() -> list[Any]:
        return [reply for event in events for reply in await exchange.answer(event)]

    answered = asyncio.run(run())
    assert [reply.kind for reply in answered] == replies
    bodiless = events[-1].kind == "request_headers"
    assert answered[-1].status == (400 if bodiless else 202)
    assert answered[-1].headers == {"content-type": "application/json"}


def test_the_cohorts_of_an_app_are_labels_of_its_feedback() -> None:
    """The app is that of the host to which the feedback goes."""
    small = Tier("small", "small-1", "http://small", 8000, Price(input=1, output=2))
    whole = Snapshot("r1", RoutingPolicy((small,), "small", {}), cast(Index, None))
    refunds = RoutingPolicy((small,), "small", {"refunds": Cohort("refunds", "small", 0.1, 0.0, True)})
    app = AppRoute("support", msgspec.structs.replace(whole, policy=refunds, app="support"), ("support.example",))
    router: Any = SimpleNamespace(snapshot=msgspec.structs.replace(whole, apps=(app,)))
    body = b'{"request_id":"5-5","label":"refunds"}'

    def status(host: str) -> int | None:
        headers = HEADERS | {AUTHORITY: host}
        verifier: Any = None
        exchange = _open(None, Opening(headers, "BUFFERED", "NONE"), router, verifier, Desk().desk)
        [reply] = asyncio.run(exchange.answer(Event("request_body", True, body)))
        return reply.status

    assert (status("support.example"), status("other.example")) == (202, 400)
