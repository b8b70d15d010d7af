"""Bodies of the sample upstreams' answers, in four API shapes, whole and as server-sent events."""

from itertools import count
from typing import Any

import msgspec

_CHAT, _COMPLETIONS, _RESPONSES, _MESSAGES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
)  # fmt: skip
_numbers = count(1)  # of responses


class BilledAnswer(msgspec.Struct, frozen=True):
    """The token counts that a tier charges for one answer."""

    tier: str
    input_tokens: int  # a quarter of the bytes: close enough to a tokenizer for a sample
    output_tokens: int
    logprob: float | None = None  # of each token; None if the request does not ask for log-probabilities
    cached_tokens: int = 0  # part of the input: half of it if the request contains "as before"


def whole_answer(path: str, model: str, text: str, billed: BilledAnswer) -> dict[str, Any]:
    """Return the JSON answer of the API at `path`, which is one of ANSWER_PATHS."""
    return _WHOLE[path](model, text, billed)


def sse_events(path: str, model: str, text: str, billed: BilledAnswer, with_usage: bool) -> list[bytes]:
    """Return the same answer as server-sent events, one word each.

    `with_usage` adds token counts to a chat or completion stream. The other two APIs always send them.
    """
    deltas = [f"{word} " for word in text.split()]
    if path == _MESSAGES:
        return _message_events(model, deltas, billed)
    if path == _RESPONSES:
        return _response_events(model, text, deltas, billed)
    return _chunks(path, model, text, deltas, billed, with_usage)


def _chat(model: str, text: str, billed: BilledAnswer) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **_token_logprobs(text.split(), billed)}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": model,
            "choices": [choice], "usage": _usage(billed)}  # fmt: skip


def _completion(model: str, text: str, billed: BilledAnswer) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
    return {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": model,
            "choices": [choice], "usage": _usage(billed)}  # fmt: skip


def _response(model: str, text: str, billed: BilledAnswer) -> dict[str, Any]:
    content = {"type": "output_text", "text": text, "annotations": []}
    output = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [content],
    }
    return {"id": f"resp_{billed.tier}_{next(_numbers)}", "object": "response", "created_at": 0, "model": model,
            "status": "completed",
            "output": [output], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
            "usage": {"input_tokens": billed.input_tokens, "output_tokens": billed.output_tokens,
                      "input_tokens_details": {"cached_tokens": billed.cached_tokens},
                      "total_tokens": billed.input_tokens + billed.output_tokens}}  # fmt: skip


def _message(model: str, text: str, billed: BilledAnswer) -> dict[str, Any]:
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": model,
            "content": [{"type": "text", "text": text}], "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": billed.input_tokens - billed.cached_tokens,  # cached tokens are not included
                      "cache_read_input_tokens": billed.cached_tokens,
                      "output_tokens": billed.output_tokens}}  # fmt: skip


_WHOLE = {_CHAT: _chat, _COMPLETIONS: _completion, _RESPONSES: _response, _MESSAGES: _message}
ANSWER_PATHS = frozenset(_WHOLE)


def _usage(billed: BilledAnswer) -> dict[str, Any]:
    return {
        "prompt_tokens": billed.input_tokens,
        "completion_tokens": billed.output_tokens,
        "total_tokens": billed.input_tokens + billed.output_tokens,
        "prompt_tokens_details": {"cached_tokens": billed.cached_tokens},
    }


def _token_logprobs(tokens: list[str], billed: BilledAnswer) -> dict[str, Any]:
    if billed.logprob is None:
        return {}
    return {"logprobs": {"content": [{"token": token, "logprob": billed.logprob} for token in tokens]}}


def _message_events(model: str, deltas: list[str], billed: BilledAnswer) -> list[bytes]:
    start = _message(model, "", billed) | {"content": [], "stop_reason": None}
    finish = {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": billed.output_tokens}}
    events: list[tuple[str, dict[str, Any]]] = [
        ("message_start", {"message": start}),
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        *(("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": d}}) for d in deltas),
        ("content_block_stop", {"index": 0}),
        ("message_delta", finish),
        ("message_stop", {}),
    ]
    return [_named_event(kind, {"type": kind} | fields) for kind, fields in events]


def _response_events(model: str, text: str, deltas: list[str], billed: BilledAnswer) -> list[bytes]:
    whole = _response(model, text, billed)
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": whole | {"status": "in_progress", "output": []}}),
        *(("response.output_text.delta", place | {"delta": d, "logprobs": []}) for d in deltas),
        ("response.completed", {"response": whole}),
    ]
    return [
        _named_event(kind, {"type": kind, "sequence_number": i} | fields) for i, (kind, fields) in enumerate(events)
    ]


def _chunks(
    path: str, model: str, text: str, deltas: list[str], billed: BilledAnswer, with_usage: bool
) -> list[bytes]:
    is_chat = path == _CHAT
    whole = whole_answer(path, model, text, billed)
    chunks = []
    for i, delta in enumerate(deltas):
        content = {"delta": {"content": delta}} if is_chat else {"text": delta}
        finish = "stop" if i == len(deltas) - 1 else None
        choice = {"index": 0, "finish_reason": finish, **content, **_token_logprobs([delta], billed)}
        chunk = whole | {"choices": [choice]}
        chunk.pop("usage")
        if is_chat:
            chunk["object"] = "chat.completion.chunk"
        chunks.append(_event(chunk))
    if with_usage:  # a separate last chunk, without choices
        chunks.append(_event(whole | {"choices": []}))
    return [*chunks, b"data: [DONE]\n\n"]


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def _named_event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\n" + _event(fields)
