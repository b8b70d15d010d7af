"""Streams of Envoy's messages, as its protocol allows them and as it does not: answered in kind, whatever came."""

import asyncio
import gc
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import currently_in_test_context, given, note

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.contract.names import HeaderName
from extproc.encoder.batcher import Batcher
from extproc.pb.ext_proc_pb2 import ProcessingResponse as Response
from extproc.routing.exchange import Router, RouterExchange
from extproc.serving import wire
from extproc.verifying.exchange import Verifier, VerifierExchange
from tests.fuzz.shapes import (
    BUFFERED,
    FULL_DUPLEX,
    NONE,
    PARTIAL,
    PATHS,
    STREAMED,
    Message,
    Messenger,
    corpus,
    sent,
)  # fmt: skip

_RULES = "[complete, non_empty, no_refusal, json_schema, tool_calls, {logprob: -3}, {grounded: 0.1}]"
_INTENTS = {
    "early": f"tier: small\naccept: {_RULES}\nescalate: {{to: large, share: 1}}",
    "buffer": f"tier: small\nreasoning: off\naccept: {_RULES}\nstream: buffer\n"
    "escalate: {to: [large, frontier], max: 2}",
    "record": "tier: small\nmax_output_tokens: 64\naccept: [complete, {regex: 'a|e'}]\nstream: record",
    "person": "tier: large\naccept: [complete, {judge: {by: other}}]\nescalate: {to: human}",
    "plain": "tier: frontier\nreasoning: {budget_tokens: 2048}",
}
_WORDS = ("alpha beta gamma", "delta prove prime", "epsilon zeta task", "gpt-4o auto text", "user yes eta")
_POLICY = """
version: 1
default_tier: large
retarget: [auto, "gpt-4*"]
human: {}
judges: {other: {endpoint: "127.0.0.1:9", model: judge-1}}
rules: [{name: gold, when: {headers: {x-user-tier: "go*"}}, tier_floor: large}]
tiers:
"""


class Player:
    """Plays streams to a router and a verifier, through the bytes of the wire."""

    def __init__(self, folder: Path, words: Any) -> None:
        tiers = zip(("small", "large", "frontier"), ("qwen3", "gpt-oss", "anthropic"), strict=True)
        (folder / "policy.yaml").write_text(_POLICY + "".join(
            f"  - {{name: {name}, model: {name}-1, endpoint: 'h:1', context: 9000, price: {{input: 0, output: 0}}, "
            f"reasoning: {dialect}}}\n" for name, dialect in tiers
        ))  # fmt: skip
        for (name, settings), said in zip(_INTENTS.items(), _WORDS, strict=True):
            lines = "".join(f"  - {said} {more}\n" for more in ("one", "two", "three"))
            (folder / f"{name}.yaml").write_text(f"intent: {name}\nfloor: -1\n{settings}\nutterances:\n{lines}")
        snapshot = compile_snapshot(load_config(folder), words)
        self._batcher = Batcher(words)
        self._router = Router(snapshot, self._batcher)
        self._verifier = Verifier(
            lambda: snapshot, words.encode, lambda *_: random.choice((True, False, None)), lambda *_: "case"
        )
        self._loop = asyncio.Runner()

    def close(self) -> None:
        self._loop.close()
        self._batcher.close()
        self._verifier.callers.shutdown()

    def play(self, role: str, messages: list[Message]) -> list[list[Response]]:
        """The replies to each message. Each is safe to send, whatever came."""
        if currently_in_test_context():
            note(f"{role}: {messages}")
        replies = self._loop.run(self._play(role, [message.SerializeToString() for message in messages]))
        for reply in (reply for some in replies for reply in some):
            assert set(written_headers(reply)) <= {
                HeaderName.CLUSTER,
                HeaderName.VERDICT,
                HeaderName.VERDICT_REASON,
                "content-type",
            }
        return replies

    async def _play(self, role: str, raw: list[bytes]) -> list[list[Response]]:
        exchange: RouterExchange | VerifierExchange | None = None
        replies: list[list[Response]] = []
        for message in map(wire.decode_request, raw):
            if exchange is None:
                opening = wire.read_opening(message)
                if role == "router":
                    exchange = RouterExchange(self._router, opening)
                else:
                    exchange = VerifierExchange(self._verifier, opening)
            event = wire.read_event(message)
            answers = [] if event is None else await exchange.answer(event)
            sent_on = [wire.encode_response(wire.write_reply(reply)) for reply in answers]
            replies.append(list(map(Response.FromString, sent_on)))
        return replies


def written_headers(reply: Response) -> dict[str, str]:
    """The headers that a reply sets, each in `raw_value` alone."""
    kind = reply.WhichOneof("response")
    part = getattr(reply, str(kind))
    mutation = part.headers if kind == "immediate_response" else getattr(part, "response", part).header_mutation
    assert all(not option.header.value for option in mutation.set_headers)
    return {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}


def kinds(replies: list[Response]) -> list[str | None]:
    return [reply.WhichOneof("response") for reply in replies]


def streamed(replies: list[Response], kind: str) -> list[tuple[bytes, bool]]:
    """The pieces of a body given back, each with whether it is the last."""
    found = [
        getattr(r, kind).response.body_mutation.streamed_response
        for r in replies
        if r.WhichOneof("response") == kind
    ]
    return [(piece.body, piece.end_of_stream) for piece in found]


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory, words: Any) -> Iterator[Player]:
    played = Player(tmp_path_factory.mktemp("intents"), words)
    yield played
    played.close()


# --- what no Envoy would say --------------------------------------------------------------------------------


@given(stream=sent(lambda w: [w.anything() for _ in range(w.dice.randrange(1, 7))]))
def test_any_messages_in_any_order_are_answered_or_passed_over(player: Player, stream: list[Message]) -> None:
    """Both roles outlive them, and only reply in kinds that were asked."""
    asked = {message.WhichOneof("request") for message in stream}
    for role in ("router", "verifier"):
        replied = {kind for some in player.play(role, stream) for kind in kinds(some)}
        assert replied <= asked | {"immediate_response"}


# --- what Envoy says ----------------------------------------------------------------------------------------


def _request(w: Messenger) -> tuple[int, int, list[Message]]:
    """A whole exchange as the router's filter tells it: its two modes, and the messages."""
    mode = w.one((NONE, STREAMED, BUFFERED, PARTIAL, FULL_DUPLEX))
    answer_mode = w.one((NONE, STREAMED, BUFFERED, FULL_DUPLEX))
    trailers = w.rarely(4)
    raw = w.one((b"", w.document().body, w.damaged(w.document().body)))
    said = w.body("request", mode, raw, trailers)
    if w.rarely(2) or not said:
        headers = w.headers() | {":path": w.one(PATHS).encode()}
        said.insert(0, w.message("request_headers", headers=headers, end=not raw and not trailers))
        if said[0].request_headers.end_of_stream:
            del said[1:]
    if w.rarely(2):
        said.append(w.message("response_headers", headers=w.headers()))
        said += w.body("response", answer_mode, w.answer(), w.rarely(3))
    w.open(said[0], mode, answer_mode)
    w.attributes(said[0], {"request.path": w.one(PATHS), "request.headers['x-user-tier']": w.one(("gold", "\x00"))})
    return mode, answer_mode, said


@given(told=sent(_request))
def test_the_router_answers_each_message_once_and_in_kind(
    player: Player, told: tuple[int, int, list[Message]]
) -> None:
    """In every mode; a full-duplex body at its end, whole, and after the headers that waited for it."""
    mode, _, stream = told
    replies = player.play("router", stream)
    asked = [str(message.WhichOneof("request")) for message in stream]
    answered = [kind for some in replies for kind in kinds(some)]
    if mode != FULL_DUPLEX:
        assert answered == asked and all(len(some) == 1 for some in replies)
        return
    bodies = [kind for kind in asked if kind == "request_body"]
    assert answered == [kind for i, kind in enumerate(asked) if kind != "request_body" or i == asked.index(kind)]
    given_back = streamed([reply for some in replies for reply in some], "request_body")
    assert [end for _, end in given_back] == [not any(k == "request_trailers" for k in asked)] * bool(bodies)


def _attempt(w: Messenger) -> tuple[int, bytes, bool, list[Message]]:
    """One attempt as the verifier's filter tells it: mode, answer, whether trailers end it, the messages."""
    mode, answer = w.one((BUFFERED, STREAMED, FULL_DUPLEX)), w.answer()
    trailers = mode != BUFFERED and w.rarely(3)
    kind = b"text/event-stream" if mode != BUFFERED else b"application/json"
    headers = w.headers() | {":status": b"503" if w.rarely(8) else b"200", "content-type": kind}
    said = [w.message("response_headers", headers=headers), *w.body("response", mode, answer, trailers)]
    w.open(said[0], NONE, mode, waits=w.rarely(4))
    for message in said:  # Envoy repeats it with each
        message.metadata_context.filter_metadata["semantic_router"].update({
            "cohort": w.one(("early", "buffer", "record", "person", "gone")), "rungs": float(w.one((1, 2, 3))),
            "api": w.one(("chat", "messages", "responses", "completions")), "escalations": 0.0,
        })  # fmt: skip
        schema = w.shape("schema").decode("utf-8", "replace")
        facts = f'{{"context":"Prove it.","json_schema":{schema}}}'
        message.metadata_context.filter_metadata["semantic_router.facts"].update({"facts": facts})
    w.attributes(
        said[0],
        {"upstream.request_attempt_count": float(w.one((1, 2, 3))), "request.headers['authorization']": "k"},
    )
    return mode, answer, trailers, said


@given(told=sent(_attempt))
def test_the_verifier_gives_back_every_byte_or_answers_for_a_person(
    player: Player, told: tuple[int, bytes, bool, list[Message]]
) -> None:
    """A whole answer message by message; a held stream whole and in order, its headers once and first."""
    mode, answer, trailers, stream = told
    replies = player.play("verifier", stream)
    answered = [kind for some in replies for kind in kinds(some)]
    if answered[-1:] == ["immediate_response"]:
        assert answered.count("immediate_response") == 1
        return
    if mode == BUFFERED:
        assert [kinds(some) for some in replies] == [[message.WhichOneof("request")] for message in stream]
        return
    if mode == STREAMED:  # each once and in order, whenever; Envoy keeps the bytes
        assert answered == [message.WhichOneof("request") for message in stream]
        bodies = [r.response_body.response for some in replies for r in some if kinds([r]) == ["response_body"]]
        assert not any(body.HasField("body_mutation") for body in bodies)
        return
    assert answered[0] == "response_headers" and answered.count("response_headers") == 1
    assert answered.count("response_trailers") == trailers
    pieces = streamed([reply for some in replies for reply in some], "response_body")
    assert b"".join(body for body, _ in pieces) == answer
    assert [end for _, end in pieces] == [False] * (len(pieces) - 1) + [not trailers]


# --- no growth ----------------------------------------------------------------------------------------------


def _everything(w: Messenger) -> list[tuple[str, list[Message]]]:
    """Streams of every sort, the whole corpus among them."""
    raw = [*corpus("bodies").values(), *(w.document().body for _ in range(50))]
    streams = [("router", [w.message("request_body", body, end=True)]) for body in raw]
    for _, stream in streams:
        w.attributes(stream[0], {"request.path": w.one(PATHS)})
        w.open(stream[0], BUFFERED, NONE)
    streams += [(w.one(("router", "verifier")), [w.anything() for _ in range(4)]) for _ in range(100)]
    # Streams that Envoy resets before their end, too.
    streams += [("verifier", _attempt(w)[3][: w.dice.randrange(1, 5)]) for _ in range(100)]
    return streams


def test_a_thousand_exchanges_leave_nothing_behind(player: Player) -> None:
    """What one round has left in caches, the next rounds do not add to."""
    streams = _everything(Messenger(random.Random(3)))

    def rounds(count: int) -> int:
        for _ in range(count):
            for role, stream in streams:
                player.play(role, stream)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        warm = rounds(2)
        grown = rounds(4) - warm
    finally:
        tracemalloc.stop()
    assert len(streams) * 4 > 1000
    assert grown < 64 * 1024, f"{grown} bytes more after {4 * len(streams)} exchanges"
