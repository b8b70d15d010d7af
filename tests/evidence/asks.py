"""Words that make asks different for `WordEncoder` without changing what they match."""

import itertools
import string
import zlib
from pathlib import Path

_GOOD = Path(__file__).parents[1] / "configs" / "good"
_TAKEN = {
    zlib.crc32(word.strip("\"'[],").encode()) % 512
    for path in _GOOD.glob("*.yaml")
    for word in path.read_text().lower().split()
}
_WORDS = [
    word
    for word in map("".join, itertools.product(string.ascii_lowercase, repeat=4))
    if word.startswith(("q", "z")) and zlib.crc32(word.encode()) % 512 not in _TAKEN
]


def alone(text: str, i: int) -> str:
    """The ask with two words of its own, so that it is not a repetition of another one."""
    return f"{text} {_WORDS[2 * i]} {_WORDS[2 * i + 1]}"
