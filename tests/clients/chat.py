"""The chat completions API, as a strict server reads and writes it."""

from collections.abc import Iterator
from typing import Any

import msgspec

from tests.clients.script import Asked, Item, Reply, check_calls, joined, refuse_unknown, require

_MEMBERS = """model messages stream stream_options tools tool_choice parallel_tool_calls temperature top_p n stop
seed max_tokens max_completion_tokens presence_penalty frequency_penalty logit_bias logprobs top_logprobs user
response_format reasoning_effort verbosity store metadata service_tier prompt_cache_key safety_identifier
chat_template_kwargs"""
_ROLES = {"system", "developer", "user", "assistant", "tool"}
_PARTS = frozenset({"text", "image_url", "input_audio", "file", "refusal"})
_USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}


def read(body: dict[str, Any]) -> Asked:
    """Return the conversation. Raises Refused."""
    refuse_unknown(body, _MEMBERS)
    messages, options = body.get("messages"), body.get("stream_options")
    require(isinstance(messages, list) and messages, "messages must be a list with at least one message")
    require(options is None or body.get("stream"), "stream_options need stream")
    require(0 <= body.get("temperature", 1) <= 2, "temperature must be between 0 and 2")
    items = [item for message in messages or [] for item in _items(message)]
    check_calls(items)
    tools = body.get("tools") or []
    require(all(tool.get("type") == "function" and tool["function"]["name"] for tool in tools), "a tool is odd")
    names = frozenset(tool["function"]["name"] for tool in tools)
    return Asked(items, names, bool(body.get("stream")), bool((options or {}).get("include_usage")))


def _items(message: dict[str, Any]) -> Iterator[Item]:
    role, content = message.get("role"), message.get("content")
    require(role in _ROLES, f"unknown role {role!r}")
    calls = message.get("tool_calls") or []
    require(content is not None or calls, "only a message with tool calls may have no content")
    require(not calls or role == "assistant", "only the assistant calls tools")
    text = joined(content or "", _PARTS)
    if role == "tool":
        yield Item("result", text, message.get("tool_call_id", ""))
    elif role == "user" or (role == "assistant" and text):
        yield Item("user" if role == "user" else "assistant", text)
    for call in calls:
        msgspec.json.decode(call["function"]["arguments"])
        yield Item("call", call["function"]["name"], call["id"])


def whole(reply: Reply, model: str, number: int) -> dict[str, Any]:
    """Return the answer as one JSON object."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None, "refusal": None}
    if reply.tool:
        message["tool_calls"] = [_call(reply)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(reply)}
    return _frame("chat.completion", model, number) | {"choices": [choice], "usage": _USAGE}


def events(reply: Reply, model: str, number: int, with_usage: bool) -> Iterator[bytes]:
    """Yield the answer as server-sent events."""
    frame = _frame("chat.completion.chunk", model, number)

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return _data(frame | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    yield chunk({"role": "assistant", "content": None if reply.tool else ""})
    for word in words_of(reply):
        yield chunk({"content": word})
    if reply.tool:
        call = {"index": 0} | _call(reply)
        arguments = call["function"]["arguments"]
        yield chunk({"tool_calls": [call | {"function": {"name": reply.tool, "arguments": ""}}]})
        for part in halves(arguments):
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]})
    yield chunk({}, _finish(reply))
    if with_usage:
        yield _data(frame | {"choices": [], "usage": _USAGE})
    yield b"data: [DONE]\n\n"


def _frame(kind: str, model: str, number: int) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "object": kind, "created": 1_700_000_000, "model": model}


def _call(reply: Reply) -> dict[str, Any]:
    arguments = msgspec.json.encode(reply.arguments).decode()
    return {"id": reply.call_id, "type": "function", "function": {"name": reply.tool, "arguments": arguments}}


def _finish(reply: Reply) -> str:
    return "tool_calls" if reply.tool else "stop"


def _data(fields: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def words_of(reply: Reply) -> Iterator[str]:
    """Yield the text word by word. An endless reply repeats it."""
    words = reply.text.split(" ")
    while words != [""]:
        for i, word in enumerate(words):
            yield word if i == 0 else f" {word}"
        if not reply.endless:
            return


def halves(text: str) -> tuple[str, str]:
    """Return a text in two parts."""
    return text[: len(text) // 2], text[len(text) // 2 :]
