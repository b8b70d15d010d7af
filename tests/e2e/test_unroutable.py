"""A request that cannot be routed passes with the same bytes, unless an upstream might get a name of ours."""

import gzip
import json

import pytest

from extproc.demo.stack import Stack
from tests.e2e.traffic import (
    APIS,
    CHAT,
    COMPLETIONS,
    MESSAGES,
    PROVE,
    PROVED,
    REFUSED,
    RESPONSES,
    arrived,
    numberless,
    send,
    twice_error,
)

_MESSAGES = b'"messages":[{"role":"user","content":"Prove that 17 is prime."}]'
_UNREADABLE = {
    "no JSON": b"Prove that 17 is prime.",
    "truncated": b'{"model":"auto","messages":[{"role":"user","content":"Prove th',
    "trailing garbage": b'{"model":"auto",' + _MESSAGES + b"} and more",
    "an array": b'[{"model":"auto"}]',
    "null": b"null",
    "a number": b"7",
    "a string": b'"auto"',
    "deep nesting": b'{"model":"auto","x":' + b"[" * 100_000 + b"]" * 100_000 + b"," + _MESSAGES + b"}",
    "deep nesting of objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "comments": b'{/* hi */"model":"auto",' + _MESSAGES + b"}",
    "single quotes": b"{'model':'auto'}",
    "UTF-16": '{"model":"auto","messages":[]}'.encode("utf-16"),
    "gzip, unsaid": gzip.compress(b'{"model":"auto",' + _MESSAGES + b"}"),
    "nul bytes": b"\x00" * 64,
}


_WHY = (
    "the body is not a JSON object whose `model` is a text: ",
    "the body is nested too deeply",
    "the body has more than 100000 arrays and objects",
)


@pytest.mark.parametrize("body", _UNREADABLE.values(), ids=_UNREADABLE)
def test_unreadable_bodies_are_answered_by_the_router(stack: Stack, body: bytes) -> None:
    """The router does not know which model they name, so no upstream sees them."""
    for path in APIS:
        before = len(stack.upstreams.received)
        answer = send(stack.port, path, body)
        assert (answer.status, answer.contract) == (400, REFUSED)
        message = json.loads(answer.body)["error"]["message"]
        assert message.startswith(_WHY)
        assert len(stack.upstreams.received) == before


def _as_without_us(stack: Stack, body: bytes, path: str = CHAT, tier: str = "large") -> tuple[int, bytes]:
    plain = send(stack.plain_port, path, body, {"x-plain-cluster": tier})
    return plain.status, numberless(plain.body)


_TWICE = {
    "model twice": b'{"model":"auto","model":"auto",' + _MESSAGES + b"}",
    "model twice, escaped": b'{"model":"auto","mod\\u0065l":"auto",' + _MESSAGES + b"}",
    "another member twice": b'{"model":"auto","x":1,"x":1,' + _MESSAGES + b"}",
}


@pytest.mark.parametrize("body", _TWICE.values(), ids=_TWICE)
def test_a_body_with_a_member_twice_is_answered_by_the_router(stack: Stack, body: bytes) -> None:
    """No upstream sees it, because two readers may read different requests."""
    for path in APIS:
        before = len(stack.upstreams.received)
        answer = send(stack.port, path, body)
        assert (answer.status, answer.contract) == (400, REFUSED)
        assert json.loads(answer.body) == twice_error(path)
        assert len(stack.upstreams.received) == before


_THINKING = b',"chat_template_kwargs":{"enable_thinking":true}}'
_ODD_BYTES = {
    "NaN": b'{"model":"auto","temperature":NaN,' + _MESSAGES + b"}",
    "Infinity": b'{"model":"auto","temperature":-Infinity,' + _MESSAGES + b"}",
    "half a surrogate pair": b'{"model":"auto","messages":[{"role":"user","content":"Prove \\ud800 it"}]}',
    "invalid UTF-8": b'{"model":"auto","messages":[{"role":"user","content":"Prove \xff\xfe \xc3("}]}',
}


@pytest.mark.parametrize("body", _ODD_BYTES.values(), ids=_ODD_BYTES)
def test_odd_bytes_are_routed_and_reach_the_tier(stack: Stack, body: bytes) -> None:
    """The router reads past bytes that a strict reader refuses. It changes only its own members."""
    answer = send(stack.port, CHAT, body)
    received = arrived(stack)
    assert answer.said == PROVED
    assert received.tier == "large"
    assert received.body == body.replace(b'"auto"', b'"qwen3-32b"')[:-1] + _THINKING
    assert (answer.status, numberless(answer.body)) == _as_without_us(stack, received.body)


_ODD_SHAPES = {
    "messages are numbers": b'{"model":"auto","messages":[1,2]}',
    "content is a number": b'{"model":"auto","messages":[{"role":"user","content":7}]}',
}


@pytest.mark.parametrize("body", _ODD_SHAPES.values(), ids=_ODD_SHAPES)
def test_odd_shapes_of_a_model_that_is_ours_get_a_name_the_tier_knows(stack: Stack, body: bytes) -> None:
    """A member that cannot be read counts as absent. The model is replaced, and nothing else changes."""
    answer = send(stack.port, CHAT, body)
    received = arrived(stack)
    assert (received.tier, received.body) == ("large", body.replace(b'"auto"', b'"qwen3-32b"'))
    assert answer.said == {"x-router-cohort": "no_text", "x-router-tier": "large", "x-router-reason": "no_text"}
    assert (answer.status, numberless(answer.body)) == _as_without_us(stack, received.body)


def test_messages_that_are_a_string_are_the_ask(stack: Stack) -> None:
    """A floor holds for the text, although most upstreams refuse this shape. The member stays as it is."""
    answer = send(stack.port, CHAT, b'{"model":"auto","messages":"Prove that 17 is prime."}')
    received = json.loads(arrived(stack).body)
    assert (received["model"], received["messages"]) == ("qwen3-32b", "Prove that 17 is prime.")
    assert (answer.said["x-router-cohort"], answer.said["x-router-reason"]) == ("math_reasoning", "matched")


_LISTS = {CHAT: "messages", COMPLETIONS: "prompt", RESPONSES: "input", MESSAGES: "messages"}


@pytest.mark.parametrize(("path", "member"), _LISTS.items())
def test_too_many_messages_get_a_name_the_tier_knows(stack: Stack, path: str, member: str) -> None:
    """Only the model is read. It is replaced by the default tier's model. Nothing else changes."""
    item = '""' if path == COMPLETIONS else "{}"
    body = f'{{"model":"auto","{member}":[{item}{f", {item}" * 20_000}]}}'.encode()
    _assert_unreadable(stack, path, body, body.replace(b'"auto"', b'"qwen3-32b"'))


def _assert_unreadable(stack: Stack, path: str, body: bytes, expected: bytes) -> None:
    answer = send(stack.port, path, body)
    received = arrived(stack)
    assert (received.tier, received.body) == ("large", expected)
    assert answer.said == {
        "x-router-cohort": "unreadable",
        "x-router-tier": "large",
        "x-router-reason": "unreadable",
    }
    assert (answer.status, numberless(answer.body)) == _as_without_us(stack, expected, path)


_PASSING = {
    "unknown model": b'{ "model" : "claude-x" , "temperature":2.50,' + _MESSAGES + b" }",
    "no model": b"{" + _MESSAGES + b"}",
    "model is null": b'{"model":null,' + _MESSAGES + b"}",
    "model is empty": b'{"model":"",' + _MESSAGES + b"}",
    "CRLF in the model": b'{"model":"auto\\r\\nx-evil: 1\\r\\n\\r\\n",' + _MESSAGES + b"}",
    "newline in the model": b'{"model":"auto\\n",' + _MESSAGES + b"}",
    "nul in the model": b'{"model":"auto\\u0000",' + _MESSAGES + b"}",
    "a long model": b'{"model":"' + b"m" * 100_000 + b'",' + _MESSAGES + b"}",
    "an empty object": b"{}",
}


@pytest.mark.parametrize("body", _PASSING.values(), ids=_PASSING)
def test_models_that_are_not_ours_to_replace_pass_untouched(stack: Stack, body: bytes) -> None:
    """A model outside `retarget` goes to the default tier as the client wrote it."""
    answer = send(stack.port, CHAT, body)
    received = arrived(stack)
    assert (received.tier, received.body) == ("large", body)
    assert answer.said == {
        "x-router-cohort": "passthrough",
        "x-router-tier": "large",
        "x-router-reason": "passthrough",
    }
    assert "x-evil" not in received.headers
    assert (answer.status, numberless(answer.body)) == _as_without_us(stack, body)


def test_control_characters_in_a_model_that_is_ours_go_nowhere(stack: Stack) -> None:
    """A name that matches a pattern is replaced as a whole, with all its characters."""
    answer = send(stack.port, CHAT, b'{"model":"gpt-4\\r\\nx-evil: 1",' + _MESSAGES + b"}")
    received = arrived(stack)
    assert (answer.status, json.loads(received.body)["model"]) == (200, "qwen3-32b")
    assert "x-evil" not in received.headers


@pytest.mark.parametrize(
    ("tier", "model"), [("small", "qwen3-8b"), ("large", "qwen3-32b"), ("frontier", "frontier-1")]
)
def test_a_tiers_own_model_is_pinned_to_it(stack: Stack, tier: str, model: str) -> None:
    """A client that names a tier's model gets that tier, with an unchanged body."""
    body = f'{{ "model":"{model}" ,'.encode() + _MESSAGES + b"}"
    answer = send(stack.port, CHAT, body)
    received = arrived(stack)
    assert (answer.status, received.tier, received.body) == (200, tier, body)
    assert answer.said == {"x-router-cohort": "pinned", "x-router-tier": tier, "x-router-reason": "pinned"}


_WORDLESS = {
    "no messages": b'{"model":"auto","messages":[]}',
    "messages missing": b'{"model":"auto"}',
    "empty content": b'{"model":"auto","messages":[{"role":"user","content":""}]}',
    "blank content": b'{"model":"auto","messages":[{"role":"user","content":" \\n\\t "}]}',
    "null content": b'{"model":"auto","messages":[{"role":"user","content":null}]}',
    "no parts": b'{"model":"auto","messages":[{"role":"user","content":[]}]}',
    "empty messages": b'{"model":"auto","messages":[{}]}',
    "system only": b'{"model":"auto","messages":[{"role":"system","content":"Be brief."}]}',
}


@pytest.mark.parametrize("body", _WORDLESS.values(), ids=_WORDLESS)
def test_without_words_the_default_tier_serves(stack: Stack, body: bytes) -> None:
    """A readable request without text to match is served, with a model name that the tier knows."""
    answer = send(stack.port, CHAT, body)
    received = arrived(stack)
    assert (answer.status, received.tier) == (200, "large")
    assert received.body == body.replace(b'"auto"', b'"qwen3-32b"')
    assert answer.said == {"x-router-cohort": "no_text", "x-router-tier": "large", "x-router-reason": "no_text"}


_ODD_BUT_ROUTED = {
    "a BOM in the words": '{"model":"auto","messages":[{"role":"user","content":"\ufeff%s"}]}',
    "a nul in the words": '{"model":"auto","messages":[{"role":"user","content":"%s \\u0000"}]}',
    "unknown fields": '{"model":"auto","x":{"y":[{"z":1}]},"messages":[{"role":"user","content":"%s","x":1}]}',
    "unknown role": '{"model":"auto","messages":[{"role":"bard","content":"hm"},{"role":"user","content":"%s"}]}',
    "unicode": '{"model":"auto","messages":[{"role":"user","content":"%s 証明してください 🙂"}]}',
    "a huge number": '{"model":"auto","seed":' + "9" * 5000 + ',"messages":[{"role":"user","content":"%s"}]}',
}


@pytest.mark.parametrize("body", _ODD_BUT_ROUTED.values(), ids=_ODD_BUT_ROUTED)
def test_odd_bodies_are_routed_all_the_same(stack: Stack, body: str) -> None:
    """Unusual but valid JSON does not keep the router from reading the text."""
    sent = body.replace("%s", PROVE).encode()
    answer = send(stack.port, CHAT, sent)
    received = arrived(stack)
    assert (answer.said["x-router-cohort"], answer.said["x-router-reason"]) == ("math_reasoning", "matched")
    assert received.body == (sent.replace(b'"auto"', b'"qwen3-32b"')[:-1] + _THINKING)


def test_a_compressed_body_is_routed(stack: Stack) -> None:
    """Envoy decodes it before the router reads it. The upstream gets it plain, with its own length."""
    plain = b'{"model":"auto",' + _MESSAGES + b"}"
    answer = send(stack.port, CHAT, gzip.compress(plain), {"content-encoding": "gzip"})
    received = arrived(stack)
    assert (answer.status, answer.said) == (200, PROVED)
    assert received.body == plain.replace(b'"auto"', b'"qwen3-32b"')[:-1] + _THINKING
    assert received.headers["content-length"] == str(len(received.body))
    assert "content-encoding" not in received.headers


def test_an_empty_body_passes(stack: Stack) -> None:
    """A POST without a body never reaches the router, and the client gets the upstream's answer."""
    answer = send(stack.port, CHAT, b"")
    received = arrived(stack)
    assert (received.tier, received.body) == ("large", b"")
    assert (answer.status, numberless(answer.body)) == _as_without_us(stack, b"")


def test_an_empty_chunked_body_passes(stack: Stack) -> None:
    """The same without a content-length."""
    answer = send(stack.port, CHAT, iter(()))
    received = arrived(stack)
    assert (received.tier, received.body) == ("large", b"")
    assert (answer.status, numberless(answer.body)) == _as_without_us(stack, b"")
