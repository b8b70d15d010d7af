"""Facts about a question and an answer that need no model, to predict whether the answer is right."""

import re
import zlib

import numpy as np

from extproc.evidence.measure.metrics import Floats

# The final answer in a text, and the options of a multiple-choice question.
_FINAL = re.compile(r"\b(?:final answer|answer is|answer:|therefore|in conclusion)\b", re.IGNORECASE)
_CHOICE = re.compile(r"answer is:?\s*\**\(?([A-J])\b")
_OPTION = re.compile(r"^\(?([A-J])[.)]\s+(.+)$", re.MULTILINE)
_HEDGE = re.compile(
    r"\b(?:not sure|unsure|unclear|assum\w+|approximat\w+|roughly|might|may be|perhaps|possibl[ey]|closest|cannot|"
    r"however|guess\w*|seems?|likely|probably|none of|not (?:listed|among|given)|error|mistake|"
    r"re-?(?:check|evaluat|consider|examin)\w*)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_WORD = re.compile(r"\w+")
# The end of the reasoning, which has its result.
_TAIL_CHARS = 200
_CLOSE = 0.02  # relative distance of a number that was rounded
_FAR = 9.0  # largest relative distance: beyond it the quantity is another one
_LETTERS = "ABCDEFGHIJ"


def of_question(question: str) -> Floats:
    """float64[12]: length, form, numbers, formulas and options."""
    words = _WORD.findall(question)
    options = [text for _, text in _OPTION.findall(question)]
    stem = _OPTION.sub("", question)
    lowered = {word.lower() for word in words}
    return np.array(
        [
            np.log1p(len(question)),
            np.log1p(len(stem)),
            float(np.mean([len(word) for word in words])) if words else 0.0,
            np.log1p(len(_NUMBER.findall(stem))),
            np.log1p(sum(map(question.count, "$\\^={}"))),
            question.count("?") > 0,
            np.log1p(stem.count("\n")),
            bool(lowered & {"not", "except", "false", "incorrect", "least"}),
            len(options),
            _numeric(options),
            np.log1p(float(np.mean([len(text) for text in options]))) if options else 0.0,
            "_" in stem,
        ],
        dtype=np.float64,
    )


def of_answer(question: str, answer: str) -> Floats:
    """float64[32]: length, ending, hedges, repetition, formulas, and agreement of the choice with the reasoning."""
    words = [word.lower() for word in _WORD.findall(answer)]
    threes = list(zip(words, words[1:], words[2:], strict=False))
    cut = _CHOICE.search(answer) or _FINAL.search(answer)
    body = answer[: cut.start()] if cut is not None else answer
    numbers = len(_NUMBER.findall(body))
    hedges = len(_HEDGE.findall(answer))
    form = [
        np.log1p(len(answer)),
        np.log1p(len(words)),
        np.log1p(len(answer)) - np.log1p(len(question)),
        np.log1p(answer.count("\n")),
        cut is not None,
        np.log1p(hedges),
        hedges / (len(words) + 1),
        len(set(threes)) / (len(threes) + 1),
        len(zlib.compress(answer.encode(errors="replace"))) / (len(answer) + 1),
        np.log1p(numbers),
        np.log1p(body.count("=")),
        sum(map(str.isdigit, answer)) / (len(answer) + 1),
        np.log1p(sum(map(answer.count, "$\\"))),
        float(np.mean([len(word) for word in words])) if words else 0.0,
        body[-_TAIL_CHARS:].count("?"),
        answer.count("**") > 0,
        len(set(re.findall(r"\(([A-J])\)", answer))),
        bool(re.match(r"\s*(?:we refer to|let's|let us)", answer, re.IGNORECASE)),
    ]
    return np.array([*form, *_agreement(question, answer, body)], dtype=np.float64)


def _agreement(question: str, answer: str, body: str) -> list[float]:
    """Agreement of the chosen option with the reasoning before it. Zeros if the answer chooses no option."""
    options = dict(_OPTION.findall(question))
    choice = _CHOICE.search(answer)
    chosen = options.get(choice[1], "") if choice is not None else ""
    if not chosen or choice is None:
        return [0.0] * 14
    body_words = {word.lower() for word in _WORD.findall(body)}
    shares = {letter: _share_of_words(text, body_words) for letter, text in options.items()}
    chosen_share = shares.pop(choice[1])
    other_shares = list(shares.values()) or [0.0]
    chosen_numbers = _numbers(chosen)
    last_numbers = _numbers(body[-_TAIL_CHARS:])
    target = chosen_numbers[0] if chosen_numbers else 0.0
    distances = [abs(x - target) / (abs(target) + 1e-9) for x in last_numbers] if chosen_numbers else []
    nearest, last = (min(distances), distances[-1]) if distances else (_FAR, _FAR)
    mean_length = float(np.mean([len(text) for text in options.values()]))
    return [
        1.0,
        chosen.lower() in body.lower(),
        chosen_share,
        chosen_share - max(other_shares),
        chosen_share - float(np.mean(other_shares)),
        bool(chosen_numbers),
        nearest <= 1e-6,
        nearest <= _CLOSE,
        last <= 1e-6,
        last <= _CLOSE,
        float(np.log1p(min(nearest, _FAR))) if chosen_numbers else 0.0,
        _LETTERS.find(choice[1]),
        np.log1p(len(chosen)),
        len(chosen) / (mean_length + 1),
    ]


def _share_of_words(text: str, words: set[str]) -> float:
    """The share of the words of `text` that are in `words`."""
    own_words = {word.lower() for word in _WORD.findall(text)}
    return len(own_words & words) / max(1, len(own_words))


def _numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in _NUMBER.findall(text)]


def _numeric(options: list[str]) -> float:
    return sum(bool(_NUMBER.search(text)) for text in options) / max(1, len(options))
