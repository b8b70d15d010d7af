"""Rows that are one piece of evidence: asks that repeat, and the asks of one session or user.

Two asks are alike if they have the same words, apart from numbers, ids and names. Longer ones may also differ in
one word, like requests that a program makes from a template.
"""

import re
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from extproc.evidence.measure.metrics import Bools, GroupIds

_TOKEN = re.compile(r"https?://\S+|\S+@\S+\.\w+|[\w'’]+(?:[-.,:/]\w+)*")
_NUMBER = re.compile(r"\d+")
_SLOT = "_"  # stands for a number, an id, an address or a name
# Asks with at least this many words may differ in one of them. With fewer, that word is most of the meaning.
_LONG = 9
# In a title or in shouting most words begin with a capital, so capitals do not show names.
_MOST_CAPITALS = 0.5


def group_rows(texts: Iterable[str], owners: Iterable[str | None], exact: bool = False) -> GroupIds:
    """Return int64[n]: the same number for rows that are one piece of evidence.

    `exact`: asks are alike only if they are equal apart from case and spaces.
    `owners` are the users or the sessions of the rows. An ask that occurs under several owners belongs to none of
    them, so that a greeting does not join the users who send it.
    """
    gathered = AskGroups(exact)
    for text, owner in zip(texts, owners, strict=True):
        gathered.add(text, owner)
    return gathered.groups(np.ones(len(gathered), dtype=np.bool_))


class AskGroups:
    """Gathers rows for `group_rows` one by one. It keeps 4 bytes for each word of a text, and no text."""

    def __init__(self, exact: bool = False) -> None:
        self._exact = exact
        self._rows: dict[int, array[int]] = {}  # number of words -> the rows with this number
        self._words: dict[int, array[int]] = {}  # number of words -> the hashes of their words
        self._owners, self._owned = array("q"), array("b")

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, text: str, owner: str | None) -> None:
        """Add the next row."""
        pattern = (" ".join(text.lower().split()),) if self._exact else _pattern(text)
        self._rows.setdefault(len(pattern), array("q")).append(len(self))
        hashes = (hash(word) & 0xFFFFFFFF for word in pattern)
        self._words.setdefault(len(pattern), array("I")).extend(hashes)
        self._owners.append(0 if owner is None else hash(owner))
        self._owned.append(owner is not None)

    def groups(self, kept: Bools) -> GroupIds:
        """Return the groups of the rows that are marked."""
        ask = self._asks(kept)
        owner, owned = np.array(self._owners, dtype=np.int64)[kept], np.array(self._owned, dtype=np.bool_)[kept]
        if not len(ask):
            return ask
        rows = np.arange(len(ask))
        owner = np.where(owned, owner, rows)
        order = np.argsort(ask, kind="stable")
        starts = np.flatnonzero(np.diff(ask[order], prepend=-1))
        one_owner = np.minimum.reduceat(owner[order], starts) == np.maximum.reduceat(owner[order], starts)
        owners = np.unique(owner, return_inverse=True)[1]
        return _in_order(np.where(owned & one_owner[ask], owners + len(ask), ask))

    def _asks(self, kept: Bools) -> GroupIds:
        """int64[kept rows]: the same number from 0 for asks that are alike, and for those joined to them."""
        number = np.cumsum(kept) - 1  # of a kept row
        pairs: list[tuple[GroupIds, GroupIds]] = []
        for length, rows in self._rows.items():
            words = np.array(self._words[length], dtype=np.uint32).reshape(-1, length)
            inside = kept[rows]
            pairs += _alike(words[inside], number[np.array(rows, dtype=np.int64)[inside]])
        n = int(kept.sum())
        first = np.concatenate([ends[0] for ends in pairs]) if pairs else np.empty(0, np.int64)
        second = np.concatenate([ends[1] for ends in pairs]) if pairs else np.empty(0, np.int64)
        joined = sparse.coo_matrix((np.ones(len(first), dtype=np.bool_), (first, second)), shape=(n, n))
        numbers: GroupIds = csgraph.connected_components(joined, directed=False)[1].astype(np.int64)
        return numbers


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


def _alike(words: NDArray[np.uint32], rows: GroupIds) -> Iterator[tuple[GroupIds, GroupIds]]:
    """Yield pairs of rows that are alike, as (rows, rows). `words`: uint32[row, word], patterns of one length."""
    whole = np.zeros(len(rows), dtype=np.uint64)
    for i in range(words.shape[1]):
        whole += _placed(words[:, i], i)
    _, first, member = np.unique(whole, return_index=True, return_inverse=True)
    yield rows, rows[first[member]]
    if words.shape[1] < _LONG:
        return
    words, rows, whole = words[first], rows[first], whole[first]
    for i in range(words.shape[1]):  # alike without this word
        without = whole - _placed(words[:, i], i)
        order = np.argsort(without)
        same = np.flatnonzero(np.diff(without[order]) == 0)
        yield rows[order[same]], rows[order[same + 1]]


def _placed(words: NDArray[np.uint32], place: int) -> NDArray[np.uint64]:
    """A hash of each word at this place of the pattern (the finaliser of SplitMix64)."""
    mixed = words.astype(np.uint64) + np.uint64((place + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _in_order(numbers: GroupIds) -> GroupIds:
    """The same groups, numbered from 0 in the order of their first rows."""
    _, first, member = np.unique(numbers, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[member]
