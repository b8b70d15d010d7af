"""Second requests: their budget, their body, and what becomes of answers that cannot be judged."""

import asyncio
import random
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from extproc.accounting.outcome import Explored
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.routing.exploration import Lottery
from extproc.routing.routed import Routed
from extproc.routing.router import Router
from extproc.serving import explorer as explorer_module
from extproc.serving.explorer import Budget, Explorer
from extproc.verifying.judging import RuleRunner


class WordEmbedder:
    def __init__(self, encoder) -> None:
        self.encoder = encoder

    async def embed(self, text, deadline_s, principal=""):
        return self.encoder.encode([text])[0]


def test_a_budget_refills_evenly_and_never_above_an_hour():
    now = [0.0]
    budget = Budget(3.6, lambda: now[0])
    assert budget.is_left()
    budget.spend(4.0)
    assert not budget.is_left()
    now[0] = 401.0
    assert budget.is_left()
    budget.spend(0.01)
    now[0] = 1e6
    assert budget.is_left()
    budget.spend(3.7)
    assert not budget.is_left()


class Upstream:
    """An Envoy that gives one answer, and keeps the requests."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self.requests.append(head + await reader.readexactly(length))
        writer.write(self.answer)
        await writer.drain()
        writer.close()


def answer_of(body: bytes, status: str = "200 OK", tier: str = "large", kind: str = "application/json") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nx-router-tier: {tier}\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


WHOLE = msgspec.json.encode(
    {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Here."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 500},
    }
)
EMPTY = WHOLE.replace(b"Here.", b"")


@pytest.fixture(scope="module")
def snapshot(words):
    config = load_config(Path(__file__).parents[1] / "configs/good")
    intents = tuple(
        msgspec.structs.replace(i, floor=0.1, accept=["non_empty"] if i.intent == "billing" else [])
        for i in config.intents
    )
    return compile_snapshot(msgspec.structs.replace(config, intents=intents), words)


def explored(
    snapshot,
    words,
    upstream: Upstream | None,
    headers: dict[str, str] | None = None,
    gives_up: bool = False,
    **more: Any,
) -> tuple[Explored, tuple[str, str, str]]:
    """Exploration a second request, send it to the upstream, and return what was kept and reported."""
    kept: list[Explored] = []
    reported: list[tuple[str, str, str]] = []

    async def play() -> None:
        router = Router(snapshot, WordEmbedder(words))
        router.lottery = Lottery(1.0, lambda: True, random.Random(1))
        messages = [{"role": "user", "content": "Send my last invoice again"}]
        body = msgspec.json.encode({"model": "auto", "messages": messages} | more)
        routed: Routed = await router.route(body, {":path": "/v1/chat/completions"} | (headers or {}))
        assert routed.exploration is not None and routed.exploration.second is not None
        server = await asyncio.start_server(upstream.serve if upstream else lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        if upstream is None:
            server.close()
            await server.wait_closed()
        explorer = Explorer(
            f"http://127.0.0.1:{port}", RuleRunner(), kept.append, lambda *words: reported.append(words)
        )
        explorer.start(routed, routed.exploration.second)
        while gives_up and upstream is not None and not upstream.requests:
            await asyncio.sleep(0.01)
        if gives_up:
            explorer.close()
        while not kept:
            await asyncio.sleep(0.01)
        explorer.close()
        server.close()

    asyncio.run(asyncio.wait_for(play(), 60))
    return kept[0], reported[0]


def test_an_answer_is_judged_priced_and_forgotten(snapshot, words):
    """The request names the model of the second tier, and its id. Nothing of the text is kept."""
    upstream = Upstream(answer_of(WHOLE))
    kept, reported = explored(snapshot, words, upstream)
    assert (kept.tier, kept.status, kept.accepted, kept.reason, kept.propensity) == ("large", 200, True, None, 1.0)
    assert kept.cost == pytest.approx((1000 * 0.40 + 500 * 1.20) / 1e6)
    assert reported == ("billing", "large", "accepted")
    [request] = upstream.requests
    assert request.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert b"x-request-id: " + kept.id.encode() in request and b'"model":"qwen3-32b"' in request.replace(
        b": ", b":"
    )
    assert "invoice" not in repr(kept) and "Here" not in repr(kept)


@pytest.mark.parametrize(
    ("answer", "accepted", "reason", "outcome"),
    [
        (answer_of(EMPTY), False, "empty", "rejected"),
        (answer_of(WHOLE[:-4]), False, "malformed", "rejected"),
        (answer_of(WHOLE, "201 Created"), True, None, "accepted"),
        (answer_of(b"{}", "401 Unauthorized"), None, "status", "failed"),
        (answer_of(b"", "204 No Content"), None, "status", "failed"),
        (answer_of(WHOLE, tier="small"), None, "other_tier", "failed"),
        (b"", None, "no_answer", "failed"),
        (None, None, "not_sent", "failed"),
    ],
)
def test_every_other_ending_has_its_word(snapshot, words, answer, accepted, reason, outcome):
    kept, reported = explored(snapshot, words, Upstream(answer) if answer is not None else None)
    assert (kept.accepted, kept.reason) == (accepted, reason)
    assert reported == ("billing", "large", outcome)


def test_a_request_that_a_stop_gives_up_has_its_row(snapshot, words):
    """Envoy logs this request, too. Without the row it would count as a client's."""

    class Silent(Upstream):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))

    kept, reported = explored(snapshot, words, Silent(b""), gives_up=True)
    assert (kept.tier, kept.status, kept.accepted, kept.reason) == ("large", 0, None, "no_answer")
    assert reported == ("billing", "large", "failed")


def test_an_address_that_drops_packets_keeps_no_thread(monkeypatch):
    """The end of the process waits for the threads."""
    monkeypatch.setattr(explorer_module, "_CONNECT_S", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.socket() as first,
        socket.socket() as last,
    ):
        for waiting in (first, last):  # nobody accepts them, so the kernel drops what comes then
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        connection = explorer_module._connection(urlsplit(f"http://127.0.0.1:{full.getsockname()[1]}"))
        with pytest.raises(TimeoutError):
            connection.connect()


def test_an_answer_may_take_longer_than_a_connection(snapshot, words, monkeypatch):
    class Slow(Upstream):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.5)
            await super().serve(reader, writer)

    monkeypatch.setattr(explorer_module, "_CONNECT_S", 0.2)
    kept, _ = explored(snapshot, words, Slow(answer_of(WHOLE)))
    assert kept.accepted


def test_headers_that_rules_read_may_have_any_letters(snapshot, words):
    upstream = Upstream(answer_of(WHOLE))
    kept, _ = explored(snapshot, words, upstream, headers={"x-user-tier": "gold\u2014"})
    assert kept.accepted
    assert "x-user-tier: gold\u2014\r\n".encode() in upstream.requests[0]


def test_a_stream_is_asked_for_its_tokens(snapshot, words):
    upstream = Upstream(answer_of(b"data: [DONE]\n\n", kind="text/event-stream"))
    explored(snapshot, words, upstream, stream=True)
    assert b'"stream_options":{"include_usage":true}' in upstream.requests[0]
