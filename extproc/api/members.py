"""Reads a JSON object member by member, after reading it whole has failed.

A member or an item of a list that cannot be read counts as absent. A value is also read as the type that
it spells: "0.2" is a number, "true" is a boolean, and 1024.0 is an integer.
"""

from collections.abc import Callable
from functools import cache
from types import UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

import msgspec

S = TypeVar("S", bound=msgspec.Struct)

# The errors of msgspec for bytes that it cannot decode.
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# Objects that are read member by member for one body. Each takes about 20 microseconds of the event loop.
MAX_ODD_OBJECTS = 5_000
# Objects within objects. Requests have five levels.
MAX_DEPTH = 8
_TRUE, _FALSE = (b'"yes"', b'"on"', b'"y"', b'"t"'), (b'"no"', b'"off"', b'"n"', b'"f"')

raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
raw_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class TooManyObjects(Exception):
    """The text has more odd objects, or longer lists, than are read."""


class _Field(NamedTuple):
    name: str
    decode: Callable[[bytes], Any]
    kinds: tuple[Any, ...]  # the types of the union
    struct: type[msgspec.Struct] | None  # for an object
    item: type[msgspec.Struct] | None  # for each object of a list
    texts: bool  # the list may contain strings


class MemberReader:
    """Reads the objects of one body. `max_items` is the longest list that is read."""

    def __init__(self, max_items: int) -> None:
        self._objects = MAX_ODD_OBJECTS
        self._items = max_items

    def read(self, raw: bytes, kind: type[S], depth: int = 0) -> S:
        """Return `raw` as a `kind`, with its default for each member that is absent or unreadable.

        Raises TooManyObjects above a limit, and DecodeError when `raw` is the outermost text and no JSON object.
        """
        if depth:
            try:
                whole: S = _decoder(kind)(raw)
                return whole
            except UNDECODABLE:
                pass
        self._objects -= 1
        if self._objects < 0:
            raise TooManyObjects(f"more than {MAX_ODD_OBJECTS} objects that cannot be read whole")
        members = _raw_decoder(kind)(raw)
        values = {}
        for field in _fields(kind):
            member = getattr(members, field.name)
            if memoryview(member):
                value = self._value(member, field, depth)
                if value is not msgspec.UNSET:
                    values[field.name] = value
        return kind(**values)

    def _value(self, raw: msgspec.Raw, field: _Field, depth: int) -> Any:
        if msgspec.Raw in field.kinds:
            return raw
        try:
            return field.decode(raw)
        except UNDECODABLE:
            pass
        value, start = bytes(raw), bytes(memoryview(raw)[:1])
        if bool in field.kinds and value.lower() in _TRUE + _FALSE:
            return value.lower() in _TRUE
        try:
            if start == b"{" and field.struct is not None and depth < MAX_DEPTH:
                return self.read(value, field.struct, depth + 1)
            if start == b"[" and field.item is not None and depth < MAX_DEPTH:
                return self._list(value, field, field.item, depth)
        except UNDECODABLE:
            pass
        return msgspec.UNSET

    def _list(self, raw: bytes, field: _Field, kind: type[msgspec.Struct], depth: int) -> list[Any]:
        items = raw_items(raw)
        self._items -= len(items)
        if self._items < 0:
            raise TooManyObjects("lists that are too long")
        values: list[Any] = []
        for item in items:
            value, start = bytes(item), bytes(memoryview(item)[:1])
            try:
                if start == b"{":
                    values.append(self.read(value, kind, depth + 1))
                elif start == b'"' and field.texts:
                    values.append(msgspec.json.decode(value, type=str))
            except UNDECODABLE:
                continue
        return values


@cache
def _decoder(kind: Any) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(kind).decode


@cache
def _raw_decoder(kind: type[msgspec.Struct]) -> Callable[[bytes], Any]:
    """The decoder of an object whose members have the names of `kind` and stay as they were sent."""
    members = [(name, msgspec.Raw, msgspec.Raw()) for name in kind.__struct_encode_fields__]
    return msgspec.json.Decoder(msgspec.defstruct("Members", members)).decode


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[_Field, ...]:
    return tuple(_field(f.encode_name, f.type) for f in msgspec.structs.fields(kind))


def _field(name: str, type_: Any) -> _Field:
    kinds = _union(type_)
    items = [k for union in kinds if get_origin(union) is list for k in _union(get_args(union)[0])]
    return _Field(
        name,
        msgspec.json.Decoder(type_, strict=False).decode,
        kinds,
        next((k for k in kinds if _is_struct(k)), None),
        next((k for k in items if _is_struct(k)), None),
        str in items,
    )


def _union(type_: Any) -> tuple[Any, ...]:
    return get_args(type_) if isinstance(type_, UnionType) else (type_,)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
