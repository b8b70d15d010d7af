"""Replaces what keeps a strict reader from reading a JSON text. The length never changes.

Some clients send halves of surrogate pairs, NaN, raw control characters, or bytes that are not UTF-8. Many servers
accept them, so the router must not stop at them. It reads the repaired text and edits the original at the same
offsets, so the upstream gets the client's bytes.
"""

import re
from collections.abc import Iterator

BOM = b"\xef\xbb\xbf"
# Escapes of surrogates, or odd numbers, that are looked at, at one or two microseconds each.
MAX_REPAIRS = 50_000

# Outside strings, a control character is white space or an error.
_BLANKED = b" " * 32 + bytes(range(32, 256))
_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_HALF = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_REPLACEMENT = rb"\ufffd"
# Not JSON numbers. The longer one is first, because it contains the other.
_NUMBERS = (b"NaN", b"-Infinity", b"Infinity")
_SPACES = re.compile(rb" *+")
_BEFORE_A_VALUE, _AFTER_A_VALUE = (b":", b"[", b","), (b",", b"]", b"}")


class TooManyRepairs(ValueError):
    """The text has more places to repair than are looked at."""

    def __init__(self) -> None:
        super().__init__(f"more than {MAX_REPAIRS} escapes of surrogates, or numbers that JSON does not have")


def is_wide(body: bytes) -> bool:
    """Return whether the first characters have two or four bytes each: the body is UTF-16 or UTF-32."""
    return 0 in body[:4]


def repaired(body: bytes) -> bytes:
    """Return `body` with each odd byte replaced. Everything else stays at its offset. Raises TooManyRepairs."""
    text = body.translate(_BLANKED)
    try:
        text.decode()
    except UnicodeDecodeError:
        text = text.decode("utf-8", "surrogateescape").encode("utf-8", "replace")  # "?" for each bad byte
    return _without_numbers(without_halves(text))


def without_halves(text: bytes) -> bytes:
    """Return `text` with each half of a surrogate pair replaced. Pairs stay. Raises TooManyRepairs."""
    edited: bytearray | None = None
    end_of_pair = 0
    # A pair is recognised at its first half. So the halves are needed in order, in either letter case.
    for at in sorted([*_places(text, rb"\ud"), *_places(text, rb"\uD")]):
        if at < end_of_pair or _run_before(text, at, b"\\") % 2:  # the backslash is itself escaped
            continue
        if _PAIR.match(text, at):
            end_of_pair = at + 12
        elif _HALF.match(text, at):
            edited = edited or bytearray(text)
            edited[at : at + 6] = _REPLACEMENT
    return text if edited is None else bytes(edited)


def _without_numbers(text: bytes) -> bytes:
    """Replace each NaN and infinity by a fraction, so that no limit is read from it."""
    edited: bytearray | None = None
    for word in _NUMBERS:
        for at in _places(text, word):
            end = at + len(word)
            before = at - _run_before(text, at, b" ")
            if text[max(0, before - 1) : before] in _BEFORE_A_VALUE and _after(text, end) in _AFTER_A_VALUE:
                edited = edited or bytearray(text)
                edited[at:end] = b"0.5".ljust(len(word))
    return text if edited is None else bytes(edited)


def _places(text: bytes, literal: bytes) -> Iterator[int]:
    """Yield where `literal` occurs in `text`. Raises TooManyRepairs after MAX_REPAIRS times."""
    at = text.find(literal)
    for _ in range(MAX_REPAIRS):
        if at < 0:
            return
        yield at
        at = text.find(literal, at + len(literal))
    raise TooManyRepairs


def _run_before(text: bytes, end: int, byte: bytes) -> int:
    """How often `byte` is repeated directly before `end`."""
    size = 64
    while True:
        window = text[max(0, end - size) : end]
        run = len(window) - len(window.rstrip(byte))
        if run < size:
            return run
        size *= 8


def _after(text: bytes, at: int) -> bytes:
    """Return the first byte from `at` other than a space."""
    end = _SPACES.match(text, at).end()  # type: ignore[union-attr]  # matches empty
    return text[end : end + 1]
