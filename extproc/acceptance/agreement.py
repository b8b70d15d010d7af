"""Compares two answers to the same request: by the value that they end with, otherwise by meaning.

Two solutions of one problem read alike, even if their results differ. So their results are compared where both
answers state one: a JSON member `answer`, `\\boxed{}`, `####`, "the answer is", or a letter or number alone.
"""

import re

import msgspec

from extproc.acceptance.grounding import Embed

# A longer answer is a text. Texts are compared by meaning.
_VALUE_CHARS = 60
# An answer of more characters is searched only at its end.
_TAIL_CHARS = 4000
_JSON_MEMBER = re.compile(
    r'"(?:final_?)?answer"\s*:\s*(?:"((?:[^"\\]|\\.){1,60})"|([^\s",}\]]{1,60}))', re.IGNORECASE
)
_STATED = (
    re.compile(r"\\boxed\{([^{}]{1,60})\}"),
    re.compile(r"####[ \t]*(\S[^\n]{0,59})"),
    re.compile(r"\banswer(?: is|:)[ \t:*]*([^\n]{1,60})", re.IGNORECASE),
)
_NUMBER = re.compile(r"-?\d{1,15}(?:,\d{3}){0,4}(?:\.\d{1,15})?")
_LETTER = re.compile(r"\(?([A-J])(?:[).:]|$)")
_AROUND = " \t\r\n*_$`.,;:!()[]{}\"'"


class Value(msgspec.Struct, frozen=True):
    """The result that an answer states, in one spelling."""

    text: str
    exact: bool  # a letter or a number, so that another text is another result


def same_answer(first: str, second: str, level: float, embed: Embed | None) -> bool | None:
    """Return whether two answers agree. `level` is the least similarity of texts. None: they cannot be compared."""
    values = final_value(first), final_value(second)
    if values[0] is not None and values[1] is not None:
        if values[0].text == values[1].text or values[0].exact or values[1].exact:
            return values[0].text == values[1].text
        first, second = values[0].text, values[1].text
    vectors = embed([first, second]) if embed is not None else None
    return None if vectors is None else bool(float(vectors[0] @ vectors[1]) >= level)


def final_value(text: str) -> Value | None:
    """Return the value that an answer states at its end. None: it states none."""
    tail = text.strip()[-_TAIL_CHARS:]
    members = _JSON_MEMBER.findall(tail)
    if members:
        quoted, bare = members[-1]
        return _value(quoted or bare)
    for pattern in _STATED:
        stated = pattern.findall(tail)
        if stated:
            return _value(stated[-1])
    value = _value(tail) if len(tail) <= _VALUE_CHARS else None
    return value if value is not None and value.exact else None


def _value(text: str) -> Value | None:
    """Leave out the differences that mean nothing: case, marks, units and the form of a number."""
    text = text.strip(_AROUND.replace("(", ""))
    letter = _LETTER.match(text)
    if letter is not None:
        return Value(letter[1].lower(), exact=True)
    numbers = _NUMBER.findall(text)
    if len(numbers) == 1:
        return Value(f"{float(numbers[0].replace(',', '')):.10g}", exact=True)
    words = " ".join(text.strip(_AROUND).lower().split())
    return Value(words, exact=False) if words else None
