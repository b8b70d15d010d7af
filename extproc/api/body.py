"""The members of a request body that routing reads, as typed values: four APIs in one shape.

`decode_body` reads a usual body in one pass. If that fails, odd bytes are replaced and members read one by one.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from extproc.api.members import MAX_DEPTH, UNDECODABLE, MemberReader, TooManyObjects, raw_items, raw_members
from extproc.api.repair import repaired

# Far above any real conversation. Eight megabytes of empty messages are millions of them, and each one blocks the
# event loop, and so all other requests, for a microsecond.
MAX_ITEMS = 20_000


class Part(msgspec.Struct):
    """One part of a message: text, media, a call, or the result of a call with its own parts."""

    type: str = ""
    text: str | None = None
    content: "str | list[Part | str] | Part | None" = None
    image_url: msgspec.Raw = msgspec.Raw()
    audio_url: msgspec.Raw = msgspec.Raw()
    video_url: msgspec.Raw = msgspec.Raw()
    input_audio: msgspec.Raw = msgspec.Raw()
    source: msgspec.Raw = msgspec.Raw()
    file: msgspec.Raw = msgspec.Raw()
    file_data: msgspec.Raw = msgspec.Raw()
    id: str | None = None
    signature: str | None = None
    data: str | None = None
    encrypted_content: str | None = None


Content = str | list[Part | str] | Part | None


class Message(msgspec.Struct):
    """A message, or an item of the Responses API."""

    role: str | None = None
    type: str | None = None
    content: Content = None
    output: Content = None
    id: str | None = None
    call_id: str | None = None
    encrypted_content: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()
    reasoning_details: msgspec.Raw = msgspec.Raw()


class Typed(msgspec.Struct):
    type: str = ""
    budget_tokens: int | None = None


class Holder(msgspec.Struct):
    format: Typed | None = None


class Effort(msgspec.Struct):
    effort: str | None = None


class Template(msgspec.Struct):
    enable_thinking: bool | None = None
    thinking: bool | None = None


class Tool(msgspec.Struct):
    type: str | None = None


class Named(msgspec.Struct):
    id: str | None = None


class Prompt(msgspec.Struct):
    """A prompt template of the Responses API: the server fills the variables in."""

    variables: dict[str, str | Part] | None = None


class Body(msgspec.Struct):
    """The members that routing reads. Each member that is absent or unreadable has its default."""

    model: str | None = None
    messages: list[Message | str] | None = None
    input: str | list[Message | str] | Message | None = None
    prompt: str | list[Any] | Prompt | None = None
    instructions: str | list[Message | str] | None = None
    system: Content = None
    tools: list[Tool] | dict[str, msgspec.Raw] | None = None
    functions: list[Tool] | dict[str, msgspec.Raw] | None = None
    web_search_options: msgspec.Raw = msgspec.Raw()
    mcp_servers: msgspec.Raw = msgspec.Raw()
    modalities: list[str] | None = None
    tool_choice: str | Typed | None = None
    stream: bool | None = None
    response_format: Typed | None = None
    text: Holder | None = None
    output_config: Holder | None = None
    output_format: Typed | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    reasoning_effort: str | None = None
    reasoning: Effort | None = None
    thinking: bool | Typed | None = None
    chat_template_kwargs: Template | None = None
    logprobs: bool | int | None = None
    include: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    previous_response_id: str | None = None
    conversation: str | Named | None = None
    prompt_cache_key: str | None = None
    metadata: msgspec.Raw = msgspec.Raw()
    background: bool | None = None
    store: bool | None = None


class _BodyLists(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    functions: msgspec.Raw = msgspec.Raw()
    modalities: msgspec.Raw = msgspec.Raw()


class _ItemLists(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw()
    output: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(Body).decode
_decode_body_lists = msgspec.json.Decoder(_BodyLists).decode
_decode_item_lists = msgspec.json.Decoder(_ItemLists).decode


def decode_body(body: bytes) -> tuple[Body, bytes]:
    """Return the members of `body`, and the text that they were read from, which has the same length.

    Raises one of UNDECODABLE when the body is not a JSON object, and TooManyObjects when too much of it is odd.
    """
    try:
        _check_lengths(body)
        return _decode(body), body
    except UNDECODABLE:
        pass
    text = body if _is_json(body) else repaired(body)
    _check_lengths(text)
    decoded = MemberReader(MAX_ITEMS).read(text, Body)
    return _doubted(decoded, text), text


def _check_lengths(text: bytes) -> None:
    """Raise TooManyObjects when a list of `text` is too long, before an object is made of each item."""
    if text.count(b",") >= MAX_ITEMS:
        lists = _decode_body_lists(text)
        for name in lists.__struct_fields__:
            _check_length(bytes(getattr(lists, name)), MAX_DEPTH)


def _check_length(value: bytes, depth: int) -> None:
    if depth == 0 or value.count(b",") < MAX_ITEMS:
        return
    if value.startswith(b"["):
        items = raw_items(value)
        check_items(items)
        for item in items:
            if bytes(memoryview(item)[:1]) == b"{":
                _check_length(bytes(item), depth - 1)
    elif value.startswith(b"{"):
        lists = _decode_item_lists(value)
        _check_length(bytes(lists.content), depth - 1)
        _check_length(bytes(lists.output), depth - 1)


def _is_json(body: bytes) -> bool:
    """Whether a strict reader accepts this as a JSON object."""
    try:
        body.decode()
        raw_members(body)
    except UNDECODABLE:
        return False
    return True


def _doubted(decoded: Body, text: bytes) -> Body:
    """Give a member that may be a need the value that lifts, where it was sent and cannot be read."""
    members = raw_members(text)
    for name, doubt in (("tools", [Tool()]), ("functions", [Tool()]), ("modalities", ["?"]), ("include", ["?"])):
        if getattr(decoded, name) is None and name in members and bytes(members[name]) not in _NOTHING:
            setattr(decoded, name, doubt)
    return decoded


_NOTHING = (b"null", b"false", b'""')


def parts_of(content: Content) -> Sequence[Part]:
    """Return the parts of a content; a text is one part."""
    if isinstance(content, str):
        return (Part("text", content),)
    if isinstance(content, list):
        if str not in map(type, content):
            return content  # type: ignore[return-value]  # no text among them
        return [Part("text", part) if isinstance(part, str) else part for part in content]
    return () if content is None else (content,)


def every_part(content: Content) -> Sequence[Part]:
    """Return the parts of a content other than a text, at any depth. Raises TooManyObjects above MAX_ITEMS."""
    if content is None or isinstance(content, str):
        return ()
    check_items(content)
    parts = parts_of(content)
    nested = [part.content for part in parts if part.content is not None]
    if not nested:
        return parts
    parts = list(parts)
    while nested:
        inner = nested.pop()
        if not isinstance(inner, str):
            check_items(inner, len(parts))
            more = parts_of(inner)
            parts += more
            nested += [part.content for part in more if part.content is not None]
    return parts


def check_items(value: object, others: int = 0) -> None:
    """Raise TooManyObjects when `value` is a list that has more than MAX_ITEMS items, together with the others."""
    if isinstance(value, list) and len(value) + others > MAX_ITEMS:
        raise TooManyObjects(f"more than {MAX_ITEMS} messages and parts")


def messages_of(value: Any) -> list[Message]:
    """Return the messages of `messages` or `input`; a text is a message of the user."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    if str not in map(type, items):
        return items
    return [Message("user", content=item) if isinstance(item, str) else item for item in items]
