"""The messages API, as a strict server reads and writes it."""

from collections.abc import Iterator
from typing import Any

import msgspec

from tests.clients.chat import halves, words_of
from tests.clients.script import Asked, Item, Refused, Reply, check_calls, refuse_unknown, require

_MEMBERS = """model messages max_tokens system stream tools tool_choice temperature top_p top_k stop_sequences
thinking metadata service_tier output_config context_management container mcp_servers cache_control
chat_template_kwargs diagnostics speed"""
_USAGE = {
    "input_tokens": 20, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 5,
}  # fmt: skip
_TEXTS = {"text", "image", "document", "search_result", "tool_reference"}


def signature_of(tier: str, number: int | str) -> str:
    """Return the signature of a tier's thinking, which only this tier accepts."""
    return f"signed-by-{tier}-{number}"


def read(body: dict[str, Any], tier: str, counts_only: bool = False) -> Asked:
    """Return the conversation. Raises Refused."""
    refuse_unknown(body, _MEMBERS)
    messages = body.get("messages")
    require(isinstance(messages, list) and messages, "messages: at least one message is required")
    require(counts_only or isinstance(body.get("max_tokens"), int), "max_tokens: field required")
    require(0 <= body.get("temperature", 1) <= 1, "temperature: range: 0..1")
    thinking = body.get("thinking") or {}
    if thinking.get("type") == "enabled":
        budget = thinking.get("budget_tokens", 0)
        require(1024 <= budget < body["max_tokens"], "thinking.budget_tokens: 1024 or more, and below max_tokens")
    items = [item for message in messages or [] for item in _items(message, tier)]
    check_calls(items)
    names = frozenset(tool["name"] for tool in body.get("tools") or [])
    return Asked(items, names, bool(body.get("stream")), reasons=thinking.get("type") in ("enabled", "adaptive"))


def _items(message: dict[str, Any], tier: str) -> list[Item]:
    role, content = message.get("role"), message.get("content")
    require(role in ("user", "assistant", "system"), f"messages: unexpected role {role!r}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    require(isinstance(content, list) and content, "messages: content must not be empty")
    if role == "system":
        return []
    items, texts = [], []
    for block in content or []:
        kind = block.get("type")
        if kind == "tool_use":
            items.append(Item("call", block["name"], block["id"]))
        elif kind == "tool_result":
            items.append(Item("result", _text_of(block.get("content", "")), block["tool_use_id"]))
        elif kind == "thinking":
            if not block.get("signature", "").startswith(signature_of(tier, "")):
                raise Refused("messages: Invalid `signature` in `thinking` block")
        else:
            require(kind in _TEXTS, f"messages: unexpected block {kind!r}")
            texts.append(block.get("text", ""))
    text = "\n".join(texts)
    if not texts or (role == "user" and items):  # text beside a tool result is the client's own
        return items
    said = Item("user" if role == "user" else "assistant", text)
    return [said, *items]


def _text_of(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def whole(asked: Asked, reply: Reply, model: str, number: int, tier: str) -> dict[str, Any]:
    """Return the answer as one JSON object."""
    return {
        "id": f"msg_{number}", "type": "message", "role": "assistant", "model": model,
        "content": _blocks(asked, reply, signature_of(tier, number)), "stop_sequence": None,
        "stop_reason": "tool_use" if reply.tool else "end_turn", "usage": _USAGE,
    }  # fmt: skip


def events(reply: Reply, message: dict[str, Any]) -> Iterator[bytes]:
    """Yield the answer as server-sent events, in the order of the real API."""
    yield _event("message_start", message=message | {"content": [], "stop_reason": None})
    yield _event("ping")
    for index, block in enumerate(message["content"]):
        yield _event("content_block_start", index=index, content_block=block | _EMPTY[block["type"]])
        for delta in _deltas(block, reply):
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield _event("message_delta", delta=delta, usage={"output_tokens": 5})
    yield _event("message_stop")


# The members of a block that are still empty when its stream begins.
_EMPTY: dict[str, dict[str, Any]] = {
    "text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}},
}  # fmt: skip


def _blocks(asked: Asked, reply: Reply, signature: str) -> list[dict[str, Any]]:
    thinking = {"type": "thinking", "thinking": "The tests know.", "signature": signature}
    made: dict[str, Any] = {"type": "text", "text": reply.text}
    if reply.tool:
        made = {"type": "tool_use", "id": f"toolu_{reply.call_id}", "name": reply.tool, "input": reply.arguments}
    return [thinking, made] if asked.reasons else [made]


def _deltas(block: dict[str, Any], reply: Reply) -> Iterator[dict[str, Any]]:
    if block["type"] == "text":
        for word in words_of(reply):
            yield {"type": "text_delta", "text": word}
    elif block["type"] == "thinking":
        yield {"type": "thinking_delta", "thinking": block["thinking"]}
        yield {"type": "signature_delta", "signature": block["signature"]}
    else:
        for half in halves(msgspec.json.encode(block["input"]).decode()):
            yield {"type": "input_json_delta", "partial_json": half}


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\n".encode() + b"data: " + msgspec.json.encode({"type": kind} | fields) + b"\n\n"
