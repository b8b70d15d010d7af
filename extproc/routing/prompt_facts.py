"""Facts that are counted in an ask without a model, to predict how well a tier answers it."""

import math
import re

import numpy as np

from extproc.encoder.protocols import Vectors
from extproc.routing.ask import Ask

PROMPT_FACTS = (
    "chars",
    "stem_chars",
    "word_chars",
    "numbers",
    "symbols",
    "asks",
    "sentences",
    "negated",
    "options",
    "numeric_options",
    "option_chars",
    "code",
)
# The mark of an option: "A. " or "(B) ". An ask has no line breaks left, so a mark may stand anywhere.
_MARK = re.compile(r"(?:^|\s)\(?([A-J])[.):] ")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[.?!:;] ")
_NEGATED = frozenset(["not", "except", "false", "incorrect", "least", "never"])
_SYMBOLS = "$\\^={}"
_CODE = "_<>[]#|`"


def prompt_facts(ask: Ask) -> Vectors:
    """Return float32[12]: length, form, numbers, formulas, options and code. Takes about 20 microseconds."""
    text = ask.text
    stem, options = _options(text)
    words = _WORD.findall(text)
    return np.array(
        [
            math.log1p(ask.chars),
            math.log1p(len(stem)),
            sum(map(len, words)) / max(1, len(words)),
            math.log1p(len(_NUMBER.findall(stem))),
            math.log1p(sum(map(text.count, _SYMBOLS))),
            "?" in text,
            math.log1p(len(_SENTENCE.findall(stem))),
            not _NEGATED.isdisjoint(map(str.lower, words)),
            len(options),
            sum(_NUMBER.search(option) is not None for option in options) / max(1, len(options)),
            math.log1p(sum(map(len, options)) / max(1, len(options))),
            math.log1p(sum(map(text.count, _CODE))),
        ],
        dtype=np.float32,
    )


def _options(text: str) -> tuple[str, list[str]]:
    """The text before the options, and each option. Their letters follow each other from A on."""
    marks = list(_MARK.finditer(text))
    first = next((i for i, mark in enumerate(marks) if mark[1] == "A"), len(marks))
    marks = marks[first:]
    if [mark[1] for mark in marks[:2]] != ["A", "B"]:
        return text, []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return text[: marks[0].start()], [text[mark.end() : end] for mark, end in zip(marks, ends, strict=True)]
