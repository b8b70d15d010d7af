"""Writes a text as an answer of one of four APIs, as JSON or as a stream, with fresh ids and times.

It is for a text that was answered before. The token counts are those of that answer, because clients plan with
them. The model is the one that wrote it.
"""

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from extproc.api.observation import Usage
from extproc.api.paths import Api

# The characters of one event of a stream, about.
_EVENT_CHARS = 80
_Dict = dict[str, Any]


class Replay(msgspec.Struct, frozen=True):
    """The answer to write."""

    text: str
    model: str
    usage: Usage
    now_s: int  # seconds since 1970


def write_answer(api: Api, replay: Replay) -> bytes:
    """Return the answer as the JSON of `api`."""
    return msgspec.json.encode(_WHOLE[api](replay))


def write_stream(api: Api, replay: Replay, with_usage: bool) -> bytes:
    """Return the answer as the server-sent events of `api`.

    `with_usage` adds the token counts to a chat or completion stream. The other two APIs always send them.
    """
    if api == "messages":
        return b"".join(_named(event) for event in _message_events(replay))
    if api == "responses":
        return b"".join(_named(event) for event in _response_events(replay))
    events = _chunks(replay, with_usage, **_CHUNKS[api])
    return b"".join(b"data: %b\n\n" % msgspec.json.encode(event) for event in events) + b"data: [DONE]\n\n"


def _named(event: _Dict) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))


def _id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end after a space, so that a client sees whole words."""
    start = 0
    while start < len(text):
        end = text.find(" ", start + _EVENT_CHARS)
        end = len(text) if end < 0 else end + 1
        yield text[start:end]
        start = end


def _openai_usage(usage: Usage) -> _Dict | None:
    if usage.input is None or usage.output is None:
        return None
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached or 0},
    }


def _chat(replay: Replay) -> _Dict:
    message = {"role": "assistant", "content": replay.text, "refusal": None}
    return _openai(replay, "chatcmpl-", "chat.completion", {"message": message})


def _completion(replay: Replay) -> _Dict:
    return _openai(replay, "cmpl-", "text_completion", {"text": replay.text})


def _openai(replay: Replay, prefix: str, kind: str, choice: _Dict) -> _Dict:
    choices = [{"index": 0, **choice, "logprobs": None, "finish_reason": "stop"}]
    answer = {"id": _id(prefix), "object": kind, "created": replay.now_s, "model": replay.model, "choices": choices}
    usage = _openai_usage(replay.usage)
    return answer | ({"usage": usage} if usage is not None else {})


# The start of the id, and the kind of object.
_CHUNKS: dict[str, dict[str, str]] = {
    "chat": {"prefix": "chatcmpl-", "kind": "chat.completion.chunk"},
    "completions": {"prefix": "cmpl-", "kind": "text_completion"},
}


def _chunks(replay: Replay, with_usage: bool, prefix: str, kind: str) -> Iterator[_Dict]:
    chat = prefix == "chatcmpl-"
    common: _Dict = {"id": _id(prefix), "object": kind, "created": replay.now_s, "model": replay.model}
    if with_usage:
        common["usage"] = None

    def chunk(part: _Dict, finish: str | None = None) -> _Dict:
        return common | {"choices": [{"index": 0, **part, "logprobs": None, "finish_reason": finish}]}

    if chat:
        yield chunk({"delta": {"role": "assistant", "content": ""}})
    for piece in _pieces(replay.text):
        yield chunk({"delta": {"content": piece}} if chat else {"text": piece})
    yield chunk({"delta": {}} if chat else {"text": ""}, "stop")
    usage = _openai_usage(replay.usage)
    if with_usage and usage is not None:
        yield common | {"choices": [], "usage": usage}


def _message(replay: Replay) -> _Dict:
    return {
        "id": _id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": replay.model,
        "content": [{"type": "text", "text": replay.text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": _anthropic_usage(replay.usage),
    }


def _anthropic_usage(usage: Usage) -> _Dict:
    """The counts of Anthropic, whose input does not include the cached tokens."""
    cached = usage.cached or 0
    return {
        "input_tokens": max(0, (usage.input or 0) - cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.output or 0,
    }


def _message_events(replay: Replay) -> Iterator[_Dict]:
    message = _message(replay)
    usage = message["usage"]
    started = {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}}
    yield {"type": "message_start", "message": message | started}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    for piece in _pieces(replay.text):
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
    yield {"type": "content_block_stop", "index": 0}
    ended = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": ended, "usage": {"output_tokens": usage["output_tokens"]}}
    yield {"type": "message_stop"}


def _response(replay: Replay) -> _Dict:
    usage = replay.usage
    counts = None
    if usage.input is not None and usage.output is not None:
        counts = {
            "input_tokens": usage.input,
            "input_tokens_details": {"cached_tokens": usage.cached or 0},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.input + usage.output,
        }
    return {
        "id": _id("resp_"),
        "object": "response",
        "created_at": replay.now_s,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": replay.model,
        "output": [_item(replay, _id("msg_"))],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": False,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "truncation": "disabled",
        "usage": counts,
    }


def _item(replay: Replay, id_: str) -> _Dict:
    part = {"type": "output_text", "text": replay.text, "annotations": []}
    return {"id": id_, "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def _response_events(replay: Replay) -> Iterator[_Dict]:
    for number, event in enumerate(_unnumbered(replay)):
        yield event | {"sequence_number": number}


def _unnumbered(replay: Replay) -> Iterator[_Dict]:
    whole = _response(replay)
    [item] = whole["output"]
    [part] = item["content"]
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    begun = whole | {"status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    empty = item | {"status": "in_progress", "content": []}
    yield {"type": "response.output_item.added", "output_index": 0, "item": empty}
    yield {"type": "response.content_part.added", **place, "part": part | {"text": ""}}
    for piece in _pieces(replay.text):
        yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
    yield {"type": "response.output_text.done", **place, "text": replay.text, "logprobs": []}
    yield {"type": "response.content_part.done", **place, "part": part}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": whole}


_WHOLE: dict[Api, Callable[[Replay], _Dict]] = {
    "chat": _chat,
    "completions": _completion,
    "responses": _response,
    "messages": _message,
}
