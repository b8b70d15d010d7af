"""Streams of Envoy messages, valid and invalid: each reply must be of the same kind as its message."""

import asyncio
import gc
import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import currently_in_test_context, given, note

from extproc.api.content_encoding import encoding_of, stripper
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.contract.names import HeaderName
from extproc.encoder.batcher import Batcher
from extproc.pb.ext_proc_pb2 import ProcessingResponse as Response
from extproc.routing.exchange import RouterExchange
from extproc.routing.router import Router
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
_CLUSTERS = ("small", "large", "frontier")
_POLICY = """
version: 1
default_tier: large
retarget: [auto, "gpt-4*"]
human: {}
judges: {other: {url: "http://127.0.0.1:9", model: judge-1}}
rules: [{name: gold, when: {headers: {x-user-tier: "go*"}}, tier_floor: large}]
tiers:
"""


class Player:
    """Sends streams to a router and a verifier, encoded as on the wire."""

    def __init__(self, folder: Path, words: Any) -> None:
        tiers = zip(_CLUSTERS, ("qwen3", "gpt-oss", "anthropic"), strict=True)
        (folder / "policy.yaml").write_text(_POLICY + "".join(
            f"  - {{name: {name}, model: {name}-1, url: 'http://h', context: 9000, price: {{input: 0, output: 0}}, "
            f"reasoning: {dialect}}}\n" for name, dialect in tiers
        ))  # fmt: skip
        for (name, settings), topic in zip(_INTENTS.items(), _WORDS, strict=True):
            lines = "".join(f"  - {topic} {more}\n" for more in ("one", "two", "three"))
            (folder / f"{name}.yaml").write_text(f"intent: {name}\nfloor: -1\n{settings}\nutterances:\n{lines}")
        snapshot = compile_snapshot(load_config(folder), words)
        self._batcher = Batcher(words)
        self._router = Router(snapshot, self._batcher)
        self._verifier = Verifier(
            lambda: snapshot, words.encode, lambda *_: random.choice((True, False, None)), lambda *_: "case"
        )
        self._loop = asyncio.Runner()
        self.verdicts: Counter[str] = Counter()  # of the exchanges with the verifier

    def close(self) -> None:
        self._loop.close()
        self._batcher.close()
        self._verifier.rules.close()

    def play(self, role: str, messages: list[Message]) -> list[list[Response]]:
        """Return the replies to each message, and check that they set only the allowed headers."""
        if currently_in_test_context():
            note(f"{role}: {messages}")
        replies = self._loop.run(self._play(role, [message.SerializeToString() for message in messages]))
        for reply in (reply for batch in replies for reply in batch):
            assert set(written_headers(reply)) <= {
                HeaderName.CLUSTER,
                HeaderName.REASON,
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
            encoded = [wire.encode_response(wire.write_reply(reply)) for reply in answers]
            replies.append(list(map(Response.FromString, encoded)))
        if isinstance(exchange, VerifierExchange) and exchange.ruling is not None:
            self.verdicts[exchange.ruling.word] += 1
        return replies


def written_headers(reply: Response) -> dict[str, str]:
    """Return the headers that a reply sets, and check that each value is only in `raw_value`."""
    kind = reply.WhichOneof("response")
    part = getattr(reply, str(kind))
    mutation = part.headers if kind == "immediate_response" else getattr(part, "response", part).header_mutation
    assert all(not option.header.value for option in mutation.set_headers)
    return {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}


def kinds(replies: list[Response]) -> list[str | None]:
    return [reply.WhichOneof("response") for reply in replies]


def kinds_asked(messages: list[Message]) -> list[str | None]:
    return [message.WhichOneof("request") for message in messages]


def streamed(replies: list[Response], kind: str) -> list[tuple[bytes, bool]]:
    """Return the pieces of a returned body, and for each whether it is the last."""
    pieces = [
        getattr(r, kind).response.body_mutation.streamed_response
        for r in replies
        if r.WhichOneof("response") == kind
    ]
    return [(piece.body, piece.end_of_stream) for piece in pieces]


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory, words: Any) -> Iterator[Player]:
    played = Player(tmp_path_factory.mktemp("intents"), words)
    yield played
    played.close()


# --- messages that Envoy would not send ---------------------------------------------------------------------


@given(stream=sent(lambda w: [w.anything() for _ in range(w.dice.randrange(1, 7))]))
def test_any_messages_in_any_order_are_answered_or_ignored(player: Player, stream: list[Message]) -> None:
    """No message stops either role, and each reply is of a kind that was sent."""
    asked = {message.WhichOneof("request") for message in stream}
    for role in ("router", "verifier"):
        replied = {kind for batch in player.play(role, stream) for kind in kinds(batch)}
        assert replied <= asked | {"immediate_response"}


# --- messages as Envoy sends them ---------------------------------------------------------------------------


def _request(w: Messenger) -> tuple[int, int, list[Message]]:
    """Return an exchange as the router's filter sends it: the two body modes and the messages."""
    mode = w.one((NONE, STREAMED, BUFFERED, PARTIAL, FULL_DUPLEX))
    answer_mode = w.one((NONE, STREAMED, BUFFERED, FULL_DUPLEX))
    trailers = w.rarely(4)
    raw = w.one((b"", w.document().body, w.damaged(w.document().body)))
    messages = w.body("request", mode, raw, trailers)
    if w.rarely(2) or not messages:
        headers = w.headers() | {":path": w.one(PATHS).encode()}
        messages.insert(0, w.message("request_headers", headers=headers, end=not raw and not trailers))
        if messages[0].request_headers.end_of_stream:
            del messages[1:]
    if w.rarely(2):
        messages.append(w.message("response_headers", headers=w.headers()))
        messages += w.body("response", answer_mode, w.answer(), w.rarely(3))
    w.open(messages[0], mode, answer_mode)
    w.attributes(
        messages[0], {"request.path": w.one(PATHS), "request.headers['x-user-tier']": w.one(("gold", "\x00"))}
    )
    return mode, answer_mode, messages


@given(exchange=sent(_request))
def test_the_router_answers_each_message_once_and_in_kind(
    player: Player, exchange: tuple[int, int, list[Message]]
) -> None:
    """In every mode. A full-duplex body is returned at its end, complete, after the headers.

    A body may be refused with 400 instead. Envoy then ends the stream.
    """
    mode, _, stream = exchange
    replies = player.play("router", stream)
    asked = [str(message.WhichOneof("request")) for message in stream]
    answered = [kind for batch in replies for kind in kinds(batch)]
    if "immediate_response" in answered:
        flat = [reply for batch in replies for reply in batch]
        refusals = [reply.immediate_response.status.code for reply in flat if reply.HasField("immediate_response")]
        assert refusals == [400]
        assert streamed(flat, "request_body") == []
        assert mode == FULL_DUPLEX or answered[: answered.index("immediate_response") + 1] == [
            *asked[: asked.index("request_body")], "immediate_response"
        ]  # fmt: skip
        return
    if mode != FULL_DUPLEX:
        assert answered == asked and all(len(batch) == 1 for batch in replies)
        return
    bodies = [kind for kind in asked if kind == "request_body"]
    assert answered == [kind for i, kind in enumerate(asked) if kind != "request_body" or i == asked.index(kind)]
    returned = streamed([reply for batch in replies for reply in batch], "request_body")
    assert [end for _, end in returned] == [not any(k == "request_trailers" for k in asked)] * bool(bodies)


class Attempt(NamedTuple):
    """One attempt as the verifier's filter sends it."""

    mode: int
    expected: bytes  # the answer as the client should receive it
    stripped: bool  # without the log-probabilities that the router asked for
    trailers: bool  # trailers end the answer
    messages: list[Message]


def _attempt(w: Messenger) -> Attempt:
    mode = w.one((BUFFERED, STREAMED, FULL_DUPLEX))
    answer = w.answer() if w.rarely(2) else _chat_answer(w, mode)
    trailers = mode != BUFFERED and w.rarely(3)
    kind = b"text/event-stream" if mode != BUFFERED else b"application/json"
    headers = w.headers() | {":status": b"503" if w.rarely(8) else b"200", "content-type": kind}
    messages = [w.message("response_headers", headers=headers), *w.body("response", mode, answer, trailers)]
    w.open(messages[0], NONE, mode, waits=w.rarely(4))
    decision: dict[str, Any] = {
        "cohort": w.one(("early", "buffer", "record", "person", "gone")),
        "rungs": list(_CLUSTERS[: w.one((1, 2, 3))]),
        "api": w.one(("chat", "messages", "responses", "completions")),
        "escalations": 0.0,
        "logprobs_added": w.rarely(3),
    }
    schema = w.shape("schema").decode("utf-8", "replace")
    facts = f'{{"context":"Prove it.","json_schema":{schema}}}'
    for message in messages:  # Envoy repeats the metadata in each message
        message.metadata_context.filter_metadata["semantic_router"].update(decision)
        message.metadata_context.filter_metadata["semantic_router.facts"].update({"facts": facts})
    w.attributes(
        messages[0],
        {"upstream.request_attempt_count": float(w.one((1, 2, 3))), "request.headers['authorization']": "k"},
    )
    encoding = encoding_of(headers.get("content-encoding", b"").decode("utf-8", "replace"))
    without = stripper(decision["api"], encoding) if decision["logprobs_added"] else None
    expected = without.feed(answer, True) if without is not None else answer
    return Attempt(mode, expected, without is not None, trailers, messages)


def _chat_answer(w: Messenger, mode: int) -> bytes:
    """Return a complete answer with log-probabilities, or with a refusal, as JSON or as a stream."""
    text = w.one(("{}", '{"a": 1}', "I'm sorry, but I can't help with that.", "Prove it. " * 30))
    choice = {"index": 0, "finish_reason": "stop", "logprobs": {"content": [{"token": "a", "logprob": -0.5}]}}
    if mode == BUFFERED:
        return json.dumps({"choices": [choice | {"message": {"role": "assistant", "content": text}}]}).encode()
    frame = json.dumps({"choices": [choice | {"delta": {"content": text}}]}).encode()
    return b"data: " + frame + b"\n\ndata: [DONE]\n\n"


def test_the_verifier_returns_every_byte_or_queues_a_case(player: Player) -> None:
    """In every mode, each message has its reply, and a streamed answer is complete and in order.

    Only log-probabilities that the router asked for may be missing.
    """
    player.verdicts.clear()

    @given(attempt=sent(_attempt))
    def check(attempt: Attempt) -> None:
        check_replies(attempt, player.play("verifier", attempt.messages))

    check()
    missing = {"accept", "escalate", "degraded", "recorded", "human"} - player.verdicts.keys()
    assert not missing, f"no attempt had these verdicts: {missing}. There were {player.verdicts}"


def check_replies(attempt: Attempt, replies: list[list[Response]]) -> None:
    flat = [reply for batch in replies for reply in batch]
    answered, asked = kinds(flat), kinds_asked(attempt.messages)
    if answered[-1:] == ["immediate_response"]:
        assert answered.count("immediate_response") == 1
        return
    if attempt.mode == BUFFERED:
        assert [kinds(batch) for batch in replies] == [[kind] for kind in asked]
        bodies = [reply.response_body.response for reply in flat if kinds([reply]) == ["response_body"]]
        assert attempt.stripped or not any(body.HasField("body_mutation") for body in bodies)
        return
    assert answered[0] == "response_headers" and answered.count("response_headers") == 1
    assert answered.count("response_trailers") == attempt.trailers
    if (
        attempt.mode == STREAMED
    ):  # one reply for each message, in order; without a change, Envoy sends its own bytes
        assert answered == asked
        bodies = [reply.response_body.response for reply in flat if kinds([reply]) == ["response_body"]]
        if attempt.stripped:
            assert b"".join(body.body_mutation.body for body in bodies) == attempt.expected
        else:
            assert not any(body.HasField("body_mutation") for body in bodies)
        return
    pieces = streamed(flat, "response_body")
    assert b"".join(body for body, _ in pieces) == attempt.expected
    assert [end for _, end in pieces] == [False] * (len(pieces) - 1) + [not attempt.trailers]


# --- no growth ----------------------------------------------------------------------------------------------


def _everything(w: Messenger) -> list[tuple[str, list[Message]]]:
    """Return streams of every kind, including the whole corpus."""
    raw = [*corpus("bodies").values(), *(w.document().body for _ in range(50))]
    streams = [("router", [w.message("request_body", body, end=True)]) for body in raw]
    for _, stream in streams:
        w.attributes(stream[0], {"request.path": w.one(PATHS)})
        w.open(stream[0], BUFFERED, NONE)
    streams += [(w.one(("router", "verifier")), [w.anything() for _ in range(4)]) for _ in range(100)]
    # Streams that Envoy resets before their end.
    streams += [("verifier", _attempt(w).messages[: w.dice.randrange(1, 5)]) for _ in range(100)]
    return streams


def test_a_thousand_exchanges_leave_nothing_behind(player: Player) -> None:
    """The first rounds fill the caches. Later rounds allocate nothing that stays."""
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
