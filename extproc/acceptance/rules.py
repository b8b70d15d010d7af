"""Acceptance rules as values, compiled from the `accept` list of an intent.

    accept: [complete, non_empty, {min_chars: 20}, {max_chars: 4000}, json, json_schema,
             tool_calls, {regex: "^[A-E]$"}, no_refusal, {logprob: {min: -0.8}},
             {grounded: {min: 0.5}}, {score: {min: 0.62}}, {gain: {least: 0.3}},
             {judge: {on_unavailable: reject}}]

A rule may be unable to run: no logprobs, no context, an unusable schema, or a judge that is down. `on_unavailable`
then decides its outcome, and the verdict names the rule.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from extproc.acceptance.schema import compile_pattern, schema_fault
from extproc.acceptance.score import Scorer
from extproc.api.observation import Observation
from extproc.mismatch import Mismatch, convert_or_mismatch, dotted_path
from extproc.settings import about

OnUnavailable = Literal["accept", "reject"]
CharCount = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Complete(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The upstream finished all choices, without a cut by a token limit or a filter."""


class NonEmpty(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer has text or a tool call."""


class MinChars(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text, without white space around it, has at least this many characters."""

    chars: Annotated[CharCount, about("Lowest number of characters.")]


class MaxChars(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text, without white space around it, has at most this many characters."""

    chars: Annotated[CharCount, about("Highest number of characters.")]


class Json(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text is one JSON object or array, without a code fence, because clients parse it directly."""


class JsonSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text is JSON that meets this schema, or the schema in the request."""

    schema: Annotated[Any, about("A JSON Schema. `request`: the schema that the request asks for.")] = "request"
    on_unavailable: Annotated[OnUnavailable, about("The outcome of the rule if there is no usable schema.")] = (
        "accept"
    )


class ToolCalls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All calls name tools that the request offered, with arguments that meet their schemas."""

    on_unavailable: Annotated[
        OnUnavailable, about("The outcome of the rule if the offered tools or a schema cannot be read.")
    ] = "accept"


class Regex(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The pattern (RE2) matches somewhere in the text, without white space around it."""

    pattern: Annotated[str, about("The pattern. RE2 has no look-around and no back-references.")]


class NoRefusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer has no refusal field, no content filter, and no opening that is known as a refusal."""


class Logprob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mean log-probability of all tokens, or of the `first` ones, is at least `min`."""

    min: Annotated[float, Meta(le=0), about("Lowest mean log-probability.")]
    first: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        about("Judge only this many first tokens, as soon as they arrive. Left out: all tokens."),
    ] = None
    slack: Annotated[
        float, Meta(ge=0), about("How far below `min` the mean of a stream's first tokens must lie to reject it.")
    ] = 0.5
    on_unavailable: Annotated[
        OnUnavailable, about("The outcome of the rule if the answer has no log-probabilities.")
    ] = "accept"
    tier: Annotated[str | None, about("Judge only the answers of this tier. Left out: those of every tier.")] = None
    model: Annotated[
        str | None,
        about(
            "Model of that tier, whose answers `min` was fitted on by `extproc calibrate`. With another model the "
            "rule is refused."
        ),
    ] = None

    def judges(self, tier: str | None) -> bool:
        """Whether it judges the answers of this tier. None: the tier is not known, and it judges them."""
        return self.tier is None or tier is None or self.tier == tier


class Grounded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At least the share `min` of the sentences has a similarity of `level` or more with the context."""

    min: Annotated[Share, about("Lowest share of sentences that are similar to the context.")]
    level: Annotated[Share, about("Lowest similarity of a sentence. It is not calibrated.")] = 0.6
    on_unavailable: Annotated[
        OnUnavailable, about("The outcome of the rule if there is no context, or too much text.")
    ] = "accept"


class Score(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The probability that the answer is right, by the cohort's fitted curve, is at least `min`."""

    min: Annotated[Share, about("Lowest probability that the answer is right.")]
    on_unavailable: Annotated[OnUnavailable, about("The outcome of the rule if the score cannot be computed.")] = (
        "accept"
    )
    scorer: Scorer | None = None  # from the cohort, never from the YAML of the rule


class GainPredictor(Protocol):
    """Predicts what the costlier tier of `by_prompt` gains over an answer of the cheaper one."""

    @property
    def tier(self) -> str:
        """The tier whose answers it reads."""

    @property
    def fit(self) -> str:
        """The seal of its file."""

    @property
    def wants_logprobs(self) -> bool:
        """Whether it needs log-probabilities."""

    def gain(self, columns: Sequence[float], question: str, answer: Observation) -> float | None:
        """Return the gain for the mean extra cost, or None if it cannot be predicted."""


class Gain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The predicted gain of the costlier tier of `by_prompt`, given the prompt and the answer, is below `least`."""

    least: Annotated[
        float, about("Least predicted gain in quality, for the mean extra cost, at which the answer is rejected.")
    ]
    on_unavailable: Annotated[OnUnavailable, about("The outcome of the rule if the gain cannot be predicted.")] = (
        "accept"
    )
    predictor: Any = None  # a GainPredictor from gains.safetensors, never from the YAML; None: absent or stale


class External(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule that calls a model: `judge` asks it for an opinion, `agree` compares its own answer."""

    name: str
    by: Annotated[str, about("A name under `judges` in `policy.yaml`.")]
    level: Annotated[Share, about("For `agree`: lowest similarity of the two answers.")] = 0.8
    on_unavailable: Annotated[
        OnUnavailable, about("The outcome of the rule if the other model is down, too slow or unclear.")
    ] = "accept"


AcceptRule = (
    Complete | NonEmpty | MinChars | MaxChars | Json | JsonSchema | ToolCalls | Regex | NoRefusal
    | Logprob | Grounded | Score | Gain | External
)  # fmt: skip

# Name -> the type, the field that a plain value sets, an example.
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
    "gain": (Gain, "least", "{gain: {least: 0.3}}"),
}
_NAMES = {kind: name for name, (kind, _, _) in _RULES.items()}
_CALL_OUTS = ("agree", "judge")


def rule_types() -> dict[str, tuple[type[Any], str | None]]:
    """By the name of each rule: the type of its options, and the option that a plain value sets."""
    fixed = {name: (kind, field) for name, (kind, field, _) in _RULES.items()}
    return fixed | dict.fromkeys(_CALL_OUTS, (External, "by"))


def rule_name(rule: AcceptRule) -> str:
    """Return the name of the rule in the YAML."""
    return rule.name if isinstance(rule, External) else _NAMES[type(rule)]


def compile_rules(spec: Any, scorer: Scorer | None = None) -> tuple[AcceptRule, ...]:
    """Compile an `accept` list. The rule `score` uses `scorer`.

    Raises ValueError with the place, the fault and the remedy.
    """
    if not isinstance(spec, list):
        raise ValueError("accept: must be a list of rules; write, for example, accept: [complete, no_refusal]")
    rules = tuple(_compile(item, f"accept[{index}]", scorer) for index, item in enumerate(spec))
    names = [(rule_name(rule), rule.tier if isinstance(rule, Logprob) else None) for rule in rules]
    for name, tier in names:
        if names.count((name, tier)) > 1:
            raise ValueError(f"accept: the rule {name!r} appears twice; remove one of them")
    least = next((rule.chars for rule in rules if isinstance(rule, MinChars)), 0)
    most = next((rule.chars for rule in rules if isinstance(rule, MaxChars)), least)
    if least > most:
        raise ValueError(
            f"accept: min_chars {least} is above max_chars {most}, so no answer can pass; lower min_chars"
        )
    return rules


def _compile(item: Any, where: str, scorer: Scorer | None) -> AcceptRule:
    if isinstance(item, str):
        name, value = item, None
    elif isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item)), str):
        ((name, value),) = item.items()
    else:
        raise ValueError(
            f"{where}: a rule is a name or a mapping with one name; write complete or {{min_chars: 20}}"
        )
    if name in _CALL_OUTS:
        called: AcceptRule = _convert(
            External, _call_out(name, value), f"{where}.{name}", f"{{{name}: {{by: a-judge}}}}"
        )
        return called
    if name not in _RULES:
        names = (*_RULES, *_CALL_OUTS)
        near = get_close_matches(name, names, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"rules are {', '.join(names)}"
        raise ValueError(f"{where}: there is no rule {name!r}; {remedy}")
    kind, field, example = _RULES[name]
    rule: AcceptRule = _convert(kind, _options(name, field, value), f"{where}.{name}", example)
    _ensure_checkable(rule, f"{where}.{name}")
    if isinstance(rule, Gain) and rule.predictor is not None:
        raise ValueError(f"{where}.{name}: `predictor` is not a key of the rule; write {{gain: {{least: 0.3}}}}")
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
    if name == "json_schema" and named:  # the value is the schema, unless it has only these keys
        named = value.keys() <= {"schema", "on_unavailable"}
    return value if named or field is None else {field: value}


def _call_out(name: str, value: Any) -> dict[str, Any]:
    return {"name": name, **(value if isinstance(value, dict) else {"by": value})}


def _convert(kind: type[Any], options: Any, where: str, example: str) -> Any:
    rule = convert_or_mismatch(options, kind)
    if isinstance(rule, Mismatch):
        place = where if rule.is_key else f"{where}{dotted_path(rule.steps)}"
        raise ValueError(f"{place}: {rule.what}; write {example}")
    return rule


def _ensure_checkable(rule: AcceptRule, where: str) -> None:
    """Raise ValueError for a pattern or a schema that can never be checked."""
    try:
        if isinstance(rule, Regex):
            compile_pattern(rule.pattern)
        fault = None
        if isinstance(rule, JsonSchema) and rule.schema != "request":
            fault = schema_fault(rule.schema)
    except ValueError as error:
        fault = f"{error}; note that RE2 has no look-around and no back-references"
    if fault is not None:
        raise ValueError(f"{where}: {fault}")
