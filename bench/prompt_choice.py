"""Models that choose a tier by the prompt in microseconds: `python -m bench.prompt_choice`.

Each candidate predicts the gain of the strong model over the weak one from the prompt: from its vector, from facts
that are counted in it, and from its cohort. All are cross-fitted on RouteLLM's MMLU, where a cohort is a subject.
The control is the success rate of the cohort, which a tier per cohort uses. The last column is the time for one
prompt on one core, once the vector is known. The last candidate is what `extproc calibrate --target` fits and the
router serves. Its time includes reading the facts of the prompt.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.cache import Cache
from bench.recovery import apgr
from bench.routellm_table import CHARS, Prompts, read_routellm
from bench.success import Asked, Predict, boosted_trees, cohort_gains, fit_stack, scale, served_gains
from extproc.encoder.protocols import Vectors
from extproc.evidence.fit.prompt_gains import Prompts as Asks
from extproc.evidence.fit.prompt_gains import fit_columns, fit_trees
from extproc.evidence.measure.metrics import Floats
from extproc.routing.ask import Ask
from extproc.routing.prompt_gain import PromptGains

_FOLDS, _RESAMPLES = 5, 1000
_LANDMARKS, _WIDTH = 512, 6.0  # of the kernel: prompts that others are compared with, and how near counts
_RIDGES = (30.0, 100.0, 300.0, 1000.0, 3000.0)

_ASK = "Find the degree of the field extension Q(sqrt(2), sqrt(3), sqrt(18)) over Q. A. 0 B. 4 C. 2 D. 6 Answer:"

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
    "boosted trees, a column per cohort": boosted_trees,
    "small network": learn_network,
    "ridge, distilled from the stack": distilled(learn_ridge),
    "stack: neighbours, ridge, trees": learn_stack,
}
_SERVED = "trees on rates of cohorts, as served"
# The form that serves was chosen with this many of the prompts, drawn as `--prompts` draws them.
_SEEN = 6000


def cross_fitted(learn: Learn, prompts: Prompts, facts: Floats, seed: int) -> tuple[Floats, float]:
    """(predicted gains by fits without the prompt, microseconds for one prompt)."""
    n = len(prompts.weak)
    fold, predicted = np.random.default_rng(seed).permutation(n) % _FOLDS, np.empty(n)
    for k in range(_FOLDS):
        predict = learn(prompts.vectors[fold != k], facts[fold != k], prompts.gain[fold != k])
        predicted[fold == k] = predict(prompts.vectors[fold == k], facts[fold == k])
    return predicted, _microseconds(predict, prompts.vectors[:1], facts[:1])


def _microseconds(predict: Callable[[Vectors, Floats], object], vector: Vectors, facts: Any) -> float:
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
    predicted, us = cross_fitted_as_served(prompts, seed)
    value = apgr(predicted, prompts.weak, prompts.strong)
    yield f"{_SERVED:<36}{value:>6.3f}   {_gain(predicted, control, prompts, seed):<32}{us:>9.0f}"
    if n > _SEEN:
        seen = np.isin(np.arange(n), np.random.default_rng(0).permutation(n)[:_SEEN])
        for title, rows in (("chosen with", seen), ("not chosen with", ~seen)):
            gain = _gain(predicted[rows], control[rows], prompts.rows(rows), seed)
            yield f"{f'  on {rows.sum():,} prompts {title}':<36}{'':>6}   {gain}"
    shown = False
    for name, learn in CANDIDATES.items():
        predicted, us = cross_fitted(learn, prompts, facts, seed)
        value = apgr(predicted, prompts.weak, prompts.strong)
        shown = shown or value > 0.5
        yield f"{name:<36}{value:>6.3f}   {_gain(predicted, control, prompts, seed):<32}{us:>9.0f}"
    if not shown:
        raise RuntimeError("no model beats chance: the vectors or the outcomes are wrong")


def cross_fitted_as_served(prompts: Prompts, seed: int) -> tuple[Floats, float]:
    """(predicted gains by fits without the prompt, microseconds for one prompt, with reading its facts)."""
    n = len(prompts.weak)
    fold, predicted = np.random.default_rng(seed).permutation(n) % _FOLDS, np.empty(n)
    for k in range(_FOLDS):
        fit, new = prompts.rows(fold != k).as_served(), prompts.rows(fold == k).as_served()
        predicted[fold == k] = served_gains(fit, new, seed)
    return predicted, _microseconds_as_served(prompts.as_served(), seed)


def _microseconds_as_served(asked: Asked, seed: int) -> float:
    columns = fit_columns(Asks(asked.vectors, asked.facts, asked.vectors.shape[1]), asked.success[:, 0] >= 0)
    few = slice(0, 500)  # the time does not depend on the rows
    rows = columns.of(asked.vectors[few], asked.facts[few])
    pair = ("small", "large")
    trees = fit_trees(rows, asked.success[few], asked.extra[few], asked.cohort[few], pair, seed)
    gains = PromptGains(columns, {pair: trees})
    ask, cohort, vector = Ask(_ASK, "last_user", len(_ASK), False), str(asked.cohort[0]), asked.vectors[0]
    return _microseconds(lambda *_: gains.gain(pair, cohort, vector, ask), asked.vectors[:1], asked.facts[:1])


def _gain(scores: Floats, control: Floats, prompts: Prompts, seed: int) -> str:
    gain, low, high = _compared(scores, control, prompts, seed)
    return f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]"


def _compared(scores: Floats, control: Floats, prompts: Prompts, seed: int) -> tuple[float, float, float]:
    def gain(rows: np.ndarray) -> float:
        weak, strong = prompts.weak[rows], prompts.strong[rows]
        return apgr(scores[rows], weak, strong) - apgr(control[rows], weak, strong)

    rng, n = np.random.default_rng(seed), len(scores)
    draws = [gain(rng.integers(0, n, n)) for _ in range(_RESAMPLES)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return gain(np.arange(n)), float(low), float(high)


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
