"""The cascade benchmark: the split, the fit, the controls and their intervals, computed by hand."""

import gzip
import json
import urllib.error
import urllib.request
from pathlib import Path

import msgspec
import numpy as np
import pytest
import yaml

from bench.cascade import (
    BANDS,
    LENGTHS,
    Fit,
    Outcomes,
    accuracies,
    band,
    choose,
    costs,
    cross_validated,
    estimate,
    fit_rules,
    interval,
    mixed_share,
    rejects,
    resamples,
    sample,
    split,
    utterances,
    weighted_quantile,
    write_intents,
)
from bench.replay import CUT_CHARS, Answer, Question, ReplayUpstreams, frames, read_questions
from extproc.config.load import load_config
from extproc.encoder.features import FeatureEncoder
from extproc.evidence.data.tokens import Tokens

FINAL = " The answer is (A)."


def question(
    number: int, category: str = "math", small: bool = True, large: bool = True, chars: int = 50
) -> Question:
    """A question whose right answer is A. The small answer has `chars` characters and a proper end."""
    right_by_tier = {"small": small, "large": large}
    answers = {
        tier: Answer(tier, "x" * (chars - len(FINAL)) + FINAL, "A" if right else "B")
        for tier, right in right_by_tier.items()
    }
    return Question(number, category, f"{category} {number}?", ("yes", "no"), "A", answers)


def outcomes(small: str, large: str, escalated: str) -> Outcomes:
    """One digit per question. The small answer costs 1, the large one 10."""
    first, second, third = (np.array([float(d) for d in row]) for row in (small, large, escalated))
    return Outcomes(first, second, third, small_cost=np.ones(len(small)), large_cost=np.full(len(small), 10.0))


def test_the_parts_are_disjoint_and_have_every_category() -> None:
    questions = [question(i, "math" if i < 20 else "law") for i in range(30)]
    fit, test = split(questions, 0.7)
    assert {q.id for q in fit} | {q.id for q in test} == set(range(30))
    assert (len(fit), len(test)) == (21, 9)
    assert sum(q.category == "law" for q in test) == 3
    assert split(list(reversed(questions)), 0.7) == (fit, test)


def test_a_sample_keeps_the_proportions_and_depends_on_its_seed_alone() -> None:
    questions = [question(i, "math" if i < 20 else "law") for i in range(30)]
    drawn = sample(questions, 10, seed=1)
    assert len({q.id for q in drawn}) == 10
    assert sum(q.category == "math" for q in drawn) == 7  # 6.67 and 3.33: the larger remainder
    assert sample(questions, 10, seed=1) == drawn
    assert sample(questions, 10, seed=2) != drawn


def test_a_prompt_is_the_question_and_its_lettered_options() -> None:
    assert question(1).prompt == "math 1?\n\nA. yes\nB. no"


def test_questions_with_the_same_prompt_are_left_out(tmp_path: Path) -> None:
    twin = msgspec.structs.replace(question(1), id=2)
    path = tmp_path / "recorded.jsonl.gz"
    with gzip.open(path, "wb") as out:
        out.write(b"\n".join(msgspec.json.encode(q) for q in (question(1), twin, question(3))))
    assert read_questions(path) == [question(3)]


def test_an_answer_cut_by_the_recording_was_not_finished() -> None:
    assert Answer("m", "x" * CUT_CHARS).finish == "length"
    assert Answer("m", "x" * (CUT_CHARS - 1)).finish == "stop"


@pytest.mark.parametrize("text", ["", "one", " two  words ", "a\n\nb c\n"])
def test_the_frames_of_a_stream_join_to_the_text(text: str) -> None:
    assert "".join(frames(text)) == text


def test_bands_are_the_answers_that_the_verifier_can_distinguish() -> None:
    assert band(Answer("m", "It is A.")) == 0  # no final answer
    assert band(Answer("m", "x" * CUT_CHARS + FINAL)) == 0  # cut
    assert band(question(1, chars=160).answers["small"]) == 1
    assert band(question(1, chars=161).answers["small"]) == 2
    assert band(question(1, chars=3999).answers["small"]) == BANDS - 1


def test_the_mean_of_few_answers_is_shrunk_to_that_of_all() -> None:
    cohort = np.array([0] * 900 + [1])
    bands = np.ones(901, dtype=np.int64)
    gain = np.array([0.5] * 900 + [-1.0])
    count, mean = estimate(cohort, bands, gain, 2)
    assert count[:, 1].tolist() == [900, 1]
    assert mean[0, 1] == pytest.approx(0.5, abs=0.01)
    assert mean[1, 1] == pytest.approx(0.5, abs=0.05)  # one answer has little effect


def test_rules_reject_bands_with_a_gain_and_no_band_otherwise() -> None:
    count = np.full((3, BANDS), 10.0)
    worth = np.full((3, BANDS), -0.1)
    worth[0, 0] = 1.0  # only answers without a final answer have a gain
    worth[1, 8:] = 1.0  # long answers have one, too: from band 8 they are longer than LENGTHS[6]
    assert choose(count, worth) == [0, LENGTHS[6], None]


def test_at_most_the_limit_of_a_cohort_is_rejected() -> None:
    count = np.full((1, BANDS), 10.0)
    [most] = choose(count, np.ones((1, BANDS)))
    assert most == LENGTHS[4]  # the first and the last 5 of 11 bands are 55 %


def _two_kinds() -> list[Question]:
    """Long math answers are wrong where the large tier is right. All others are right."""
    math = [question(i, "math", small=i % 5 != 0, chars=1000 if i % 5 == 0 else 100) for i in range(500)]
    return math + [question(i, "law", chars=1000 if i % 5 == 0 else 100) for i in range(500, 1000)]


def test_the_fit_finds_the_informative_length_and_keeps_the_budget() -> None:
    questions = _two_kinds()
    fit = fit_rules(questions, 0.15, np.ones(1000))
    assert fit.max_chars["law"] is None
    assert fit.accept("law") == []
    escalated = [rejects(fit, q.category, q.answers["small"]) for q in questions]
    assert escalated == [q.category == "math" and q.id % 5 == 0 for q in questions]
    assert fit_rules(questions, 0.0, np.ones(1000)).max_chars == {"law": None, "math": None}


def test_expensive_escalations_are_avoided_when_dollars_are_counted() -> None:
    questions = [question(i, c, small=i % 5 != 0, chars=1000 if i % 5 == 0 else 100)
                 for i, c in enumerate(["math"] * 500 + ["law"] * 500)]  # fmt: skip
    charges = np.array([20.0 if q.category == "math" else 1.0 for q in questions])
    fit = fit_rules(questions, 0.1, charges)
    assert fit.max_chars["math"] is None
    assert fit.max_chars["law"] is not None


def test_cross_validation_uses_rules_fitted_without_the_question() -> None:
    questions = _two_kinds()
    order = np.random.default_rng(0).permutation(1000)
    escalated = cross_validated([questions[i] for i in order], 0.15, np.ones(1000))
    assert escalated.tolist() == [questions[i].category == "math" and questions[i].id % 5 == 0 for i in order]


def test_the_lines_by_hand() -> None:
    # Gains by question: +1, 0, 0, -1. The cascade escalates the first and the last.
    o = outcomes(small="0101", large="1100", escalated="1001")
    assert accuracies(o) == {
        "always small": 0.5,
        "always large": 0.5,
        "random": 0.5,
        "mix": 0.5,
        "oracle": 0.75,
        "cascade": 0.5,
    }
    best = accuracies(outcomes(small="0001", large="1101", escalated="1000"))
    assert best["random"] == pytest.approx(0.25 + 0.25 * 0.5)
    assert best["cascade"] == best["oracle"] == 0.5


def test_an_oracle_that_must_escalate_everything_also_loses() -> None:
    o = outcomes(small="0101", large="1100", escalated="1111")
    assert accuracies(o)["oracle"] == accuracies(o)["always large"]


def test_an_escalation_pays_both_answers_and_the_mix_costs_the_same() -> None:
    o = outcomes(small="0000", large="1111", escalated="1000")
    assert costs(o) == {
        "always small": 1,
        "always large": 10,
        "random": 3.5,
        "mix": 3.5,
        "oracle": 3.5,
        "cascade": 3.5,
    }
    # (1 - p) * 1 + p * 10 = 3.5
    assert mixed_share(o) == pytest.approx(2.5 / 9)


def test_the_bootstrap_is_paired_and_repeatable() -> None:
    o = outcomes(small="0" * 50 + "1" * 50, large="1" * 100, escalated="1" * 50 + "0" * 50)
    resampled = resamples(o, seed=3, times=200)
    assert resampled.small.shape == (200, 100)
    lines = accuracies(resampled)
    assert (lines["cascade"] == 1).all()  # right in every draw, because question and escalation are drawn together
    assert (lines["cascade"] >= lines["random"]).all()
    assert (resamples(o, seed=3, times=200).small == resampled.small).all()
    low, high = interval(lines["always small"])
    assert 0.38 < low < 0.5 < high < 0.62


def test_a_weighted_quantile_counts_weights() -> None:
    values, weights = np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 8.0])
    assert weighted_quantile(values, weights, 0.1) == 1
    assert weighted_quantile(values, weights, 0.5) == 3
    assert weighted_quantile(np.array([5.0, 4.0]), np.array([1.0, 0.0]), 0.95) == 5


def test_the_written_folder_is_valid_and_has_the_fitted_rules(tmp_path: Path, encoder: FeatureEncoder) -> None:
    questions = [question(i, c) for i, c in enumerate(["math"] * 25 + ["computer science"] * 25)]
    by_category = utterances(questions, encoder)
    assert {c: len(texts) for c, texts in by_category.items()} == {"computer science": 20, "math": 20}
    fit = Fit({"math": 400, "computer science": None}, 0.3)
    write_intents(tmp_path, {category: fit.accept(category) for category in fit.max_chars}, by_category)
    intents = {intent.intent: intent for intent in load_config(tmp_path).intents}
    assert intents["math"].accept[-1] == {"max_chars": 400}
    assert intents["math"].escalate is not None
    assert intents["computer-science"].accept == []
    assert yaml.safe_load((tmp_path / "policy.yaml").read_text())["default_tier"] == "small"


def test_the_replay_sends_the_recorded_answers() -> None:
    """Over HTTP, as a tier would: the recorded text, and 404 for a question that was not recorded."""
    answers = {"small": {"What is 2 + 2?": Answer("recorded-8b", "The answer is (B).", "B")}}
    with ReplayUpstreams(answers, {"small": 0.0}, Tokens()) as upstreams:
        url = f"http://127.0.0.1:{upstreams.ports['small']}/v1/chat/completions"

        def ask(question: str) -> tuple[int, str]:
            body = {"model": "small", "messages": [{"role": "user", "content": question}]}
            request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=10) as reply:
                    return reply.status, json.load(reply)["choices"][0]["message"]["content"]
            except urllib.error.HTTPError as error:
                return error.code, ""

        assert ask("What is 2 + 2?") == (200, "The answer is (B).")
        assert ask("What is 2 + 3?")[0] == 404
