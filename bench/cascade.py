"""The cascade and its controls on recorded answers, through a real Envoy: `make bench-cascade`.

Rules are fitted on one part of MMLU-Pro and tried on another. The fitted rules are written as a folder of intents.
The product makes every decision of the run. The router matches a question with a cohort by its embedding. The
verifier judges the small tier's answer by the cohort's `accept` rules. Envoy escalates. Only the models are
replaced: their recorded answers are replayed, with a delay for each token.
"""

import argparse
import asyncio
import hashlib
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import yaml
from numpy.typing import NDArray

from bench.replay import Answer, Question, ReplayUpstreams, read_questions, replaying
from extproc.acceptance.rules import compile_rules
from extproc.acceptance.verdict import judge
from extproc.api.observation import Observation
from extproc.config.schema import POLICY_FILE
from extproc.contract.names import HeaderName
from extproc.encoder.backends import load_encoder
from extproc.encoder.protocols import Encoder, Vectors
from extproc.evidence.data.tokens import Tokens
from extproc.routing.centroids import fit_centroids

Floats = NDArray[np.float64]

SMALL, LARGE = "small", "large"
# US dollars per million tokens, input and output.
PRICES = {SMALL: (0.05, 0.20), LARGE: (1.25, 5.00)}
# Seconds that the replay takes per token of an answer. The first token has no extra delay.
TOKEN_S = {SMALL: 0.002, LARGE: 0.004}

_FIT_SHARE = 0.7
_UTTERANCES = 20
_FOLDS = 5
_RESAMPLES = 4000
_CONNECTIONS = 12
# This many characters of a question are embedded. The start shows the category: with 512, routing was not better
# and took longer.
_ASK_CHARS = 256

# The rules of every judged cohort. The prompts of the models had examples that end like this.
FINAL_ANSWER = r"[Tt]he answer is \(?[A-J]\)?"
BASE: tuple[Any, ...] = ("complete", "non_empty", "no_refusal", {"regex": FINAL_ANSWER})
# The candidates for `max_chars`. They divide the answers into about ten equal parts.
LENGTHS = (160, 200, 250, 320, 400, 500, 650, 900, 1300)
# A cohort with more rejected answers belongs on the large tier. The verifier cannot repair that.
_MOST_REJECTED = 0.6
# Shrinkage in answers: of a cohort's level to that of all cohorts, and of its bands to its level.
_LEVEL_PRIOR, _BAND_PRIOR = 100.0, 100.0


# --- splitting ------------------------------------------------------------------------------------------------


def hashed(question: Question) -> bytes:
    """A sort key of the question that does not depend on its text."""
    return hashlib.blake2b(str(question.id).encode(), digest_size=8).digest()


def by_category(questions: Iterable[Question]) -> dict[str, list[Question]]:
    """The questions of each category, in hashed order."""
    ordered = sorted(questions, key=lambda q: (q.category, hashed(q)))
    return {category: list(group) for category, group in itertools.groupby(ordered, key=lambda q: q.category)}


def split(questions: Iterable[Question], fit_share: float) -> tuple[list[Question], list[Question]]:
    """(fit, test): disjoint parts, each with its share of every category."""
    fit: list[Question] = []
    test: list[Question] = []
    for group in by_category(questions).values():
        cut = round(len(group) * fit_share)
        fit += group[:cut]
        test += group[cut:]
    return fit, test


def sample(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """`count` questions in random order, with every category in proportion (largest remainders)."""
    rng = np.random.default_rng(seed)
    groups = by_category(questions)
    exact = {category: len(group) * count / len(questions) for category, group in groups.items()}
    quota = {category: int(share) for category, share in exact.items()}
    missing = min(count, len(questions)) - sum(quota.values())
    for category in sorted(exact, key=lambda c: quota[c] - exact[c])[:missing]:
        quota[category] += 1
    chosen = [group[i] for c, group in groups.items() for i in rng.permutation(len(group))[: quota[c]]]
    return [chosen[i] for i in rng.permutation(len(chosen))]


# --- fitting --------------------------------------------------------------------------------------------------


class Fit(msgspec.Struct, frozen=True):
    """The fitted rules. `max_chars` of a cohort is None (not judged), 0 (the base rules) or a limit to add."""

    max_chars: dict[str, int | None]
    price: float  # the gain in accuracy that an escalation needs, per unit of its charge

    def accept(self, cohort: str) -> list[Any]:
        """The cohort's `accept` list."""
        most = self.max_chars[cohort]
        if most is None:
            return []
        return [*BASE, {"max_chars": most}] if most else [*BASE]


def observed(answer: Answer) -> Observation:
    """The answer as the verifier sees it."""
    return Observation(text=answer.text, finish=answer.finish, n_choices=1, complete=True, ended=True)


def band(answer: Answer) -> int:
    """0 if the base rules reject the answer, otherwise 1 + the number of LENGTHS that it exceeds."""
    if not judge(_BASE_RULES, observed(answer)).accept:
        return 0
    return 1 + sum(len(answer.text.strip()) > most for most in LENGTHS)


_BASE_RULES = compile_rules(list(BASE))
BANDS = len(LENGTHS) + 2


def gains(questions: Sequence[Question]) -> Floats:
    """The gain of the large tier's answer over the small one's, for each question: -1, 0 or 1."""
    return np.array([q.right(LARGE) - q.right(SMALL) for q in questions], dtype=np.float64)


def estimate(
    cohort: NDArray[np.int64], bands: NDArray[np.int64], gain: Floats, cohorts: int
) -> tuple[Floats, Floats]:
    """(counts, means) of the gain in each cohort's bands. Means of few answers are shrunk to the mean of all."""
    cell = np.zeros((cohorts, BANDS)), np.zeros((cohorts, BANDS))
    np.add.at(cell[0], (cohort, bands), 1)
    np.add.at(cell[1], (cohort, bands), gain)
    count, total = cell
    overall = gain.mean()
    pooled = (total.sum(axis=0) + _LEVEL_PRIOR * overall) / (count.sum(axis=0) + _LEVEL_PRIOR)
    level = (total - count * pooled).sum(axis=1) / (count.sum(axis=1) + _LEVEL_PRIOR)
    prior = pooled[None, :] + level[:, None]
    return count, (total + _BAND_PRIOR * prior) / (count + _BAND_PRIOR)


def choose(count: Floats, net: Floats) -> list[int | None]:
    """The rules of each cohort as in `Fit.max_chars`: those with the highest net gain of their rejections."""
    chosen: list[int | None] = []
    for n, worth in zip(count, net, strict=True):
        best: int | None = None
        value = 0.0
        for most in (0, *LENGTHS):
            rejected = _rejected(most)
            if n[rejected].sum() > _MOST_REJECTED * n.sum():
                continue
            total = float((n[rejected] * worth[rejected]).sum())
            if total > value:
                best, value = most, total
        chosen.append(best)
    return chosen


def _rejected(most: int | None) -> NDArray[np.bool_]:
    """bool[BANDS]: the bands that the rules reject."""
    if most is None:
        return np.zeros(BANDS, dtype=bool)
    reject = np.arange(BANDS) > (BANDS - 1 if most == 0 else 1 + LENGTHS.index(most))
    reject[0] = True
    return reject


def fit_rules(questions: Sequence[Question], budget: float, charges: Floats) -> Fit:
    """The rules with the highest gain that escalate at most the share `budget` of the questions."""
    names = sorted({q.category for q in questions})
    cohort = np.array([names.index(q.category) for q in questions])
    bands = np.array([band(q.answers[SMALL]) for q in questions])
    count, gain = estimate(cohort, bands, gains(questions), len(names))
    charge = estimate(cohort, bands, charges / charges.mean(), len(names))[1]
    low, high = -1.0, 3.0  # the price is the lowest one that keeps the budget
    for _ in range(30):
        price = (low + high) / 2
        chosen = choose(count, gain - price * charge)
        escalated = sum(n[_rejected(most)].sum() for n, most in zip(count, chosen, strict=True))
        low, high = (price, high) if escalated > budget * len(questions) else (low, price)
    return Fit(dict(zip(names, choose(count, gain - high * charge), strict=True)), high)


def rejects(fit: Fit, cohort: str, answer: Answer) -> bool:
    """Whether the verifier will reject the answer."""
    return bool(_rejected(fit.max_chars[cohort])[band(answer)])


def cross_validated(questions: Sequence[Question], budget: float, charges: Floats) -> NDArray[np.bool_]:
    """bool[n]: the questions that are escalated by rules that were fitted on the other folds."""
    folds = np.arange(len(questions)) % _FOLDS
    escalated = np.zeros(len(questions), dtype=bool)
    for k in range(_FOLDS):
        others = [q for q, f in zip(questions, folds, strict=True) if f != k]
        fit = fit_rules(others, budget, charges[folds != k])
        for i in map(int, np.flatnonzero(folds == k)):
            escalated[i] = rejects(fit, questions[i].category, questions[i].answers[SMALL])
    return escalated


# --- the folder of intents ------------------------------------------------------------------------------------


def utterances(fit: Sequence[Question], encoder: Encoder) -> dict[str, list[str]]:
    """Questions of the fit part for each category. Each is nearest to the centroid of its category."""
    spare = {c: [q.prompt[:_ASK_CHARS].strip() for q in group] for c, group in by_category(fit).items()}
    names = list(spare)
    used = {c: texts[:_UTTERANCES] for c, texts in spare.items()}
    vectors: dict[str, Vectors] = {}
    for _ in range(_UTTERANCES):
        new = [t for texts in used.values() for t in texts if t not in vectors]
        vectors |= zip(new, encoder.encode(new), strict=True)
        fitted = fit_centroids({c: np.stack([vectors[t] for t in texts]) for c, texts in used.items()})
        centroids = np.stack([fitted[c].centroid for c in names])
        strays = {
            c: [t for t in texts if names[int((centroids @ vectors[t]).argmax())] != c] for c, texts in used.items()
        }
        if not any(strays.values()):
            return used
        for c, removed in strays.items():
            fresh = [t for t in spare[c] if t not in vectors][: len(removed)]
            used[c] = [t for t in used[c] if t not in removed] + fresh
    raise RuntimeError("no set of utterances was found in which each is nearest to its own category")


def write_intents(
    folder: Path,
    accept: Mapping[str, list[Any]],
    utterances_by_category: Mapping[str, Sequence[str]],
    prices: Mapping[str, tuple[float, float]] = PRICES,
) -> None:
    """The fitted configuration, as an operator would write it. `accept` has the rules of each category."""
    folder.mkdir(parents=True, exist_ok=True)
    tiers = [
        {"name": name, "model": name, "url": "http://127.0.0.1:9", "context": 1_000_000,
         "price": {"input": prices[name][0], "output": prices[name][1]}}
        for name in (SMALL, LARGE)
    ]  # fmt: skip
    policy = {
        "version": 1,
        "default_tier": SMALL,
        "tiers": tiers,
        # A long deadline, because two busy cores embed for a dozen connections.
        "encoder": {"deadline_ms": 10_000, "max_chars": _ASK_CHARS},
        # Limits on escalation would hide the effect of the rules.
        "escalations": {"per_minute": 1_000_000, "burst": 1_000_000},
    }
    (folder / POLICY_FILE).write_text(yaml.safe_dump(policy, sort_keys=False))
    for category, texts in utterances_by_category.items():
        name = cohort_of(category)
        intent: dict[str, Any] = {"intent": name, "tier": SMALL, "utterances": list(texts), "floor": -1.0}
        if rules := accept[category]:
            intent |= {"accept": rules, "escalate": {"to": LARGE, "max": 1, "share": 1.0}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(intent, sort_keys=False, allow_unicode=True))


def cohort_of(category: str) -> str:
    """The name of a category as an intent."""
    return category.replace(" ", "-")


# --- the run --------------------------------------------------------------------------------------------------


class Served(msgspec.Struct, frozen=True):
    """One request as the client saw it."""

    tier: str
    seconds: float
    cohort: str = ""
    reason: str = ""
    escalations: int = 0
    attempts: int = 1
    verdict: str = ""
    as_recorded: bool = True  # the text is the recorded answer of the tier in x-router-tier
    shows_logprobs: bool = False  # the client got log-probabilities


async def run(url: str, questions: Sequence[Question]) -> list[dict[str, Served]]:
    """Ask each question in three ways: "auto" through the cascade, and the model of each tier by name."""
    served: list[dict[str, Served]] = [{} for _ in questions]
    indices = iter(range(len(questions)))
    ways = ("auto", SMALL, LARGE)

    async def work() -> None:
        for i in indices:
            for way in ways[i % 3 :] + ways[: i % 3]:
                served[i][way] = await _ask(session, url, way, questions[i])

    limit = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=limit, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(work() for _ in range(_CONNECTIONS)))
    return served


async def _ask(session: aiohttp.ClientSession, url: str, model: str, question: Question) -> Served:
    body = {"model": model, "messages": [{"role": "user", "content": question.prompt}]}
    began = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        answer_body = await answer.read()
        seconds = time.perf_counter() - began
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} for question {question.id}: {answer_body[:200]!r}")
        headers = answer.headers
    tier = headers.get(HeaderName.TIER, "")
    text = msgspec.json.decode(answer_body)["choices"][0]["message"]["content"]
    return Served(
        tier=tier,
        seconds=seconds,
        cohort=headers.get(HeaderName.COHORT, ""),
        reason=headers.get(HeaderName.REASON, ""),
        escalations=int(headers.get(HeaderName.ESCALATIONS, "0") or 0),
        attempts=int(headers.get(HeaderName.ATTEMPTS, "1") or 1),
        verdict=headers.get(HeaderName.VERDICT, ""),
        as_recorded=tier in question.answers and text == question.answers[tier].text,
        shows_logprobs=b'"logprob"' in answer_body,
    )


# --- the controls --------------------------------------------------------------------------------------------


class Outcomes(msgspec.Struct, frozen=True):
    """One value per question: whether each tier was right, its cost, and whether the cascade escalated."""

    small: Floats
    large: Floats
    escalated: Floats
    small_cost: Floats  # US dollars
    large_cost: Floats

    def rows(self, indices: NDArray[Any]) -> "Outcomes":
        """The outcomes at these indices. With int[resample, question] indices, those of many resamples."""
        return Outcomes(*(getattr(self, name)[indices] for name in self.__struct_fields__))


def accuracies(o: Outcomes) -> dict[str, Floats]:
    """The accuracy of each line over the last axis. Random and mixed lines are exact expectations, not draws."""
    n = o.small.shape[-1]
    small, large, share = (x.mean(axis=-1) for x in (o.small, o.large, o.escalated))
    gain = o.large - o.small
    escalations = o.escalated.sum(axis=-1)
    won, lost = (gain > 0).sum(axis=-1), (gain < 0).sum(axis=-1)
    # A perfect judge escalates first where that wins, then where it changes nothing, and last where it loses.
    forced = np.maximum(escalations - (n - lost), 0)
    mix = mixed_share(o)
    return {
        "always small": small,
        "always large": large,
        "random": small + share * (large - small),
        "mix": small + mix * (large - small),
        "oracle": small + (np.minimum(escalations, won) - forced) / n,
        "cascade": (o.small + o.escalated * gain).mean(axis=-1),
    }


def mixed_share(o: Outcomes) -> Floats:
    """The share of a random mix sent to large at the cascade's cost. The mix pays for no rejected answer."""
    small, large, extra = (x.mean(axis=-1) for x in (o.small_cost, o.large_cost, o.escalated * o.large_cost))
    share: Floats = np.clip(extra / (large - small), 0, 1)
    return share


def costs(o: Outcomes) -> dict[str, float]:
    """The cost of each line per question. An escalation also pays for the small answer."""
    small, large, share = (float(x.mean()) for x in (o.small_cost, o.large_cost, o.escalated))
    cascade = float((o.small_cost + o.escalated * o.large_cost).mean())
    # Random and the oracle escalate at the mean price of a large answer.
    escalating = small + share * large
    return {"always small": small, "always large": large, "random": escalating, "mix": cascade,
            "oracle": escalating, "cascade": cascade}  # fmt: skip


def resamples(o: Outcomes, seed: int, times: int = _RESAMPLES) -> Outcomes:
    """A paired bootstrap: questions are drawn with replacement, and all lines use the same draws."""
    n = len(o.small)
    return o.rows(np.random.default_rng(seed).integers(0, n, (times, n)))


def interval(values: Floats) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def weighted_quantile(values: Floats, weights: Floats, at: float) -> float:
    """The lowest value at which the cumulated weight reaches the share `at`."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, at - 1e-12)), len(values) - 1)])


# --- the report -----------------------------------------------------------------------------------------------


def outcomes(questions: Sequence[Question], escalated: Sequence[bool], tokens: Tokens) -> Outcomes:
    """The outcome of each question, with costs from token counts at PRICES."""

    def cost(question: Question, tier: str) -> float:
        price = PRICES[tier]
        read, written = tokens.count(question.prompt), tokens.count(question.answers[tier].text)
        return (read * price[0] + written * price[1]) / 1e6

    return Outcomes(
        small=np.array([q.right(SMALL) for q in questions], dtype=np.float64),
        large=np.array([q.right(LARGE) for q in questions], dtype=np.float64),
        escalated=np.array(escalated, dtype=np.float64),
        small_cost=np.array([cost(q, SMALL) for q in questions]),
        large_cost=np.array([cost(q, LARGE) for q in questions]),
    )


def latencies(o: Outcomes, served: Sequence[Mapping[str, Served]]) -> dict[str, tuple[float, float]]:
    """(p50, p95) of each line in seconds. Three lines are measured. The others are computed from them."""
    small, large, auto = (np.array([s[way].seconds for s in served]) for way in (SMALL, LARGE, "auto"))
    ones, share, mix = np.ones(len(small)), float(o.escalated.mean()), float(mixed_share(o))
    escalations = int(o.escalated.sum())
    best = np.argsort(-(o.large - o.small), kind="stable")[:escalations]
    perfect = small + np.isin(np.arange(len(small)), best) * large

    def blend(first: Floats, second: Floats, weight: float) -> tuple[float, float]:
        values, weights = np.concatenate([first, second]), np.concatenate([ones * (1 - weight), ones * weight])
        p50, p95 = (weighted_quantile(values, weights, at) for at in (0.50, 0.95))
        return p50, p95

    return {
        "always small": blend(small, small, 0),
        "always large": blend(large, large, 0),
        "random": blend(small, small + large, share),
        "mix": blend(small, large, mix),
        "oracle": blend(perfect, perfect, 0),
        "cascade": blend(auto, auto, 0),
    }


_NAMES = {
    "always small": "always small (m)",
    "always large": "always large (m)",
    "random": "random, equal share",
    "mix": "static mix, equal cost",
    "oracle": "oracle, equal share",
    "cascade": "cascade (m)",
}


def report(
    questions: Sequence[Question], served: Sequence[Mapping[str, Served]], tokens: Tokens, seed: int
) -> None:
    """Print the tables."""
    o = outcomes(questions, [s["auto"].escalations > 0 for s in served], tokens)
    measured, resampled, cost, late = accuracies(o), accuracies(resamples(o, seed)), costs(o), latencies(o, served)
    share = float(o.escalated.mean())
    shares = {"always small": 0.0, "always large": 1.0, "mix": float(mixed_share(o))}
    print("line                     accuracy % [95 %]      to large %   $/1,000   p50 s   p95 s")
    for line, name in _NAMES.items():
        low, high = interval(resampled[line])
        print(
            f"{name:<24} {100 * measured[line]:>5.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            f"{100 * shares.get(line, share):>14.1f}{1000 * cost[line]:>13.3f}"
            f"{late[line][0]:>8.2f}{late[line][1]:>8.2f}"
        )
    for line in ("random", "mix"):
        print(f"cascade minus {_NAMES[line]:<23} {_difference(measured, resampled, line)}")
    _by_category(questions, o, seed)


def _difference(measured: Mapping[str, Floats], resampled: Mapping[str, Floats], line: str) -> str:
    low, high = (100 * x for x in interval(resampled["cascade"] - resampled[line]))
    verdict = "above" if low > 0 else "below" if high < 0 else "the interval includes 0"
    return f"{100 * (measured['cascade'] - measured[line]):+.1f} points [{low:+.1f}, {high:+.1f}] ({verdict})"


def _by_category(questions: Sequence[Question], o: Outcomes, seed: int) -> None:
    print("\ncategory             n   small  large  cascade   escalated % cascade minus random, equal share")
    category = np.array([q.category for q in questions])
    for name in sorted(set(category)):
        part = o.rows(np.flatnonzero(category == name))
        measured, resampled = accuracies(part), accuracies(resamples(part, seed))
        row = "".join(f"{100 * measured[line]:>7.1f}" for line in ("always small", "always large", "cascade"))
        share = 100 * part.escalated.mean()
        print(f"{name:<17}{len(part.small):>5} {row}{share:>14.1f}   {_difference(measured, resampled, 'random')}")


def checked(fit: Fit, questions: Sequence[Question], served: Sequence[Mapping[str, Served]]) -> str:
    """Compare the run with the rules offline. Raises RuntimeError if an answer is not the recorded one."""
    wrong = [q.id for q, s in zip(questions, served, strict=True) if not all(x.as_recorded for x in s.values())]
    if wrong:
        raise RuntimeError(f"answers differ from the recorded answers of their tier: questions {wrong[:10]}")
    pairs = [(q, s["auto"]) for q, s in zip(questions, served, strict=True)]
    own_cohort = routed_to_own_cohort(pairs)
    cohorts = {cohort_of(category): category for category in fit.max_chars}
    agreed = sum(
        (s.escalations > 0) == rejects(fit, cohorts[s.cohort], q.answers[SMALL])
        for q, s in pairs if s.cohort in cohorts
    )  # fmt: skip
    reasons = Counter(s.reason for _, s in pairs)
    verdicts = Counter(s.verdict or "not judged" for _, s in pairs)
    return (
        f"routed to the category's own cohort: {own_cohort}/{len(pairs)}, same escalation as the rules offline: "
        f"{agreed}/{len(pairs)}\nreasons: {dict(reasons)}, verdicts on the served answers: {dict(verdicts)}"
    )


def routed_to_own_cohort(pairs: Iterable[tuple[Any, Served]]) -> int:
    """The requests that landed in the cohort of their category. Raises RuntimeError if nearly none was routed."""
    pairs = list(pairs)
    own_cohort = sum(s.reason == "matched" and s.cohort == cohort_of(q.category) for q, s in pairs)
    if own_cohort < len(pairs) / 2 or not any(s.verdict or s.escalations for _, s in pairs):
        reasons = dict(Counter(s.reason for _, s in pairs))
        raise RuntimeError(
            f"{own_cohort} of {len(pairs)} requests landed in the cohort of their category, reasons {reasons}: "
            "expected at least half, with verdicts; the figures would say nothing about the cascade"
        )
    return own_cohort


def main() -> None:
    """Fit, run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--questions", type=int, default=1200, help="questions to ask (default 1200)")
    parser.add_argument("--budget", type=float, default=0.25, help="largest share of the fit part to escalate")
    help_charge = "charge of an escalation in the fit: the same for all, or the dollars of the large answer"
    parser.add_argument("--charge", choices=("share", "dollars"), default="share", help=help_charge)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    tokens = Tokens()
    fit_part, test_part = split(read_questions(args.data / "mmlupro_recorded.jsonl.gz"), _FIT_SHARE)
    fit_outcomes = outcomes(fit_part, [False] * len(fit_part), tokens)
    charges = np.ones(len(fit_part)) if args.charge == "share" else fit_outcomes.large_cost
    fit = fit_rules(fit_part, args.budget, charges)
    escalated = cross_validated(fit_part, args.budget, charges).astype(np.float64)
    fit_outcomes = msgspec.structs.replace(fit_outcomes, escalated=escalated)
    by_name = utterances(fit_part, load_encoder("all-MiniLM-L6-v2"))
    questions = sample(test_part, args.questions, args.seed)
    answers = {tier: {q.prompt: q.answers[tier] for q in questions} for tier in (SMALL, LARGE)}
    # Count the tokens that the replay needs before the clock starts.
    outcomes(questions, [False] * len(questions), tokens)
    with tempfile.TemporaryDirectory(prefix="intents-") as folder:
        write_intents(Path(folder), {category: fit.accept(category) for category in fit.max_chars}, by_name)
        with replaying(Path(folder), ReplayUpstreams(answers, TOKEN_S, tokens)) as stack:
            served = asyncio.run(run(stack.url, questions))
    models = ", ".join(f"{tier} {questions[0].answers[tier].model}" for tier in (SMALL, LARGE))
    print(
        f"{len(questions)} of {len(test_part)} test MMLU-Pro questions, rules fitted on {len(fit_part)}; {models}"
    )
    print(f"accept rules of judged cohorts: {[*BASE]}, with these fitted max_chars:")
    limits = {c: "not judged" if m is None else m or "no limit" for c, m in fit.max_chars.items()}
    print("; ".join(f"{category} {limit}" for category, limit in limits.items()))
    print(checked(fit, questions, served) + "\n")
    report(questions, served, tokens, args.seed)
    measured, resampled = accuracies(fit_outcomes), accuracies(resamples(fit_outcomes, args.seed, 500))
    print(f"\nthe fit part, 5-fold, every question in its own category ({100 * escalated.mean():.1f} % escalated):")
    for line in ("random", "mix"):
        print(f"cascade minus {_NAMES[line]:<23} {_difference(measured, resampled, line)}")
    print(
        f"\n(m) was measured through Envoy with {_CONNECTIONS} connections. The other times follow from these.\n"
        f"Answers were replayed at {1000 * TOKEN_S[SMALL]:g} (small) and {1000 * TOKEN_S[LARGE]:g} (large) ms per "
        f"token.\nDollars per million tokens, in/out: small {PRICES[SMALL]}, large {PRICES[LARGE]}. Tokens are "
        "counted with\nall-MiniLM's tokenizer. Rejected answers are paid. Limits on escalation are out of reach.\n"
        f"python -m bench.cascade --questions {args.questions} --budget {args.budget:g} --charge {args.charge} "
        f"--seed {args.seed}: {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
