"""Removes sealed items from a request for a tier that cannot read them."""

import re
from collections.abc import Iterator, Sequence

import msgspec

from extproc.api.members import UNDECODABLE, MemberReader, raw_items, raw_members
from extproc.api.parts import MAX_ITEMS, Message, Part
from extproc.api.splice import Patch
from extproc.api.state import SEALED_PARTS, seals_of

# Items of the Responses API whose ids belong to the reasoning before them. Without it, OpenAI refuses the ids.
_ANSWER_ITEMS = ("message", "function_call", "custom_tool_call")
_SEPARATOR = re.compile(rb"[\s,]*")


def without_sealed(body: bytes, count: int) -> list[Patch]:
    """Return the patches that remove the first `count` sealed items of a request, in order.

    A message of which nothing is left is removed, too. All other bytes stay the same.
    """
    try:
        members = raw_members(body)
        name = "input" if "input" in members else "messages"
        value = bytes(members[name])
        start = _position(body, name, value)
        return [] if not value.startswith(b"[") else _Stripper(count).patches(value, start)
    except (KeyError, *UNDECODABLE):
        return []


def _position(body: bytes, name: str, value: bytes) -> int:
    """The offset of a member's value. Its text may also stand earlier in the body, in another value."""
    key = re.compile(re.escape(msgspec.json.encode(name)) + rb"\s*:\s*")
    return next(match.end() for match in key.finditer(body) if body.startswith(value, match.end()))


class _Stripper:
    """Removes items from one list of messages, the oldest first."""

    def __init__(self, count: int) -> None:
        self._left = count

    def patches(self, value: bytes, start: int) -> list[Patch]:
        removed, inner = [], []
        places = list(_places(value))
        for at, item in places:
            if self._left <= 0:
                removed.append(False)
                continue
            message = MemberReader(MAX_ITEMS).read(item, Message, 1) if item.startswith(b"{") else Message()
            if message.role == "assistant" and isinstance(message.content, list):
                changes = self._parts(item, start + at)
                removed.append(changes is None)
                inner += changes or []
                continue
            sealed = len(list(seals_of(message)))
            self._left -= sealed
            removed.append(bool(sealed))
            if not sealed and message.id and message.type in _ANSWER_ITEMS:
                inner.append(_without_id(item, start + at))
        return sorted([*inner, *_gaps(value, places, removed, start)])

    def _parts(self, item: bytes, start: int) -> list[Patch] | None:
        """The patches that remove sealed parts of a message, or None if no part is left."""
        value = bytes(raw_members(item)["content"])
        at = _position(item, "content", value)
        places = list(_places(value))
        removed = [self._takes(part) for _, part in places]
        if places and all(removed):
            return None
        return list(_gaps(value, places, removed, start + at))

    def _takes(self, raw: bytes) -> bool:
        if self._left <= 0 or not raw.startswith(b"{"):
            return False
        part = MemberReader(MAX_ITEMS).read(raw, Part, 1)
        sealed = part.type in SEALED_PARTS and bool(part.signature or part.data or part.encrypted_content)
        self._left -= sealed
        return sealed


def _places(value: bytes) -> Iterator[tuple[int, bytes]]:
    """The offset and the text of each item of a list."""
    at = 1
    for raw in raw_items(value):
        text = bytes(raw)
        at = _SEPARATOR.match(value, at).end()  # type: ignore[union-attr]  # matches empty
        yield at, text
        at += len(text)


def _gaps(value: bytes, places: Sequence[tuple[int, bytes]], removed: Sequence[bool], start: int) -> list[Patch]:
    """The patches that remove items together with their commas."""
    changes, end, gap, kept = [], 1, False, False
    for (at, item), gone in zip(places, removed, strict=True):
        if gone:
            gap = True
            continue
        if gap:
            changes.append(Patch(start + end, at - end, b"," if kept else b""))
        end, gap, kept = at + len(item), False, True
    if gap:
        changes.append(Patch(start + end, len(value.rstrip()) - 1 - end, b""))
    return changes


def _without_id(item: bytes, start: int) -> Patch:
    members = {name: raw for name, raw in raw_members(item).items() if name != "id"}
    return Patch(start, len(item), msgspec.json.encode(members))
