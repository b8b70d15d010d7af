"""Models that choose a tier by the prompt in microseconds: `python -m bench.prompt_choice`.

Each candidate predicts the gain of the strong model over the weak one from the prompt: from its vector, from facts
that are counted in it, and from its cohort. All are cross-fitted on RouteLLM's MMLU, where a cohort is a subject.
The control is the success rate of the cohort, which a tier per cohort uses. The last column is the time for one
prompt on one core, once the vector is known.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench.cache import Cache
from bench.recovery import apgr
from bench.routellm_table import CHARS, Prompts, read_routellm
from bench.success import Predict, boosted_trees, cohort_gains, fit_stack, scale
from extproc.encoder.protocols import Vectors
from extproc.evidence.measure.metrics import Floats

_FOLDS, _RESAMPLES = 5, 1000
_LANDMARKS, _WIDTH = 512, 6.0  # of the kernel: prompts that others are compared with, and how near counts
_RIDGES = (30.0, 100.0, 300.0, 1000.0, 3000.0)

Learn = Callable[[Vectors, Floats, Floats], Predict]


def solve_ridge(rows: Floats, gain: Floats) -> tuple[Floats, float]:
    """(slopes, offset) of the ridge that predicts best when a row is left out, by the closed form."""
    shift, mean = rows.mean(axis=0), float(gain.mean())
    values, basis = np.linalg.eigh((rows - shift).T @ (rows - shift))
    turned = (rows - shift) @ basis
    along = turned.T @ (gain - mean)

    def error(ridge: float) -> float:
        fitted = turned @ (along / (values + ridge))
        leverage = (turned**2 / (values + ridge)).sum(axis=1) + 1 / len(gain)
        return float((((gain - mean - fitted) / (1 - leverage)) ** 2).mean())

    slopes = basis @ (along / (values + min(_RIDGES, key=error)))
    return slopes, mean - float(shift @ slopes)


def learn_ridge(vectors: Vectors, facts: Floats, gain: Floats) -> Predict:
    """One slope per column."""
    columns = scale(facts)
    slopes, offset = solve_ridge(columns.of(vectors, facts), gain)
    return lambda v, f: np.asarray(columns.of(v, f) @ slopes + offset, dtype=np.float64)


def learn_kernel(vectors: Vectors, facts: Floats, gain: Floats) -> Predict:
    """A ridge on similarities with some of the prompts (Nystrom), beside the columns: neighbours as one product."""
    picked = vectors[np.random.default_rng(0).permutation(len(vectors))[:_LANDMARKS]]
    columns = scale(facts)

    def near(v: Vectors) -> Floats:
        return np.asarray(np.exp(_WIDTH * (v @ picked.T - 1)), dtype=np.float64)

    values, basis = np.linalg.eigh(near(picked))
    whiten = basis / np.sqrt(np.maximum(values, 1e-3))
    size = float(np.sqrt(len(picked)))
    slopes, offset = solve_ridge(np.hstack([columns.of(vectors, facts), size * near(vectors) @ whiten]), gain)
    split = vectors.shape[1] + facts.shape[1]
    folded = size * whiten @ slopes[split:]
    return lambda v, f: np.asarray(columns.of(v, f) @ slopes[:split] + near(v) @ folded + offset, dtype=np.float64)


def learn_network(vectors: Vectors, facts: Floats, gain: Floats) -> Predict:
    """The mean of three networks with one hidden layer of 32."""
    from sklearn.neural_network import MLPRegressor

    columns = scale(facts)
    rows = columns.of(vectors, facts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the steps are few on purpose
        networks = [
            MLPRegressor(
                hidden_layer_sizes=(32,), alpha=3.0, learning_rate_init=1e-3, max_iter=12, random_state=seed
            ).fit(rows, gain)
            for seed in range(3)
        ]
    return lambda v, f: np.mean([network.predict(columns.of(v, f)) for network in networks], axis=0)


def learn_stack(vectors: Vectors, facts: Floats, gain: Floats) -> Predict:
    """Neighbours, ridge and trees, blended."""
    return fit_stack(vectors, facts, gain, 0).gains


def distilled(student: Learn) -> Learn:
    """The student learns the stack's predictions for prompts that the stack had not seen, and half the outcome."""

    def learn(vectors: Vectors, facts: Floats, gain: Floats) -> Predict:
        taught, fold = np.empty(len(gain)), np.arange(len(gain)) % 3
        for k in range(3):
            teacher = learn_stack(vectors[fold != k], facts[fold != k], gain[fold != k])
            taught[fold == k] = teacher(vectors[fold == k], facts[fold == k])
        return student(vectors, facts, taught + (gain - taught) / 2)

    return learn


CANDIDATES: dict[str, Learn] = {
    "ridge": learn_ridge,
    "kernel ridge, 512 landmarks": learn_kernel,
    "boosted trees": boosted_trees,
    "small network": learn_network,
    "ridge, distilled from the stack": distilled(learn_ridge),
    "kernel ridge, distilled": distilled(learn_kernel),
    "small network, distilled": distilled(learn_network),
    "stack: neighbours, ridge, trees": learn_stack,
}


def cross_fitted(learn: Learn, prompts: Prompts, facts: Floats, seed: int) -> tuple[Floats, float]:
    """(predicted gains by fits without the prompt, microseconds for one prompt)."""
    n = len(prompts.weak)
    fold, predicted = np.random.default_rng(seed).permutation(n) % _FOLDS, np.empty(n)
    for k in range(_FOLDS):
        predict = learn(prompts.vectors[fold != k], facts[fold != k], prompts.gain[fold != k])
        predicted[fold == k] = predict(prompts.vectors[fold == k], facts[fold == k])
    return predicted, _microseconds(predict, prompts.vectors[:1], facts[:1])


def _microseconds(predict: Predict, vector: Vectors, facts: Floats) -> float:
    times = []
    for _ in range(200):
        began = time.process_time_ns()
        predict(vector, facts)
        times.append(time.process_time_ns() - began)
    return float(np.median(times)) / 1000


def table(prompts: Prompts, seed: int) -> Iterator[str]:
    """The lines of the table, each as soon as it is ready. Raises RuntimeError if no model beats chance."""
    n, subjects = len(prompts.weak), np.unique(prompts.subject)
    fold, control = np.random.default_rng(seed).permutation(n) % _FOLDS, np.empty(n)
    for k in range(_FOLDS):
        fit, new = prompts.rows(fold != k), prompts.rows(fold == k)
        control[fold == k] = cohort_gains(fit.subject, fit.gain, new.subject)
    # Ties of a cohort are broken at random, which is what a share of a cohort sent to a tier does.
    yield f"{n:,} prompts of {len(subjects)} cohorts, {_FOLDS}-fold"
    yield f"{'':<36}{'APGR':>6}   {'minus a tier per cohort [95 %]':<32}{'us/prompt':>9}"
    yield f"{'a tier per cohort':<36}{apgr(control, prompts.weak, prompts.strong):>6.3f}"
    facts = np.hstack([prompts.facts, prompts.subject[:, None] == subjects]).astype(np.float64)
    shown = False
    for name, learn in CANDIDATES.items():
        predicted, us = cross_fitted(learn, prompts, facts, seed)
        value, (gain, low, high) = _compared(predicted, control, prompts, seed)
        shown = shown or value > 0.5
        yield f"{name:<36}{value:>6.3f}   {f'{gain:+.3f} [{low:+.3f}, {high:+.3f}]':<32}{us:>9.0f}"
    if not shown:
        raise RuntimeError("no model beats chance: the vectors or the outcomes are wrong")


def _compared(
    scores: Floats, control: Floats, prompts: Prompts, seed: int
) -> tuple[float, tuple[float, float, float]]:
    def gain(rows: np.ndarray) -> float:
        weak, strong = prompts.weak[rows], prompts.strong[rows]
        return apgr(scores[rows], weak, strong) - apgr(control[rows], weak, strong)

    rng, n = np.random.default_rng(seed), len(scores)
    draws = [gain(rng.integers(0, n, n)) for _ in range(_RESAMPLES)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return apgr(scores, prompts.weak, prompts.strong), (gain(np.arange(n)), float(low), float(high))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/routellm_mmlu.jsonl.gz"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench-routing"), help="folder for cached arrays")
    parser.add_argument("--prompts", type=int, default=0, help="random prompts to use (default 0: all)")
    parser.add_argument("--chars", type=int, default=CHARS, help="characters of a prompt that are embedded")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    prompts = read_routellm(Cache(args.cache), args.data, args.chars, args.prompts)
    for line in table(prompts, args.seed):
        print(line, flush=True)


if __name__ == "__main__":
    main()
