"""The benchmarks on recorded chains and whole answers: reading, levels and controls, computed by hand."""

import gzip
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from bench.answers import Judged, Model, by_agreement, by_rules, by_score, by_values, draws_of, figures
from bench.cascade import Served, routed_to_own_cohort
from bench.cascade_logprob import checked, table
from bench.chains import (
    ahead_of_mix,
    best_pair,
    fit_levels,
    models_by_price,
    outcomes_of,
    pair_lines,
    price_of,
    read_chains,
    rejected,
    traffic_row,
)


def response(text: str, logprob: float) -> dict[str, Any]:
    return {
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
                "logprobs": {"content": [{"token": text, "logprob": logprob}]},
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


def chain_row(part: str, i: int) -> dict[str, Any]:
    """A row where the small model is wrong, and unsure, three times in ten. The large one is always right."""
    right = i % 10 > 2
    sure = -0.1 if right else -2.0 - i / 1000
    outcomes = {
        "m-405b": {"success": True, "latency_s": 0.5, "response": response("B", -0.01)},
        "m-8b": {"success": right, "latency_s": 0.1, "response": response("A", sure)},
    }
    return {"id": f"quiz-{part}-{i}", "text": f"{part} question {i}", "intent": "quiz", "outcomes": outcomes}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [chain_row("train", i) for i in range(50)] + [chain_row("test", i) for i in range(100)]
    file = tmp_path / "chains_m.jsonl.gz"
    file.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in [*rows, rows[0]])))
    return file


def test_chains_are_read_with_their_parts(path: Path) -> None:
    """The parts are those of the ids, a repeated text is left out, and the cheaper model comes first."""
    questions = read_chains([path])
    assert (sum(q.fit for q in questions), len(questions)) == (49, 149)
    assert models_by_price(questions) == ["m-8b", "m-405b"]
    answer = questions[0].answers["m-8b"]
    assert (answer.text, answer.usage, answer.seconds) == ("A", (100, 10), 0.1)
    assert answer.logprobs == (-2.001,)
    path.write_bytes(gzip.compress(json.dumps(chain_row("test", 1)).encode()))
    with pytest.raises(RuntimeError, match="no question to"):
        read_chains([path])


def test_prices_are_by_size_or_name() -> None:
    """A model without either is an error."""
    assert [price_of(name) for name in ("llama3.2-3b", "Qwen2-7B-Instruct", "llama3.1-405b", "gpt-4o-mini-x")] == [
        (0.1, 0.1), (0.2, 0.2), (3.0, 3.0), (0.15, 0.6),
    ]  # fmt: skip
    with pytest.raises(RuntimeError, match="add one to _BY_NAME"):
        price_of("mystery")


def test_a_level_gains_what_is_computed_by_hand(path: Path) -> None:
    """30 % escalate and all are then right. The mix that costs as much sends 32.1 % to the large model."""
    questions = read_chains([path])
    fit, test = ([q for q in questions if q.fit is part] for part in (True, False))
    assert best_pair(fit, 0.3) == ("m-8b", "m-405b")
    levels = fit_levels(fit, "m-8b", 0.3)
    escalated = rejected(test, "m-8b", levels)
    assert escalated.tolist() == [float(i % 10 <= 2) for i in range(100)]
    gain, low, high = ahead_of_mix(outcomes_of(test, "m-8b", "m-405b", escalated), 0)
    assert gain == pytest.approx(100 * (1.0 - (0.7 + 0.3 * 0.3 * 3.0 / 2.8))) and low < gain < high
    assert f"{gain:+.1f}" in [*pair_lines(questions, 0.3, 0)][-1]
    row = traffic_row(test[0].as_tiers("m-8b", "m-405b"))
    assert (list(row["outcomes"]), row["outcomes"]["small"]["success"]) == (["small", "large"], False)


def served(question: Any, escalated: bool, **more: Any) -> dict[str, Served]:
    auto = Served("large" if escalated else "small", 0.1, "quiz", "matched", int(escalated), verdict="accept")
    return {
        "auto": msgspec.structs.replace(auto, **more),
        "small": Served("small", 0.1),
        "large": Served("large", 0.5),
    }


def test_a_run_that_says_nothing_is_an_error(path: Path) -> None:
    """Nothing routed, other escalations than computed, or log-probabilities that a client saw."""
    test = [q.as_tiers("m-8b", "m-405b") for q in read_chains([path]) if not q.fit]
    levels = {"quiz": -1.0}
    asked = SimpleNamespace(asked_logprobs=Counter(small=100))
    right = [served(q, i % 10 <= 2) for i, q in enumerate(test)]
    assert "Same escalation as the levels offline: 100/100" in checked(test, right, levels, asked)  # type: ignore[arg-type]
    lines = [*table(test, right, {}, ("small", "large"), 0)]
    assert "cascade, log-probabilities (m)   100.0" in "\n".join(lines) and "(above)" in lines[-1]
    for wrong, message in (
        ([served(q, i % 10 > 2) for i, q in enumerate(test)], "escalated otherwise"),
        ([served(q, i % 10 <= 2, reason="deadline") for i, q in enumerate(test)], "0 of 100 requests landed"),
        ([served(q, i % 10 <= 2, shows_logprobs=True) for i, q in enumerate(test)], "did not ask"),
        ([served(q, i % 10 <= 2, as_recorded=False) for i, q in enumerate(test)], "differ from the recorded"),
    ):
        with pytest.raises(RuntimeError, match=message):
            checked(test, wrong, levels, asked)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="expected only small"):
        checked(test, right, levels, SimpleNamespace(asked_logprobs=Counter()))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="would say nothing"):
        routed_to_own_cohort([(test[0], Served("small", 0.1, "quiz", "matched"))])


# Whole answers


def model(name: str, right: list[float], answers: list[str], dollars: float) -> Model:
    return Model(name, np.array(right), np.full(len(right), dollars), answers)


def test_figures_of_a_rule_by_hand() -> None:
    """Two of four are rejected. Second answers are paid for every question, large ones for the rejected ones."""
    models = {
        "a": model("a", [1, 1, 0, 0], ["1", "2", "3", "4"], 1.0),
        "b": model("b", [1, 0, 0, 0], ["1", "5", "6", "4"], 1.0),
        "c": model("c", [1, 1, 1, 0], ["1", "2", "7", "8"], 10.0),
    }
    judged = Judged(by_agreement(models["a"], models["b"], None), ("b",))
    assert judged.rejected.tolist() == [False, True, True, False]
    f = figures(models, "a", "c", judged, np.ones((1, 4)))
    assert (f.right[0], f.random[0], f.oracle[0], f.share) == (0.75, 0.5 + 0.5 * 0.25, 0.75, 0.5)
    assert f.dollars == 7000 and f.mix[0] == pytest.approx(0.5 + 0.25 * 6 / 9)


def test_rules_judge_what_they_should() -> None:
    """Form by the rules that serve. A level rejects its share of the answers that it was not fitted on."""
    rng = np.random.default_rng(0)
    right = (rng.random(400) < 0.6).astype(float)
    said = model("a", right.tolist(), ['{"answer": 1}' if r else "Perhaps it might be 1." for r in right], 1.0)
    assert (by_rules(["json"], said) == (right < 1)).all()
    assert (by_score(["How much?"] * 400, said, 0, 0.4) <= (right < 1)).all()
    low = by_values(rng.random(400), 0, 0.25)
    assert 0.2 < low.mean() < 0.3
    draws = draws_of(400, 0)
    assert (draws[0] == 1).all() and (draws.sum(axis=1) == 400).all()
