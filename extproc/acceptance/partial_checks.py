"""Check an answer that is still growing, and decide only what no continuation can change.

A partial check returns OK, a word of rejection, or OPEN when the rest of the answer could still change the outcome.
UNAVAILABLE means that the rule cannot run, and that no continuation can change this.
"""

from typing import Any

from extproc.acceptance.checks import (
    NOTHING,
    OK,
    UNAVAILABLE,
    Check,
    CheckInputs,
    check_complete,
    check_external,
    check_logprob,
    check_max_chars,
    check_min_chars,
    check_non_empty,
    schema_of,
)
from extproc.acceptance.refusal import refuses_early
from extproc.acceptance.rules import (
    Complete,
    External,
    Grounded,
    Json,
    JsonSchema,
    Logprob,
    MaxChars,
    MinChars,
    NonEmpty,
    NoRefusal,
    ToolCalls,
)
from extproc.acceptance.schema import schema_fault
from extproc.api.observation import Observation

OPEN = "undecided"

# Fewer tokens do not predict the final mean: an answer often starts with tokens that are almost certain.
EARLY_TOKENS = 16

_JSON_SPACE = " \t\r\n"  # without the no-break space, which is not white space in JSON
_JSON_STARTS = {"object": "{", "array": "[", "string": '"', "boolean": "tf", "null": "n"}
_JSON_STARTS |= {"integer": "-0123456789", "number": "-0123456789"}


def still_open(rule: Any, _: Observation, inputs: CheckInputs) -> str:
    """The partial check of a rule that needs the whole answer."""
    return UNAVAILABLE if isinstance(rule, Grounded) and not inputs.request.context else OPEN


def _complete(rule: Complete, observation: Observation, inputs: CheckInputs) -> str:
    outcome = check_complete(rule, observation, inputs)
    return outcome if outcome in ("cut", "filtered") else OPEN


def _non_empty(rule: NonEmpty, observation: Observation, inputs: CheckInputs) -> str:
    return OK if check_non_empty(rule, observation, inputs) == OK else OPEN


def _min_chars(rule: MinChars, observation: Observation, inputs: CheckInputs) -> str:
    return OK if check_min_chars(rule, observation.text, inputs) == OK else OPEN


def _max_chars(rule: MaxChars, observation: Observation, inputs: CheckInputs) -> str:
    return OPEN if check_max_chars(rule, observation.text, inputs) == OK else "too_long"


def _may_start(text: str, starts: str) -> bool:
    """Whether the first character of a JSON text is one of `starts`, or has not arrived yet."""
    start = text.lstrip(_JSON_SPACE)[:1]
    return not start or start in starts


def _json(_: Json, observation: Observation, __: CheckInputs) -> str:
    return OPEN if _may_start(observation.text, "{[") else "not_json"


def _json_schema(rule: JsonSchema, observation: Observation, inputs: CheckInputs) -> str:
    schema = schema_of(rule, inputs)
    if schema is None:
        return UNAVAILABLE if "json_schema" in inputs.request.left_out else NOTHING
    if not _may_start(observation.text, "".join(_JSON_STARTS.values())):
        return "not_json"
    kind = schema.get("type") if isinstance(schema, dict) else None
    starts = _JSON_STARTS.get(kind) if isinstance(kind, str) else None
    if starts is None or _may_start(observation.text, starts) or schema_fault(schema) is not None:
        return OPEN
    return "schema"


def _tool_calls(_: ToolCalls, observation: Observation, inputs: CheckInputs) -> str:
    tools = inputs.request.tools
    if tools is None:
        return UNAVAILABLE if observation.tool_calls else OPEN
    for call in observation.tool_calls:
        candidates = [name for name in tools if name.startswith(call.name)]  # a name may arrive in pieces
        if not candidates:
            return "unknown_tool"
        all_have_schemas = all(tools[name] is not None for name in candidates)
        if all_have_schemas and not _may_start(call.arguments, "{"):
            return "tool_arguments"
    return UNAVAILABLE if observation.tool_calls and "tool_schemas" in inputs.request.left_out else OPEN


def _no_refusal(_: NoRefusal, observation: Observation, __: CheckInputs) -> str:
    refuses = True if observation.refusal is not None else refuses_early(observation.text)
    if refuses is None:
        return OPEN
    return "refusal" if refuses else OK


def _logprob(rule: Logprob, observation: Observation, inputs: CheckInputs) -> str:
    if not rule.judges(inputs.tier):
        return OK
    tokens = len(observation.logprobs)
    if rule.first is not None:
        return check_logprob(rule, observation, inputs) if tokens >= rule.first else OPEN
    mean = observation.mean_logprob
    low = mean is not None and tokens >= EARLY_TOKENS and mean < rule.min - rule.slack
    return "low_logprob" if low else OPEN


def _external(rule: External, observation: Observation, inputs: CheckInputs) -> str:
    outcome = check_external(rule, observation, inputs)
    return OPEN if outcome in (NOTHING, UNAVAILABLE) else outcome


# A rule that is not in here needs the whole answer.
PARTIAL_CHECKS: dict[type[Any], Check] = {
    Complete: _complete,
    NonEmpty: _non_empty,
    MinChars: _min_chars,
    MaxChars: _max_chars,
    Json: _json,
    JsonSchema: _json_schema,
    ToolCalls: _tool_calls,
    NoRefusal: _no_refusal,
    Logprob: _logprob,
    External: _external,
}
