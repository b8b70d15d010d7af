"""Markdown: tables, pages, and where a missing description is an error."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

NOTICE = "<!-- Written by `make reference` from the code. Edit the code or docs/generate, then run it again. -->"


class MissingWordsError(Exception):
    """Something in the code has no description: the message says what, and where to write one."""


def page(title: str, *parts: str) -> str:
    """A whole page. Empty parts are left out."""
    return "\n\n".join([f"# {title}", NOTICE, *(part.strip("\n") for part in parts if part)]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. A `|` or a line break in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines).replace("|  |", "| |")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def code(text: object) -> str:
    """The text as code."""
    return f"`{text}`"


def described(words: Mapping[str, T], key: str, kind: str) -> T:
    """The description of `key`. Raises MissingWordsError."""
    if key not in words:
        raise MissingWordsError(
            f"{kind} `{key}` has no description: write one in the code or in docs/generate/words.py"
        )
    return words[key]


def no_leftovers(words: Mapping[str, object], keys: Iterable[str], kind: str) -> None:
    """Raises MissingWordsError where a description is of something that the code no longer has."""
    gone = sorted(words.keys() - set(keys))
    if gone:
        raise MissingWordsError(
            f"the code has no {kind} called {', '.join(gone)}: remove it from docs/generate/words.py"
        )
