"""The responses API, as a strict server reads and writes it. Each tier keeps the responses that it made."""

from collections.abc import Iterator
from typing import Any

import msgspec

from tests.clients.chat import halves, words_of
from tests.clients.script import Asked, Item, Refused, Reply, check_calls, joined, refuse_unknown, require

_MEMBERS = """model input instructions stream stream_options store previous_response_id conversation include tools
tool_choice parallel_tool_calls max_tool_calls temperature top_p max_output_tokens reasoning text truncation user
metadata service_tier prompt_cache_key prompt_cache_retention safety_identifier background prompt client_metadata
chat_template_kwargs"""
_ROLES = {"system", "developer", "user", "assistant"}
_PARTS = frozenset({"input_text", "output_text", "input_image", "input_file", "refusal"})
_CALLS = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}
_USAGE = {
    "input_tokens": 20, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 25,
}  # fmt: skip


class Kept(msgspec.Struct):
    """The responses that one tier stores, and its seal."""

    tier: str
    responses: dict[str, list[Item]] = {}  # id -> the whole conversation until then
    items: dict[str, Item | None] = {}  # id -> one step that the tier made; None for its reasoning

    def seal(self, number: int) -> str:
        """Return reasoning of this tier's model, which only this tier can read."""
        return f"sealed-by-{self.tier}-{number}"

    def reads(self, sealed: str) -> bool:
        """Whether this tier's model wrote the sealed reasoning."""
        return sealed.startswith(f"sealed-by-{self.tier}-")


def read(body: dict[str, Any], kept: Kept) -> Asked:
    """Return the conversation. Raises Refused."""
    refuse_unknown(body, _MEMBERS)
    given = body.get("input")
    require(given, "input is missing")
    require(0 <= (body.get("temperature") or 0) <= 2, "temperature must be between 0 and 2")
    items: list[Item] = []
    before = body.get("previous_response_id")
    if before is not None:
        if before not in kept.responses:
            raise Refused(f"Previous response with id {before!r} not found.", 400, "previous_response_not_found")
        items += kept.responses[before]
    parts = [{"role": "user", "content": given}] if isinstance(given, str) else given or []
    items += [item for part in parts for item in _items(part, kept)]
    check_calls(items)
    names = frozenset(tool.get("name", tool["type"]) for tool in body.get("tools") or [])
    reasons = "reasoning.encrypted_content" in (body.get("include") or [])
    return Asked(items, names, bool(body.get("stream")), reasons=reasons)


def _items(part: dict[str, Any], kept: Kept) -> Iterator[Item]:
    kind = part.get("type", "message")
    if kind == "message":
        role = part.get("role")
        require(role in _ROLES, f"unknown role {role!r}")
        text = joined(part.get("content"), _PARTS)
        if role in ("user", "assistant"):
            yield Item(role, text)
    elif kind == "reasoning":
        sealed = part.get("encrypted_content")
        if sealed is not None and not kept.reads(sealed):
            raise Refused("The encrypted content could not be verified.", 400, "invalid_encrypted_content")
    elif kind == "item_reference":
        if part["id"] not in kept.items:
            raise Refused(f"Item with id {part['id']!r} not found.", 404, "not_found")
        if (item := kept.items[part["id"]]) is not None:
            yield item
    elif kind in _CALLS:
        yield Item("call", part["name"], part["call_id"])
    elif kind in _CALLS.values():
        yield Item("result", joined(part["output"], _PARTS), part["call_id"])
    else:
        raise Refused(f"unknown kind of input: {kind!r}")


def whole(asked: Asked, reply: Reply, model: str, number: int, kept: Kept, store: bool) -> dict[str, Any]:
    """Return the answer as one JSON object, and keep it if the client lets the server store it."""
    response = _frame(model, number, kept) | {"status": "completed", "output": _output(asked, reply, number, kept)}
    if store:
        made = Item("call", reply.tool, reply.call_id) if reply.tool else Item("assistant", reply.text)
        kept.responses[response["id"]] = [*asked.items, made]
        kept.items |= {item["id"]: None if item["type"] == "reasoning" else made for item in response["output"]}
    return response | {"usage": _USAGE, "store": store}


def events(asked: Asked, reply: Reply, response: dict[str, Any]) -> Iterator[bytes]:
    """Yield the answer as server-sent events, in the order of the real API."""
    numbers = iter(range(1 << 30))

    def event(kind: str, **fields: Any) -> bytes:
        encoded = msgspec.json.encode({"type": kind, "sequence_number": next(numbers)} | fields)
        return f"event: {kind}\n".encode() + b"data: " + encoded + b"\n\n"

    begun = response | {"status": "in_progress", "output": [], "usage": None}
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    for index, item in enumerate(response["output"]):
        place = {"output_index": index, "item_id": item["id"]}
        yield event("response.output_item.added", output_index=index, item=item | _EMPTY[item["type"]])
        if item["type"] == "message":
            spot, part = place | {"content_index": 0}, item["content"][0]
            yield event("response.content_part.added", **spot, part=part | {"text": ""})
            for word in words_of(reply):
                yield event("response.output_text.delta", **spot, delta=word, logprobs=[])
            yield event("response.output_text.done", **spot, text=reply.text, logprobs=[])
            yield event("response.content_part.done", **spot, part=part)
        elif item["type"] == "function_call":
            for half in halves(item["arguments"]):
                yield event("response.function_call_arguments.delta", **place, delta=half)
            yield event("response.function_call_arguments.done", **place, arguments=item["arguments"])
        yield event("response.output_item.done", output_index=index, item=item)
    yield event("response.completed", response=response)


# The members of an item that are still empty when its stream begins.
_EMPTY: dict[str, dict[str, Any]] = {
    "message": {"status": "in_progress", "content": []},
    "function_call": {"status": "in_progress", "arguments": ""},
    "reasoning": {},
}


def _output(asked: Asked, reply: Reply, number: int, kept: Kept) -> list[dict[str, Any]]:
    reasoning = {"id": f"rs_{number}", "type": "reasoning", "summary": [], "encrypted_content": kept.seal(number)}
    content = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
    made: dict[str, Any] = {
        "id": f"msg_{number}", "type": "message", "role": "assistant", "status": "completed", "content": [content],
    }  # fmt: skip
    if reply.tool:
        arguments = msgspec.json.encode(reply.arguments).decode()
        made = {
            "id": f"fc_{number}", "type": "function_call", "status": "completed", "call_id": reply.call_id,
            "name": reply.tool, "arguments": arguments,
        }  # fmt: skip
    return [reasoning, made] if asked.reasons else [made]


def _frame(model: str, number: int, kept: Kept) -> dict[str, Any]:
    return {
        "id": f"resp_{kept.tier}_{number}", "object": "response", "created_at": 1_700_000_000, "model": model,
        "error": None, "incomplete_details": None, "instructions": None, "metadata": {}, "tools": [],
        "parallel_tool_calls": True, "tool_choice": "auto", "temperature": 1.0, "top_p": 1.0,
        "max_output_tokens": None, "previous_response_id": None, "reasoning": {"effort": None, "summary": None},
        "text": {"format": {"type": "text"}}, "truncation": "disabled", "usage": None,
    }  # fmt: skip
