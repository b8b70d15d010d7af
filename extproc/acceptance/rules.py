"""The acceptance rules as values, compiled from the `accept` list of an intent.

    accept: [complete, non_empty, {min_chars: 20}, {max_chars: 4000}, json, json_schema,
             tool_calls, {regex: "^[A-E]$"}, no_refusal, {logprob: {min: -0.8}},
             {grounded: {min: 0.5}}, {score: {min: 0.62}}, {judge: {on_unavailable: reject}}]

A rule that cannot run (no logprobs, no context, an unusable schema, a judge that is down) counts as
`on_unavailable` says, and the verdict names it.
"""

from difflib import get_close_matches
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from extproc.acceptance.schema import compile_pattern, schema_fault
from extproc.acceptance.score import Scorer

OnUnavailable = Literal["accept", "reject"]
CharCount = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Complete(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The upstream finished of itself: not cut by a cap or a filter, all choices there."""


class NonEmpty(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """There is a text or a tool call."""


class MinChars(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text, without white space around it, has at least so many characters."""

    chars: CharCount


class MaxChars(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text, without white space around it, has at most so many characters."""

    chars: CharCount


class Json(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text is one JSON object or array, as it stands: clients parse it raw, so no fence."""


class JsonSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text is JSON that meets this schema, or the request's own."""

    schema: Any = "request"
    on_unavailable: OnUnavailable = "accept"


class ToolCalls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Calls are of tools that the request offered, with arguments that meet their schemas."""

    on_unavailable: OnUnavailable = "accept"


class Regex(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text, without white space around it, matches somewhere (RE2)."""

    pattern: str


class NoRefusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No refusal field, no content filter, no opening known as a refusal."""


class Logprob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mean log-probability of all tokens, or of the `first` ones, is at least `min`."""

    min: Annotated[float, Meta(le=0)]
    first: Annotated[int, Meta(ge=1)] | None = None  # judged on these alone, so decided as soon as they are there
    slack: Annotated[float, Meta(ge=0)] = 0.5  # how far below `min` an early mean must lie
    on_unavailable: OnUnavailable = "accept"


class Grounded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At least the share `min` of the sentences is as similar as `level` to the context."""

    min: Share
    level: Share = 0.6  # uncalibrated
    on_unavailable: OnUnavailable = "accept"


class Score(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer is at least so likely right, by the curve that `extproc calibrate` fitted for the cohort."""

    min: Share
    on_unavailable: OnUnavailable = "accept"
    scorer: Scorer | None = None  # the cohort's; not the rule's to give


class External(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule that calls out: `judge` asks whether the answer is good, `agree` for a second answer."""

    name: str
    by: str  # one of the policy's judges
    level: Share = 0.8  # agree: least similarity of the two answers
    on_unavailable: OnUnavailable = "accept"


AcceptRule = (
    Complete | NonEmpty | MinChars | MaxChars | Json | JsonSchema | ToolCalls | Regex | NoRefusal
    | Logprob | Grounded | Score | External
)  # fmt: skip

# Name: the type, the field that a plain value sets, an example.
_RULES: dict[str, tuple[type[Any], str | None, str]] = {
    "complete": (Complete, None, "complete"),
    "non_empty": (NonEmpty, None, "non_empty"),
    "min_chars": (MinChars, "chars", "{min_chars: 20}"),
    "max_chars": (MaxChars, "chars", "{max_chars: 4000}"),
    "json": (Json, None, "json"),
    "json_schema": (JsonSchema, "schema", "json_schema or {json_schema: {type: object}}"),
    "tool_calls": (ToolCalls, None, "tool_calls"),
    "regex": (Regex, "pattern", '{regex: "^[A-E]$"}'),
    "no_refusal": (NoRefusal, None, "no_refusal"),
    "logprob": (Logprob, "min", "{logprob: {min: -0.8}}"),
    "grounded": (Grounded, "min", "{grounded: {min: 0.5}}"),
    "score": (Score, "min", "{score: {min: 0.62}}"),
}
_NAMES = {kind: name for name, (kind, _, _) in _RULES.items()}
_CALL_OUTS = ("agree", "judge")


def rule_name(rule: AcceptRule) -> str:
    """The name that the rule has in the YAML."""
    return rule.name if isinstance(rule, External) else _NAMES[type(rule)]


def compile_rules(spec: Any, scorer: Scorer | None = None) -> tuple[AcceptRule, ...]:
    """Rules of an `accept` list; `score` goes by `scorer`. Raises ValueError: where, what is wrong, a remedy."""
    if not isinstance(spec, list):
        raise ValueError("accept: must be a list of rules; write accept: [complete, no_refusal]")
    rules = tuple(_compile(item, f"accept[{index}]", scorer) for index, item in enumerate(spec))
    names = [rule_name(rule) for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"accept: the rule {name!r} stands twice; keep one")
    least = next((rule.chars for rule in rules if isinstance(rule, MinChars)), 0)
    most = next((rule.chars for rule in rules if isinstance(rule, MaxChars)), least)
    if least > most:
        raise ValueError(f"accept: min_chars {least} is above max_chars {most}; no answer can pass")
    return rules


def _compile(item: Any, where: str, scorer: Scorer | None) -> AcceptRule:
    if isinstance(item, str):
        name, value = item, None
    elif isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item)), str):
        ((name, value),) = item.items()
    else:
        raise ValueError(f"{where}: a rule is a name or a mapping of one name; write complete or {{min_chars: 20}}")
    if name in _CALL_OUTS:
        called: AcceptRule = _convert(
            External, _call_out(name, value), f"{where}.{name}", f"{{{name}: {{by: a-judge}}}}"
        )
        return called
    if name not in _RULES:
        known = (*_RULES, *_CALL_OUTS)
        near = get_close_matches(name, known, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"rules are {', '.join(known)}"
        raise ValueError(f"{where}: there is no rule {name!r}; {remedy}")
    kind, field, example = _RULES[name]
    rule: AcceptRule = _convert(kind, _options(name, field, value), f"{where}.{name}", example)
    _prove(rule, f"{where}.{name}")
    return _scored(rule, scorer, f"{where}.{name}") if isinstance(rule, Score) else rule


def _scored(rule: Score, scorer: Scorer | None, where: str) -> Score:
    if rule.scorer is not None:
        raise ValueError(f"{where}: `scorer` is a key of the intent, not of the rule; write {{score: 0.62}}")
    if scorer is None:
        remedy = "run `extproc calibrate --target ... --write`, or drop the rule"
        raise ValueError(f"{where}: no `scorer` was fitted for this intent; {remedy}")
    return msgspec.structs.replace(rule, scorer=scorer)


def _options(name: str, field: str | None, value: Any) -> Any:
    if value is None:
        return {}
    named = isinstance(value, dict)
    if name == "json_schema" and named:  # the schema itself, unless it says otherwise
        named = value.keys() <= {"schema", "on_unavailable"}
    return value if named or field is None else {field: value}


def _call_out(name: str, value: Any) -> dict[str, Any]:
    return {"name": name, **(value if isinstance(value, dict) else {"by": value})}


def _convert(kind: type[Any], options: Any, where: str, example: str) -> Any:
    try:
        return msgspec.convert(options, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {error}; write {example}") from error


def _prove(rule: AcceptRule, where: str) -> None:
    """Refuse a pattern or a schema that could never be checked."""
    try:
        if isinstance(rule, Regex):
            compile_pattern(rule.pattern)
        fault = None
        if isinstance(rule, JsonSchema) and rule.schema != "request":
            fault = schema_fault(rule.schema)
    except ValueError as error:
        fault = f"{error}; RE2 has no look-around and no back-references"
    if fault is not None:
        raise ValueError(f"{where}: {fault}")
