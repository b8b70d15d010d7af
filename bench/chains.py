"""Recorded chains: the same questions answered by models of several sizes, with log-probabilities and token counts.

The files have the traffic format of docs/reference/traffic.md, with a `response` for each model. The authors' own
split is in the id: `mmlu-train-7` is for fitting, `mmlu-test-7` for the report.
"""

import gzip
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.cascade import LARGE, SMALL, Outcomes, accuracies, resamples
from bench.recovery import apgr
from bench.replay import Answer
from extproc.acceptance.score import score_facts
from extproc.api.answer import AnswerReader
from extproc.api.observation import Observation
from extproc.evidence.fit.logprobs import level_at, mean_logprobs
from extproc.evidence.fit.partition import hash_fraction
from extproc.evidence.fit.scorer import Answers, fit_curves
from extproc.evidence.measure.metrics import Floats

# US dollars per million tokens, input and output: of open models by their size in billions of parameters, as hosts
# list them, and of others by how their names begin.
_BY_SIZE = ((4.0, 0.10), (16.0, 0.20), (100.0, 0.90), (1000.0, 3.00))
_BY_NAME = {
    "gpt-4o-mini": (0.15, 0.60),
    "gpt-4o": (2.50, 10.00),
    "claude-3-5-sonnet": (3.00, 15.00),
    "claude-3-haiku": (0.25, 1.25),
    "gemini-1.5-flash": (0.075, 0.30),
    "gemini-1.5-pro": (1.25, 5.00),
    "mistral-nemo": (0.20, 0.20),  # 12 billion parameters
    "mistral-large": (2.00, 6.00),
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)b\b", re.IGNORECASE)
_RESAMPLES = 500
# The part to fit on, of a file whose ids name no part.
_FIT_SHARE = 0.3


class ChainQuestion(msgspec.Struct, frozen=True):
    """One question with the recorded answer of each model."""

    id: str
    category: str  # the data set
    prompt: str
    answers: dict[str, Answer]
    success: dict[str, bool]
    fit: bool

    def as_tiers(self, small: str, large: str) -> "ChainQuestion":
        """The question with two models, called by the names of their tiers."""
        names = {SMALL: small, LARGE: large}
        answers = {tier: self.answers[model] for tier, model in names.items()}
        return msgspec.structs.replace(
            self, answers=answers, success={tier: self.success[model] for tier, model in names.items()}
        )

    def right(self, tier: str) -> bool:
        """Whether the answer of the tier is right."""
        return self.success[tier]


class _Outcome(msgspec.Struct):
    success: bool
    response: msgspec.Raw
    latency_s: float | None = None


class _Row(msgspec.Struct):
    id: str
    text: str
    intent: str
    outcomes: dict[str, _Outcome]


def read_chains(paths: Sequence[Path]) -> list[ChainQuestion]:
    """The questions of these files, without those that share a text, which a replay cannot distinguish.

    Raises RuntimeError if nothing can be fitted or reported on.
    """
    rows = [
        msgspec.json.decode(line, type=_Row)
        for path in paths
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    times, models = Counter(row.text for row in rows), set.intersection(*(set(row.outcomes) for row in rows))
    has_parts = any("-train-" in row.id for row in rows)
    questions = [
        ChainQuestion(
            row.id,
            row.intent,
            row.text,
            {model: _answer(model, row.outcomes[model]) for model in models},
            {model: row.outcomes[model].success for model in models},
            "-train-" in row.id if has_parts else hash_fraction(row.text, 0) < _FIT_SHARE,
        )
        for row in rows
        if times[row.text] == 1
    ]
    for part, name in ((True, "to fit on"), (False, "to report on")):
        if not any(question.fit is part for question in questions):
            raise RuntimeError(f"{[path.name for path in paths]}: no question {name}")
    if not all(answer.logprobs for question in questions for answer in question.answers.values()):
        raise RuntimeError(f"{[path.name for path in paths]}: some answers have no log-probabilities")
    return questions


def _answer(model: str, outcome: _Outcome) -> Answer:
    seen = _observed(bytes(outcome.response))
    usage = seen.usage
    if usage is None or usage.input is None or usage.output is None:
        raise RuntimeError(f"an answer of {model} has no token counts")
    return Answer(
        model, seen.text, logprobs=seen.logprobs, usage=(usage.input, usage.output), seconds=outcome.latency_s
    )


def _observed(response: bytes) -> Observation:
    reader = AnswerReader("chat")
    reader.feed(response)
    reader.finish()
    return reader.observation()


def price_of(model: str) -> tuple[float, float]:
    """Dollars per million tokens, input and output."""
    if (price := next((_BY_NAME[name] for name in _BY_NAME if model.lower().startswith(name)), None)) is not None:
        return price
    size = _SIZE.search(model)
    if size is None:
        raise RuntimeError(f"{model}: no size in its name, and no price in bench/chains.py: add one to _BY_NAME")
    dollars = next(dollars for most, dollars in _BY_SIZE if float(size[1]) <= most)
    return dollars, dollars


def models_by_price(questions: Sequence[ChainQuestion]) -> list[str]:
    """The models, cheapest first. Models of one price are ordered by size, then by accuracy."""

    def rank(model: str) -> tuple[float, float, float]:
        size = _SIZE.search(model)
        right = float(np.mean([question.success[model] for question in questions]))
        return sum(price_of(model)), float(size[1]) if size is not None else 0.0, right

    return sorted(questions[0].answers, key=rank)


def by_data_set(questions: Sequence[ChainQuestion]) -> dict[str, list[ChainQuestion]]:
    """The questions of each data set."""
    ordered = sorted(questions, key=lambda question: question.category)
    return {name: list(group) for name, group in itertools.groupby(ordered, key=lambda question: question.category)}


# --- levels -----------------------------------------------------------------------------------------------------


def means(questions: Sequence[ChainQuestion], model: str) -> Floats:
    """The mean log-probability of each answer."""
    return mean_logprobs([_seen(question, model) for question in questions])[None]


def _seen(question: ChainQuestion, model: str) -> Observation:
    answer = question.answers[model]
    return Observation(text=answer.text, finish="stop", n_choices=1, complete=True, logprobs=answer.logprobs)


def fit_levels(fit: Sequence[ChainQuestion], model: str, share: float) -> dict[str, float]:
    """The level of each data set that rejects this share of the answers fitted on, as `calibrate` fits it."""
    return {name: level_at(means(group, model), share) for name, group in by_data_set(fit).items()}


def escalated_by_score(
    fit: Sequence[ChainQuestion], new: Sequence[ChainQuestion], model: str, share: float, logprobs: bool
) -> Floats:
    """1 for each new answer that the acceptance score rejects. Its level rejects `share` of the answers fitted on.

    Without `logprobs` the score reads only the form of the answer and the question.
    """
    facts, names = (
        [np.array([score_facts(q.prompt, _seen(q, model)) for q in part]) for part in (fit, new)],
        [np.array([q.category for q in part]) for part in (fit, new)],
    )
    right = np.array([q.success[model] for q in fit], dtype=float)
    escalated = np.zeros(len(new))
    for name, curve in fit_curves(Answers(names[0], facts[0], right), logprobs).items():
        rows = names[1] == name
        level = np.quantile(curve.chances(facts[0][names[0] == name]), share)
        escalated[rows] = curve.chances(facts[1][rows]) < level
    return escalated


# --- outcomes -----------------------------------------------------------------------------------------------------


def outcomes_of(questions: Sequence[ChainQuestion], small: str, large: str, escalated: Floats) -> Outcomes:
    """The outcome of each question for a pair of models, with costs from the recorded token counts."""

    def cost(question: ChainQuestion, model: str) -> float:
        price, usage = price_of(question.answers[model].model), question.answers[model].usage
        assert usage is not None, "read_chains has checked it"
        return (usage[0] * price[0] + usage[1] * price[1]) / 1e6

    return Outcomes(
        small=np.array([q.success[small] for q in questions], dtype=float),
        large=np.array([q.success[large] for q in questions], dtype=float),
        escalated=escalated,
        small_cost=np.array([cost(q, small) for q in questions]),
        large_cost=np.array([cost(q, large) for q in questions]),
    )


def ahead_of_mix(o: Outcomes, seed: int, times: int = 2000) -> tuple[float, float, float]:
    """(points above the static mix of equal cost, the ends of its 95 % interval)."""
    measured, resampled = accuracies(o), accuracies(resamples(o, seed, times))
    low, high = np.quantile(resampled["cascade"] - resampled["mix"], (0.025, 0.975))
    return tuple(100 * float(x) for x in (measured["cascade"] - measured["mix"], low, high))  # type: ignore[return-value]


def best_pair(fit: Sequence[ChainQuestion], share: float) -> tuple[str, str]:
    """The pair whose cascade gains most over the static mix on the part fitted on, as a mean over data sets."""
    gains = {}
    for small, large in itertools.combinations(models_by_price(fit), 2):
        levels = fit_levels(fit, small, share)
        gains[small, large] = np.mean(
            [
                ahead_of_mix(outcomes_of(part, small, large, rejected(part, small, levels)), 0, 1)[0]
                for part in by_data_set(fit).values()
            ]
        )
    return max(gains, key=lambda pair: gains[pair])


def rejected(questions: Sequence[ChainQuestion], model: str, levels: Mapping[str, float]) -> Floats:
    """1 for each answer whose mean log-probability is below the level of its data set."""
    level = np.array([levels[question.category] for question in questions])
    escalated: Floats = (means(questions, model) < level).astype(float)
    return escalated


def pair_lines(questions: Sequence[ChainQuestion], share: float, seed: int) -> Iterator[str]:
    """The gain of each pair in each data set, computed offline by the levels that serve."""
    fit, test = ([q for q in questions if q.fit is part] for part in (True, False))
    gain_title, area_title = "minus static mix of equal cost [95 %]", "area [95 %], random 0.500"
    yield f"{'data set':<12}{'small':<16}{'large':<16}{'escalated %':>11}   {gain_title}   {area_title}"
    for small, large in itertools.combinations(models_by_price(questions), 2):
        levels = fit_levels(fit, small, share)
        for name, part in by_data_set(test).items():
            escalated = rejected(part, small, levels)
            gain, low, high = ahead_of_mix(outcomes_of(part, small, large, escalated), seed)
            share_text = f"{100 * escalated.mean():>11.1f}"
            gain_text = f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]"
            area = area_text(part, small, large, seed)
            yield f"{name:<12}{small:<16}{large:<16}{share_text}   {gain_text:<{len(gain_title)}}   {area}"


def area_text(questions: Sequence[ChainQuestion], small: str, large: str, seed: int) -> str:
    """The area under the curve of escalation by the mean log-probability (bench/recovery.py)."""
    scores = -np.array([np.mean(q.answers[small].logprobs) for q in questions])
    weak, strong = (np.array([q.success[model] for q in questions], dtype=np.float64) for model in (small, large))
    rng, n = np.random.default_rng(seed), len(questions)
    drawn = [apgr(scores[rows], weak[rows], strong[rows]) for rows in rng.integers(0, n, (_RESAMPLES, n))]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return f"{apgr(scores, weak, strong):.3f} [{low:.3f}, {high:.3f}]"


def traffic_row(question: ChainQuestion) -> dict[str, Any]:
    """The question as recorded traffic of the tiers small and large."""
    outcomes = {
        tier: {
            "success": question.success[tier],
            "tokens_in": (answer.usage or (0, 0))[0],
            "tokens_out": (answer.usage or (0, 0))[1],
            "response": {
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": answer.text},
                        "logprobs": {"content": [{"token": "", "logprob": value} for value in answer.logprobs]},
                    }
                ]
            },
        }
        for tier, answer in question.answers.items()
    }
    return {"text": question.prompt, "outcomes": outcomes}
