"""Replaces what keeps a strict reader from reading a JSON text. The length never changes.

Some clients send halves of surrogate pairs, NaN, raw control characters, or bytes that are not UTF-8. Many servers
accept them, so the router must not stop at them. It reads the repaired text and edits the original at the same
offsets, so the upstream gets the client's bytes.
"""

import re

BOM = b"\xef\xbb\xbf"
# Escapes or numbers that are looked at, at half a microsecond each. The text after them does not change.
MAX_REPAIRS = 200_000

# Outside strings, a control character is white space or an error.
_BLANKED = b" " * 32 + bytes(range(32, 256))
# Each escape begins after an even number of backslashes. A whole pair is matched, so that its halves are not.
_SURROGATE = re.compile(
    rb"(?<!\\)((?:\\\\)*+)(?:\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|"
    rb"(\\u[dD][89a-fA-F][0-9a-fA-F]{2}))"
)
# Not a JSON number, in a place for a value.
_NOT_A_NUMBER = re.compile(rb"([:\[,][ ]*+)(NaN|-?Infinity)(?=[ ]*+[,\]}])")


def repaired(body: bytes) -> bytes:
    """Return `body` with each odd byte replaced. Everything else stays at its offset."""
    text = body.translate(_BLANKED)
    try:
        text.decode()
    except UnicodeDecodeError:
        text = text.decode("utf-8", "surrogateescape").encode("utf-8", "replace")  # "?" for each bad byte
    if b"\\u" in text:
        text = _SURROGATE.sub(_half, text, count=MAX_REPAIRS)
    if b"NaN" in text or b"Infinity" in text:
        text = _NOT_A_NUMBER.sub(_number, text, count=MAX_REPAIRS)
    return text


def _half(match: re.Match[bytes]) -> bytes:
    return match[0] if match[2] is None else match[1] + rb"\ufffd"


def _number(match: re.Match[bytes]) -> bytes:
    # Not an integer, so that no limit is read from it. A prompt that contains the same letters stays text.
    return match[1] + b"0.5".ljust(len(match[2]))
