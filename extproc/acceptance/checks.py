"""Check a whole answer against each acceptance rule: one pure function per rule.

A check returns OK, a word of rejection, NOTHING when this answer has nothing that the rule is about, or UNAVAILABLE
when the rule cannot run. Checks of an answer that is still growing are in partial_checks.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from extproc.acceptance.grounding import Embed, grounded_share, sentences
from extproc.acceptance.refusal import refuses
from extproc.acceptance.requirements import Requirements
from extproc.acceptance.rules import (
    Complete,
    External,
    Gain,
    GainPredictor,
    Grounded,
    Json,
    JsonSchema,
    Logprob,
    MaxChars,
    MinChars,
    NonEmpty,
    NoRefusal,
    Regex,
    Score,
    ToolCalls,
)
from extproc.acceptance.schema import SchemaUnusable, compile_pattern, conforms
from extproc.api.observation import Observation, ToolCall

# Outcomes of a check that are not words of rejection. NOTHING counts as OK, and UNAVAILABLE does not.
OK, NOTHING, UNAVAILABLE = "ok", "nothing_to_check", "unavailable"
PASSED = (OK, NOTHING)


class CheckInputs(msgspec.Struct, frozen=True):
    """Everything a check may use, apart from the rule and the answer."""

    request: Requirements
    embed: Embed | None
    external: Mapping[str, bool | None]  # results of the rules that call out, by rule name
    tier: str | None = None  # the tier that answered; None: not known


Check = Callable[[Any, Observation, CheckInputs], str]


def _only_calls(observation: Observation, inputs: CheckInputs) -> bool:
    """Whether an answer only calls tools or has other output, and so has no text for the rules about text."""
    may_call = inputs.request.tools is None or bool(inputs.request.tools)
    calls = bool(observation.tool_calls) and may_call
    return (calls or observation.other_output) and not observation.text.strip()


def _of_text(check: Callable[[Any, str, CheckInputs], str]) -> Check:
    """A check of the text alone, as a check of the answer."""

    def outcome(rule: Any, observation: Observation, inputs: CheckInputs) -> str:
        return NOTHING if _only_calls(observation, inputs) else check(rule, observation.text, inputs)

    return outcome


def check_complete(_: Complete, observation: Observation, inputs: CheckInputs) -> str:
    if observation.finish in ("length", "content_filter"):
        return "cut" if observation.finish == "length" else "filtered"
    finished = observation.finish in ("stop", "tool_calls")
    return OK if finished and observation.n_choices >= inputs.request.choices else "incomplete"


def check_non_empty(_: NonEmpty, observation: Observation, __: CheckInputs) -> str:
    return OK if observation.tool_calls or observation.other_output or observation.text.strip() else "empty"


def check_min_chars(rule: MinChars, text: str, _: CheckInputs) -> str:
    return OK if len(text.strip()) >= rule.chars else "too_short"


def check_max_chars(rule: MaxChars, text: str, _: CheckInputs) -> str:
    return OK if len(text.strip()) <= rule.chars else "too_long"


def _decoded(text: str) -> Any:
    """Return the decoded JSON of a text. Raises ValueError for anything else, also for NaN and too deep nesting."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise ValueError("the text is not JSON") from error


def _check_json(_: Json, text: str, __: CheckInputs) -> str:
    try:
        return OK if isinstance(_decoded(text), dict | list) else "not_json"
    except ValueError:
        return "not_json"


def schema_of(rule: JsonSchema, inputs: CheckInputs) -> Any:
    """Return the schema of `rule`, or the schema of the request if the rule asks for it. None if it has none."""
    return inputs.request.json_schema if rule.schema == "request" else rule.schema


def _check_json_schema(rule: JsonSchema, text: str, inputs: CheckInputs) -> str:
    schema = schema_of(rule, inputs)
    if schema is None:
        return UNAVAILABLE if "json_schema" in inputs.request.left_out else NOTHING
    try:
        return OK if conforms(schema, _decoded(text)) else "schema"
    except SchemaUnusable:
        return UNAVAILABLE
    except ValueError:
        return "not_json"


def _check_tool_calls(_: ToolCalls, observation: Observation, inputs: CheckInputs) -> str:
    if not observation.tool_calls:
        if inputs.request.tool_required and not observation.other_output:
            return "no_tool_call"
        return UNAVAILABLE if "tool_choice" in inputs.request.left_out else NOTHING
    if inputs.request.tools is None:
        return UNAVAILABLE
    outcomes = [_check_tool_call(call, inputs) for call in observation.tool_calls]
    rejected = [outcome for outcome in outcomes if outcome not in (OK, UNAVAILABLE)]
    return next(iter(rejected), UNAVAILABLE if UNAVAILABLE in outcomes else OK)


def _check_tool_call(call: ToolCall, inputs: CheckInputs) -> str:
    tools = inputs.request.tools or {}
    if call.name not in tools:
        return "unknown_tool"
    schema = tools[call.name]
    if schema is None:
        return UNAVAILABLE if "tool_schemas" in inputs.request.left_out else OK
    try:
        arguments = _decoded(call.arguments) if call.arguments.strip() else {}  # a tool without parameters
        fits = isinstance(arguments, dict) and conforms(schema, arguments)
        return OK if fits else "tool_arguments"
    except SchemaUnusable:
        return UNAVAILABLE
    except ValueError:
        return "tool_arguments"


def _check_regex(rule: Regex, text: str, _: CheckInputs) -> str:
    return OK if compile_pattern(rule.pattern).search(text.strip()) is not None else "regex"


def _check_no_refusal(_: NoRefusal, observation: Observation, __: CheckInputs) -> str:
    return "refusal" if observation.refusal is not None or refuses(observation.text) else OK


def check_logprob(rule: Logprob, observation: Observation, inputs: CheckInputs) -> str:
    values = observation.logprobs[: rule.first]
    if not rule.judges(inputs.tier) or (not values and _only_calls(observation, inputs)):
        return NOTHING
    if not values:
        return UNAVAILABLE
    return OK if sum(values) / len(values) >= rule.min else "low_logprob"


def _check_grounded(rule: Grounded, text: str, inputs: CheckInputs) -> str:
    if not sentences(text):
        return NOTHING
    if inputs.embed is None:
        return UNAVAILABLE
    share = grounded_share(text, inputs.request.context, rule.level, inputs.embed)
    if share is None:
        return UNAVAILABLE
    return OK if share >= rule.min else "ungrounded"


def _check_score(rule: Score, observation: Observation, inputs: CheckInputs) -> str:
    scorer, question = rule.scorer, inputs.request.question
    if _only_calls(observation, inputs) or (scorer is not None and inputs.tier not in (None, scorer.tier)):
        return NOTHING
    if scorer is None or question is None:
        return UNAVAILABLE
    score = scorer.score(question, observation)
    if score is None:
        return UNAVAILABLE
    return OK if score >= rule.min else "low_score"


def _check_gain(rule: Gain, observation: Observation, inputs: CheckInputs) -> str:
    predictor: GainPredictor | None = rule.predictor
    if predictor is None:
        return UNAVAILABLE
    if _only_calls(observation, inputs) or inputs.tier not in (None, predictor.tier):
        return NOTHING
    if inputs.request.fit != predictor.fit:  # a reload came between, or another router decided
        return UNAVAILABLE
    gain = predictor.gain(inputs.request.columns, inputs.request.question or "", observation)
    if gain is None:
        return UNAVAILABLE
    return OK if gain < rule.least else "predicted_gain"


def check_external(rule: External, observation: Observation, inputs: CheckInputs) -> str:
    passed = inputs.external.get(rule.name)
    if passed is None:
        return NOTHING if _only_calls(observation, inputs) else UNAVAILABLE
    return OK if passed else rule.name


CHECKS: dict[type[Any], Check] = {
    Complete: check_complete,
    NonEmpty: check_non_empty,
    MinChars: _of_text(check_min_chars),
    MaxChars: _of_text(check_max_chars),
    Json: _of_text(_check_json),
    JsonSchema: _of_text(_check_json_schema),
    ToolCalls: _check_tool_calls,
    Regex: _of_text(_check_regex),
    NoRefusal: _check_no_refusal,
    Logprob: check_logprob,
    Grounded: _of_text(_check_grounded),
    Score: _check_score,
    Gain: _check_gain,
    External: check_external,
}
