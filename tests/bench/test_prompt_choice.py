"""Models that choose a tier by the prompt: the fits, on simulated prompts."""

import numpy as np
import pytest

from bench import prompt_choice
from bench.prompt_choice import cross_fitted, learn_kernel, learn_ridge, solve_ridge, table
from bench.routellm_table import Prompts
from extproc.evidence.fit import boosting


def simulated(count: int = 600, slope: float = 4.0, seed: int = 0) -> Prompts:
    """Prompts whose gain depends on the first direction of their vector. Their subject says nothing."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weak = (rng.random(count) < 1 / (1 + np.exp(slope * vectors[:, 0]))).astype(float)
    subjects = np.array(["a", "b", "c"])[rng.integers(0, 3, count)]
    return Prompts(
        subjects,
        vectors,
        rng.normal(size=(count, 2)),
        weak,
        np.ones(count),
        rng.normal(size=(count, 12)).astype(np.float32),
    )


def test_a_ridge_has_the_closed_form() -> None:
    """The slopes are those of one of the ridges, and the offset makes the mean right."""
    rng = np.random.default_rng(0)
    rows, gain = rng.normal(size=(200, 5)), rng.normal(size=200)
    slopes, offset = solve_ridge(rows, gain)
    centred = rows - rows.mean(axis=0)
    closed = [
        np.linalg.solve(centred.T @ centred + ridge * np.eye(5), centred.T @ (gain - gain.mean()))
        for ridge in prompt_choice._RIDGES
    ]
    assert any(np.allclose(slopes, one) for one in closed)
    assert float((rows @ slopes + offset).mean()) == pytest.approx(float(gain.mean()))


@pytest.mark.parametrize("learn", [learn_ridge, learn_kernel])
def test_what_depends_on_the_prompt_is_found(learn: prompt_choice.Learn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions by fits without the prompt rank it."""
    monkeypatch.setattr(prompt_choice, "_LANDMARKS", 32)
    prompts = simulated()
    predicted, us = cross_fitted(learn, prompts, prompts.facts, 0)
    assert np.corrcoef(predicted, prompts.vectors[:, 0])[0, 1] > 0.7 and us > 0


def test_a_table_where_nothing_is_found_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval is above zero where the prompt matters, and the command fails where no model beats chance."""
    monkeypatch.setattr(prompt_choice, "CANDIDATES", {"ridge": learn_ridge})
    monkeypatch.setattr(boosting, "_REPEATS", 1)  # one fit of the trees is quick
    lines = [*table(simulated(), 0)]
    assert lines[0] == "600 prompts of 3 cohorts, 5-fold" and "[+0." in lines[-1]
    assert lines[3].startswith("trees on rates of cohorts, as served")
    monkeypatch.setattr(
        prompt_choice,
        "CANDIDATES",
        {"reversed": lambda v, f, g: lambda vectors, _: -learn_ridge(v, f, g)(vectors, _)},
    )
    with pytest.raises(RuntimeError, match="no model beats chance"):
        list(table(simulated(), 0))
