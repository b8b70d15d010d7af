"""The acceptance score: facts counted by hand, a curve that weighs them, and the rule that uses the score."""

import math
from typing import Any

import msgspec
import pytest

from extproc.acceptance.requirements import Requirements, read_requirements
from extproc.acceptance.rules import compile_rules
from extproc.acceptance.score import ANSWER_CHARS, SCORE_FACTS, Scorer, score_facts
from extproc.acceptance.verdict import (
    Verdict,
    judge,
    judge_early,
    needs_whole_answer,
    wants_logprobs,
)
from extproc.api.observation import Observation, ToolCall
from extproc.api.request import parse_request

QUESTION = "How many apples are left of 12 = $12 after 5?\n\nA. 5\nB. 7\nC. none of them"
SCORER = Scorer(
    "2026-11-22", "123456789012", 300, "small", "qwen3-8b", (0.6, 0.7), -4.0, {"length": 1.0, "cut": -2.0}
)


def answered(text: str, **more: Any) -> Observation:
    fields: dict[str, Any] = {"text": text, "finish": "stop", "n_choices": 1, "complete": True, "ended": True}
    return Observation(**fields | more)


def facts(text: str, question: str = QUESTION, **more: Any) -> dict[str, float]:
    return dict(zip(SCORE_FACTS, score_facts(question, answered(text, **more)), strict=True))


def test_facts_of_an_answer_by_hand():
    """The form of the text, whether it was cut, and how many of its words are in the question."""
    counted = facts("Perhaps 12 - 5 = 7,\nor 8?", "12 or 5", finish="length")
    assert counted == pytest.approx(
        dict.fromkeys(SCORE_FACTS, 0.0)
        | {
            "length": math.log(26), "lines": math.log(2), "word_length": (7 + 2 + 1 + 1 + 2 + 1) / 6,
            "numbers": math.log(5), "equations": math.log(2), "hedges": math.log(2), "asks": 1.0,
            "echo": 3 / 6, "cut": 1.0, "question_length": math.log(8),
        }
    )  # fmt: skip


def test_an_option_that_was_chosen_is_held_against_the_reasoning():
    """The number at the end of the reasoning agrees with the chosen option, or with another option."""
    agreed, torn = (facts(f"12 minus 5 leaves 7. The answer is ({letter}).") for letter in "BA")
    assert (agreed["chosen_said"], agreed["chosen_near"], agreed["chosen_far"]) == (1.0, 1.0, 0.0)
    assert (agreed["chosen_ahead"], torn["chosen_ahead"]) == (0.0, 0.0)  # the reasoning has 5, too
    assert (torn["chosen_near"], facts("It is 9. The answer is (A).")["chosen_near"]) == (1.0, 0.0)
    assert facts("None. The answer is C")["chosen_said"] == 1 / 3
    assert agreed["numeric_options"] == 2 / 3
    assert agreed["formulas"] == pytest.approx(math.log(3))


def test_log_probabilities_are_facts():
    """The facts are their mean, and the share of tokens in doubt."""
    counted = facts("7", logprobs=(-0.5, -1.5, -0.1, -1.9))
    assert (counted["logprob"], counted["doubts"]) == (-1.0, 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "7",
        "The answer is (Z).",
        "-" * 50_000,
        "A. \n" * 20_000,
        "9" * 9000,
        "A. " + "9" * 900 + "\nanswer is A",
    ],
)
def test_any_text_has_finite_bounded_facts(text):
    """Also a very long text, of which only head and tail are read."""
    counted = score_facts(text, answered(text))
    assert len(counted) == len(SCORE_FACTS)
    assert all(math.isfinite(fact) for fact in counted)
    assert max(counted) <= max(20, math.log1p(ANSWER_CHARS + 1))


def test_the_score_is_the_curve_of_the_weighed_facts():
    """Facts without a weight do not count."""
    logit = -4.0 + math.log(101) - 2.0
    assert SCORER.score("any", answered("x" * 100, finish="length")) == pytest.approx(1 / (1 + math.exp(-logit)))


def scored(text: str, tier: str | None = "small", question: str | None = "q", **more: Any) -> Any:
    rules = compile_rules([{"score": {"min": 0.6}}], SCORER)
    return judge(rules, answered(text, **more), request=Requirements(question=question), tier=tier)


def test_the_rule_rejects_what_scores_low():
    """exp(4.4) characters are the minimum here. The verdict names the rule and the reason."""
    assert scored("x" * 90).accept
    verdict = scored("x" * 70)
    assert (verdict.accept, verdict.rule, verdict.reason) == (False, "score", "low_score")


def test_without_the_question_an_answer_is_not_scored():
    """The verdict names the rule, and does not count as a judgement."""
    verdict = scored("x", question=None)
    assert (verdict.accept, verdict.reason, verdict.unavailable) == (True, "unavailable", ("score",))


def test_a_curve_has_nothing_to_check_in_the_answer_of_another_tier():
    """It was fitted on one tier's answers."""
    assert scored("x", tier="large") == Verdict(True)


def test_an_answer_that_only_calls_tools_is_not_scored():
    """It has no text to score."""
    request = Requirements(question="q", tools={"find": None})
    rules = compile_rules([{"score": 0.6}], SCORER)
    seen = answered("", tool_calls=(ToolCall("find", "{}"),), finish="tool_calls")
    assert judge(rules, seen, request=request, tier="small").accept


def test_a_part_of_an_answer_is_never_scored():
    """Only the whole answer can be scored, so a stream that is buffered for its first tokens passes."""
    rules = compile_rules([{"score": 0.6}], SCORER)
    assert needs_whole_answer(rules) == ["score"]
    verdict = judge_early(rules, Observation(text="x"), request=Requirements(question="q"), tier="small")
    assert not verdict.decided


def test_log_probabilities_are_asked_for_where_they_weigh():
    """A curve that weighs them cannot run without them."""
    weighs = msgspec.structs.replace(SCORER, weights={"logprob": 2.0})
    rules, plain = (compile_rules([{"score": 0.6}], scorer) for scorer in (weighs, SCORER))
    assert (wants_logprobs(rules), wants_logprobs(plain)) == (True, False)
    verdict = judge(rules, answered("x"), request=Requirements(question="q"), tier="small")
    assert (verdict.accept, verdict.unavailable) == (True, ("score",))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"score": 0.6}, r"accept\[0\]\.score: no `scorer` was fitted for this intent; run `extproc calibrate"),
        (
            {"score": 1.6},
            r"accept\[0\]\.score\.min: expected a number from 0 to 1, found the number 1\.6; write \{score: \{min",
        ),
        ({"score": {}}, r"accept\[0\]\.score: .* write \{score: \{min: 0\.62\}\}"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(spec, message):
    """The error says what to write instead."""
    with pytest.raises(ValueError, match=message):
        compile_rules([spec], None)


def test_the_question_is_the_last_that_the_person_said():
    """The verifier gets it only if the rule is on, cut to its head and tail."""
    turns = [("user", "one"), ("assistant", "two"), ("user", "three " * 2000)]
    messages = [{"role": role, "content": text} for role, text in turns]
    body = msgspec.json.encode({"model": "auto", "messages": messages})
    request = parse_request("/v1/chat/completions", body)
    assert request is not None
    question = read_requirements(request, compile_rules([{"score": 0.6}], SCORER)).question
    assert question is not None and len(question) == 2001 and question.startswith("three three")
    assert read_requirements(request, compile_rules(["complete"])).question is None
