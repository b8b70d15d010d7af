"""Writes the pattern of all prefixes of the texts that a pattern matches.

A text that is still growing can become a match only if it is one of these prefixes.
"""

import re
from collections.abc import Iterator, Sequence

import msgspec

# A pattern may have these: groups without a number, alternatives, repetitions, classes, escapes and characters.
_TOKENS = re.compile(
    r"(?P<open>\(\?:)|(?P<close>\))|(?P<alternative>\|)|(?P<repetition>(?:[?*+]|\{\d*,\d*\})\??)"
    r"|(?P<item>\[[^]]+\]|\\.|[^()\[\]{}|?*+\\])"
)
_END = "end"


class _Part(msgspec.Struct):
    """A part of a sequence: one character, a class, or a group."""

    whole: str
    prefixes: str  # of `whole`, apart from itself
    repetition: str = ""


def pattern_of_prefixes(pattern: str) -> str:
    """Return a pattern for the prefixes of the texts that match the whole of `pattern`.

    It also matches some other texts if a repetition has limits. Raises ValueError for syntax that is not known.
    """
    part, end = _group(_read(pattern))
    if end != _END:
        raise ValueError(f"a group ends that has no beginning: {pattern!r}")
    return part.prefixes


def _read(pattern: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each token."""
    at = 0
    while at < len(pattern):
        token = _TOKENS.match(pattern, at)
        if token is None:
            raise ValueError(f"not known in a pattern: {pattern[at : at + 20]!r}")
        at = token.end()
        yield str(token.lastgroup), token.group()
    yield _END, ""


def _group(tokens: Iterator[tuple[str, str]]) -> tuple[_Part, str]:
    """Read a group. Return it, and the kind of the token after it."""
    sequences: list[list[_Part]] = [[]]
    for kind, text in tokens:
        if kind == "open":
            part, end = _group(tokens)
            if end == _END:
                raise ValueError("a group has no end")
            sequences[-1].append(part)
        elif kind == "item":
            sequences[-1].append(_Part(text, ""))
        elif kind == "repetition":
            if not sequences[-1]:
                raise ValueError(f"nothing to repeat before {text!r}")
            sequences[-1][-1].repetition = text
        elif kind == "alternative":
            sequences.append([])
        else:
            wholes = ["".join(part.whole + part.repetition for part in sequence) for sequence in sequences]
            return _Part(_any_of(wholes), _any_of([*map(_prefixes, sequences)])), kind
    raise AssertionError("the last token is an end")


def _prefixes(sequence: Sequence[_Part]) -> str:
    rest = ""
    for part in reversed(sequence):
        if part.repetition[:1] in ("", "?"):
            rest = _any_of([part.prefixes, part.whole + part.repetition + rest])
        elif part.repetition[0] == "+":
            rest = f"{part.whole}*{_any_of([part.prefixes, part.whole + rest])}"
        else:
            most = part.repetition if part.repetition[0] == "*" else f"{{0,{part.repetition.partition(',')[2]}"
            rest = part.whole + most + _any_of([part.prefixes, rest])
    return rest


def _any_of(patterns: Sequence[str]) -> str:
    return f"(?:{'|'.join(patterns)})"
