"""Counts the values of a JSON text before anything is decoded, in time linear in its bytes.

The cost of decoding depends on the number of values and not of bytes. Eight megabytes of base64 are one
value, and eight megabytes of `[],` are almost three million. Text inside strings does not count.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Far above any real request. A long conversation with hundreds of tools has some 50,000 values. A prompt of token
# ids has one comma for each of them. At these limits decoding takes about 60 ms at worst.
MAX_CONTAINERS = 100_000
MAX_COMMAS = 500_000
# A chunk and its masks fit into the second-level cache. NumPy releases the GIL while it works on one.
_CHUNK_BYTES = 1 << 17
_QUOTE, _COMMA, _OPENING, _LOWER = ord('"'), ord(","), ord("{"), 32  # "[" and "{" differ only in this bit


class TooManyValues(ValueError):
    """The text has more values than are read."""

    def __init__(self) -> None:
        super().__init__(f"more than {MAX_CONTAINERS} arrays and objects, or more than {MAX_COMMAS} values")


class Structure(NamedTuple):
    """How many values a text has, without what is inside strings."""

    containers: int  # arrays and objects
    commas: int  # between values


def check_structure(text: bytes) -> None:
    """Raise TooManyValues when `text` has more arrays and objects, or more commas between values, than are read."""
    if not has_at_most(text, MAX_CONTAINERS, MAX_COMMAS):
        raise TooManyValues


def has_at_most(text: bytes, containers: int, commas: int) -> bool:
    """Whether `text` has at most this many arrays and objects, and this many commas between values."""
    if len(text) <= min(containers, commas) or _is_sparse(text, containers, commas):
        return True
    counted = count_structure(text, containers, commas)
    return counted.containers <= containers and counted.commas <= commas


def count_structure(text: bytes, max_containers: int, max_commas: int) -> Structure:
    """Count the values of `text`, which need not be valid JSON. The count ends where a limit is passed."""
    containers = commas = 0
    in_string = escaped = False
    for start in range(0, len(text), _CHUNK_BYTES):
        chunk = text[start : start + _CHUNK_BYTES]
        if escaped:
            chunk = b"_" + chunk[1:]
        # Pairs first, from the left: a quote is escaped after an odd number of backslashes.
        chunk = chunk.replace(rb"\\", b"__").replace(rb"\"", b"__")
        escaped = chunk.endswith(b"\\")
        if in_string and b'"' not in chunk:
            continue
        codes = np.frombuffer(chunk, np.uint8)
        outside, in_string = _outside_strings(codes, in_string)
        commas += int(np.count_nonzero((codes == _COMMA) & outside))
        containers += int(np.count_nonzero(((codes | _LOWER) == _OPENING) & outside))
        if containers > max_containers or commas > max_commas:
            break
    return Structure(containers, commas)


def _is_sparse(text: bytes, max_containers: int, max_commas: int) -> bool:
    """Whether the limits hold even if every comma and bracket counts, also in strings. Takes 0.4 ms a megabyte."""
    containers = commas = 0
    codes = np.frombuffer(text, np.uint8)
    for start in range(0, len(codes), _CHUNK_BYTES):
        chunk = codes[start : start + _CHUNK_BYTES]
        commas += int(np.count_nonzero(chunk == _COMMA))
        containers += int(np.count_nonzero((chunk | _LOWER) == _OPENING))
        if containers > max_containers or commas > max_commas:
            return False
    return True


def _outside_strings(codes: NDArray[np.uint8], in_string: bool) -> tuple[NDArray[np.bool_], bool]:
    """Which bytes of a chunk without escaped quotes are outside strings, and whether it ends inside one."""
    quotes = codes == _QUOTE
    inside = np.bitwise_xor.accumulate(quotes.view(np.uint8)) ^ np.uint8(in_string)
    return inside == 0, bool(inside[-1])
