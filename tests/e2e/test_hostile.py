"""Hostile bodies get the same answer as without the router, or a 400. They decide nothing."""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench.neighbours import FLOOD, beside, victim
from extproc.demo.stack import Stack
from tests.e2e.processor import BUFFERED, OPTIONS, body_message, ext_proc
from tests.e2e.traffic import (
    APIS,
    CHAT,
    PROVE,
    PROVED,
    REFUSED,
    arrived,
    ask,
    body_of,
    contract_headers,
    numberless,
    send,
    twice_error,
)

_CORPUS = {path.name: path for path in sorted((Path(__file__).parents[1] / "fuzz/corpus/bodies").iterdir())}
# A member appears twice. Two readers may read different requests, so the router answers with 400.
_AMBIGUOUS = {"messages_twice.json", "model_twice.json", "model_twice_by_escape.json"}
# The router cannot read the model's name.
_UNREADABLE = {
    "comments.json", "deep_and_cut.json", "deep_arrays.json", "deep_in_content.json", "deep_objects.json",
    "form.json", "trailing.json", "truncated.json", "truncated_escape.json", "utf16.json",
    "utf16_without_mark.json",
}  # fmt: skip
_MEGABYTE = 1 << 20


def _resident(stack: Stack) -> int:
    """Return the memory of the router, in bytes."""
    assert stack.router is not None
    status = Path(f"/proc/{stack.router.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def test_a_header_that_is_not_utf_8_does_not_keep_the_router_out(stack: Stack) -> None:
    """Many clients send ISO-8859-1. The router reads these headers, and Envoy logs the last two."""
    for name in ("authorization", "session-id", "x-user-tier", "x-request-id", "traceparent"):
        answer = send(stack.port, CHAT, json.dumps(body_of(CHAT, PROVE)).encode(), {name: "José"})
        assert answer.said == PROVED, name
        assert arrived(stack).headers[name].encode(errors="surrogateescape") == b"Jos\xe9"


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize("name", sorted(_AMBIGUOUS))
def test_an_ambiguous_body_is_answered_by_the_router(stack: Stack, name: str, path: str) -> None:
    """Through the real Envoy, on every path: a 400 in the shape of the API, and no upstream sees the body."""
    before = len(stack.upstreams.received)
    answer = send(stack.port, path, _CORPUS[name].read_bytes())
    assert (answer.status, answer.contract) == (400, REFUSED)
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body) == twice_error(path)
    assert len(stack.upstreams.received) == before


@pytest.mark.parametrize("name", sorted(_UNREADABLE))
def test_an_unreadable_body_is_answered_by_the_router(stack: Stack, name: str) -> None:
    """The model that it names cannot be told, so no upstream sees the body."""
    for path in APIS:
        before = len(stack.upstreams.received)
        answer = send(stack.port, path, _CORPUS[name].read_bytes())
        assert (answer.status, answer.contract) == (400, REFUSED)
        message = json.loads(answer.body)["error"]["message"]
        assert message.startswith(
            ("the body is not a JSON object whose `model` is a text: ", "the body is nested too deeply")
        )
        assert len(stack.upstreams.received) == before


@pytest.mark.parametrize("name", sorted(_CORPUS.keys() - _AMBIGUOUS - _UNREADABLE))
def test_the_corpus_gets_what_its_tier_says(stack: Stack, name: str) -> None:
    """Through the real Envoy, on every path: the tier's own answer, and no header with a part of the body."""
    body = _CORPUS[name].read_bytes()
    for path in APIS:
        answer = send(stack.port, path, body)
        received = arrived(stack)
        plain = send(stack.plain_port, path, received.body, {"x-plain-cluster": received.tier})
        assert (answer.status, numberless(answer.body)) == (plain.status, numberless(plain.body))
        assert answer.headers["x-router-tier"] == received.tier
        assert contract_headers(received) == {}
        assert "x-evil" not in received.headers and "x-evil" not in answer.headers


def test_a_body_that_looks_like_a_decision_decides_nothing(stack: Stack) -> None:
    """Members with the names of our metadata are the client's own, and stay in the body."""
    body = _CORPUS["metadata_look_alike.json"].read_bytes()
    answer = send(stack.port, CHAT, body)
    received = arrived(stack)
    assert (answer.status, received.tier) == (200, "large")
    assert answer.said == PROVED
    assert json.loads(received.body)["semantic_router"] == {"cluster": "frontier"}


_FLOODS = {
    "arrays in arrays": b'{"model":"auto","x":' + b"[" * (7 * _MEGABYTE),
    "objects in objects": b'{"model":"auto","x":' + b'{"":' * (7 * _MEGABYTE // 4),
    "empty messages": b'{"model":"auto","messages":[' + b"{}," * _MEGABYTE + b"{}]}",
    "members": b'{"model":"auto",' + b'"a":1,' * (7 * _MEGABYTE // 6) + b'"b":1}',
    "tags": b'{"model":"auto","messages":[{"role":"user","content":"' + b"<system-reminder>" * 400_000 + b'"}]}',
    "escapes": b'{"model":"auto","messages":[{"role":"user","content":"' + b"\\u0041" * 1_000_000 + b'"}]}',
}


@pytest.mark.parametrize("flood", _FLOODS.values(), ids=_FLOODS)
def test_a_flood_costs_neither_the_router_nor_the_next_request(stack: Stack, flood: bytes) -> None:
    """After three times megabytes of structure the next request is routed, and the memory is free again."""
    assert send(stack.port, CHAT, flood).status < 500
    before = _resident(stack)
    for _ in range(3):
        assert send(stack.port, CHAT, flood).status < 500
        assert ask(stack.port, PROVE).said == PROVED
    assert _resident(stack) - before < 64 * _MEGABYTE


@pytest.mark.parametrize("shape", ["a name of escapes", "a tools object", FLOOD])
def test_a_client_beside_an_attacker_is_routed_as_before(stack: Stack, shape: str) -> None:
    """The attacker sends 5 requests per second: a megabyte of structure each, or texts that nobody sent before.

    `make bench-neighbours` sends 20, without other work beside it, and measures how much longer the client waits.
    """
    asyncio.run(victim(stack.port, 2))  # the vectors of its texts are cached
    crowd = beside(stack.port, shape, _MEGABYTE, 5, 3)
    assert crowd.fallbacks == 0, crowd
    assert set(crowd.reasons) == {"200 matched"}


def test_a_compressed_bomb_is_not_unpacked(stack: Stack) -> None:
    """Half a gigabyte is compressed to half a megabyte. The router answers it like any unreadable body."""
    bomb = gzip.compress(b'{"model":"auto","x":"' + b"a" * (512 * _MEGABYTE) + b'"}', 1)
    attributes = {"request.path": CHAT, "request.headers['content-encoding']": "gzip"}
    before = _resident(stack)
    with grpc.insecure_channel(f"127.0.0.1:{stack.router_port}", OPTIONS) as channel, ext_proc(channel) as stream:
        stream.say(body_message(bomb, True, BUFFERED, attributes))
        (reply,) = stream.replies(1)
    record: Any = reply.dynamic_metadata["semantic_router"]
    assert (record["reason"], reply.immediate_response.status.code) == ("bad_request", 400)
    assert _resident(stack) - before < 64 * _MEGABYTE
