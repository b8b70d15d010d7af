"""How likely an answer is right: countable facts of question and answer, weighed by a fitted curve.

After FrugalGPT (Chen et al. 2023): a small model of each task that predicts success. `extproc calibrate` fits the
weights on recorded outcomes, by these very facts. Of a long text its head and tail count, so each fact is bounded
and costs little; a fact is 0 where there is nothing to count.
"""

import math
import re
from collections.abc import Sequence

import msgspec

from extproc.acceptance.refusal import refuses
from extproc.api.observation import Observation

# Of a question, which travels to the verifier with every chunk of a stream, and of an answer; more of that would be
# milliseconds on the event loop.
QUESTION_CHARS, ANSWER_CHARS = 2000, 8000
# The end of the reasoning, where its result stands.
_TAIL_CHARS = 200
_CLOSE = 0.02  # of a number that was rounded on the way
_FAR = 9.0  # from any number, relatively: no longer the same quantity
_LONGEST_WORD = 20.0
# Surer than this, a token was hardly in doubt.
_DOUBT = -1.0

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"-?\d{1,15}(?:,\d{3}){0,4}(?:\.\d{1,15})?")  # no more digits than a float can hold
# What a multiple-choice question offers, and what an answer settles on.
_OPTION = re.compile(r"^\(?([A-J])[.)][ \t]+(\S.*)$", re.MULTILINE)
_CHOICE = re.compile(r"answer is:?[ \t]*\**\(?([A-J])\b")
_HEDGES = """
    unsure unclear uncertain assume assumes assumed assuming assumption approximate approximately roughly might may
    perhaps possible possibly closest cannot however guess seem seems likely probably none error mistake recheck
    unfortunately unknown
"""
_HEDGE = frozenset(_HEDGES.split())

LOGPROB_FACTS = ("logprob", "doubts")
SCORE_FACTS = (
    "length",  # of the answer, in characters: logarithms, here and below
    "lines",
    "word_length",
    "numbers",
    "equations",
    "hedges",
    "asks",  # it ends in a question
    "echo",  # the share of its words that are the question's
    "cut",  # it stopped at a cap on tokens
    "refusal",  # it opens as one
    "question_length",
    "formulas",  # of the question
    "numeric_options",  # the share of the options offered that are numbers
    "chosen_said",  # the share of the chosen option's words that the reasoning had said
    "chosen_ahead",  # of the best of the other options, in that
    "chosen_near",  # a number of the chosen option stands at the end of the reasoning
    "chosen_far",  # how far from it that end is, relatively
    "chosen_length",  # against the mean option's
    *LOGPROB_FACTS,  # the mean over tokens; the share of tokens in doubt
)


class Scorer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cohort's fitted curve, and what it was fitted on; `extproc calibrate` writes it."""

    date: str
    data: str  # the hash of the traffic
    rows: int  # of it that the cohort's curve was fitted on
    tier: str  # whose answers it scores; it says nothing of another tier's
    model: str
    auroc: tuple[float, float]  # 95 % interval, on rows that the fit had not seen
    offset: float
    weights: dict[str, float]  # by fact

    def score(self, question: str, answer: Observation) -> float | None:
        """How likely the answer is right, from 0 to 1; None without log-probabilities that it weighs."""
        if self.wants_logprobs and not answer.logprobs:
            return None
        facts = zip(SCORE_FACTS, score_facts(question, answer), strict=True)
        logit = self.offset + sum(self.weights.get(name, 0.0) * fact for name, fact in facts)
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, logit))))

    @property
    def wants_logprobs(self) -> bool:
        """Whether a weight stands on the log-probabilities of tokens."""
        return any(name in self.weights for name in LOGPROB_FACTS)

    @property
    def stamp(self) -> str:
        """Which data and when, in one short word each."""
        return f"{self.data} {self.date}"


def score_facts(question: str, answer: Observation) -> list[float]:
    """The facts, in the order of SCORE_FACTS."""
    question, text = ends(question, QUESTION_CHARS), ends(answer.text, ANSWER_CHARS)
    words, asked = _WORD.findall(text.lower()), set(_WORD.findall(question.lower()))
    options = dict(_OPTION.findall(question))
    chosen = _CHOICE.search(text)
    body = text if chosen is None else text[: chosen.start()]
    return [
        math.log1p(len(text)),
        math.log1p(text.count("\n")),
        min(sum(map(len, words)) / max(1, len(words)), _LONGEST_WORD),
        math.log1p(len(_NUMBER.findall(body))),
        math.log1p(body.count("=")),
        math.log1p(sum(word in _HEDGE for word in words)),
        float("?" in body[-_TAIL_CHARS:]),
        sum(word in asked for word in words) / max(1, len(words)),
        float(answer.finish == "length"),
        float(answer.refusal is not None or refuses(text)),
        math.log1p(len(question)),
        math.log1p(sum(map(question.count, "$\\^={}"))),
        sum(_NUMBER.search(option) is not None for option in options.values()) / max(1, len(options)),
        *_choice(options, "" if chosen is None else chosen[1], body),
        *_doubts(answer.logprobs),
    ]


def ends(text: str, most: int) -> str:
    """A text, or its head and tail where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}\n{text[-most // 2 :]}"


def _choice(options: dict[str, str], letter: str, body: str) -> tuple[float, float, float, float, float]:
    """How the option that was chosen agrees with the reasoning before it; zeros where nothing was to choose."""
    chosen = options.get(letter, "")
    if not chosen:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    said = set(_WORD.findall(body.lower()))
    mine = _share_said(chosen, said)
    others = [_share_said(text, said) for other, text in options.items() if other != letter]
    wanted, led = _numbers(chosen)[:1], _numbers(body[-_TAIL_CHARS:])
    away = min((abs(x - y) / (abs(y) + 1e-9) for y in wanted for x in led), default=_FAR)
    mean_length = sum(map(len, options.values())) / len(options)
    return (
        mine,
        mine - max(others, default=0.0),
        float(away <= _CLOSE),
        math.log1p(min(away, _FAR)) if wanted else 0.0,
        min(len(chosen) / (mean_length + 1), _FAR),
    )


def _share_said(text: str, said: set[str]) -> float:
    words = set(_WORD.findall(text.lower()))
    return len(words & said) / max(1, len(words))


def _numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def _doubts(logprobs: Sequence[float]) -> tuple[float, float]:
    if not logprobs:
        return 0.0, 0.0
    return sum(logprobs) / len(logprobs), sum(value < _DOUBT for value in logprobs) / len(logprobs)
