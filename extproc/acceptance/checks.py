"""What each acceptance rule says of an answer: one pure check for a whole answer, one for a part.

A check returns OK, a word of rejection, UNAVAILABLE when it cannot run, or, of a part, OPEN when
what follows could still change the outcome.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from extproc.acceptance.grounding import Embed, grounded_share
from extproc.acceptance.refusal import refuses, surely_answers, surely_refuses
from extproc.acceptance.requirements import Requirements
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
    Regex,
    Score,
    ToolCalls,
)
from extproc.acceptance.schema import SchemaUnusable, compile_pattern, conforms, schema_fault
from extproc.api.observation import Observation, ToolCall

# Outcomes of one rule beside the words of rejection.
OK, OPEN, UNAVAILABLE = "ok", "undecided", "unavailable"

# Fewer tokens say nothing about a mean: an answer often starts with certain ones.
EARLY_TOKENS = 16

_BLANK = " \t\r\n"  # JSON's white space; a no-break space is not
_JSON_STARTS = {"object": "{", "array": "[", "string": '"', "boolean": "tf", "null": "n"}
_JSON_STARTS |= {"integer": "-0123456789", "number": "-0123456789"}


class Given(msgspec.Struct, frozen=True):
    """What a check may look at beside the answer."""

    request: Requirements
    embed: Embed | None
    external: Mapping[str, bool | None]
    tier: str | None = None  # whose answer it is; None: not known


def _only_calls(observation: Observation, given: Given) -> bool:
    """An answer that only calls tools has no text for the rules about text to judge."""
    return bool(observation.tool_calls and given.request.tools) and not observation.text.strip()


def _of_text(check: Callable[[Any, str, Given], str]) -> Callable[[Any, Observation, Given], str]:
    def outcome(rule: Any, observation: Observation, given: Given) -> str:
        return OK if _only_calls(observation, given) else check(rule, observation.text, given)

    return outcome


def still_open(_: Any, __: Observation, ___: Given) -> str:
    return OPEN


def _complete(_: Complete, observation: Observation, given: Given) -> str:
    if observation.finish in ("length", "content_filter"):
        return "cut" if observation.finish == "length" else "filtered"
    whole = observation.finish in ("stop", "tool_calls")
    return OK if whole and observation.n_choices >= given.request.choices else "incomplete"


def _complete_early(rule: Complete, observation: Observation, given: Given) -> str:
    outcome = _complete(rule, observation, given)
    return outcome if outcome in ("cut", "filtered") else OPEN


def _non_empty(_: NonEmpty, observation: Observation, __: Given) -> str:
    return OK if observation.tool_calls or observation.text.strip() else "empty"


def _min_chars(rule: MinChars, text: str, _: Given) -> str:
    return OK if len(text.strip()) >= rule.chars else "too_short"


def _max_chars(rule: MaxChars, text: str, _: Given) -> str:
    return OK if len(text.strip()) <= rule.chars else "too_long"


def _decoded(text: str) -> Any:
    """The JSON of a text. Raises ValueError for anything else, NaN and bottomless nesting too."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise ValueError("not JSON") from error


def _json(_: Json, text: str, __: Given) -> str:
    try:
        return OK if isinstance(_decoded(text), dict | list) else "not_json"
    except ValueError:
        return "not_json"


def _json_early(_: Json, observation: Observation, __: Given) -> str:
    return OPEN if _may_start(observation.text, "{[") else "not_json"


def _may_start(text: str, starts: str) -> bool:
    start = text.lstrip(_BLANK)[:1]
    return not start or start in starts


def _schema_of(rule: JsonSchema, given: Given) -> Any:
    return given.request.json_schema if rule.schema == "request" else rule.schema


def _json_schema(rule: JsonSchema, text: str, given: Given) -> str:
    schema = _schema_of(rule, given)
    if schema is None:
        return UNAVAILABLE
    try:
        return OK if conforms(schema, _decoded(text)) else "schema"
    except SchemaUnusable:
        return UNAVAILABLE
    except ValueError:
        return "not_json"


def _json_schema_early(rule: JsonSchema, observation: Observation, given: Given) -> str:
    schema = _schema_of(rule, given)
    if schema is None:
        return OPEN
    if not _may_start(observation.text, "".join(_JSON_STARTS.values())):
        return "not_json"
    kind = schema.get("type") if isinstance(schema, dict) else None
    starts = _JSON_STARTS.get(kind) if isinstance(kind, str) else None
    if starts is None or _may_start(observation.text, starts) or schema_fault(schema) is not None:
        return OPEN
    return "schema"


def _tool_calls(_: ToolCalls, observation: Observation, given: Given) -> str:
    if given.request.tools is None:
        return UNAVAILABLE if observation.tool_calls else OK
    if given.request.tool_required and not observation.tool_calls:
        return "no_tool_call"
    outcomes = [_tool_call(call, given) for call in observation.tool_calls]
    rejected = [outcome for outcome in outcomes if outcome not in (OK, UNAVAILABLE)]
    return next(iter(rejected), UNAVAILABLE if UNAVAILABLE in outcomes else OK)


def _tool_call(call: ToolCall, given: Given) -> str:
    tools = given.request.tools or {}
    if call.name not in tools:
        return "unknown_tool"
    schema = tools[call.name]
    if schema is None:
        return OK
    try:
        arguments = _decoded(call.arguments)
        fits = isinstance(arguments, dict) and conforms(schema, arguments)
        return OK if fits else "tool_arguments"
    except SchemaUnusable:
        return UNAVAILABLE
    except ValueError:
        return "tool_arguments"


def _tool_calls_early(_: ToolCalls, observation: Observation, given: Given) -> str:
    tools = given.request.tools
    if tools is None:
        return OPEN
    for call in observation.tool_calls:
        named = [name for name in tools if name.startswith(call.name)]  # it may come in pieces
        if not named:
            return "unknown_tool"
        typed = all(tools[name] is not None for name in named)
        if typed and not _may_start(call.arguments, "{"):
            return "tool_arguments"
    return OPEN


def _regex(rule: Regex, text: str, _: Given) -> str:
    return OK if compile_pattern(rule.pattern).search(text.strip()) is not None else "regex"


def _no_refusal(_: NoRefusal, observation: Observation, __: Given) -> str:
    return "refusal" if observation.refusal is not None or refuses(observation.text) else OK


def _no_refusal_early(_: NoRefusal, observation: Observation, __: Given) -> str:
    if observation.refusal is not None or surely_refuses(observation.text):
        return "refusal"
    return OK if surely_answers(observation.text) else OPEN


def _logprob(rule: Logprob, observation: Observation, _: Given) -> str:
    values = observation.logprobs[: rule.first]
    if not values:
        return UNAVAILABLE
    return OK if sum(values) / len(values) >= rule.min else "low_logprob"


def _logprob_early(rule: Logprob, observation: Observation, given: Given) -> str:
    seen = len(observation.logprobs)
    if rule.first is not None:
        return _logprob(rule, observation, given) if seen >= rule.first else OPEN
    mean = observation.mean_logprob
    low = mean is not None and seen >= EARLY_TOKENS and mean < rule.min - rule.slack
    return "low_logprob" if low else OPEN


def _grounded(rule: Grounded, text: str, given: Given) -> str:
    if given.embed is None:
        return UNAVAILABLE
    share = grounded_share(text, given.request.context, rule.level, given.embed)
    if share is None:
        return UNAVAILABLE
    return OK if share >= rule.min else "ungrounded"


def _score(rule: Score, observation: Observation, given: Given) -> str:
    scorer, question = rule.scorer, given.request.question
    if scorer is None or question is None or given.tier not in (None, scorer.tier):
        return UNAVAILABLE
    if _only_calls(observation, given):
        return OK
    score = scorer.score(question, observation)
    if score is None:
        return UNAVAILABLE
    return OK if score >= rule.min else "low_score"


def _external(rule: External, _: Observation, given: Given) -> str:
    passed = given.external.get(rule.name)
    if passed is None:
        return UNAVAILABLE
    return OK if passed else rule.name


def _external_early(rule: External, observation: Observation, given: Given) -> str:
    outcome = _external(rule, observation, given)
    return OPEN if outcome == UNAVAILABLE else outcome


def _non_empty_early(rule: NonEmpty, observation: Observation, given: Given) -> str:
    return OK if _non_empty(rule, observation, given) == OK else OPEN


def _min_chars_early(rule: MinChars, observation: Observation, given: Given) -> str:
    return OK if _min_chars(rule, observation.text, given) == OK else OPEN


def _max_chars_early(rule: MaxChars, observation: Observation, given: Given) -> str:
    return OPEN if _max_chars(rule, observation.text, given) == OK else "too_long"


_Outcome = Callable[[Any, Observation, Given], str]
FINAL: dict[type[Any], _Outcome] = {
    Complete: _complete,
    NonEmpty: _non_empty,
    MinChars: _of_text(_min_chars),
    MaxChars: _of_text(_max_chars),
    Json: _of_text(_json),
    JsonSchema: _of_text(_json_schema),
    ToolCalls: _tool_calls,
    Regex: _of_text(_regex),
    NoRefusal: _no_refusal,
    Logprob: _logprob,
    Grounded: _of_text(_grounded),
    Score: _score,
    External: _external,
}
# Rules that are not here need the whole answer.
EARLY: dict[type[Any], _Outcome] = {
    Complete: _complete_early,
    NonEmpty: _non_empty_early,
    MinChars: _min_chars_early,
    MaxChars: _max_chars_early,
    Json: _json_early,
    JsonSchema: _json_schema_early,
    ToolCalls: _tool_calls_early,
    NoRefusal: _no_refusal_early,
    Logprob: _logprob_early,
    External: _external_early,
}
