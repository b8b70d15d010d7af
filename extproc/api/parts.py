"""The messages of a conversation and their parts, which may hold other parts."""

from collections.abc import Sequence
from typing import Any

import msgspec

from extproc.api.members import TooManyObjects

# Far above any real conversation. Each message costs about three microseconds, and the event loop waits for them.
MAX_ITEMS = 10_000


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
    tool: msgspec.Raw = msgspec.Raw()


Content = str | list[Part | str] | Part | None


class Message(msgspec.Struct):
    """A message, or an item of the Responses API."""

    role: str | None = None
    type: str | None = None
    content: Content = None
    text: str | None = None  # of a part that is sent in place of a message
    output: Content = None
    id: str | None = None
    call_id: str | None = None
    encrypted_content: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()
    reasoning_details: msgspec.Raw = msgspec.Raw()
    thinking_blocks: msgspec.Raw = msgspec.Raw()
    extra_content: msgspec.Raw = msgspec.Raw()
    images: msgspec.Raw = msgspec.Raw()
    audio: msgspec.Raw = msgspec.Raw()
    result: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    fingerprint: str | None = None


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
