"""What a client asked, read from the bytes it sent: one `Request` for four API shapes.

Only what routing needs is decoded; the bytes themselves are kept, because they are what we edit and send on.
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


# No conversation comes near it. Eight megabytes of empty messages are millions, and each costs a microsecond of the
# event loop, that is of everybody's time.
MAX_ITEMS = 20_000


class RequestError(ValueError):
    """The client sent something that we cannot read; it goes on unrouted, as it is."""


class Turn(msgspec.Struct, frozen=True):
    """One message of the conversation."""

    role: str
    texts: tuple[str, ...] = ()
    tool_result: bool = False


class Request(msgspec.Struct, frozen=True):
    """A readable request: its bytes, and the facts in them that routing uses."""

    api: Api
    body: bytes
    model: str | None
    turns: tuple[Turn, ...]
    needs: frozenset[str]  # capabilities a tier must have: "tools", "vision", "audio"
    media_bytes: int  # of `body`, what is images and sound: no text tokens
    strict_output: bool  # the client asked for JSON, by schema or as such
    stream: bool
    max_output_tokens: int | None  # the client's own cap
    cap_field: str | None  # where it stands
    logprobs: bool | None  # the client asked for log-probabilities; None: they cannot be asked for here
    reasoning: bool | int | None  # the client's explicit choice: off, on, a token budget; None: none
    reasoning_field: ReasoningField | None  # where it stands
    thinking_barred: bool  # Anthropic refuses `thinking` beside what this request holds


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
# Message items of the Responses API that carry no person's or model's prose.
_NOT_PROSE = {"function_call", "reasoning", "item_reference"}


def parse_request(path: str, body: bytes) -> Request | None:
    """Read a request to `path`; None when the path is no API of ours and must pass through.

    Raises RequestError when the path is ours and the body is not JSON of that API's shape.
    """
    api = APIS.get(path.partition("?")[0])
    if api is None:
        return None
    try:
        read = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"{path}: {error}") from error
    if _items(read) > MAX_ITEMS:
        raise RequestError(f"{path}: more than {MAX_ITEMS} messages and parts")
    messages = _messages(api, read)
    media = [p for m in messages for p in _parts(m) if p.type in _NEEDS]
    needs = {_NEEDS[p.type] for p in media}
    if read.tools or read.functions:
        needs.add("tools")
    formats = (
        read.response_format,
        read.text.format if read.text else None,
        read.output_config.format if read.output_config else None,
        read.output_format,
    )
    cap, cap_field = _cap(api, read)
    reasoning, field = _chosen_reasoning(read)
    return Request(
        api=api,
        body=body,
        model=read.model,
        turns=tuple(_turn(m) for m in messages if m.type not in _NOT_PROSE),
        needs=frozenset(needs),
        media_bytes=sum(len(memoryview(raw)) for p in media for raw in (p.image_url, p.input_audio, p.source)),
        strict_output=any(f is not None and f.type.startswith("json") for f in formats),
        stream=read.stream is True,
        max_output_tokens=cap,
        cap_field=cap_field,
        logprobs=_logprobs(api, read),
        reasoning=reasoning,
        reasoning_field=field,
        thinking_barred=_thinking_barred(read),
    )


def _items(read: _Body) -> int:
    """Messages, prompts and parts: what is looked at one by one."""
    lists = [held for held in (read.messages, read.input, read.prompt, read.system) if isinstance(held, list)]
    count = sum(map(len, lists))
    if count > MAX_ITEMS:
        return count
    messages = [m for held in (read.messages, read.input) if isinstance(held, list) for m in held]
    return count + sum(len(m.content) for m in messages if isinstance(m.content, list))


def path_of(body: bytes) -> str:
    """The API that a body's shape speaks of; Anthropic's cannot be told from OpenAI's by shape alone.

    Raises ValueError when it is no JSON object.
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


def _messages(api: Api, read: _Body) -> list[_Message]:
    if api == "completions":
        prompts = [read.prompt] if isinstance(read.prompt, str) else read.prompt or []
        return [_Message("user", content=p) for p in prompts if isinstance(p, str)]
    if api == "responses":
        head = [_Message("system", content=read.instructions)] if read.instructions else []
        if isinstance(read.input, str):
            return [*head, _Message("user", content=read.input)]
        return [*head, *(read.input or [])]
    head = [_Message("system", content=read.system)] if read.system else []
    return [*head, *read.messages]


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


def _cap(api: Api, read: _Body) -> tuple[int | None, str | None]:
    fields = ("max_output_tokens",) if api == "responses" else ("max_completion_tokens", "max_tokens")
    return next(
        ((cap, f) for f in fields if (cap := getattr(read, f)) is not None),
        (None, None),
    )


def _logprobs(api: Api, read: _Body) -> bool | None:
    if api == "responses":
        # A list that is there already cannot be added to in place.
        return False if read.include is None else "message.output_text.logprobs" in read.include or None
    return None if api == "messages" else read.logprobs is not None and read.logprobs is not False


def _chosen_reasoning(read: _Body) -> tuple[bool | int | None, ReasoningField | None]:
    """The client's own word on reasoning, in whichever dialect it speaks."""
    effort = read.reasoning.effort if read.reasoning else read.reasoning_effort
    if effort is not None:
        return effort not in ("none", "minimal"), "effort"
    if read.thinking is not None:
        budget = read.thinking.budget_tokens
        on = read.thinking.type != "disabled"
        return (budget if on and budget is not None else on), "thinking"
    if read.chat_template_kwargs is not None:
        if read.chat_template_kwargs.enable_thinking is not None:
            return read.chat_template_kwargs.enable_thinking, "template.enable_thinking"
        if read.chat_template_kwargs.thinking is not None:
            return read.chat_template_kwargs.thinking, "template.thinking"
    return None, None


def _thinking_barred(read: _Body) -> bool:
    """Whether Anthropic would answer 400 to `thinking` here.

    It allows neither sampling changes, nor a forced tool, nor an assistant prefill, nor a tool loop whose
    assistant turn had no thinking block (extended thinking guide, "Feature compatibility").
    """
    forced = isinstance(read.tool_choice, _Typed) and read.tool_choice.type in ("any", "tool")
    last = read.messages[-1] if read.messages else None
    in_loop = last is not None and (last.role == "assistant" or any(p.type == "tool_result" for p in _parts(last)))
    sampling = read.temperature not in (None, 1) or read.top_k is not None
    sampling = sampling or (read.top_p is not None and read.top_p < 0.95)
    return forced or in_loop or sampling
