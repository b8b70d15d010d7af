"""The tier and a cap on output tokens, chosen together from recorded lengths: `make bench-lengths`.

Each cohort takes an option: a tier, or a tier with a cap. An answer that is longer than its cap counts as wrong and
costs the tokens up to the cap. Options are chosen on four fifths of the questions and reported on the rest. All
ways are compared at equal quality: what does each of them cost at the quality of the best model, and below it?
"""

import argparse
import gzip
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench.answers import read
from bench.chains import price_of
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.fit.plans import _HEAD_ROOM, _LEAST_CAP, cap_of
from extproc.evidence.measure.metrics import Floats

_FOLDS = 5
_RESAMPLES = 500
# The share of right answers that a cap may cut, to try for each cohort and tier.
_CUTS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
_USUAL_CUT = 0.01  # `extproc calibrate --cut`
# Points below the quality of the best model.
_BELOW = (0.0, 1.0, 2.0, 5.0)
# Prices of a unit of quality, relative to the cost of the most expensive model.
_TRADES = np.geomspace(1e-2, 1e4, 40)
TIER = "tier of each cohort"


class Lengths(msgspec.Struct, frozen=True):
    """Recorded answers with their lengths, as arrays [question, model]. The cheapest model comes first."""

    name: str
    models: list[str]
    cohort: np.ndarray
    right: Floats
    fixed: Floats  # dollars for the question
    tokens: Floats  # output tokens
    price: Floats  # [model] dollars for an output token

    @property
    def cost(self) -> Floats:
        """The dollars of each whole answer."""
        return self.fixed + self.tokens * self.price


class CappedTier(msgspec.Struct, frozen=True):
    """A model with a cap. A cut answer is answered again by the next model, if there is one."""

    model: int
    cap: float = np.inf
    then: int | None = None


def served(data: Lengths, option: CappedTier) -> tuple[Floats, Floats]:
    """(right, dollars) of every question with this option."""
    j = option.model
    cut = data.tokens[:, j] > option.cap
    right = np.where(cut, 0.0, data.right[:, j])
    cost = data.fixed[:, j] + np.minimum(data.tokens[:, j], option.cap) * data.price[j]
    if option.then is None:
        return right, cost
    k = option.then
    return np.where(cut, data.right[:, k], right), cost + cut * data.cost[:, k]


# --- the ways to choose -------------------------------------------------------------------------------------------

Choices = Callable[
    [Lengths, np.ndarray, np.ndarray], list[CappedTier]
]  # data, all rows to fit on, those of the cohort


def tiers_alone(data: Lengths, _all: np.ndarray, _rows: np.ndarray) -> list[CappedTier]:
    """A tier without a cap."""
    return [CappedTier(j) for j in range(len(data.models))]


def one_cap(data: Lengths, everything: np.ndarray, _rows: np.ndarray) -> list[CappedTier]:
    """A tier with the same cap for all tiers and cohorts, which cuts few right answers of any tier."""
    caps = [_cap(data, everything, j, _USUAL_CUT, 1.0) for j in range(len(data.models))]
    cap = max((cap for cap in caps if cap is not None), default=np.inf)
    return [CappedTier(j, cap) for j in range(len(data.models))]


def usual_caps(data: Lengths, _all: np.ndarray, rows: np.ndarray) -> list[CappedTier]:
    """A tier with or without the cap that `extproc calibrate --target` fits, with its head-room."""
    return _with_caps(data, rows, (_USUAL_CUT,), _HEAD_ROOM)


def together(data: Lengths, _all: np.ndarray, rows: np.ndarray) -> list[CappedTier]:
    """A tier with any of several caps, or without one."""
    return _with_caps(data, rows, _CUTS, 1.0)


def with_next(data: Lengths, everything: np.ndarray, rows: np.ndarray) -> list[CappedTier]:
    """The same, and cut answers may be answered again by any more expensive tier."""
    options = together(data, everything, rows)
    above = [
        msgspec.structs.replace(option, then=k)
        for option in options
        if option.cap < np.inf
        for k in range(option.model + 1, len(data.models))
    ]
    return options + above


WAYS: dict[str, Choices] = {
    TIER: tiers_alone,
    "tier, one cap for all": one_cap,
    "tier, cap as calibrate fits it": usual_caps,
    "tier and cap together": together,
    "tier and cap, next tier if cut": with_next,
}


def _with_caps(data: Lengths, rows: np.ndarray, cuts: Sequence[float], head_room: float) -> list[CappedTier]:
    options = []
    for j in range(len(data.models)):
        caps = {_cap(data, rows, j, cut, head_room) for cut in cuts}
        options += [CappedTier(j), *(CappedTier(j, cap) for cap in sorted(cap for cap in caps if cap is not None))]
    return options


def _cap(data: Lengths, rows: np.ndarray, j: int, cut: float, head_room: float) -> float | None:
    fitted = cap_of(data.tokens[rows, j], data.right[rows, j], cut)
    return None if fitted is None else max(_LEAST_CAP, float(np.ceil(head_room * fitted)))


def points_of(data: Lengths, choices: Choices, seed: int) -> tuple[Floats, Floats]:
    """(right, dollars), each float64[trade, question]: cross-fitted, one option for each cohort and trade."""
    n = len(data.cohort)
    fold = np.random.default_rng(seed).permutation(n) % _FOLDS
    right, cost = np.zeros((len(_TRADES), n)), np.zeros((len(_TRADES), n))
    unit = data.cost.mean(axis=0).max()
    for k in range(_FOLDS):
        fit = fold != k
        for cohort in np.unique(data.cohort):
            rows, new = fit & (data.cohort == cohort), ~fit & (data.cohort == cohort)
            results = [served(data, option) for option in choices(data, fit, rows)]
            quality, dollars = (np.array([each[part][rows].mean() for each in results]) for part in (0, 1))
            for t, trade in enumerate(_TRADES):
                best = results[int((quality * trade * unit - dollars).argmax())]
                right[t, new], cost[t, new] = best[0][new], best[1][new]
    return right, cost


# --- figures ------------------------------------------------------------------------------------------------------


def cost_at(quality: Floats, cost: Floats, least: Floats) -> Floats:
    """float64[draw]: the lowest mean cost of a mix of two points with this quality; NaN if no point reaches it.

    `quality` and `cost` are float64[point, draw].
    """
    lowest = np.where(quality >= least, cost, np.inf).min(axis=0)
    for i in range(len(quality)):
        for j in range(len(quality)):
            lower, higher = quality[i] < least, quality[j] >= least
            share = (least - quality[i]) / np.where(lower & higher, quality[j] - quality[i], 1.0)
            mixed = (1 - share) * cost[i] + share * cost[j]
            lowest = np.where(lower & higher, np.minimum(lowest, mixed), lowest)
    return np.where(np.isfinite(lowest), lowest, np.nan)


def lines(data: Lengths, seed: int, resamples: int) -> Iterator[str]:
    """The table of one data set."""
    n, rng = len(data.cohort), np.random.default_rng(seed)
    draws = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), resamples)]) / n
    singles = draws @ data.right, draws @ data.cost
    ways = {"static mix of the tiers": (singles[0].T, singles[1].T)}
    for name, choices in WAYS.items():
        right, cost = points_of(data, choices, seed)
        ways[name] = (right @ draws.T, cost @ draws.T)
    cohorts = len(np.unique(data.cohort))
    yield f"{data.name}: {n:,} questions in {cohorts} cohorts"
    for j, model in enumerate(data.models):
        is_right = data.right[:, j] > 0
        quality, cost = 100 * is_right.mean(), 1000 * data.cost[:, j].mean()
        yield (
            f"  {model:<28} right {quality:5.1f} %, $ per 1,000 {cost:7.4f}, tokens (99 %) of right answers "
            f"{_tokens(data.tokens[is_right, j])}, of wrong ones {_tokens(data.tokens[~is_right, j])}"
        )
    yield f"{'$ per 1,000 at equal quality':<34}" + "".join(f"{f'best model -{b:g}':>24}" for b in _BELOW)
    best = singles[0].max(axis=1)
    costs = {name: [cost_at(*way, best - below / 100) for below in _BELOW] for name, way in ways.items()}
    for name, values in costs.items():
        yield f"{name:<34}" + "".join(f"{_dollars(value[0]):>24}" for value in values)
    yield f"{'saved against the tier alone, %':<34}"
    for name, values in costs.items():
        if name != TIER:
            yield f"{name:<34}" + "".join(
                f"{_saved(value, base):>24}" for value, base in zip(values, costs[TIER], strict=True)
            )


def _tokens(lengths: Floats) -> str:
    return "{:.0f} ({:.0f})".format(*np.percentile(lengths, [50, 99])) if len(lengths) else "-"


def _dollars(value: float) -> str:
    return "-" if np.isnan(value) else f"{1000 * value:.4f}"


def _saved(value: Floats, base: Floats) -> str:
    saved = 100 * (1 - value / base)
    if np.isnan(saved[0]) or np.isnan(saved).mean() > 0.1:
        return "-"
    low, high = np.nanpercentile(saved[1:], [2.5, 97.5])
    return f"{saved[0]:.1f} [{low:.1f}, {high:.1f}]"


# --- data ---------------------------------------------------------------------------------------------------------


def read_whole_answers(path: Path) -> Lengths:
    """Questions of one kind with the whole answers of several models: see bench/answers.py."""
    questions, models = read(path)
    names, tokens = list(models), Tokens()
    out = np.array([[tokens.count(answer) for answer in models[name].answers] for name in names], dtype=float).T
    price = np.array([price_of(name)[1] / 1e6 for name in names])
    right = np.stack([models[name].right for name in names], axis=1)
    cost = np.stack([models[name].cost for name in names], axis=1)
    return Lengths(path.name, names, np.full(len(questions), "all"), right, cost - out * price, out, price)


class _Recorded(msgspec.Struct):
    model: str
    text: str
    choice: str | None


class _Question(msgspec.Struct):
    category: str
    question: str
    options: list[str]
    answer: str
    answers: dict[str, _Recorded]


def read_multiple_choice(path: Path) -> Lengths:
    """Questions of several categories, with the answers of three models. Texts were cut at 4,000 characters."""
    rows = [msgspec.json.decode(line, type=_Question) for line in gzip.decompress(path.read_bytes()).splitlines()]
    tiers, tokens = list(rows[0].answers), Tokens()
    names = [rows[0].answers[tier].model for tier in tiers]
    asked = np.array([tokens.count("\n".join((row.question, *row.options))) for row in rows], dtype=float)
    out = np.array([[tokens.count(row.answers[tier].text) for tier in tiers] for row in rows], dtype=float)
    right = np.array([[row.answers[tier].choice == row.answer for tier in tiers] for row in rows], dtype=float)
    prices = np.array([price_of(name) for name in names]) / 1e6
    cohort = np.array([row.category for row in rows])
    return Lengths(path.name, names, cohort, right, asked[:, None] * prices[:, 0], out, prices[:, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--answers", type=Path, default=Path("../shared/data/zeroeval_gsm.jsonl.gz"), metavar="FILE"
    )
    parser.add_argument(
        "--choices", type=Path, default=Path("../shared/data/mmlupro_recorded.jsonl.gz"), metavar="FILE"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=_RESAMPLES)
    args = parser.parse_args()
    began = time.monotonic()
    for reader, path in ((read_whole_answers, args.answers), (read_multiple_choice, args.choices)):
        print("\n".join(lines(reader(path), args.seed, args.resamples)), end="\n\n", flush=True)
    print(f"{args.resamples:,} resamples of the questions; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
