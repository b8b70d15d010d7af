"""Change members of a JSON object in place: every byte that is not changed survives, order included."""

import re
from collections.abc import Mapping, Sequence

import msgspec

Edits = Mapping[str, "bytes | Edits"]  # member -> its new value as JSON, or edits inside that object

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_key = msgspec.json.Decoder(str).decode
_KEY = re.compile(rb'[\s,]*("(?:[^"\\]|\\.)*")\s*:\s*')
_SPACE = re.compile(rb"\s*")


# Each is looked at, for a microsecond of the event loop; no request has a hundred.
MAX_MEMBERS = 10_000


class SpliceError(ValueError):
    """The object cannot be edited without guessing, for instance because a member stands twice."""


class Patch(msgspec.Struct, frozen=True, order=True):
    """Put `text` in place of the `length` bytes at `at`."""

    at: int
    length: int
    text: bytes


def splice(body: bytes, edits: Edits) -> bytes:
    """Return `body`, a JSON object, with `edits` made. Raises SpliceError as `patches` does."""
    return apply(body, patches(body, edits))


def patches(body: bytes, edits: Edits, start: int = 0) -> list[Patch]:
    """What `edits` change in `body`: members replaced where they stand, new ones last; in order, offset by `start`.

    A mapping edits inside the member if that is an object, and replaces it otherwise. Raises SpliceError when
    a member stands twice: readers differ on which one counts, so what we route by might not be what is served.
    """
    try:
        members = _members(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpliceError(str(error)) from error
    if len(members) > MAX_MEMBERS:
        raise SpliceError(f"it has more than {MAX_MEMBERS} members")
    found: list[Patch] = []
    at = _SPACE.match(body).end() + 1  # type: ignore[union-attr]  # matches empty
    for name, raw in members.items():
        key, value = _KEY.match(body, at), bytes(raw)
        if key is None or _decode_key(key[1]) != name or not body.startswith(value, key.end()):
            raise SpliceError(f"member {name!r} stands more than once")
        at = key.end() + len(value)
        edit = edits.get(name)
        if isinstance(edit, Mapping) and value.startswith(b"{"):
            found += patches(value, edit, start + key.end())
        elif edit is not None:
            found.append(Patch(start + key.end(), len(value), _value(edit)))
    closing = _SPACE.match(body, at).end()  # type: ignore[union-attr]
    if body[closing : closing + 1] != b"}":
        raise SpliceError("a member stands more than once")
    added = [msgspec.json.encode(name) + b":" + _value(edit) for name, edit in edits.items() if name not in members]
    if added:
        found.append(Patch(start + at, 0, b",".join(([b""] if members else []) + added)))
    return found


def apply(body: bytes, changes: Sequence[Patch]) -> bytes:
    """Return `body` with `changes`, which are in order and do not overlap, made."""
    out: list[bytes] = []
    done = 0
    for change in changes:
        out += (body[done : change.at], change.text)
        done = change.at + change.length
    return b"".join((*out, body[done:]))


def rebase(body: bytes, made: Sequence[Patch], wanted: Sequence[Patch]) -> list[Patch]:
    """Patches that turn `apply(body, made)` into `apply(body, wanted)`.

    A place that only `made` changed gets its first bytes back. Where the two are alike, nothing is patched.
    """
    places = {(p.at, p.length): p.text for p in made}
    targets = {(p.at, p.length): p.text for p in wanted}
    rebased: list[Patch] = []
    shift = 0
    for at, length in sorted(places.keys() | targets.keys()):
        original = body[at : at + length]
        stands = places.get((at, length), original)
        target = targets.get((at, length), original)
        if target != stands:
            rebased.append(Patch(at + shift, len(stands), target))
        shift += len(stands) - length
    return rebased


def _value(edit: "bytes | Edits") -> bytes:
    return edit if isinstance(edit, bytes) else splice(b"{}", edit)
