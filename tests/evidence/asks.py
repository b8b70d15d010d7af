"""Words that make asks different for `WordEncoder` without changing what they match."""

import itertools
import string
import zlib
from collections.abc import Iterator
from pathlib import Path

_GOOD = Path(__file__).parents[1] / "configs" / "good"
_ASKS = "is my invoice wrong this month how long does the egg recipe take zebras graze"


def _place(word: str) -> int:
    """The dimension of the word in a vector of `WordEncoder`."""
    return zlib.crc32(word.encode()) % 512


def _free_words() -> Iterator[str]:
    """Words in dimensions of no utterance, each in another one than the word before it."""
    texts = [_ASKS, *(path.read_text().lower() for path in _GOOD.glob("*.yaml"))]
    taken = {_place(word.strip("\"'[],")) for text in texts for word in text.split()}
    last = -1
    for word in map("".join, itertools.product("qz", *[string.ascii_lowercase] * 3)):
        if _place(word) not in taken and _place(word) != last:
            last = _place(word)
            yield word


_WORDS = list(_free_words())


def alone(text: str, i: int) -> str:
    """The ask with two words that no other row has, so that it repeats none."""
    return f"{text} {_WORDS[2 * i]} {_WORDS[2 * i + 1]}"
