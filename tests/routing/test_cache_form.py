"""Which requests have a form for the cache, and which of their members count."""

from typing import Any

import msgspec
import pytest

from extproc.api.request import parse_request
from extproc.contract.words import CacheWord
from extproc.routing.cache_form import CacheForm, directives, read_form

CHAT, RESPONSES, MESSAGES, COMPLETIONS = (
    "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions",
)  # fmt: skip
ASK = "How do I enable the firewall?"


def form(body: dict[str, Any] | bytes, path: str = CHAT) -> CacheForm | CacheWord:
    request = parse_request(path, body if isinstance(body, bytes) else msgspec.json.encode(body))
    assert request is not None
    return read_form(request)


def chat(ask: Any = ASK, **more: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": ask}]} | more


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat()),
        (CHAT, chat([{"type": "text", "text": ASK}])),
        (MESSAGES, chat(max_tokens=10)),
        (RESPONSES, {"model": "auto", "input": ASK, "store": False}),
        (RESPONSES, {"model": "auto", "input": [{"role": "user", "content": ASK}], "store": False}),
        (
            RESPONSES,
            {
                "model": "auto", "store": False,
                "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": ASK}]}],
            },
        ),
        (COMPLETIONS, {"model": "auto", "prompt": ASK}),
    ],
)  # fmt: skip
def test_the_ask_is_the_text_of_the_last_turn(path: str, body: dict[str, Any]) -> None:
    read = form(body, path)
    assert isinstance(read, CacheForm) and read.ask == ASK and ASK.encode() not in read.rest


@pytest.mark.parametrize(
    "more",
    [
        {"stream": True}, {"user": "u"}, {"metadata": {"a": "b"}}, {"stream_options": {"include_usage": True}},
        {"store": False}, {"prompt_cache_key": "k"}, {"service_tier": "auto"}, {"safety_identifier": "s"},
    ],
)  # fmt: skip
def test_these_members_change_no_answer(more: dict[str, Any]) -> None:
    plain, read = form(chat()), form(chat(**more))
    assert isinstance(plain, CacheForm) and isinstance(read, CacheForm) and read.rest == plain.rest


@pytest.mark.parametrize(
    "more",
    [
        {"model": "auto2"}, {"temperature": 0}, {"top_p": 0.5}, {"seed": 1}, {"stop": ["x"]}, {"max_tokens": 5},
        {"logit_bias": {"1": 5}}, {"response_format": {"type": "json_object"}}, {"reasoning_effort": "low"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"anything": None}, {"n": 1},
    ],
)  # fmt: skip
def test_every_other_member_counts(more: dict[str, Any]) -> None:
    plain, read = form(chat()), form(chat() | more)
    assert isinstance(plain, CacheForm) and isinstance(read, CacheForm) and read.rest != plain.rest


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (chat(temperature=0.2), CacheWord.SAMPLING),
        (chat(n=3), CacheWord.FORM),
        (chat(logprobs=True), CacheWord.FORM),
        *((chat(**{name: 2}), CacheWord.FORM) for name in ("candidate_count", "prompt_logprobs")),
        *((chat(**{name: [{}]}), CacheWord.FORM) for name in ("plugins", "data_sources", "search_parameters")),
        (chat(enable_search=True), CacheWord.FORM),
        (chat("Generate a password"), CacheWord.SAMPLING),
        (chat(""), CacheWord.FORM),
        (chat([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), CacheWord.FORM),
        (chat([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]), CacheWord.FORM),
        (chat(web_search_options={}), CacheWord.FORM),
        ({"model": "auto", "messages": [{"role": "user", "content": ASK}, {"role": "assistant", "content": "Do"}]},
         CacheWord.FORM),
        (chat("Where is my parcel?"), CacheWord.PERSONAL),
        ({"model": "auto", "messages": [{"role": "user", "content": "I am Ann"},
                                        {"role": "assistant", "content": "Hi"}, {"role": "user", "content": ASK}]},
         CacheWord.PERSONAL),
        ({"model": "auto", "messages": [{"role": "system", "content": "Account 88120934 asks."},
                                        {"role": "user", "content": ASK}]}, CacheWord.PERSONAL),
        (chat("Which day is today?"), CacheWord.MOMENT),
    ],
)  # fmt: skip
def test_a_request_without_a_form_has_the_word_that_says_why(body: dict[str, Any], word: CacheWord) -> None:
    assert form(body) is word


def test_a_member_that_occurs_twice_has_no_form() -> None:
    """One reader would see one ask, and another reader another one."""
    for body in (
        b'{"model": "auto", "temperature": 0, "temperature": 0, "messages": [{"role": "user", "content": "Hi"}]}',
        b'{"model": "auto", "messages": [{"role": "user", "content": "What is A?", "content": "What is B?"}]}',
    ):
        assert form(body) is CacheWord.FORM


def test_a_response_that_the_upstream_keeps_has_no_form() -> None:
    for body in (
        {"model": "auto", "input": ASK},
        {"model": "auto", "input": ASK, "store": False, "previous_response_id": "resp_1"},
        {"model": "auto", "input": ASK, "store": False, "background": True},
    ):
        assert form(body, RESPONSES) is CacheWord.FORM
    kept = {"model": "auto", "input": ASK, "store": False, "prompt": {"id": "pmpt_1"}}
    assert form(kept, RESPONSES) is CacheWord.FORM


def test_directives_are_read_in_any_spelling() -> None:
    assert directives({"cache-control": "No-Cache, max-age = 60"}) == {"no-cache", "max-age=60"}
    assert directives({}) == {""}
