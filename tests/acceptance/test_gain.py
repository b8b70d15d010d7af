"""The rule `gain`: an answer is rejected if the costlier tier is predicted to gain enough over it."""

from collections.abc import Sequence

import msgspec
import pytest

from extproc.acceptance.requirements import Requirements, read_requirements
from extproc.acceptance.rules import Gain, compile_rules
from extproc.acceptance.verdict import Verdict, judge, judge_early, needs_whole_answer, wants_logprobs
from extproc.api.observation import Observation, ToolCall
from extproc.api.request import parse_request

REQUEST = Requirements(question="How many?", columns=(1.0, 2.0), fit="a1")


class Predictor(msgspec.Struct, frozen=True):
    """The gain is the sum of the columns and of the answer's characters, in tenths."""

    tier: str = "small"
    fit: str = "a1"
    wants_logprobs: bool = False

    def gain(self, columns: Sequence[float], question: str, answer: Observation) -> float | None:
        return (sum(columns) + len(answer.text)) / 10 if len(columns) == 2 and question == "How many?" else None


RULE = Gain(1.0, predictor=Predictor())


def answered(text: str, **more: object) -> Observation:
    fields = {"text": text, "finish": "stop", "n_choices": 1, "complete": True, "ended": True}
    return Observation(**fields | more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "accept"), [("seven7", True), ("seven 7", False)])
def test_an_answer_is_rejected_from_the_least_gain_on(text, accept):
    """A gain of 0.9 is accepted, one of 1.0 is not."""
    verdict = judge([RULE], answered(text), request=REQUEST)
    assert verdict == (Verdict(True) if accept else Verdict(False, "gain", "predicted_gain"))


@pytest.mark.parametrize(
    ("rule", "request_"),
    [
        (RULE, msgspec.structs.replace(REQUEST, columns=())),
        (RULE, msgspec.structs.replace(REQUEST, question=None)),
        (RULE, msgspec.structs.replace(REQUEST, fit="b2")),
        (Gain(1.0), REQUEST),
    ],
    ids=["no columns", "no question", "columns of another file", "no predictions"],
)
def test_without_a_prediction_the_answer_is_accepted(rule, request_):
    """The verdict names the rule. `on_unavailable` may reject instead. A router beside may have another file."""
    verdict = judge([rule], answered("a long answer, indeed"), request=request_)
    assert (verdict.accept, verdict.unavailable) == (True, ("gain",))
    strict = msgspec.structs.replace(rule, on_unavailable="reject")
    assert judge([strict], answered("a long answer, indeed"), request=request_).rule == "gain"


def test_answers_of_another_tier_and_calls_are_not_judged():
    """The predictions are about the cheaper tier's text."""
    assert judge([RULE], answered("a long answer, indeed"), request=REQUEST, tier="large") == Verdict(True)
    assert not judge([RULE], answered("a long answer, indeed"), request=REQUEST, tier="small").accept
    calls = answered("", finish="tool_calls", tool_calls=(ToolCall("look", "{}"),))
    asked = msgspec.structs.replace(REQUEST, tools={"look": None})
    assert judge([RULE], calls, request=asked) == Verdict(True)


def test_a_part_of_an_answer_is_never_judged():
    """Its facts are known at its end."""
    part = answered("a long answer", complete=False, ended=False, finish=None)
    assert not judge_early([RULE], part, request=REQUEST).decided
    assert needs_whole_answer([RULE]) == ["gain"]


def test_log_probabilities_are_asked_for_if_the_predictions_read_them():
    rule = Gain(1.0, predictor=Predictor(wants_logprobs=True))
    assert wants_logprobs([rule], "small") and wants_logprobs([rule])
    assert not wants_logprobs([rule], "large") and not wants_logprobs([RULE])


def test_the_columns_of_the_prompt_travel_with_the_question():
    """Only for cohorts with the rule."""
    body = msgspec.json.encode({"model": "auto", "messages": [{"role": "user", "content": "How many?"}]})
    request = parse_request("/v1/chat/completions", body)
    assert request is not None
    read = read_requirements(request, [RULE], (0.5, 1.5))
    assert (read.question, read.columns, read.fit) == ("How many?", (0.5, 1.5), "a1")
    assert msgspec.json.decode(msgspec.json.encode(read), type=Requirements) == read
    assert read_requirements(request, compile_rules(["complete"]), (0.5, 1.5)).columns == ()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (["gain"], "accept"),
        ([{"gain": {"least": "much"}}], "write {gain: {least: 0.3}}"),
        ([{"gain": {"least": 0.3, "predictor": 1}}], "`predictor` is not a key of the rule"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        compile_rules(spec)
