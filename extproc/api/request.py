"""Reads a client's request body into a `Request`: four APIs.

Only the members that routing needs are decoded. The bytes are kept, because they are edited and sent on.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

Api = Literal["chat", "completions", "responses", "messages"]
ReasoningField = Literal["effort", "thinking", "template.enable_thinking", "template.thinking"]

APIS: dict[str, Api] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}


# Far above any real conversation. Eight megabytes of empty messages are millions of them, and each one blocks the
# event loop, and so all other requests, for a microsecond.
MAX_ITEMS = 20_000


class RequestError(ValueError):
    """The client sent a body that cannot be read. It is passed on unchanged and unrouted."""


class Turn(msgspec.Struct, frozen=True):
    """One message of a conversation: its role and its texts, without media and tool output."""

    role: str
    texts: tuple[str, ...] = ()
    tool_result: bool = False


class Request(msgspec.Struct, frozen=True):
    """A request: its bytes, and the values in them that routing uses."""

    api: Api
    body: bytes
    model: str | None
    turns: tuple[Turn, ...]
    needs: frozenset[str]  # capabilities a tier must have: "tools", "vision", "audio"
    media_bytes: int  # size of images and sound in `body`, which are not text tokens
    strict_output: bool  # the client asked for JSON, with or without a schema
    stream: bool
    max_output_tokens: int | None  # the limit that the client set
    cap_field: str | None  # the member that sets this limit
    logprobs: bool | None  # the client asked for log-probabilities; None: this request cannot ask for them
    reasoning: bool | int | None  # the client's choice: off, on, or a token budget; None: it made no choice
    reasoning_field: ReasoningField | None  # the member that makes this choice
    thinking_barred: bool  # Anthropic rejects `thinking` together with other members of this request


class _Part(msgspec.Struct):
    type: str = ""
    text: str | None = None
    image_url: msgspec.Raw = msgspec.Raw()
    input_audio: msgspec.Raw = msgspec.Raw()
    source: msgspec.Raw = msgspec.Raw()


class _Message(msgspec.Struct):
    role: str | None = None
    type: str | None = None
    content: str | list[_Part] | None = None


class _Typed(msgspec.Struct):
    type: str = ""
    budget_tokens: int | None = None


class _Holder(msgspec.Struct):
    format: _Typed | None = None


class _Effort(msgspec.Struct):
    effort: str | None = None


class _Template(msgspec.Struct):
    enable_thinking: bool | None = None
    thinking: bool | None = None


class _Body(msgspec.Struct):
    model: str | None = None
    messages: list[_Message] = []
    input: str | list[_Message] | None = None
    prompt: str | list[Any] | None = None
    instructions: str | None = None
    system: str | list[_Part] | None = None
    tools: list[msgspec.Raw] | None = None
    functions: list[msgspec.Raw] | None = None
    tool_choice: str | _Typed | None = None
    stream: bool | None = None
    response_format: _Typed | None = None
    text: _Holder | None = None
    output_config: _Holder | None = None
    output_format: _Typed | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    reasoning_effort: str | None = None
    reasoning: _Effort | None = None
    thinking: _Typed | None = None
    chat_template_kwargs: _Template | None = None
    logprobs: bool | int | None = None
    include: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None


_decode = msgspec.json.Decoder(_Body).decode

_TOOL_TYPES = {"tool_result", "function_call_output"}
_NEEDS = {
    "image_url": "vision",
    "image": "vision",
    "input_image": "vision",
    "input_audio": "audio",
}
# Items of the Responses API that do not contain prose of a person or a model.
_NOT_PROSE = {"function_call", "reasoning", "item_reference"}


def parse_request(path: str, body: bytes) -> Request | None:
    """Read a request to `path`. Return None when the path is not one of APIS, so the request passes through.

    Raises RequestError when the path is one of APIS and the body is not JSON of that API's shape.
    """
    api = APIS.get(path.partition("?")[0])
    if api is None:
        return None
    try:
        decoded = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"{path}: the body is not a request of this API: {error}") from error
    if _items(decoded) > MAX_ITEMS:
        raise RequestError(f"{path}: the body has more than {MAX_ITEMS} messages and parts")
    messages = _messages(api, decoded)
    media = [p for m in messages for p in _parts(m) if p.type in _NEEDS]
    needs = {_NEEDS[p.type] for p in media}
    if decoded.tools or decoded.functions:
        needs.add("tools")
    formats = (
        decoded.response_format,
        decoded.text.format if decoded.text else None,
        decoded.output_config.format if decoded.output_config else None,
        decoded.output_format,
    )
    cap, cap_field = _cap(api, decoded)
    reasoning, field = _chosen_reasoning(decoded)
    return Request(
        api=api,
        body=body,
        model=decoded.model,
        turns=tuple(_turn(m) for m in messages if m.type not in _NOT_PROSE),
        needs=frozenset(needs),
        media_bytes=sum(len(memoryview(raw)) for p in media for raw in (p.image_url, p.input_audio, p.source)),
        strict_output=any(f is not None and f.type.startswith("json") for f in formats),
        stream=decoded.stream is True,
        max_output_tokens=cap,
        cap_field=cap_field,
        logprobs=_asks_for_logprobs(api, decoded),
        reasoning=reasoning,
        reasoning_field=field,
        thinking_barred=_thinking_barred(decoded),
    )


def _items(decoded: _Body) -> int:
    """Count the messages, prompts and parts, because each of them costs time."""
    members = (decoded.messages, decoded.input, decoded.prompt, decoded.system)
    lists = [member for member in members if isinstance(member, list)]
    count = sum(map(len, lists))
    if count > MAX_ITEMS:
        return count
    messages = [m for member in (decoded.messages, decoded.input) if isinstance(member, list) for m in member]
    return count + sum(len(m.content) for m in messages if isinstance(m.content, list))


def path_of(body: bytes) -> str:
    """Guess the path from the members of a body. Anthropic and OpenAI bodies can look the same.

    Raises ValueError when the body is not a JSON object.
    """
    try:
        keys = set(msgspec.json.decode(body, type=dict[str, msgspec.Raw]))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the request is not a JSON object: {error}") from error
    if "input" in keys:
        return "/v1/responses"
    if "prompt" in keys:
        return "/v1/completions"
    return "/v1/messages" if "system" in keys or "thinking" in keys else "/v1/chat/completions"


def _messages(api: Api, decoded: _Body) -> list[_Message]:
    if api == "completions":
        prompts = [decoded.prompt] if isinstance(decoded.prompt, str) else decoded.prompt or []
        return [_Message("user", content=p) for p in prompts if isinstance(p, str)]
    if api == "responses":
        head = [_Message("system", content=decoded.instructions)] if decoded.instructions else []
        if isinstance(decoded.input, str):
            return [*head, _Message("user", content=decoded.input)]
        return [*head, *(decoded.input or [])]
    head = [_Message("system", content=decoded.system)] if decoded.system else []
    return [*head, *decoded.messages]


def _parts(message: _Message) -> Sequence[_Part]:
    if isinstance(message.content, str):
        return (_Part("text", message.content),)
    return message.content or ()


def _turn(message: _Message) -> Turn:
    parts = _parts(message)
    tool_result = (
        message.role in ("tool", "function")
        or message.type in _TOOL_TYPES
        or any(p.type in _TOOL_TYPES for p in parts)
    )
    texts = () if message.role in ("tool", "function") else tuple(p.text for p in parts if p.text)
    return Turn(message.role or "", texts, tool_result)


def _cap(api: Api, decoded: _Body) -> tuple[int | None, str | None]:
    fields = ("max_output_tokens",) if api == "responses" else ("max_completion_tokens", "max_tokens")
    return next(
        ((cap, f) for f in fields if (cap := getattr(decoded, f)) is not None),
        (None, None),
    )


def _asks_for_logprobs(api: Api, decoded: _Body) -> bool | None:
    if api == "responses":
        # An existing list cannot be extended in place, so None.
        return False if decoded.include is None else "message.output_text.logprobs" in decoded.include or None
    return None if api == "messages" else decoded.logprobs is not None and decoded.logprobs is not False


def _chosen_reasoning(decoded: _Body) -> tuple[bool | int | None, ReasoningField | None]:
    """The client's explicit choice of reasoning and the member that makes it, in any of the dialects."""
    effort = decoded.reasoning.effort if decoded.reasoning else decoded.reasoning_effort
    if effort is not None:
        return effort not in ("none", "minimal"), "effort"
    if decoded.thinking is not None:
        budget = decoded.thinking.budget_tokens
        on = decoded.thinking.type != "disabled"
        return (budget if on and budget is not None else on), "thinking"
    if decoded.chat_template_kwargs is not None:
        if decoded.chat_template_kwargs.enable_thinking is not None:
            return decoded.chat_template_kwargs.enable_thinking, "template.enable_thinking"
        if decoded.chat_template_kwargs.thinking is not None:
            return decoded.chat_template_kwargs.thinking, "template.thinking"
    return None, None


def _thinking_barred(decoded: _Body) -> bool:
    """Whether Anthropic would answer 400 if this request had `thinking`.

    Anthropic allows no sampling changes, no forced tool, no assistant prefill, and no tool loop whose assistant
    turn had no thinking block (extended thinking guide, "Feature compatibility").
    """
    forced = isinstance(decoded.tool_choice, _Typed) and decoded.tool_choice.type in ("any", "tool")
    last = decoded.messages[-1] if decoded.messages else None
    in_loop = last is not None and (last.role == "assistant" or any(p.type == "tool_result" for p in _parts(last)))
    sampling = decoded.temperature not in (None, 1) or decoded.top_k is not None
    sampling = sampling or (decoded.top_p is not None and decoded.top_p < 0.95)
    return forced or in_loop or sampling
