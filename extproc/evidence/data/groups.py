"""Rows that are one piece of evidence: asks that repeat, and the asks of one session or user.

Two asks are alike if they have the same words, apart from numbers, ids and names. Longer ones may also differ in
one word, like requests that a program makes from a template.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from extproc.evidence.measure.metrics import GroupIds

_TOKEN = re.compile(r"https?://\S+|\S+@\S+\.\w+|[\w'’]+(?:[-.,:/]\w+)*")
_NUMBER = re.compile(r"\d+")
_SLOT = "_"  # stands for a number, an id, an address or a name
# Asks with at least this many words may differ in one of them. With fewer, that word is most of the meaning.
_LONG = 9
# In a title or in shouting most words begin with a capital, so capitals do not show names.
_MOST_CAPITALS = 0.5


def group_rows(texts: Sequence[str], owners: Sequence[str | None]) -> GroupIds:
    """Return int64[n]: the same number for rows that are one piece of evidence.

    `owners` are the users or the sessions of the rows. An ask that occurs under several owners belongs to none of
    them, so that a greeting does not join the users who send it.
    """
    alike = _groups_of_alike([_pattern(text) for text in texts])
    owner_of: dict[int, set[str | int]] = {}
    for i, (ask, owner) in enumerate(zip(alike, owners, strict=True)):
        owner_of.setdefault(ask, set()).add(i if owner is None else owner)
    names: dict[tuple[str, str | int], int] = {}
    groups = []
    for ask, owner in zip(alike, owners, strict=True):
        name = ("owner", owner) if owner is not None and len(owner_of[ask]) == 1 else ("ask", ask)
        groups.append(names.setdefault(name, len(names)))
    return np.array(groups, dtype=np.int64)


def text_key(text: str) -> str:
    """Return the text without case, spacing and numbers: forms with another number are one text."""
    return _NUMBER.sub("0", " ".join(text.lower().split()))


def distinct(groups: GroupIds) -> int:
    """Return the number of groups."""
    return len(np.unique(groups))


def _pattern(text: str) -> tuple[str, ...]:
    """The words of a text. Each run of numbers, ids, addresses and names is one slot."""
    tokens = _TOKEN.findall(text)
    capitals = sum(token[0].isupper() for token in tokens[1:]) > _MOST_CAPITALS * len(tokens)
    words: list[str] = []
    for i, token in enumerate(tokens):
        is_name = i > 0 and not capitals and token[0].isupper() and len(token) > 1
        word = _SLOT if is_name or _is_value(token) else token.lower()
        if word != _SLOT or not words or words[-1] != _SLOT:
            words.append(word)
    return tuple(words) or (text,)


def _is_value(token: str) -> bool:
    return any(map(str.isdigit, token)) or "@" in token or "://" in token


def _groups_of_alike(patterns: Sequence[tuple[str, ...]]) -> list[int]:
    """The group of each pattern: patterns that share a key are joined, and so are those joined to them."""
    parent = list(range(len(patterns)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[int, int] = {}
    for i, pattern in enumerate(patterns):
        for key in _keys(pattern):
            parent[root(i)] = root(first.setdefault(key, i))
    return [root(i) for i in range(len(patterns))]


def _keys(pattern: tuple[str, ...]) -> Iterator[int]:
    """A hash of the pattern, and for a long one a hash without each of its words."""
    placed = [hash((i, word)) for i, word in enumerate(pattern)]
    whole = sum(placed)
    yield hash((len(pattern), whole))
    if len(pattern) >= _LONG:
        for i, each in enumerate(placed):
            yield hash((len(pattern), whole - each, i))
