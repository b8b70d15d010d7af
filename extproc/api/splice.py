"""Change members of a JSON object in place. All other bytes and their order stay the same."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

Edits = Mapping[str, "bytes | Edits"]  # member -> its new value as JSON, or REMOVED, or edits inside that object
Renames = Mapping[str, str]  # member -> its new name
REMOVED: Final = b""  # no JSON value is empty

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

    @property
    def end(self) -> int:
        """The offset behind the bytes that are replaced."""
        return self.at + self.length


class Layout(msgspec.Struct, frozen=True):
    """The places of an object's members in its text."""

    text: bytes
    spans: dict[str, tuple[int, int, int, int, int]]  # name -> its place, and where key and value start and end
    end: int  # where the last value ends


def splice(body: bytes, edits: Edits, renames: Renames | None = None) -> bytes:
    """Return `body`, a JSON object, with `edits` applied. Raises SpliceError as `layout` does."""
    return apply(body, patches(layout(body), edits, renames))


def layout(body: bytes) -> Layout:
    """Find the members of `body`.

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
    spans = {}
    end = _SPACE.match(body).end() + 1  # type: ignore[union-attr]  # matches empty
    for place, (name, raw) in enumerate(members.items()):
        key, value = _KEY.match(body, end), bytes(raw)
        if key is None:
            raise TooLong(f"a member of the body has a name of more than {MAX_NAME_CHARS} characters")
        if _decode_key(key[1]) != name or not body.startswith(value, key.end()):
            raise DuplicateMember
        end = key.end() + len(value)
        spans[name] = (place, *key.span(1), key.end(), end)
    closing = _SPACE.match(body, end).end()  # type: ignore[union-attr]
    if body[closing : closing + 1] != b"}":
        raise DuplicateMember
    return Layout(body, spans, end)


def patches(members: Layout, edits: Edits, renames: Renames | None = None, start: int = 0) -> list[Patch]:
    """Return the patches that apply `edits`, in order, with `start` added to their offsets.

    Existing members are replaced in place, and new ones are added last. A mapping edits the members of an object,
    and replaces any other value. A removed member takes its comma with it. An object whose last member is removed
    is removed as well.

    `renames` apply first, so `edits` use the new names. If a member has the new name already, the one with
    the old name is removed. Raises SpliceError as `layout` does, about an object that an edit enters.
    """
    spans, removed = members.spans, set[int]()
    changes: list[Patch] = []
    if renames:
        spans, removed, changes = _renamed(spans, renames, start)
    added: list[bytes] = []
    for name, edit in edits.items():
        span = spans.get(name)
        if span is None:
            if edit and _sets(edit):
                added.append(_member(name, edit))
            continue
        place, _, _, at, end = span
        if isinstance(edit, Mapping):
            inside = _inside(members.text[at:end], edit, start + at)
            if inside is not None:
                changes += inside
                continue
            edit = _value(edit) if _sets(edit) else REMOVED
        if edit == REMOVED:
            removed.add(place)
        else:
            changes.append(Patch(start + at, end - at, edit))
    if removed:
        gaps = list(_gaps(members, removed, start))
        changes = [c for c in changes if not any(gap.at <= c.at and c.end <= gap.end for gap in gaps)] + gaps
    changes.sort()
    if added:
        empty = len(removed) == len(members.spans)
        changes.append(Patch(start + members.end, 0, b",".join(([] if empty else [b""]) + added)))
    return changes


def _renamed(
    spans: Mapping[str, tuple[int, int, int, int, int]], renames: Renames, start: int
) -> tuple[dict[str, tuple[int, int, int, int, int]], set[int], list[Patch]]:
    """The members under their new names, the places of those that must go, and the patches of the keys."""
    now, removed, changes = dict(spans), set(), []
    for old, new in renames.items():
        if old not in spans or old == new:
            continue
        span = now.pop(old)
        if new in now:
            removed.add(span[0])
        else:
            now[new] = span
            changes.append(Patch(start + span[1], span[2] - span[1], msgspec.json.encode(new)))
    return now, removed, changes


def _gaps(members: Layout, removed: set[int], start: int) -> Iterator[Patch]:
    """The patches that take out the members at these places, each with one comma."""
    kept_end, removed_from = None, None  # the end of the last member that stays, or the start of the first one
    for place, key_at, _, _, end in members.spans.values():
        if place in removed:
            if kept_end is None and removed_from is None:
                removed_from = key_at
            elif kept_end is not None:
                yield Patch(start + kept_end, end - kept_end, b"")
                kept_end = end
            continue
        if removed_from is not None:
            yield Patch(start + removed_from, key_at - removed_from, b"")
            removed_from = None
        kept_end = end
    if removed_from is not None:
        yield Patch(start + removed_from, members.end - removed_from, b"")


def _inside(value: bytes, edits: Edits, start: int) -> list[Patch] | None:
    """The patches inside `value`. None: `value` is replaced or removed as a whole."""
    if not value.startswith(b"{"):
        return None if _sets(edits) else []
    inner = layout(value)
    inside = patches(inner, edits, start=start)
    emptied = inside and not _sets(edits) and not _members(apply(value, patches(inner, edits)))
    return None if emptied else inside


def _sets(edit: "bytes | Edits") -> bool:
    """Whether the edit does more than remove."""
    return any(map(_sets, edit.values())) if isinstance(edit, Mapping) else edit != REMOVED


def _member(name: str, edit: "bytes | Edits") -> bytes:
    return msgspec.json.encode(name) + b":" + _value(edit)


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

    A change that only `made` contains is undone. A change that both contain needs no patch. Both must be in order.
    """
    places = {(p.at, p.end): p.text for p in made}
    targets = {(p.at, p.end): p.text for p in wanted}
    rebased: list[Patch] = []
    shift = 0
    for at, end in _regions(sorted(places.keys() | targets.keys())):
        current, target = _within(body, places, at, end), _within(body, targets, at, end)
        if target != current:
            rebased.append(Patch(at + shift, len(current), target))
        shift += len(current) - (end - at)
    return rebased


def _regions(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The places, as pairs of start and end, with those that overlap joined. Places that only touch stay apart."""
    joined: list[tuple[int, int]] = []
    last = 0
    for at, end in places:
        if at < last:
            joined[-1] = joined[-1][0], max(end, last)
        else:
            joined.append((at, end))
        last = max(end, last)
    return joined


def _within(body: bytes, texts: Mapping[tuple[int, int], bytes], at: int, end: int) -> bytes:
    """The bytes of `body` from `at` to `end`, with the changes there applied: their places and texts."""
    text = texts.get((at, end))
    if text is not None:
        return text
    # An insertion at the border of a region is a separate region.
    inside = [
        Patch(start - at, stop - start, text)
        for (start, stop), text in texts.items()
        if at <= start and stop <= end and (start < stop or at < start < end)
    ]
    return apply(body[at:end], inside) if inside else body[at:end]


def _value(edit: "bytes | Edits") -> bytes:
    if isinstance(edit, bytes):
        return edit
    return b"{" + b",".join(_member(name, inner) for name, inner in edit.items() if _sets(inner)) + b"}"
