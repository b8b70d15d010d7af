"""The cascade against the lines it must beat, on recorded answers, through the real Envoy: `make bench-cascade`.

Rules are fitted on one part of MMLU-Pro and tried on another. What is fitted is written as a folder of intents,
and everything that decides in the run is the product: the router sends a question to a cohort by its embedding,
the verifier judges the small tier's answer by the cohort's `accept` rules, Envoy climbs. Only the models are not
there: their recorded answers are replayed, as late as their tokens would take.
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
# What the replay takes per token of an answer; nothing before the first.
TOKEN_S = {SMALL: 0.002, LARGE: 0.004}

_FIT_SHARE = 0.7
_UTTERANCES = 20
_FOLDS = 5
_RESAMPLES = 4000
_CONNECTIONS = 12
# Of a question, what is embedded. MMLU-Pro tells its category early: 512 routed no better, and took longer.
_ASK_CHARS = 256

# What every judged cohort asks for. The models were shown answers that end like this.
FINAL_ANSWER = r"[Tt]he answer is \(?[A-J]\)?"
BASE: tuple[Any, ...] = ("complete", "non_empty", "no_refusal", {"regex": FINAL_ANSWER})
# Where `max_chars` may stand; about tenths of the answers.
LENGTHS = (160, 200, 250, 320, 400, 500, 650, 900, 1300)
# A cohort whose answers are mostly rejected belongs on the large tier: that is not the verifier's to mend.
_MOST_REJECTED = 0.6
# Shrinkage, in answers: of a cohort's level towards all cohorts', of its bands towards its level.
_LEVEL_PRIOR, _BAND_PRIOR = 100.0, 100.0


# --- splitting ------------------------------------------------------------------------------------------------


def hashed(question: Question) -> bytes:
    """A question's place in an order that has nothing to do with what it says."""
    return hashlib.blake2b(str(question.id).encode(), digest_size=8).digest()


def by_category(questions: Iterable[Question]) -> dict[str, list[Question]]:
    """The questions of each category, in hashed order."""
    ordered = sorted(questions, key=lambda q: (q.category, hashed(q)))
    return {category: list(some) for category, some in itertools.groupby(ordered, key=lambda q: q.category)}


def split(questions: Iterable[Question], fit_share: float) -> tuple[list[Question], list[Question]]:
    """(fit, test): disjoint, each with its share of every category."""
    fit: list[Question] = []
    test: list[Question] = []
    for some in by_category(questions).values():
        cut = round(len(some) * fit_share)
        fit += some[:cut]
        test += some[cut:]
    return fit, test


def sample(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """`count` questions, every category in proportion (largest remainders), in random order."""
    rng = np.random.default_rng(seed)
    groups = by_category(questions)
    exact = {category: len(some) * count / len(questions) for category, some in groups.items()}
    quota = {category: int(share) for category, share in exact.items()}
    missing = min(count, len(questions)) - sum(quota.values())
    for category in sorted(exact, key=lambda c: quota[c] - exact[c])[:missing]:
        quota[category] += 1
    chosen = [some[i] for c, some in groups.items() for i in rng.permutation(len(some))[: quota[c]]]
    return [chosen[i] for i in rng.permutation(len(chosen))]


# --- fitting --------------------------------------------------------------------------------------------------


class Fit(msgspec.Struct, frozen=True):
    """The rules found, one entry a cohort: None, not judged; 0, the base rules; else with this `max_chars`."""

    max_chars: dict[str, int | None]
    price: float  # the gain in accuracy that an escalation has to be worth, for what it is charged

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
    """0 when the base rules reject the answer, else 1 + how many of LENGTHS it is longer than."""
    if not judge(_BASE_RULES, observed(answer)).accept:
        return 0
    return 1 + sum(len(answer.text.strip()) > most for most in LENGTHS)


_BASE_RULES = compile_rules(list(BASE))
BANDS = len(LENGTHS) + 2


def gains(questions: Sequence[Question]) -> Floats:
    """What the large tier's answer is worth over the small one's, each question: -1, 0 or 1."""
    return np.array([q.right(LARGE) - q.right(SMALL) for q in questions], dtype=np.float64)


def estimate(
    cohort: NDArray[np.int64], bands: NDArray[np.int64], gain: Floats, cohorts: int
) -> tuple[Floats, Floats]:
    """(counts, means) of each cohort's bands; what few answers say is shrunk to what all say."""
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
    """Each cohort's rules as `Fit.max_chars` has them: those that reject most net worth."""
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
    """Which bands the rules reject."""
    if most is None:
        return np.zeros(BANDS, dtype=bool)
    reject = np.arange(BANDS) > (BANDS - 1 if most == 0 else 1 + LENGTHS.index(most))
    reject[0] = True
    return reject


def fit_rules(questions: Sequence[Question], budget: float, charges: Floats) -> Fit:
    """Rules that gain most while at most the share `budget` of the questions is escalated, each at its charge."""
    names = sorted({q.category for q in questions})
    cohort = np.array([names.index(q.category) for q in questions])
    bands = np.array([band(q.answers[SMALL]) for q in questions])
    count, gain = estimate(cohort, bands, gains(questions), len(names))
    charge = estimate(cohort, bands, charges / charges.mean(), len(names))[1]
    low, high = -1.0, 3.0  # the price: the least that keeps within the budget
    for _ in range(30):
        price = (low + high) / 2
        chosen = choose(count, gain - price * charge)
        climbing = sum(n[_rejected(most)].sum() for n, most in zip(count, chosen, strict=True))
        low, high = (price, high) if climbing > budget * len(questions) else (low, price)
    return Fit(dict(zip(names, choose(count, gain - high * charge), strict=True)), high)


def rejects(fit: Fit, cohort: str, answer: Answer) -> bool:
    """What the verifier will say of the answer."""
    return bool(_rejected(fit.max_chars[cohort])[band(answer)])


def cross_validated(questions: Sequence[Question], budget: float, charges: Floats) -> NDArray[np.bool_]:
    """Which of the questions rules escalate that had not seen them."""
    folds = np.arange(len(questions)) % _FOLDS
    climbed = np.zeros(len(questions), dtype=bool)
    for k in range(_FOLDS):
        seen = [q for q, f in zip(questions, folds, strict=True) if f != k]
        fit = fit_rules(seen, budget, charges[folds != k])
        for i in map(int, np.flatnonzero(folds == k)):
            climbed[i] = rejects(fit, questions[i].category, questions[i].answers[SMALL])
    return climbed


# --- the folder of intents ------------------------------------------------------------------------------------


def utterances(fit: Sequence[Question], encoder: Encoder) -> dict[str, list[str]]:
    """Questions that stand for each category: of the fit part, and each nearest to its own category's centroid."""
    spare = {c: [q.prompt[:_ASK_CHARS].strip() for q in some] for c, some in by_category(fit).items()}
    names = list(spare)
    used = {c: some[:_UTTERANCES] for c, some in spare.items()}
    vectors: dict[str, Vectors] = {}
    for _ in range(_UTTERANCES):
        new = [t for some in used.values() for t in some if t not in vectors]
        vectors |= zip(new, encoder.encode(new), strict=True)
        fitted = fit_centroids({c: np.stack([vectors[t] for t in some]) for c, some in used.items()})
        at = np.stack([fitted[c].centroid for c in names])
        strays = {c: [t for t in some if names[int((at @ vectors[t]).argmax())] != c] for c, some in used.items()}
        if not any(strays.values()):
            return used
        for c, gone in strays.items():
            fresh = [t for t in spare[c] if t not in vectors][: len(gone)]
            used[c] = [t for t in used[c] if t not in gone] + fresh
    raise RuntimeError("no set of utterances found that all reach their own intent")


def write_intents(folder: Path, fit: Fit, spoken: Mapping[str, Sequence[str]]) -> None:
    """The fitted configuration, as an operator would write it."""
    folder.mkdir(parents=True, exist_ok=True)
    tiers = [
        {"name": name, "model": name, "endpoint": "127.0.0.1:9", "context": 1_000_000,
         "price": {"input": PRICES[name][0], "output": PRICES[name][1]}}
        for name in (SMALL, LARGE)
    ]  # fmt: skip
    policy = {
        "version": 1,
        "default_tier": SMALL,
        "tiers": tiers,
        # Two busy cores embed for a dozen connections at once.
        "encoder": {"deadline_ms": 10_000, "max_chars": _ASK_CHARS},
        # Bounds would answer for the rules: this measures the rules.
        "escalations": {"per_minute": 1_000_000, "burst": 1_000_000},
    }
    (folder / POLICY_FILE).write_text(yaml.safe_dump(policy, sort_keys=False))
    for category, some in spoken.items():
        name = cohort_of(category)
        intent: dict[str, Any] = {"intent": name, "tier": SMALL, "utterances": list(some), "floor": -1.0}
        if accept := fit.accept(category):
            intent |= {"accept": accept, "escalate": {"to": LARGE, "max": 1, "share": 1.0}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(intent, sort_keys=False, allow_unicode=True))


def cohort_of(category: str) -> str:
    """A category's name as an intent."""
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
    as_recorded: bool = True  # the text is what the tier that is said to have served had recorded


async def run(url: str, questions: Sequence[Question]) -> list[dict[str, Served]]:
    """Ask each question three ways, side by side: "auto" through the cascade, and each tier's model by name."""
    served: list[dict[str, Served]] = [{} for _ in questions]
    waiting = iter(range(len(questions)))
    ways = ("auto", SMALL, LARGE)

    async def work() -> None:
        for i in waiting:
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
        said = await answer.read()
        seconds = time.perf_counter() - began
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} for question {question.id}: {said[:200]!r}")
        headers = answer.headers
    tier = headers.get(HeaderName.TIER, "")
    text = msgspec.json.decode(said)["choices"][0]["message"]["content"]
    return Served(
        tier=tier,
        seconds=seconds,
        cohort=headers.get(HeaderName.COHORT, ""),
        reason=headers.get(HeaderName.REASON, ""),
        escalations=int(headers.get(HeaderName.ESCALATIONS, "0") or 0),
        attempts=int(headers.get(HeaderName.ATTEMPTS, "1") or 1),
        verdict=headers.get(HeaderName.VERDICT, ""),
        as_recorded=tier in question.answers and text == question.answers[tier].text,
    )


# --- the lines to beat ----------------------------------------------------------------------------------------


class Outcomes(msgspec.Struct, frozen=True):
    """What happened, one value a question: was each tier right, what did each cost, did the cascade climb."""

    small: Floats
    large: Floats
    climbed: Floats
    small_cost: Floats  # US dollars
    large_cost: Floats

    def rows(self, at: NDArray[Any]) -> "Outcomes":
        """The outcomes of some of the questions, or of many resamples: [resample, question]."""
        return Outcomes(*(getattr(self, name)[at] for name in self.__struct_fields__))


def accuracies(o: Outcomes) -> dict[str, Floats]:
    """Each line's accuracy over the last axis. Random and mixed lines are exact expectations, not draws."""
    n = o.small.shape[-1]
    small, large, share = (x.mean(axis=-1) for x in (o.small, o.large, o.climbed))
    gain = o.large - o.small
    climbs = o.climbed.sum(axis=-1)
    won, lost = (gain > 0).sum(axis=-1), (gain < 0).sum(axis=-1)
    # A perfect judge climbs where it wins first, where nothing changes next, and where it loses last.
    forced = np.maximum(climbs - (n - lost), 0)
    mix = mixed_share(o)
    return {
        "always small": small,
        "always large": large,
        "random": small + share * (large - small),
        "mix": small + mix * (large - small),
        "oracle": small + (np.minimum(climbs, won) - forced) / n,
        "cascade": (o.small + o.climbed * gain).mean(axis=-1),
    }


def mixed_share(o: Outcomes) -> Floats:
    """The share that goes straight to large, at random, for the cascade's money: it pays no rejected answer."""
    small, large, climbed = (x.mean(axis=-1) for x in (o.small_cost, o.large_cost, o.climbed * o.large_cost))
    share: Floats = np.clip(climbed / (large - small), 0, 1)
    return share


def costs(o: Outcomes) -> dict[str, float]:
    """Each line's cost a question. Climbing pays the small answer too; the oracle climbs at the mean price."""
    small, large, share = (float(x.mean()) for x in (o.small_cost, o.large_cost, o.climbed))
    cascade = float((o.small_cost + o.climbed * o.large_cost).mean())
    climbing = small + share * large
    return {"always small": small, "always large": large, "random": climbing, "mix": cascade,
            "oracle": climbing, "cascade": cascade}  # fmt: skip


def resamples(o: Outcomes, seed: int, times: int = _RESAMPLES) -> Outcomes:
    """Paired bootstrap: questions drawn with replacement, all lines on the same draw."""
    n = len(o.small)
    return o.rows(np.random.default_rng(seed).integers(0, n, (times, n)))


def interval(values: Floats) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def weighted_quantile(values: Floats, weights: Floats, at: float) -> float:
    """The least value that the share `at` of the weight does not exceed."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, at - 1e-12)), len(values) - 1)])


# --- the report -----------------------------------------------------------------------------------------------


def outcomes(questions: Sequence[Question], climbed: Sequence[bool], tokens: Tokens) -> Outcomes:
    """What happened, with costs from token counts at PRICES."""

    def cost(question: Question, tier: str) -> float:
        price = PRICES[tier]
        read, written = tokens.count(question.prompt), tokens.count(question.answers[tier].text)
        return (read * price[0] + written * price[1]) / 1e6

    return Outcomes(
        small=np.array([q.right(SMALL) for q in questions], dtype=np.float64),
        large=np.array([q.right(LARGE) for q in questions], dtype=np.float64),
        climbed=np.array(climbed, dtype=np.float64),
        small_cost=np.array([cost(q, SMALL) for q in questions]),
        large_cost=np.array([cost(q, LARGE) for q in questions]),
    )


def latencies(o: Outcomes, served: Sequence[Mapping[str, Served]]) -> dict[str, tuple[float, float]]:
    """(p50, p95) of each line in seconds: three are measured, the others follow from those measurements."""
    small, large, auto = (np.array([s[way].seconds for s in served]) for way in (SMALL, LARGE, "auto"))
    ones, share, mix = np.ones(len(small)), float(o.climbed.mean()), float(mixed_share(o))
    climbs = int(o.climbed.sum())
    best = np.argsort(-(o.large - o.small), kind="stable")[:climbs]
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
    again = resamples(o, seed)
    found, spread, cost, late = accuracies(o), accuracies(again), costs(o), latencies(o, served)
    share = float(o.climbed.mean())
    shares = {"always small": 0.0, "always large": 1.0, "mix": float(mixed_share(o))}
    print("line                     accuracy % [95 %]      to large %   $/1,000   p50 s   p95 s")
    for line, name in _NAMES.items():
        low, high = interval(spread[line])
        print(
            f"{name:<24} {100 * found[line]:>5.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            f"{100 * shares.get(line, share):>14.1f}{1000 * cost[line]:>13.3f}"
            f"{late[line][0]:>8.2f}{late[line][1]:>8.2f}"
        )
    for line in ("random", "mix"):
        print(f"cascade minus {_NAMES[line]:<23} {_difference(found, spread, line)}")
    _by_category(questions, o, seed)


def _difference(found: Mapping[str, Floats], spread: Mapping[str, Floats], line: str) -> str:
    low, high = (100 * x for x in interval(spread["cascade"] - spread[line]))
    verdict = "above" if low > 0 else "below" if high < 0 else "the interval includes 0"
    return f"{100 * (found['cascade'] - found[line]):+.1f} points [{low:+.1f}, {high:+.1f}] ({verdict})"


def _by_category(questions: Sequence[Question], o: Outcomes, seed: int) -> None:
    print("\ncategory             n   small  large  cascade   climbed %   cascade minus random, equal share")
    category = np.array([q.category for q in questions])
    for name in sorted(set(category)):
        some = o.rows(np.flatnonzero(category == name))
        found, spread = accuracies(some), accuracies(resamples(some, seed))
        row = "".join(f"{100 * found[line]:>7.1f}" for line in ("always small", "always large", "cascade"))
        share = 100 * some.climbed.mean()
        print(f"{name:<17}{len(some.small):>5} {row}{share:>14.1f}   {_difference(found, spread, 'random')}")


def checked(fit: Fit, questions: Sequence[Question], served: Sequence[Mapping[str, Served]]) -> str:
    """How the run went: what Envoy did against what the rules say offline. Raises when an answer was not right."""
    wrong = [q.id for q, s in zip(questions, served, strict=True) if not all(x.as_recorded for x in s.values())]
    if wrong:
        raise RuntimeError(f"answers that no tier said, or another one: questions {wrong[:10]}")
    pairs = [(q, s["auto"]) for q, s in zip(questions, served, strict=True)]
    own = sum(s.cohort == cohort_of(q.category) for q, s in pairs)
    cohorts = {cohort_of(category): category for category in fit.max_chars}
    agreed = sum(
        (s.escalations > 0) == rejects(fit, cohorts[s.cohort], q.answers[SMALL])
        for q, s in pairs if s.cohort in cohorts
    )  # fmt: skip
    reasons = Counter(s.reason for _, s in pairs)
    verdicts = Counter(s.verdict or "not judged" for _, s in pairs)
    return (
        f"routed to the category's own cohort: {own}/{len(pairs)}; climbed as the rules say offline: "
        f"{agreed}/{len(pairs)}; reasons {dict(reasons)}; verdicts on the answers served {dict(verdicts)}"
    )


def main() -> None:
    """Fit, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--questions", type=int, default=1200)
    parser.add_argument("--budget", type=float, default=0.25, help="share of the fit part that may be escalated")
    help_charge = "what an escalation is charged as in the fit: alike, or by the large answer's cost"
    parser.add_argument("--charge", choices=("share", "dollars"), default="share", help=help_charge)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    tokens = Tokens()
    fit_part, test_part = split(read_questions(given.data / "mmlupro_recorded.jsonl.gz"), _FIT_SHARE)
    known = outcomes(fit_part, [False] * len(fit_part), tokens)
    charges = np.ones(len(fit_part)) if given.charge == "share" else known.large_cost
    fit = fit_rules(fit_part, given.budget, charges)
    climbed = cross_validated(fit_part, given.budget, charges).astype(np.float64)
    known = msgspec.structs.replace(known, climbed=climbed)
    spoken = utterances(fit_part, load_encoder("all-MiniLM-L6-v2"))
    questions = sample(test_part, given.questions, given.seed)
    answers = {tier: {q.prompt: q.answers[tier] for q in questions} for tier in (SMALL, LARGE)}
    # The replay counts tokens, too: before the clock runs.
    outcomes(questions, [False] * len(questions), tokens)
    with tempfile.TemporaryDirectory(prefix="intents-") as folder:
        write_intents(Path(folder), fit, spoken)
        with replaying(Path(folder), ReplayUpstreams(answers, TOKEN_S, tokens)) as stack:
            served = asyncio.run(run(stack.url, questions))
    models = ", ".join(f"{tier} {questions[0].answers[tier].model}" for tier in (SMALL, LARGE))
    print(
        f"{len(questions)} of {len(test_part)} test MMLU-Pro questions, rules fitted on {len(fit_part)}; {models}"
    )
    print(f"accept where judged: {[*BASE]}, max_chars as fitted:")
    limits = {c: "not judged" if m is None else m or "no limit" for c, m in fit.max_chars.items()}
    print("; ".join(f"{category} {limit}" for category, limit in limits.items()))
    print(checked(fit, questions, served) + "\n")
    report(questions, served, tokens, given.seed)
    lines, again = accuracies(known), accuracies(resamples(known, given.seed, 500))
    print(f"\nthe fit part, 5-fold, every question in its own category ({100 * climbed.mean():.1f} % escalated):")
    for line in ("random", "mix"):
        print(f"cascade minus {_NAMES[line]:<23} {_difference(lines, again, line)}")
    print(
        f"\n(m) measured through Envoy, {_CONNECTIONS} connections; answers replayed at {1000 * TOKEN_S[SMALL]:g} "
        f"(small) and {1000 * TOKEN_S[LARGE]:g} (large) ms a token, the\nother lines' times follow from these. "
        f"$ per million tokens in/out: small {PRICES[SMALL]}, large {PRICES[LARGE]}; all-MiniLM's\n"
        "tokenizer counts; rejected answers are paid; escalation bounds are raised out of the way.\n"
        f"python -m bench.cascade --questions {given.questions} --budget {given.budget:g} --charge {given.charge} "
        f"--seed {given.seed}: {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
