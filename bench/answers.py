"""Rules that read a whole answer, on recorded answers with reasoning: `make bench-answers`.

A small model answers first. A rule judges its answer, and a rejected one is answered again by the large model. Each
rule runs with the functions that serve. Curves and levels were fitted on other questions (5 folds). The
controls are random escalation of the same share, the best static mix of all models used at the same cost, and the
oracle.
"""

import argparse
import gzip
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench.cache import Cache, CachedEncoder
from bench.chains import price_of
from extproc.acceptance.agreement import same_answer
from extproc.acceptance.grounding import grounded_share, sentences, windows
from extproc.acceptance.rules import AcceptRule, compile_rules
from extproc.acceptance.score import score_facts
from extproc.acceptance.verdict import judge
from extproc.api.observation import Observation
from extproc.encoder.protocols import Vectors
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.fit.scorer import Answers, fit_curves
from extproc.evidence.measure.metrics import Bools, Floats, static_mix

# Padding that a host left at the end of answers.
_PADDING = "</s>"
_FOLDS = 5
_RESAMPLES = 2000
# Share of the answers that a rule with a fitted level rejects.
_SHARE = 0.3
# The level of the rules `agree` and `grounded` unless a policy sets another one.
_AGREE_LEVEL, _GROUNDED_LEVEL = 0.8, 0.6
_SCHEMA = {
    "type": "object",
    "properties": {"reasoning": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["reasoning", "answer"],
}


class _Outcome(msgspec.Struct):
    success: bool
    answer: str


class Row(msgspec.Struct):
    """One question with the recorded answer of each model."""

    text: str
    outcomes: dict[str, _Outcome]


class Model(msgspec.Struct, frozen=True):
    """One model's answers, one entry per question."""

    name: str
    right: Floats
    cost: Floats  # dollars
    answers: list[str]


class Judged(msgspec.Struct, frozen=True):
    """The decision of a rule about each answer of the small model."""

    rejected: Bools
    others: tuple[str, ...] = ()  # the models that it asks about every answer


def read(path: Path) -> tuple[list[str], dict[str, Model]]:
    """(questions, models by name), cheapest model first. Raises RuntimeError without questions or models."""
    rows = [msgspec.json.decode(line, type=Row) for line in gzip.decompress(path.read_bytes()).splitlines()]
    names = set.intersection(*(set(row.outcomes) for row in rows)) if rows else set()
    if len(names) < 3:
        raise RuntimeError(f"{path}: {len(rows)} questions, answered by {sorted(names)}: expected three models")
    tokens, questions = Tokens(), [row.text for row in rows]
    models = {name: _model(name, [row.outcomes[name] for row in rows], questions, tokens) for name in names}
    return questions, dict(sorted(models.items(), key=lambda pair: (sum(price_of(pair[0])), pair[1].right.mean())))


def _model(name: str, outcomes: Sequence[_Outcome], questions: Sequence[str], tokens: Tokens) -> Model:
    answers, price = [_without_padding(outcome.answer) for outcome in outcomes], price_of(name)
    counts = [(tokens.count(q), tokens.count(a)) for q, a in zip(questions, answers, strict=True)]
    cost = np.array([(read * price[0] + written * price[1]) / 1e6 for read, written in counts])
    return Model(name, np.array([outcome.success for outcome in outcomes], dtype=float), cost, answers)


def _without_padding(text: str) -> str:
    while text.endswith(_PADDING):
        text = text.removesuffix(_PADDING)
    return text


# --- rules ------------------------------------------------------------------------------------------------------


def by_rules(spec: list[object], model: Model) -> Bools:
    """bool[n]: the answers that rules of form reject."""
    rules: tuple[AcceptRule, ...] = compile_rules(spec)
    return np.array([not judge(rules, _seen(answer)).accept for answer in model.answers])


def by_score(questions: Sequence[str], model: Model, seed: int, share: float = _SHARE) -> Bools:
    """bool[n]: the answers that the acceptance score rejects. It was fitted on the other folds, level included."""
    facts = np.array([score_facts(q, _seen(a)) for q, a in zip(questions, model.answers, strict=True)])
    cohort = np.full(len(facts), "answers")

    def fit(rows: Bools) -> Callable[[Bools], Floats]:
        curve = fit_curves(Answers(cohort[rows], facts[rows], model.right[rows]), logprobs=False)["answers"]
        return lambda wanted: curve.chances(facts[wanted])

    return _below_level(fit, len(facts), seed, share)


def by_values(values: Floats, seed: int, share: float = _SHARE) -> Bools:
    """bool[n]: the answers whose value is below the level that rejects this share of the other folds."""
    return _below_level(lambda _: lambda wanted: values[wanted], len(values), seed, share)


def _below_level(fit: Callable[[Bools], Callable[[Bools], Floats]], n: int, seed: int, share: float) -> Bools:
    fold, rejected = np.random.default_rng(seed).permutation(n) % _FOLDS, np.zeros(n, dtype=bool)
    for k in range(_FOLDS):
        values = fit(fold != k)
        rejected[fold == k] = values(fold == k) < np.quantile(values(fold != k), share)
    return rejected


def by_agreement(first: Model, second: Model, embed: Callable[[list[str]], Vectors] | None) -> Bools:
    """bool[n]: the answers that the rule `agree` rejects. Answers without results to compare are accepted."""
    pairs = zip(first.answers, second.answers, strict=True)
    return np.array([same_answer(a, b, _AGREE_LEVEL, embed) is False for a, b in pairs])


def similarity(first: Model, second: Model, embed: Callable[[list[str]], Vectors]) -> Floats:
    """float64[n]: the similarity of the whole texts of two models."""
    a, b = embed(first.answers), embed(second.answers)
    similar: Floats = (a * b).sum(axis=1).astype(np.float64)
    return similar


def grounding(questions: Sequence[str], model: Model, embed: Callable[[list[str]], Vectors]) -> Floats:
    """float64[n]: the share of sentences that the rule `grounded` finds in the question. 1 if it cannot run."""
    parts = dict.fromkeys(
        part
        for question, answer in zip(questions, model.answers, strict=True)
        for part in (*sentences(answer), *windows(question))
    )
    vectors = dict(zip(parts, embed(list(parts)), strict=True))
    shares = [
        grounded_share(answer, question, _GROUNDED_LEVEL, lambda texts: np.stack([vectors[text] for text in texts]))
        for question, answer in zip(questions, model.answers, strict=True)
    ]
    return np.array([1.0 if share is None else share for share in shares])


def _seen(answer: str) -> Observation:
    return Observation(text=answer, finish="stop", n_choices=1, complete=True, ended=True)


# --- figures ------------------------------------------------------------------------------------------------------


class Figures(msgspec.Struct, frozen=True):
    """Means over the draws of a bootstrap; the first draw has every question once."""

    right: Floats
    random: Floats
    mix: Floats
    oracle: Floats
    dollars: float  # per 1,000 questions
    share: float  # of the answers that are rejected


def figures(models: Mapping[str, Model], small: str, large: str, judged: Judged, draws: Floats) -> Figures:
    """`draws`: float64[draw, n], how often each question is drawn."""
    n = draws.sum(axis=1)

    def mean(values: Floats) -> Floats:
        result: Floats = draws @ values / n
        return result

    first, last, rejected = models[small], models[large], judged.rejected.astype(float)
    asked = sum((models[name].cost for name in judged.others), first.cost)
    cost = mean(asked + rejected * last.cost)
    used = [models[name] for name in dict.fromkeys((small, *judged.others, large))]
    mix, _ = static_mix(np.stack([mean(m.cost) for m in used]), np.stack([mean(m.right) for m in used]), cost)
    share, gain = mean(rejected), last.right - first.right
    won, lost = mean((gain > 0).astype(float)), mean((gain < 0).astype(float))
    # A perfect judge escalates first where that wins, and last where it loses.
    oracle = mean(first.right) + np.minimum(share, won) - np.maximum(share - (1 - lost), 0)
    return Figures(
        mean(first.right + rejected * gain),
        mean(first.right) + share * mean(gain),
        mix,
        oracle,
        1000 * float(cost[0]),
        float(share[0]),
    )


def draws_of(n: int, seed: int) -> Floats:
    """float64[1 + draws, n]: every question once, and then a bootstrap."""
    rng = np.random.default_rng(seed)
    drawn = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(_RESAMPLES)]
    return np.stack([np.ones(n), *drawn]).astype(np.float64)


def _spread(values: Floats, sign: str = "") -> str:
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return f"{100 * values[0]:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def table(
    questions: Sequence[str], models: Mapping[str, Model], names: tuple[str, str, str], cache: Cache, seed: int
) -> Iterator[str]:
    """Every rule for one small, one second and one large model."""
    small, second, large = names
    embed, draws = CachedEncoder(cache).encode, draws_of(len(questions), seed)
    yield f"{len(questions)} questions: small {small}, second {second}, large {large}"
    controls = f"{'minus random':<20}{'minus static mix':<20}oracle"
    yield f"{'':<40}{'right % [95 %]':<20}{'rejected %':>10}{'$/1,000':>9}   {controls}"
    for name in names:
        alone = draws @ models[name].right / draws.sum(axis=1)
        yield f"{'always ' + name:<40}{_spread(alone):<20}{'':>10}{1000 * models[name].cost.mean():>9.4f}"
    first, other = models[small], models[second]
    rules = {
        "json": Judged(by_rules(["json"], first)),
        "json_schema": Judged(by_rules([{"json_schema": _SCHEMA}], first)),
        "score, fitted": Judged(by_score(questions, first, seed)),
        "grounded in the question, level fitted": Judged(by_values(grounding(questions, first, embed), seed)),
        "agree": Judged(by_agreement(first, other, None), (second,)),
        "similarity of the texts, level fitted": Judged(
            by_values(similarity(first, other, embed), seed), (second,)
        ),
    }
    if not any(judged.rejected.any() for judged in rules.values()):
        raise RuntimeError("no rule rejected an answer: the table would say nothing")
    for name, judged in rules.items():
        f = figures(models, small, large, judged, draws)
        yield (
            f"{name:<40}{_spread(f.right):<20}{100 * f.share:>10.1f}{f.dollars:>9.4f}   "
            f"{_spread(f.right - f.random, '+'):<20}{_spread(f.right - f.mix, '+'):<20}{100 * f.oracle[0]:.1f}"
        )


def agreement_table(models: Mapping[str, Model], seed: int) -> Iterator[str]:
    """The rule `agree` for every two of the cheaper half of the models, and every model above them."""
    names = list(models)
    cheap, draws = names[: (len(names) + 1) // 2], draws_of(len(models[names[0]].right), seed)
    yield f"{'small':<30}{'second':<30}{'large':<30}{'rejected %':>10}   {'right % [95 %]':<20}minus static mix"
    for small, second in itertools.permutations(cheap, 2):
        judged = Judged(by_agreement(models[small], models[second], None), (second,))
        for large in names[len(cheap) :]:
            f = figures(models, small, large, judged, draws)
            ahead = f"{_spread(f.right):<20}{_spread(f.right - f.mix, '+')}"
            yield f"{small:<30}{second:<30}{large:<30}{100 * f.share:>10.1f}   {ahead}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/zeroeval_gsm.jsonl.gz"))
    parser.add_argument(
        "--models", nargs=3, metavar="MODEL", help="small, second and large (default: see the output)"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench-routing"), help="folder for cached arrays")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    questions, models = read(args.data)
    names = list(models)
    half = (len(names) + 1) // 2
    # The best and the second best of the cheaper half, and the best of all.
    best = sorted(names[:half], key=lambda name: -models[name].right.mean())
    chosen = args.models or (best[0], best[1], max(names, key=lambda name: models[name].right.mean()))
    for line in table(questions, models, tuple(chosen), Cache(args.cache), args.seed):
        print(line, flush=True)
    print("\nself-consistency: not measured, because one answer of each model was recorded")
    print("\nthe rule `agree` with every pair of cheap models")
    for line in agreement_table(models, args.seed):
        print(line)
    prices = ", ".join(f"{name} {price_of(name)}" for name in names)
    print(
        f"\nDollars per million tokens, in/out: {prices}.\nTokens are counted with all-MiniLM's tokenizer. "
        "Rejected and second answers are paid. A static mix may use\nevery model that the rule uses.\n"
        f"python -m bench.answers --seed {args.seed}: {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
