"""Change members of a JSON object in place. All other bytes and their order stay the same."""

import re
from collections.abc import Mapping, Sequence

import msgspec

Edits = Mapping[str, "bytes | Edits"]  # member -> its new value as JSON, or edits inside that object

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_key = msgspec.json.Decoder(str).decode
# The longest name of a member. Each character takes the regular expression up to 0.5 microseconds.
MAX_NAME_CHARS = 1000
_KEY = re.compile(rb'[\s,]*+("(?:[^"\\]|\\.){0,%d}+")\s*+:\s*+' % MAX_NAME_CHARS)
_SPACE = re.compile(rb"\s*")


# Each member costs a microsecond of the event loop. Real requests have fewer than a hundred.
MAX_MEMBERS = 10_000
# The members of a request that are long. Quotes outside of them show how many members there are.
_LONG_MEMBERS = (
    "messages", "input", "prompt", "system", "instructions", "tools", "functions", "response_format", "text",
    "output_config", "output_format", "metadata", "documents",
)  # fmt: skip


_decode_long = msgspec.json.Decoder(
    msgspec.defstruct("LongMembers", [(name, msgspec.Raw, msgspec.Raw()) for name in _LONG_MEMBERS])
).decode


class SpliceError(ValueError):
    """The object cannot be edited safely."""


class DuplicateMember(SpliceError):
    """A member of the object appears twice."""

    def __init__(self) -> None:
        super().__init__("a member of the body appears more than once")


class TooLong(SpliceError):
    """An object has too many members, or one with too long a name."""


class Patch(msgspec.Struct, frozen=True, order=True):
    """Replace the `length` bytes at offset `at` with `text`."""

    at: int
    length: int
    text: bytes


def splice(body: bytes, edits: Edits) -> bytes:
    """Return `body`, a JSON object, with `edits` applied. Raises SpliceError as `patches` does."""
    return apply(body, patches(body, edits))


def patches(body: bytes, edits: Edits, start: int = 0) -> list[Patch]:
    """Return the patches that apply `edits` to `body`, in order, with `start` added to their offsets.

    Existing members are replaced in place, and new ones are added last. A mapping edits the members of an object,
    and replaces any other value.

    Raises DuplicateMember when a member appears twice: JSON readers differ on which one counts, so the upstream
    might use another value than the router did. Raises SpliceError when `body` is not a JSON
    object, or has too many members.
    """
    try:
        _check_members(body)
        members = _members(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpliceError(str(error)) from error
    if len(members) > MAX_MEMBERS:
        raise _too_many_members()
    changes: list[Patch] = []
    at = _SPACE.match(body).end() + 1  # type: ignore[union-attr]  # matches empty
    for name, raw in members.items():
        key, value = _KEY.match(body, at), bytes(raw)
        if key is None:
            raise TooLong(f"a member of the body has a name of more than {MAX_NAME_CHARS} characters")
        if _decode_key(key[1]) != name or not body.startswith(value, key.end()):
            raise DuplicateMember
        at = key.end() + len(value)
        edit = edits.get(name)
        if isinstance(edit, Mapping) and value.startswith(b"{"):
            changes += patches(value, edit, start + key.end())
        elif edit is not None:
            changes.append(Patch(start + key.end(), len(value), _value(edit)))
    closing = _SPACE.match(body, at).end()  # type: ignore[union-attr]
    if body[closing : closing + 1] != b"}":
        raise DuplicateMember
    added = [msgspec.json.encode(name) + b":" + _value(edit) for name, edit in edits.items() if name not in members]
    if added:
        changes.append(Patch(start + at, 0, b",".join(([b""] if members else []) + added)))
    return changes


def _check_members(body: bytes) -> None:
    """Raise SpliceError when `body` has far more members than MAX_MEMBERS, before an object is made of each."""
    if body.count(b'"') > 2 * MAX_MEMBERS:
        long_members = _decode_long(body)
        rest = body.count(b'"') - sum(bytes(getattr(long_members, name)).count(b'"') for name in _LONG_MEMBERS)
        if rest > 8 * MAX_MEMBERS:  # a member that is not listed may hold many strings, such as a large schema
            raise _too_many_members()


def _too_many_members() -> TooLong:
    return TooLong(f"an object in the body has more than {MAX_MEMBERS} members")


def apply(body: bytes, changes: Sequence[Patch]) -> bytes:
    """Return `body` with `changes` applied. They must be in order and must not overlap."""
    out: list[bytes] = []
    done = 0
    for change in changes:
        out += (body[done : change.at], change.text)
        done = change.at + change.length
    return b"".join((*out, body[done:]))


def rebase(body: bytes, made: Sequence[Patch], wanted: Sequence[Patch]) -> list[Patch]:
    """Return the patches that turn `apply(body, made)` into `apply(body, wanted)`.

    A change that only `made` contains is undone. A change that both contain needs no patch.
    """
    places = {(p.at, p.length): p.text for p in made}
    targets = {(p.at, p.length): p.text for p in wanted}
    rebased: list[Patch] = []
    shift = 0
    for at, length in sorted(places.keys() | targets.keys()):
        original = body[at : at + length]
        current = places.get((at, length), original)
        target = targets.get((at, length), original)
        if target != current:
            rebased.append(Patch(at + shift, len(current), target))
        shift += len(current) - length
    return rebased


def _value(edit: "bytes | Edits") -> bytes:
    return edit if isinstance(edit, bytes) else splice(b"{}", edit)
