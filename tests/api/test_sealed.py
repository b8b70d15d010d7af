"""Removing sealed items: the rest of the request stays byte for byte."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.api.request import parse_request
from extproc.api.sealed import without_sealed
from extproc.api.splice import apply

THINKING = st.sampled_from(
    [{"type": "thinking", "thinking": "[1, {", "signature": "Eq]B"}, {"type": "redacted_thinking", "data": "Em,K"}]
)
TEXT = st.sampled_from([{"type": "text", "text": 'a "content": ["x"], b'}, {"type": "tool_use", "id": "t1"}])
ASSISTANT = st.lists(THINKING | TEXT, max_size=4).map(lambda parts: {"role": "assistant", "content": parts})
USER = st.sampled_from(
    [{"role": "user", "content": "hi"}, {"role": "user", "content": [{"type": "text", "text": "]"}]}]
)
ITEM = st.sampled_from(
    [
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gA"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "function_call", "call_id": "c1", "name": "run", "arguments": "{}"},
        {"role": "user", "content": "hi"},
    ]
)
FORMATS: list[dict[str, Any]] = [{}, {"indent": 2}, {"separators": (",", ":")}]


def is_sealed(part: dict[str, Any]) -> bool:
    return part["type"] in ("thinking", "redacted_thinking")


def kept_messages(messages: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The same messages without their first `count` sealed parts, written in another way."""
    result = []
    for message in messages:
        if message["role"] != "assistant":
            result.append(message)
            continue
        parts = []
        for part in message["content"]:
            if is_sealed(part) and count > 0:
                count -= 1
            else:
                parts.append(part)
        if parts or not message["content"]:
            result.append(message | {"content": parts})
    return result


def removed(body: dict[str, Any], count: int, **written: Any) -> dict[str, Any]:
    text = json.dumps(body, **written).encode()
    result: dict[str, Any] = json.loads(apply(text, without_sealed(text, count)))
    return result


@given(messages=st.lists(ASSISTANT | USER, max_size=6), count=st.integers(0, 8), written=st.sampled_from(FORMATS))
def test_the_first_sealed_parts_are_removed(
    messages: list[dict[str, Any]], count: int, written: dict[str, Any]
) -> None:
    body = {"tools": [{"input": []}], "messages": messages, "model": "m"}
    assert removed(body, count, **written) == body | {"messages": kept_messages(messages, count)}
    request = parse_request("/v1/messages", json.dumps(body).encode())
    sealed = sum(is_sealed(p) for m in messages if m["role"] == "assistant" for p in m["content"])
    assert request is not None and len(request.state.sealed) == sealed


@given(items=st.lists(ITEM, max_size=6), written=st.sampled_from(FORMATS))
def test_sealed_items_are_removed(items: list[dict[str, Any]], written: dict[str, Any]) -> None:
    kept = [item for item in items if "encrypted_content" not in item]
    assert removed({"model": "m", "input": items}, len(items), **written)["input"] == kept


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"messages": "hi"}', b'{"input": [', b'{"input": {"a": 1}}'])
def test_a_body_without_a_list_is_left_alone(body: bytes) -> None:
    assert without_sealed(body, 3) == []
