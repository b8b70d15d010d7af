"""The cascade bench decides fairly: the split, the fit, the lines to beat and their intervals, worked by hand."""

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
from bench.replay import CUT_CHARS, Answer, Question, ReplayUpstreams, read_questions, words
from extproc.config.load import load_config
from extproc.encoder.features import FeatureEncoder
from extproc.evidence.data.tokens import Tokens

FINAL = " The answer is (A)."


def question(
    number: int, category: str = "math", small: bool = True, large: bool = True, chars: int = 50
) -> Question:
    """A question of which A is right; the small answer is `chars` long and ends as it should."""
    said = {"small": small, "large": large}
    answers = {
        tier: Answer(tier, "x" * (chars - len(FINAL)) + FINAL, "A" if right else "B")
        for tier, right in said.items()
    }
    return Question(number, category, f"{category} {number}?", ("yes", "no"), "A", answers)


def outcomes(small: str, large: str, climbed: str) -> Outcomes:
    """One digit a question; the small answer costs 1, the large one 10."""
    rows = (np.array([float(d) for d in row]) for row in (small, large, climbed))
    small_right, large_right, climbed_right = rows
    return Outcomes(
        small_right,
        large_right,
        climbed_right,
        small_cost=np.ones(len(small)),
        large_cost=np.full(len(small), 10.0),
    )


def test_the_parts_share_no_question_and_each_has_its_share_of_every_category() -> None:
    questions = [question(i, "math" if i < 20 else "law") for i in range(30)]
    fit, test = split(questions, 0.7)
    assert {q.id for q in fit} | {q.id for q in test} == set(range(30))
    assert (len(fit), len(test)) == (21, 9)
    assert sum(q.category == "law" for q in test) == 3
    assert split(list(reversed(questions)), 0.7) == (fit, test)


def test_a_sample_keeps_the_proportions_and_depends_on_its_seed_alone() -> None:
    questions = [question(i, "math" if i < 20 else "law") for i in range(30)]
    some = sample(questions, 10, seed=1)
    assert len({q.id for q in some}) == 10
    assert sum(q.category == "math" for q in some) == 7  # 6.67 and 3.33: the larger remainder
    assert sample(questions, 10, seed=1) == some
    assert sample(questions, 10, seed=2) != some


def test_a_prompt_is_the_question_and_its_lettered_options() -> None:
    assert question(1).prompt == "math 1?\n\nA. yes\nB. no"


def test_questions_whose_prompts_are_alike_are_left_out(tmp_path: Path) -> None:
    twin = msgspec.structs.replace(question(1), id=2)
    path = tmp_path / "recorded.jsonl.gz"
    with gzip.open(path, "wb") as out:
        out.write(b"\n".join(msgspec.json.encode(q) for q in (question(1), twin, question(3))))
    assert read_questions(path) == [question(3)]


def test_an_answer_cut_by_the_recording_was_not_finished() -> None:
    assert Answer("m", "x" * CUT_CHARS).finish == "length"
    assert Answer("m", "x" * (CUT_CHARS - 1)).finish == "stop"


@pytest.mark.parametrize("text", ["", "one", " two  words ", "a\n\nb c\n"])
def test_streamed_words_are_the_text_again(text: str) -> None:
    assert "".join(words(text)) == text


def test_bands_are_what_the_verifier_can_tell_apart() -> None:
    assert band(Answer("m", "It is A.")) == 0  # no final answer
    assert band(Answer("m", "x" * CUT_CHARS + FINAL)) == 0  # cut
    assert band(question(1, chars=160).answers["small"]) == 1
    assert band(question(1, chars=161).answers["small"]) == 2
    assert band(question(1, chars=3999).answers["small"]) == BANDS - 1


def test_few_answers_are_shrunk_to_what_all_say() -> None:
    cohort = np.array([0] * 900 + [1])
    bands = np.ones(901, dtype=np.int64)
    gain = np.array([0.5] * 900 + [-1.0])
    count, mean = estimate(cohort, bands, gain, 2)
    assert count[:, 1].tolist() == [900, 1]
    assert mean[0, 1] == pytest.approx(0.5, abs=0.01)
    assert mean[1, 1] == pytest.approx(0.5, abs=0.05)  # one answer hardly moves it


def test_rules_reject_what_is_worth_it_and_leave_a_cohort_alone_where_nothing_is() -> None:
    count = np.full((3, BANDS), 10.0)
    worth = np.full((3, BANDS), -0.1)
    worth[0, 0] = 1.0  # only answers without an end are worth it
    worth[1, 8:] = 1.0  # and here long ones, too: bands 8 up are longer than LENGTHS[6]
    assert choose(count, worth) == [0, LENGTHS[6], None]


def test_a_cohort_is_never_rejected_nearly_whole() -> None:
    count = np.full((1, BANDS), 10.0)
    [most] = choose(count, np.ones((1, BANDS)))
    assert most == LENGTHS[4]  # of 11 bands the first and the last 5 are 55 %


def _two_kinds() -> list[Question]:
    """Long math answers are wrong where the large tier is right; all else is right already."""
    math = [question(i, "math", small=i % 5 != 0, chars=1000 if i % 5 == 0 else 100) for i in range(500)]
    return math + [question(i, "law", chars=1000 if i % 5 == 0 else 100) for i in range(500, 1000)]


def test_the_fit_finds_where_length_tells_and_keeps_the_budget() -> None:
    questions = _two_kinds()
    fit = fit_rules(questions, 0.15, np.ones(1000))
    assert fit.max_chars["law"] is None
    assert fit.accept("law") == []
    climbed = [rejects(fit, q.category, q.answers["small"]) for q in questions]
    assert climbed == [q.category == "math" and q.id % 5 == 0 for q in questions]
    assert fit_rules(questions, 0.0, np.ones(1000)).max_chars == {"law": None, "math": None}


def test_what_is_dear_is_left_alone_when_dollars_are_counted() -> None:
    questions = [question(i, c, small=i % 5 != 0, chars=1000 if i % 5 == 0 else 100)
                 for i, c in enumerate(["math"] * 500 + ["law"] * 500)]  # fmt: skip
    dear = np.array([20.0 if q.category == "math" else 1.0 for q in questions])
    fit = fit_rules(questions, 0.1, dear)
    assert fit.max_chars["math"] is None
    assert fit.max_chars["law"] is not None


def test_cross_validation_judges_each_question_by_rules_that_had_not_seen_it() -> None:
    questions = _two_kinds()
    order = np.random.default_rng(0).permutation(1000)
    climbed = cross_validated([questions[i] for i in order], 0.15, np.ones(1000))
    assert climbed.tolist() == [questions[i].category == "math" and questions[i].id % 5 == 0 for i in order]


def test_the_lines_by_hand() -> None:
    # Gains by question: +1, 0, 0, -1; the cascade climbs the first and the last.
    o = outcomes(small="0101", large="1100", climbed="1001")
    assert accuracies(o) == {
        "always small": 0.5,
        "always large": 0.5,
        "random": 0.5,
        "mix": 0.5,
        "oracle": 0.75,
        "cascade": 0.5,
    }
    best = accuracies(outcomes(small="0001", large="1101", climbed="1000"))
    assert best["random"] == pytest.approx(0.25 + 0.25 * 0.5)
    assert best["cascade"] == best["oracle"] == 0.5


def test_an_oracle_made_to_climb_everywhere_loses_what_climbing_loses() -> None:
    o = outcomes(small="0101", large="1100", climbed="1111")
    assert accuracies(o)["oracle"] == accuracies(o)["always large"]


def test_a_climb_pays_both_answers_and_the_mix_spends_the_same() -> None:
    o = outcomes(small="0000", large="1111", climbed="1000")
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


def test_the_bootstrap_pairs_the_lines_and_repeats_itself() -> None:
    o = outcomes(small="0" * 50 + "1" * 50, large="1" * 100, climbed="1" * 50 + "0" * 50)
    again = resamples(o, seed=3, times=200)
    assert again.small.shape == (200, 100)
    lines = accuracies(again)
    assert (lines["cascade"] == 1).all()  # right in every draw, as question and climb are drawn together
    assert (lines["cascade"] >= lines["random"]).all()
    assert (resamples(o, seed=3, times=200).small == again.small).all()
    low, high = interval(lines["always small"])
    assert 0.38 < low < 0.5 < high < 0.62


def test_a_weighted_quantile_counts_weight_and_not_values() -> None:
    values, weights = np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 8.0])
    assert weighted_quantile(values, weights, 0.1) == 1
    assert weighted_quantile(values, weights, 0.5) == 3
    assert weighted_quantile(np.array([5.0, 4.0]), np.array([1.0, 0.0]), 0.95) == 5


def test_what_is_written_is_a_valid_folder_with_the_fitted_rules(tmp_path: Path, encoder: FeatureEncoder) -> None:
    questions = [question(i, c) for i, c in enumerate(["math"] * 25 + ["computer science"] * 25)]
    spoken = utterances(questions, encoder)
    assert {c: len(some) for c, some in spoken.items()} == {"computer science": 20, "math": 20}
    fit = Fit({"math": 400, "computer science": None}, 0.3)
    write_intents(tmp_path, fit, spoken)
    intents = {intent.intent: intent for intent in load_config(tmp_path).intents}
    assert intents["math"].accept[-1] == {"max_chars": 400}
    assert intents["math"].escalate is not None
    assert intents["computer-science"].accept == []
    assert yaml.safe_load((tmp_path / "policy.yaml").read_text())["default_tier"] == "small"


def test_the_replay_answers_with_what_was_recorded() -> None:
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
