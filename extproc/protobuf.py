"""Decode messages of Envoy. It copies headers of clients into texts, and a header need not be UTF-8."""

from collections.abc import Iterator
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

_M = TypeVar("_M", bound=Message)
# As deep as protobuf reads messages.
_MOST_DEPTH = 100
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


def decode(kind: type[_M], message: bytes) -> _M:
    """Return the message of this type. Bytes of a text that are not UTF-8 become U+FFFD. Raises DecodeError."""
    try:
        return kind.FromString(message)
    except DecodeError:
        return kind.FromString(_repaired(kind.DESCRIPTOR, message))


def _repaired(kind: Any, message: bytes, depth: int = 0) -> bytes:
    """`kind` is a descriptor. Python and C++ have a class each for it."""
    if depth > _MOST_DEPTH:
        raise DecodeError("the message is nested too deeply")
    parts = []
    for number, head, value in _fields(message):
        parts.append(head)
        if value is not None:
            repaired = _repaired_value(kind.fields_by_number.get(number), value, depth)
            parts += [_length(repaired), repaired]
    return b"".join(parts)


def _repaired_value(field: Any, value: bytes, depth: int) -> bytes:
    if field is not None and field.type == FieldDescriptor.TYPE_STRING:
        return value.decode(errors="replace").encode()
    if field is not None and field.type == FieldDescriptor.TYPE_MESSAGE:
        return _repaired(field.message_type, value, depth + 1)
    return value


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes | None]]:
    """Yield the number of each field, its bytes before a length, and the bytes behind it if it has a length."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        wire_type = tag & 7
        if wire_type == _BYTES:
            head = message[start:at]
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        elif wire_type == _VARINT:
            _, at = _varint(message, at)
            head, value = message[start:at], None
        elif wire_type in _FIXED:
            at += _FIXED[wire_type]
            head, value = message[start:at], None
        else:
            raise DecodeError(f"a field has the wire type {wire_type}, which proto3 does not have")
        if at > len(message):
            raise DecodeError("the message is cut")
        yield tag >> 3, head, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number that is at this place, and the place behind it."""
    number = shift = 0
    while at < len(message):
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
        if shift > 63:
            break
    raise DecodeError("the message is cut")


def _length(value: bytes) -> bytes:
    """Return the length of a value as a varint."""
    size, digits = len(value), bytearray()
    while size > 0x7F:
        digits.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*digits, size])
