"""Scores how likely an answer is right, from facts that are counted in question and answer and a fitted curve.

The method follows FrugalGPT (Chen et al. 2023), where a small model per task predicts success. `extproc calibrate`
fits the weights on recorded outcomes with the same facts. Only the head and tail of a long text are used, so each
fact is bounded and cheap. A fact is 0 when there is nothing to count.
"""

import math
import re
from collections.abc import Sequence
from typing import Annotated

import msgspec

from extproc.acceptance.refusal import refuses
from extproc.api.observation import Observation
from extproc.settings import about

# The question is sent to the verifier with every chunk of a stream, so it is short. A longer answer would block the
# event loop for milliseconds.
QUESTION_CHARS, ANSWER_CHARS = 2000, 8000
# The end of the reasoning, which usually has its result.
_TAIL_CHARS = 200
_CLOSE = 0.02  # relative difference of a number that was rounded
_FAR = 9.0  # relative difference above which two numbers are unrelated
_LONGEST_WORD = 20.0
# A token with a log-probability below this was in doubt.
_DOUBT = -1.0

_ANY_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"-?\d{1,15}(?:,\d{3}){0,4}(?:\.\d{1,15})?")  # as many digits as a float can represent
# The options of a multiple-choice question, and the letter that an answer chooses.
_OPTION = re.compile(r"^\(?([A-J])[.)][ \t]+(\S.*)$", re.MULTILINE)
_CHOSEN_LETTER = re.compile(r"answer is:?[ \t]*\**\(?([A-J])\b")
_HEDGES = """
    unsure unclear uncertain assume assumes assumed assuming assumption approximate approximately roughly might may
    perhaps possible possibly closest cannot however guess seem seems likely probably none error mistake recheck
    unfortunately unknown
"""
_HEDGE = frozenset(_HEDGES.split())

LOGPROB_FACTS = ("logprob", "doubts")
SCORE_FACTS = (
    "length",  # characters of the answer; this and other counts are logarithms
    "lines",
    "word_length",
    "numbers",
    "equations",
    "hedges",
    "asks",  # the answer ends in a question
    "echo",  # the share of its words that are also in the question
    "cut",  # it stopped at a token limit
    "refusal",  # it opens as a refusal
    "question_length",
    "formulas",  # in the question
    "numeric_options",  # the share of the options that have numbers
    "chosen_said",  # the share of the chosen option's words that are in the reasoning
    "chosen_ahead",  # that share minus the best one of the other options
    "chosen_near",  # the chosen option's number is at the end of the reasoning
    "chosen_far",  # relative difference between that number and the nearest one at the end
    "chosen_length",  # relative to the mean length of the options
    *LOGPROB_FACTS,  # the mean over all tokens; the share of tokens in doubt
)


class Scorer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cohort's fitted curve, and the data it was fitted on. `extproc calibrate` writes it."""

    date: Annotated[str, about("Day of the fit, as YYYY-MM-DD.")]
    data: Annotated[str, about("Hash of the recorded traffic.")]
    rows: Annotated[int, about("Number of its rows that the curve of this cohort was fitted on.")]
    tier: Annotated[str, about("Tier whose answers it scores. It says nothing about another tier's.")]
    model: Annotated[str, about("Model of that tier. With another model the score is refused.")]
    auroc: Annotated[tuple[float, float], about("95 % interval of the AUROC, on rows that were not fitted on.")]
    offset: Annotated[float, about("Offset of the curve.")]
    weights: Annotated[dict[str, float], about("Weight of each fact about the answer, by its name.")]

    def score(self, question: str, answer: Observation) -> float | None:
        """Return the probability, 0 to 1, that the answer is right. None without log-probabilities it needs."""
        if self.wants_logprobs and not answer.logprobs:
            return None
        facts = zip(SCORE_FACTS, score_facts(question, answer), strict=True)
        logit = self.offset + sum(self.weights.get(name, 0.0) * fact for name, fact in facts)
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, logit))))

    @property
    def wants_logprobs(self) -> bool:
        """Whether a fact about log-probabilities has a weight."""
        return any(name in self.weights for name in LOGPROB_FACTS)

    @property
    def stamp(self) -> str:
        """The hash of the data and the date, as one short text."""
        return f"{self.data} {self.date}"


def score_facts(question: str, answer: Observation) -> list[float]:
    """Return the facts, in the order of SCORE_FACTS."""
    question, text = head_and_tail(question, QUESTION_CHARS), head_and_tail(answer.text, ANSWER_CHARS)
    words, question_words = _ANY_WORD.findall(text.lower()), set(_ANY_WORD.findall(question.lower()))
    options = dict(_OPTION.findall(question))
    chosen = _CHOSEN_LETTER.search(text)
    reasoning = text if chosen is None else text[: chosen.start()]
    return [
        math.log1p(len(text)),
        math.log1p(text.count("\n")),
        min(sum(map(len, words)) / max(1, len(words)), _LONGEST_WORD),
        math.log1p(len(_NUMBER.findall(reasoning))),
        math.log1p(reasoning.count("=")),
        math.log1p(sum(word in _HEDGE for word in words)),
        float("?" in reasoning[-_TAIL_CHARS:]),
        sum(word in question_words for word in words) / max(1, len(words)),
        float(answer.finish == "length"),
        float(answer.refusal is not None or refuses(text)),
        math.log1p(len(question)),
        math.log1p(sum(map(question.count, "$\\^={}"))),
        sum(_NUMBER.search(option) is not None for option in options.values()) / max(1, len(options)),
        *_option_facts(options, "" if chosen is None else chosen[1], reasoning),
        *_logprob_facts(answer.logprobs),
    ]


def head_and_tail(text: str, most: int) -> str:
    """Return a text, or its head and tail if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}\n{text[-most // 2 :]}"


def _option_facts(options: dict[str, str], letter: str, reasoning: str) -> tuple[float, float, float, float, float]:
    """Return how the chosen option agrees with the reasoning before it. Zeros without a chosen option."""
    chosen = options.get(letter, "")
    if not chosen:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    reasoning_words = set(_ANY_WORD.findall(reasoning.lower()))
    share = _share_of_words(chosen, reasoning_words)
    others = [_share_of_words(text, reasoning_words) for other, text in options.items() if other != letter]
    chosen_number, last_numbers = _numbers(chosen)[:1], _numbers(reasoning[-_TAIL_CHARS:])
    distance = min((abs(x - y) / (abs(y) + 1e-9) for y in chosen_number for x in last_numbers), default=_FAR)
    mean_length = sum(map(len, options.values())) / len(options)
    return (
        share,
        share - max(others, default=0.0),
        float(distance <= _CLOSE),
        math.log1p(min(distance, _FAR)) if chosen_number else 0.0,
        min(len(chosen) / (mean_length + 1), _FAR),
    )


def _share_of_words(text: str, words: set[str]) -> float:
    """Return the share of the words of `text` that are in `words`."""
    text_words = set(_ANY_WORD.findall(text.lower()))
    return len(text_words & words) / max(1, len(text_words))


def _numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in _NUMBER.findall(text)]


def _logprob_facts(logprobs: Sequence[float]) -> tuple[float, float]:
    if not logprobs:
        return 0.0, 0.0
    return sum(logprobs) / len(logprobs), sum(value < _DOUBT for value in logprobs) / len(logprobs)
