"""The gain of a choice of the tier by the prompt, at equal cost: `python -m bench.prompt_cost`.

The questions are the recorded ones of MMLU-Pro, and a cohort is a category. The area is that under the curve of
quality against dollars, from always small to always large. A static mix has 0.5. A prompt goes to the large tier if
its expected gain is worth its expected extra cost. Each of the two comes from the means of its cohort, or from the
trees that `extproc calibrate --target` fits. The method is chosen on the first part, which is cross-fitted.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.cache import BASE, Cache, CachedEncoder
from bench.cascade import _FIT_SHARE, outcomes, split
from bench.frontier_table import QUESTION_CHARS, TRADES, area_of
from bench.replay import Question, read_questions
from bench.success import Asked, asked_facts, cohort_gains, served_parts
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.fit.prompt_gains import Prompts, fit_columns
from extproc.evidence.measure.metrics import Floats, resamples

_FOLDS, _RESAMPLES = 5, 400

Gains = tuple[Floats, Floats, Floats, Floats]  # gain and extra dollars by cohort, and by the trees


class Costs:
    """Questions as the fit reads them, with the cost of both answers."""

    def __init__(self, encoder: CachedEncoder, questions: list[Question], tokens: Tokens) -> None:
        o = outcomes(questions, [False] * len(questions), tokens)
        vectors = encoder.encode([q.prompt[:QUESTION_CHARS] for q in questions])
        success, extra = np.stack([o.small, o.large], axis=1), o.large_cost - o.small_cost
        cohort = np.array([q.category for q in questions])
        self.asked = Asked(vectors, asked_facts([q.prompt for q in questions]), cohort, success, extra)
        self.columns = np.stack([o.small, o.large, o.small_cost, o.large_cost])


def rows_of(asked: Asked, chosen: np.ndarray) -> Asked:
    """The chosen rows."""
    return Asked(*(getattr(asked, name)[chosen] for name in asked.__struct_fields__))


def predict(fit: Asked, new: Asked, seed: int) -> Gains:
    """Predictions for one part by fits on the other."""
    gain, cost = served_parts(fit, new, seed)
    by_cohort = cohort_gains(fit.cohort, fit.success[:, 1] - fit.success[:, 0], new.cohort)
    return by_cohort, cohort_gains(fit.cohort, fit.extra, new.cohort), gain, cost * fit.extra.mean()


def cross_fitted(asked: Asked, seed: int) -> Gains:
    """Predictions for every row by fits without it."""
    n = len(asked.cohort)
    fold, gains = np.random.default_rng(seed).permutation(n) % _FOLDS, np.empty((4, n))
    for k in range(_FOLDS):
        gains[:, fold == k] = predict(rows_of(asked, fold != k), rows_of(asked, fold == k), seed)
    return gains[0], gains[1], gains[2], gains[3]


def lines(costs: Costs, gains: Gains, seed: int) -> Iterator[str]:
    """One line for each way to predict, with the difference from one tier per cohort."""
    by_cohort, cost_by_cohort, gain, cost = gains
    ways = {
        "one tier per cohort": (by_cohort, cost_by_cohort),
        "gain by the trees, cost by cohort": (gain, cost_by_cohort),
        "gain by cohort, cost by the trees": (by_cohort, cost),
        "both by the trees, as served": (gain, cost),
    }
    control: Floats | None = None
    for name, (worth, extra) in ways.items():
        areas = _areas(costs, [worth > price * extra for price in TRADES], seed)
        control = areas if control is None else control
        lead = _interval(areas - control, "+") if areas is not control else ""
        yield f"{name:<36}{_interval(areas):<23}{lead}".rstrip()


def _areas(costs: Costs, paths: Sequence[np.ndarray], seed: int) -> Floats:
    """float64[1 + resamples]: the area on the rows, and on resamples of them."""
    small, large, small_cost, large_cost = costs.columns
    quality = [np.where(path, large, small) for path in paths]
    dollars = [np.where(path, large_cost, small_cost) for path in paths]
    columns = np.stack([*quality, *dollars, *costs.columns], axis=1)
    drawn = [weights @ columns / len(small) for weights in resamples(len(small), seed, _RESAMPLES)]
    return np.array([area_of(row)[0] for row in (columns.mean(axis=0), *np.concatenate(drawn))])


def _interval(values: Floats, sign: str = "") -> str:
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return f"{values[0]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def within_range(asked: Asked) -> tuple[float, float]:
    """The shares of prompts inside the range of a fit: without their category, and with four fifths of all rows."""
    held_out = [asked.cohort == name for name in np.unique(asked.cohort)]
    fifth = np.random.default_rng(0).random(len(asked.cohort)) < 0.2
    return float(np.mean([_inside(asked, rows) for rows in held_out])), _inside(asked, fifth)


def _inside(asked: Asked, rows: np.ndarray) -> float:
    columns = fit_columns(Prompts(asked.vectors, asked.facts, asked.vectors.shape[1]), ~rows)
    seen = columns.of(asked.vectors[rows], asked.facts[rows])
    return float(np.mean([columns.saw(row) for row in seen]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mmlupro_recorded.jsonl.gz"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench-routing"), help="folder for cached arrays")
    parser.add_argument("--encoder", default=BASE, help="name of the encoder (default: %(default)s)")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="take every N-th question (default 1: all)"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=("fit", "test"), default=("fit", "test"), help="tables to print"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    encoder, tokens = CachedEncoder(Cache(args.cache), args.encoder), Tokens()
    fit_part, test_part = (part[:: args.every] for part in split(read_questions(args.data), _FIT_SHARE))
    fit = Costs(encoder, fit_part, tokens)
    print(f"{args.encoder}{'':<{36 - len(args.encoder)}}{'area [95 %]':<23}minus one tier per cohort [95 %]")
    if "fit" in args.parts:
        print(f"{len(fit.asked.cohort):,} questions, {_FOLDS}-fold")
        for line in lines(fit, cross_fitted(fit.asked, args.seed), args.seed):
            print(line, flush=True)
        held_out, own = within_range(fit.asked)
        print(f"inside the range of the fit: {100 * own:.1f} %; of a category left out: {100 * held_out:.1f} %")
    if "test" in args.parts:
        test = Costs(encoder, test_part, tokens)
        print(f"{len(test.asked.cohort):,} questions, fitted on the others")
        for line in lines(test, predict(fit.asked, test.asked, args.seed), args.seed):
            print(line, flush=True)


if __name__ == "__main__":
    main()
