"""Blocks between tags in a text: `<tag>` ... `</tag>`, found and cut out.

A text may have gaps: markers for characters that were not read. A block may begin or end in a gap.
"""

import re
from bisect import bisect
from collections.abc import Sequence
from itertools import chain

import msgspec

Span = tuple[int, int]  # start and end in a text
GAP = re.compile("\x00([0-9]{1,12})\x00")  # stands for this many characters that were not read


class Cut(msgspec.Struct, frozen=True):
    """A text after its blocks were cut out."""

    inside: list[str]  # the content of each block, without its tags
    outside: str  # the text without the blocks


class _Block(msgspec.Struct, frozen=True):
    """Its opening and closing tags. One of them may be a gap."""

    opening: re.Match[str]
    closing: re.Match[str]


def tag_pattern(names: str) -> re.Pattern[str]:
    """Return a pattern for tags with these names, separated by spaces, and for gaps.

    Letter case does not matter, and `_` also matches `-` and a space. Groups 1 and 2 are the slash of a closing tag
    and the name. In a gap, group 2 is None.
    """
    name = "|".join(names.split()).replace("_", "[-_ ]")
    initials = "".join({name[0] for name in names.split()})  # rejects most other tags early
    # Bounded and possessive, so that the search is linear in any text.
    tag = rf"<(?=/?[{initials}])(/?)({name})(?=[\s/>])[^<>]{{0,300}}+>"
    return re.compile(f"{tag}|{GAP.pattern}", re.IGNORECASE)


def gap(chars: int) -> str:
    """Return the marker for this many characters that were not read."""
    return f"\0{chars}\0"


def cut_blocks(text: str, tags: re.Pattern[str], line_start: bool = False, fences: Sequence[Span] = ()) -> Cut:
    """Cut out all closed blocks of these tags. A tag that is never closed stays.

    With `line_start`, a block opens only at the start of a line, outside of the code `fences`, and not in a gap.
    """
    if "</" not in text and (line_start or "\0" not in text):
        return Cut([], text)
    return _cut(text, _pair_tags(text, tags, line_start, fences))


def _pair_tags(text: str, tags: re.Pattern[str], line_start: bool, fences: Sequence[Span]) -> list[_Block]:
    """Pair each closing tag with the last open one of its name."""
    gaps: list[re.Match[str]] = []
    opened: dict[str, list[re.Match[str]]] = {}
    blocks: list[_Block] = []
    for tag in tags.finditer(text):
        if tag[2] is None:
            gaps.append(tag)
            continue
        openings = opened.setdefault(tag[2].lower(), [])
        if not tag[1]:
            if _opens(text, tag, not (line_start or openings), fences):
                openings.append(tag)
        elif openings:
            blocks.append(_Block(openings.pop(), tag))
        elif gaps and not line_start:  # its opening tag was not read
            blocks.append(_Block(gaps[-1], tag))
    return blocks + _unclosed(opened, gaps)


def _opens(text: str, tag: re.Match[str], anywhere: bool, fences: Sequence[Span]) -> bool:
    """Whether this tag opens a block.

    It always does at the start of a line outside of `fences`. In other places it does if `anywhere` is true.
    That is false inside an open `<x>`, whose text may mention `<x>`.
    """
    if tag[0].endswith("/>"):
        return False
    if anywhere:
        return True
    at = tag.start()
    return text[max(0, at - 1) : at] in ("", "\n") and not _is_fenced(at, fences)


def _is_fenced(at: int, fences: Sequence[Span]) -> bool:
    fence = bisect(fences, (at,)) - 1
    return fence >= 0 and at < fences[fence][1]


def _unclosed(opened: dict[str, list[re.Match[str]]], gaps: Sequence[re.Match[str]]) -> list[_Block]:
    """The blocks whose closing tag was perhaps not read: each ends at the next gap."""
    blocks = []
    for opening in chain.from_iterable(opened.values()):
        next_gap = next((later for later in gaps if later.start() > opening.start()), None)
        if next_gap is not None:
            blocks.append(_Block(opening, next_gap))
    return blocks


def _cut(text: str, blocks: list[_Block]) -> Cut:
    inside, outside, end = [], [], 0
    for block in sorted(blocks, key=lambda block: block.opening.start()):
        if block.opening.start() >= end:  # otherwise it begins inside a block that is already cut out
            inside.append(text[block.opening.end() : block.closing.start()])
            outside.append(text[end : block.opening.start()])
        end = max(end, block.closing.end())
    return Cut(inside, "".join([*outside, text[end:]]))
