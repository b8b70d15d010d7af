"""Change members of a JSON object in place: every byte that is not changed survives, order included."""

import re
from collections.abc import Mapping

import msgspec

Edits = Mapping[str, "bytes | Edits"]  # member -> its new value as JSON, or edits inside that object

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_key = msgspec.json.Decoder(str).decode
_KEY = re.compile(rb'[\s,]*("(?:[^"\\]|\\.)*")\s*:\s*')
_SPACE = re.compile(rb"\s*")


class SpliceError(ValueError):
    """The object cannot be edited without guessing, for instance because a member stands twice."""


def splice(body: bytes, edits: Edits) -> bytes:
    """Return `body`, a JSON object, with `edits` made: members replaced where they stand, new ones last.

    A mapping edits inside the member if that is an object, and replaces it otherwise. Raises SpliceError when
    a member stands twice: readers differ on which one counts, so what we route by might not be what is served.
    """
    members = _members(body)
    out: list[bytes] = []
    done = 0  # body[:done] is in `out`, edited
    at = _SPACE.match(body).end() + 1  # type: ignore[union-attr]  # matches empty
    for name, raw in members.items():
        key = _KEY.match(body, at)
        value = bytes(raw)
        if key is None or _decode_key(key[1]) != name or not body.startswith(value, key.end()):
            raise SpliceError(f"member {name!r} stands more than once")
        at = key.end() + len(value)
        if name in edits:
            out += (body[done : key.end()], _value(edits[name], value))
            done = at
    closing = _SPACE.match(body, at).end()  # type: ignore[union-attr]
    if body[closing : closing + 1] != b"}":
        raise SpliceError("a member stands more than once")
    added = [
        msgspec.json.encode(name) + b":" + _value(edit, b"") for name, edit in edits.items() if name not in members
    ]
    tail = b",".join(([b""] if members and added else []) + added)
    return b"".join((*out, body[done:at], tail, body[at:]))


def _value(edit: "bytes | Edits", old: bytes) -> bytes:
    if isinstance(edit, bytes):
        return edit
    return splice(old if old.startswith(b"{") else b"{}", edit)
