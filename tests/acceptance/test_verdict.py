"""Judging an answer: each rule accepts, rejects, and decides early if it can."""

import time
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.acceptance.refusal import refuses, refuses_early
from extproc.acceptance.requirements import UNREAD, Requirements
from extproc.acceptance.rules import compile_rules
from extproc.acceptance.schema import MAX_STEPS, SchemaUnusable, conforms, schema_fault
from extproc.acceptance.verdict import Verdict, judge, judge_early, needs_whole_answer, wants_logprobs
from extproc.api.observation import Observation, ToolCall

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
REQUIREMENTS = Requirements(
    json_schema=PERSON,
    tools={"get": {"type": "object", "required": ["a"]}, "list": {"type": "object"}, "now": None},
    context="The invoice is numbered 4711. It is due in May. Oslo is the capital of Norway.",
)
OK = Verdict(True)
UNDECIDED = Verdict(False, reason="undecided", decided=False)


def answer(text: str = "Fine.", **more: Any) -> Observation:
    fields = {"finish": "stop", "complete": True, "ended": True, "n_choices": 1, "framing": "json"}
    return Observation(text=text, **{**fields, **more})


def part(text: str = "", **more: Any) -> Observation:
    return Observation(text=text, framing="sse", **more)


def calls(*pairs: tuple[str, str]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(*pair) for pair in pairs)


def embed(texts: list[str]) -> Any:
    """Return unit vectors of word counts, so similar texts are those that share words."""
    words = sorted({word.strip(".").lower() for text in texts for word in text.split()})
    rows = [[text.lower().replace(".", "").split().count(word) for word in words] for text in texts]
    vectors = np.array(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


REFUSED = "I'm sorry, but I can't help with that request. Please ask me about something else."
LONG = "The capital of Norway is Oslo, and this answer goes on. " * 5

# Rule, answer, reason. None means accepted.
JUDGED: list[tuple[Any, Observation, str | None]] = [
    ("complete", answer(), None),
    ("complete", answer(finish="tool_calls"), None),
    ("complete", answer(finish="length"), "cut"),
    ("complete", answer(finish="content_filter"), "filtered"),
    ("complete", answer(finish="abort"), "incomplete"),
    ("complete", answer(finish=None), "incomplete"),
    ("complete", answer(n_choices=0), "incomplete"),
    ("non_empty", answer(), None),
    ("non_empty", answer("", tool_calls=calls(("now", "{}"))), None),
    ("non_empty", answer("", other_output=True), None),
    ("non_empty", answer(" \n\u00a0"), "empty"),
    ({"min_chars": 3}, answer(" abc "), None),
    ({"min_chars": 3}, answer(" ab "), "too_short"),
    ({"min_chars": 3}, answer("", tool_calls=calls(("now", "{}"))), None),
    ({"min_chars": 3}, answer("", other_output=True), None),
    ({"max_chars": 3}, answer(" abc "), None),
    ({"max_chars": 3}, answer("abcd"), "too_long"),
    ("json", answer(' {"a": [1]}\n'), None),
    ("json", answer("[]"), None),
    ("json", answer("42"), "not_json"),
    ("json", answer('```json\n{"a": 1}\n```'), "not_json"),
    ("json", answer('{"a": NaN}'), "not_json"),
    ("json", answer('{"a": 1'), "not_json"),
    ("json", answer("[" * 100_000), "not_json"),
    ("json", answer("\u00a0{}"), "not_json"),
    ("json_schema", answer('{"name": "Ada", "age": 36}'), None),
    ("json_schema", answer('{"name": "Ada", "age": -1}'), "schema"),
    ("json_schema", answer('{"name": "Ada", "job": 1}'), "schema"),
    ("json_schema", answer("Ada"), "not_json"),
    ({"json_schema": {"type": "string"}}, answer('"x"'), None),
    ({"json_schema": {"type": "string"}}, answer("1"), "schema"),
    ("tool_calls", answer(), None),
    ("tool_calls", answer("", tool_calls=calls(("get", '{"a": 1}'), ("now", ""))), None),
    ("tool_calls", answer("", tool_calls=calls(("list", ""), ("list", " "), ("list", "{}"))), None),
    ("tool_calls", answer("", tool_calls=calls(("get", ""))), "tool_arguments"),
    ("tool_calls", answer("", tool_calls=calls(("fetch", "{}"))), "unknown_tool"),
    ("tool_calls", answer("", tool_calls=calls(("get", "{}"))), "tool_arguments"),
    ("tool_calls", answer("", tool_calls=calls(("get", '{"a": 1'))), "tool_arguments"),
    ("tool_calls", answer("", tool_calls=calls(("get", "[1]"))), "tool_arguments"),
    ({"regex": "^[A-E]$"}, answer(" B\n"), None),
    ({"regex": "^[A-E]$"}, answer("B, because"), "regex"),
    ("no_refusal", answer(), None),
    ("no_refusal", answer(REFUSED), "refusal"),
    ("no_refusal", answer("", refusal="No."), "refusal"),
    ({"logprob": {"min": -0.8}}, answer(logprobs=(-0.5, -1.0)), None),
    ({"logprob": -0.8}, answer(logprobs=(-0.5, -1.5)), "low_logprob"),
    ({"logprob": {"min": -0.8, "first": 1}}, answer(logprobs=(-0.5, -9.0)), None),
    ({"grounded": 0.5}, answer("The invoice is numbered 4711."), None),
    ({"grounded": {"min": 0.6}}, answer("It is due in May. Bananas grow fast."), "ungrounded"),
    ({"judge": "other"}, answer(), None),
    ({"agree": "other"}, answer(), "agree"),
]


@pytest.mark.parametrize(("item", "seen", "reason"), JUDGED)
def test_each_rule_accepts_and_rejects(item: Any, seen: Observation, reason: str | None) -> None:
    """A rejection has the name of the rule and one machine-readable reason."""
    rules = compile_rules([item])
    name = item if isinstance(item, str) else next(iter(item))
    verdict = judge(rules, seen, request=REQUIREMENTS, embed=embed, external=EXTERNAL)
    assert verdict == (OK if reason is None else Verdict(False, name, reason))


EXTERNAL = {"judge": True, "agree": False}

# Rule, part of an answer, reason. None means undecided, and "ok" means accepted.
EARLY: list[tuple[Any, Observation, str | None]] = [
    ("complete", part("a"), None),
    ("complete", part("a", finish="length"), "cut"),
    ("non_empty", part(" "), None),
    ("non_empty", part("a"), "ok"),
    ({"min_chars": 3}, part("ab"), None),
    ({"min_chars": 3}, part("abc"), "ok"),
    ({"min_chars": 3}, part("", tool_calls=calls(("now", ""))), None),
    ({"max_chars": 3}, part("abc"), None),
    ({"max_chars": 3}, part("abcd"), "too_long"),
    ("json", part(" "), None),
    ("json", part(' {"a'), None),
    ("json", part("Sure"), "not_json"),
    ("json", part("```json\n{"), "not_json"),
    ("json_schema", part('{"na'), None),
    ("json_schema", part("["), "schema"),
    ("json_schema", part("Here"), "not_json"),
    ({"json_schema": {"enum": [1]}}, part("1"), None),
    ("tool_calls", part("a"), None),
    ("tool_calls", part(tool_calls=calls(("ge", ""))), None),
    ("tool_calls", part(tool_calls=calls(("fetch", ""))), "unknown_tool"),
    ("tool_calls", part(tool_calls=calls(("get", '{"a'))), None),
    ("tool_calls", part(tool_calls=calls(("get", "a"))), "tool_arguments"),
    ({"regex": "^[A-E]$"}, part("no"), None),
    ("no_refusal", part("I can't help"), None),
    ("no_refusal", part(REFUSED), "refusal"),
    ("no_refusal", part("", refusal="No"), "refusal"),
    ("no_refusal", part(LONG), "ok"),
    ({"logprob": -0.8}, part(logprobs=(-9.0,) * 15), None),
    ({"logprob": -0.8}, part(logprobs=(-1.2,) * 16), None),
    ({"logprob": -0.8}, part(logprobs=(-1.4,) * 16), "low_logprob"),
    ({"logprob": {"min": -0.8, "first": 4}}, part(logprobs=(-0.5,) * 3), None),
    ({"logprob": {"min": -0.8, "first": 4}}, part(logprobs=(-0.5,) * 5), "ok"),
    ({"logprob": {"min": -0.8, "first": 4}}, part(logprobs=(-0.9,) * 4), "low_logprob"),
    ({"grounded": 0.5}, part("Bananas grow."), None),
    ({"judge": "other"}, part("a"), "ok"),
    ({"agree": "other"}, part("a"), "agree"),
]


@pytest.mark.parametrize(("item", "seen", "reason"), EARLY)
def test_each_rule_tells_early_only_what_is_certain(item: Any, seen: Observation, reason: str | None) -> None:
    """A part is rejected, accepted or left undecided, without guessing."""
    rules = compile_rules([item])
    name = item if isinstance(item, str) else next(iter(item))
    rejected = Verdict(False, name, reason or "")
    expected = {None: UNDECIDED, "ok": OK}.get(reason, rejected)
    assert judge_early(rules, seen, request=REQUIREMENTS, embed=embed, external=EXTERNAL) == expected


@pytest.mark.parametrize(("item", "seen", "reason"), JUDGED)
def test_an_early_verdict_is_the_last_one(item: Any, seen: Observation, reason: str | None) -> None:
    """For every rule, a decision on any prefix of the text also holds for the whole text."""
    rules = compile_rules([item])
    final = judge(rules, seen, request=REQUIREMENTS, embed=embed, external=EXTERNAL)
    for end in range(min(len(seen.text), 300)):
        so_far = part(seen.text[:end])
        early = judge_early(rules, so_far, request=REQUIREMENTS, external=EXTERNAL)
        assert not early.decided or early.accept == final.accept, end


def test_the_first_rejection_wins() -> None:
    """Rules are tried in order, and an answer that passes all of them is accepted."""
    spec = ["complete", {"min_chars": 10}, "json"]
    assert judge(compile_rules(spec), answer("short")) == Verdict(False, "min_chars", "too_short")
    assert judge(compile_rules(spec[::-1]), answer("short")) == Verdict(False, "json", "not_json")
    assert judge(compile_rules(spec), answer('{"name": "Ada"}')) == OK


@pytest.mark.parametrize(
    ("seen", "stream", "reason"),
    [
        (answer(malformed="html"), None, "malformed"),
        (answer(error="overloaded", malformed="not json"), None, "upstream_error"),
        (answer(complete=False), None, "incomplete"),
        (answer(mislabelled=True), None, "wrong_type"),
        (answer(framing="json"), True, "wrong_framing"),
        (answer(framing="sse"), False, "wrong_framing"),
        (answer(framing="sse"), True, None),
    ],
)
def test_what_a_client_cannot_read_is_rejected_without_any_rule(
    seen: Observation, stream: bool | None, reason: str | None
) -> None:
    """An unreadable or unfinished answer is rejected even with an empty list of rules."""
    request = Requirements(stream=stream)
    expected = OK if reason is None else Verdict(False, reason=reason)
    assert judge((), seen, request=request) == expected
    assert judge_early((), seen, request=request) == expected


def test_a_part_that_ended_is_judged_as_it_is() -> None:
    """A stream that ends unfinished is incomplete, not undecided."""
    rules = compile_rules(["complete"])
    assert judge_early(rules, part("a", ended=True)) == Verdict(False, reason="incomplete")


@pytest.mark.parametrize(
    ("name", "options", "request_"),
    [
        ("json_schema", {}, Requirements(json_schema={"pattern": "(?=a)"})),
        ("json_schema", {}, Requirements(left_out=("json_schema",))),
        ("json_schema", {}, UNREAD),
        ("tool_calls", {}, UNREAD),
        ("logprob", {"min": -0.8}, Requirements()),
        ("grounded", {"min": 0.5}, Requirements()),
        ("judge", {"by": "other"}, Requirements()),
    ],
)
def test_a_rule_that_cannot_run_has_a_declared_outcome(name: str, options: Any, request_: Requirements) -> None:
    """By default the client gets the answer, and the verdict says that it was not fully judged."""
    verdict = judge(compile_rules([{name: options}]), answer("1"), request=request_)
    assert verdict == Verdict(True, reason="unavailable", unavailable=(name,))
    strict = compile_rules([{name: {**options, "on_unavailable": "reject"}}])
    assert judge(strict, answer("1"), request=request_) == Verdict(False, name, "unavailable")


CALLING: dict[str, Any] = {"text": "", "finish": "tool_calls", "tool_calls": (ToolCall("find", '{"a": 1}'),)}


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        ({"json_schema": {"on_unavailable": "reject"}}, {}),
        ({"tool_calls": {"on_unavailable": "reject"}}, {}),
        ({"logprob": {"min": -0.8, "tier": "a", "model": "m", "on_unavailable": "reject"}}, {}),
        ({"grounded": {"min": 0.5, "on_unavailable": "reject"}}, {"text": "..."}),
        ({"grounded": {"min": 0.5, "on_unavailable": "reject"}}, CALLING),
        ({"logprob": {"min": -0.8, "on_unavailable": "reject"}}, CALLING),
        ({"judge": {"by": "other", "on_unavailable": "reject"}}, CALLING),
        ({"min_chars": 20}, CALLING),
    ],
)
def test_a_rule_with_nothing_to_check_does_not_count(rule: Any, seen: Any) -> None:
    """The schema, the calls, the text or the tier of the rule is not there. It is as if the rule were not there."""
    request = Requirements(tools={"find": None})
    assert judge(compile_rules([rule]), answer(**seen), request=request, tier="b") == OK


@pytest.mark.parametrize("known", [UNREAD, Requirements(tools={"find": None}, left_out=("tool_schemas",))])
def test_a_call_whose_tools_are_too_large_to_be_known_is_not_judged(known: Requirements) -> None:
    rules = compile_rules([{"min_chars": 20}, "tool_calls"])
    assert judge(rules, answer(**CALLING), request=known) == Verdict(
        True, reason="unavailable", unavailable=("tool_calls",)
    )


def test_a_tool_call_may_be_required_and_choices_counted() -> None:
    """The answer must meet `tool_choice: required` and `n` of the request."""
    required = Requirements(tool_required=True, choices=2)
    verdict = judge(compile_rules(["tool_calls"]), answer(), request=required)
    assert verdict == Verdict(False, "tool_calls", "no_tool_call")
    assert judge(compile_rules(["tool_calls"]), answer("", other_output=True), request=required) == OK
    verdict = judge(compile_rules(["complete"]), answer(), request=required)
    assert verdict == Verdict(False, "complete", "incomplete")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("json", "must be a list"),
        ([{"json": None, "complete": None}], r"accept\[0\]: a rule is a name"),
        ([3], r"accept\[0\]: a rule is a name"),
        (["complete", "no_refusals"], r"accept\[1\].*did you mean 'no_refusal'"),
        (["qqqqqq"], "rules are complete, non_empty"),
        (
            ["min_chars"],
            r"accept\[0\]\.min_chars: `chars` is missing: add it \(lowest number of characters\); "
            r"write {min_chars: 20}",
        ),
        ([{"min_chars": "many"}], "chars: expected a whole number from 1 up, found the text `many`; write"),
        ([{"min_chars": 0}], "expected a whole number from 1 up, found the number 0"),
        ([{"logprob": {"min": 0.5}}], "min: expected a number up to 0, found the number 0.5"),
        ([{"logprob": float("nan")}], "write {logprob"),
        ([{"grounded": {"mn": 0.5}}], "unknown key `mn`: did you mean `min`"),
        ([{"grounded": {"min": 0.5, "on_unavailable": "maybe"}}], "on_unavailable: expected accept or reject"),
        ([{"judge": {"by": "other", "on_unavailable": "maybe"}}], "on_unavailable: expected accept or reject"),
        ([{"complete": True}], "complete: expected a mapping, found true"),
        ([{"regex": "(?=a)"}], "no look-around"),
        ([{"json_schema": {"type": "objekt"}}], "'type' cannot be 'objekt'"),
        ([{"json_schema": "reqest"}], "a schema must be an object"),
        (["json", "json"], "appears twice; remove one"),
        ([{"min_chars": 9}, {"max_chars": 8}], "no answer can pass"),
    ],
)
def test_a_bad_spec_says_where_and_what_to_write(spec: Any, message: str) -> None:
    """The error has the place, the fault and the remedy."""
    with pytest.raises(ValueError, match=message):
        compile_rules(spec)


def test_rules_say_what_they_need() -> None:
    """Log-probabilities are requested only when a rule reads them."""
    assert wants_logprobs(compile_rules([{"logprob": -1}]))
    assert not wants_logprobs(compile_rules(["complete", {"judge": "other"}]))
    assert compile_rules([]) == ()
    rules = compile_rules(
        ["complete", {"regex": "a"}, {"logprob": -1}, {"logprob": {"min": -1, "first": 9, "tier": "a"}}]
    )
    assert needs_whole_answer(rules) == ["regex", "logprob"]


def test_a_level_of_one_tier_judges_no_other_tier() -> None:
    """Levels differ by model, so each tier may have its own rule. Only their tiers are asked."""
    rules = compile_rules([{"logprob": {"min": level, "tier": tier}} for tier, level in (("a", -0.2), ("b", -0.9))])
    unsure = answer(logprobs=(-0.5, -0.5))
    verdicts = [judge(rules, unsure, tier=tier) for tier in ("a", "b", "c")]
    assert verdicts == [Verdict(False, "logprob", "low_logprob"), Verdict(True), Verdict(True)]
    assert [judge(rules, answer(), tier=tier).unavailable for tier in ("a", "c")] == [("logprob",), ()]
    early = [judge_early(rules, part(logprobs=(-1.0,) * 16), tier=tier) for tier in ("a", "c")]
    assert early == [Verdict(False, "logprob", "low_logprob"), Verdict(True)]
    assert [wants_logprobs(rules, tier) for tier in ("a", "b", "c", None)] == [True, True, False, True]
    with pytest.raises(ValueError, match="'logprob' appears twice"):
        compile_rules([{"logprob": {"min": -1, "tier": "a"}}, {"logprob": {"min": -2, "tier": "a"}}])


REFUSALS = [
    "I can\u2019t help with that.",
    "I cannot assist with this request.",
    "  **I'm sorry, but I can't help with that.** Anything else?",
    "Sorry, I can't do that.",
    "I'm sorry.",
    "I apologize, but I am unable to provide information about that topic.",
    "Unfortunately, I cannot provide medical advice.",
    "As an AI language model, I can't comply with this request.",
    "I must respectfully decline.",
    "I won't be able to help with that.",
    "I'm not able to provide that information.",
    "We're sorry, we cannot answer that.",
    "I'm afraid I can't do that.",
    "I apologize for the confusion.",
    "My apologies, but I'm not comfortable writing that.",
]
ANSWERS = [
    "I can't stress enough how important it is to back up your data before you start.",
    "I can't help but notice that the second loop never ends, which is the bug you see.",
    "I cannot recommend this book highly enough; it is a delight from start to end.",
    "Sorry for the long wait! Here is the summary you asked for, in three short points.",
    "The speaker opens with: I'm sorry, I can't help with that. Then he leaves the room.",
    'The customer writes "I\'m sorry, but I cannot provide the report" and asks for more time.',
    "I couldn't open the door, so I sat down on the step and waited for the rain to stop.",
    "I'm sorry for your loss. Here is a draft of the letter of condolence you asked for.",
    "Unfortunately, the train was late, which is why the tenant asks for a new appointment.",
    "You can't divide by zero: the limit does not exist, so the function is undefined there.",
    "I apologize for the confusion. The correct total is 42, because the tax was counted twice.",
    "I will not be in the office on Monday. Please call my colleague if it is urgent.",
    "We cannot attend the meeting on Friday; would Tuesday at ten suit you instead?",
    "I can't wait to show you this: the answer is B.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_known_by_their_opening(text: str) -> None:
    """Several phrasings, apostrophes and letter cases, and an apology with no text after it."""
    assert refuses(text)
    assert refuses(text.upper())


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_that_sound_like_refusals_pass(text: str) -> None:
    """An unneeded escalation on all similar requests would cost more than one missed refusal."""
    assert not refuses(text)


@pytest.mark.parametrize("text", [*REFUSALS, *ANSWERS])
def test_an_opening_is_decided_early_only_when_nothing_can_change_it(text: str) -> None:
    """At every character, an early decision agrees with the decision on the whole text."""
    text = f"{text} {LONG}"
    for end in range(len(text) + 1):
        assert refuses_early(text[:end]) in (None, refuses(text)), end


@pytest.mark.parametrize(
    ("text", "certain"),
    [
        ("The capital of Norway is Oslo.", "The"),
        ("In short: no.", "In"),
        ('{"answer": 42}', "{"),
        ("## **Steps** to take", "## **St"),
        ("I think that it is 42.", "I t"),
        ("I can't stress enough that you should wait.", "I can't stress"),
        ("Sorry for the long wait! Here it is.", "Sorry for the l"),
        ("As an example, take two.", "As an e"),
        ("As an AI, I can see that it is 42.", "As an AI, I can see that it is 4"),
        ("I understand that you cannot attend.", "I understand that y"),
    ],
)
def test_an_answer_is_certain_when_no_phrase_of_refusals_begins_as_it_does(text: str, certain: str) -> None:
    first = next(end for end in range(len(text)) if refuses_early(text[:end]) is False)
    assert text[:first] == certain


_WORDS = sorted({word for text in (*REFUSALS, *ANSWERS) for word in text.split()})


@given(
    st.lists(st.sampled_from(_WORDS), max_size=6), st.sampled_from(REFUSALS), st.sampled_from([" ", "\n\n", ", "])
)
def test_what_is_certain_of_an_opening_stays_so(words: list[str], refusal: str, between: str) -> None:
    """Words of refusals in any order, with a refusal after them. An apology before one belongs to it."""
    text = between.join([*words, refusal])
    assert {refuses_early(text[:end]) for end in range(len(text) + 1)} <= {None, refuses(text)}


# A schema, a value that meets it, a value that does not.
SCHEMAS: list[tuple[Any, Any, Any]] = [
    ({"type": ["string", "null"]}, None, 1),
    ({"type": "integer"}, 1.0, 1.5),
    ({"type": "number"}, 1, True),
    ({"enum": ["a", 1]}, 1.0, "b"),
    ({"const": {"a": [1]}}, {"a": [1.0]}, {"a": [True]}),
    ({"properties": {"a": {"type": "null"}}}, {"b": 1}, {"a": 1}),
    ({"additionalProperties": {"type": "string"}}, {"a": "x"}, {"a": 1}),
    ({"patternProperties": {"^x": False}, "additionalProperties": True}, {"y": 1}, {"x": 1}),
    ({"propertyNames": {"maxLength": 1}}, {"a": 1}, {"ab": 1}),
    ({"dependentRequired": {"a": ["b"]}}, {"b": 1}, {"a": 1}),
    ({"minProperties": 1, "maxProperties": 1}, {"a": 1}, {}),
    ({"items": {"type": "string"}, "minItems": 1, "maxItems": 2}, ["a"], ["a", 1]),
    ({"prefixItems": [{"type": "null"}], "items": False}, [None], [None, 1]),
    ({"uniqueItems": True}, [1, True, "1"], [1, 1.0]),
    ({"minLength": 2, "maxLength": 3}, "zoë", "z"),
    ({"pattern": "^a+$"}, "aa", "ab"),
    ({"minimum": 1, "maximum": 2}, 2, 3),
    ({"exclusiveMinimum": 1, "exclusiveMaximum": 2}, 1.5, 1),
    ({"multipleOf": 0.01}, 19.99, 0.005),
    ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, 1, 3),
    ({"anyOf": [{"const": 1}, {"const": 2}]}, 2, 3),
    ({"oneOf": [{"minimum": 1}, {"maximum": 2}]}, 3, 1.5),
    ({"not": {"type": "null"}}, 1, None),
    ({"if": {"type": "string"}, "then": {"minLength": 2}, "else": False}, "ab", 1),
    (
        {"$defs": {"t": {"properties": {"next": {"$ref": "#/$defs/t"}}, "required": ["v"]}},
         "$ref": "#/$defs/t"},
        {"v": 1, "next": {"v": 2}},
        {"v": 1, "next": {}},
    ),
    ({"title": "T", "$schema": "https://json-schema.org/draft/2020-12/schema", "x": 1}, 1, ...),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), SCHEMAS)
def test_schemas_are_checked_by_the_standard(schema: Any, good: Any, bad: Any) -> None:
    """Each keyword accepts and rejects as JSON Schema 2020-12 defines."""
    assert schema_fault(schema) is None
    assert conforms(schema, good)
    assert bad is ... or not conforms(schema, bad)


DEEP: Any = {}
for _ in range(100_000):
    DEEP = {"not": DEEP}

DOUBLING: Any = {"$defs": {"d0": {"type": "null"}}, "not": {"$ref": "#/$defs/d40"}}
for level in range(40):
    DOUBLING["$defs"][f"d{level + 1}"] = {"oneOf": [{"$ref": f"#/$defs/d{level}"}, {"$ref": f"#/$defs/d{level}"}]}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"pattern": "(?=a)b"},
        {"pattern": "(a{1000}){1000}"},
        {"patternProperties": {"(a)\\1": True}},
        {"unevaluatedProperties": False},
        {"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#", "items": []}}},
        {"$ref": "#/odd", "odd": {"required": 3}},
        {"type": 3},
        {"minLength": -1},
        {"multipleOf": 0},
        {"enum": ["x" * 70_000]},
        {"properties": [1]},
        DEEP,
        DOUBLING,
    ],
)
def test_a_hostile_schema_is_unavailable_soon(schema: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No schema opens a connection, loops or hangs. It cannot be checked, and the verdict says so."""
    connections: list[object] = []
    monkeypatch.setattr("socket.socket", lambda *arguments, **_: connections.append(arguments))
    start = time.process_time()
    request = Requirements(json_schema=schema)
    verdict = judge(compile_rules(["json_schema"]), answer('{"a": "b"}'), request=request)
    assert verdict == Verdict(True, reason="unavailable", unavailable=("json_schema",))
    assert connections == []
    assert time.process_time() - start < 2  # without a bound these take hours


def test_regex_bombs_run_in_linear_time() -> None:
    """A pattern that takes a backtracking engine hours is finished immediately."""
    bomb, text = "^(a+)+$", "a" * 50_000 + "b"
    start = time.process_time()
    assert judge(compile_rules([{"regex": bomb}]), answer(text)).reason == "regex"
    nested = {"properties": {"a": {"$schema": "x", "pattern": bomb}}}
    patterned = {"patternProperties": {bomb: True}, "additionalProperties": False}
    assert not conforms(nested, {"a": text})
    assert not conforms(patterned, {text: 1})
    assert time.process_time() - start < 2


def test_patterns_are_compiled_within_a_budget() -> None:
    """Thousands of patterns with large repetitions fit into one schema, and each takes milliseconds to compile."""
    many = {"properties": {str(i): {"pattern": f"{i}a{{1,1000}}"} for i in range(1700)}}
    with pytest.raises(SchemaUnusable, match="patterns take too long"):
        conforms(many, {"1": "a"})
    usual = {"properties": {str(i): {"pattern": f"^[a-z]{{1,64}}-{i}$"} for i in range(90)}}
    assert conforms(usual, {"1": "ab-1"}) and not conforms(usual, {"1": "ab-2"})


def test_a_check_is_bounded_by_its_steps() -> None:
    """The check of a large value against a large schema stops at the limit."""
    branches = {"items": {"anyOf": [{"const": i} for i in range(100)]}}
    assert conforms(branches, [99] * 100)
    with pytest.raises(SchemaUnusable, match="too long"):
        conforms(branches, [99] * MAX_STEPS)
    assert conforms({"uniqueItems": True}, [[i] for i in range(20_000)])


def test_numbers_beyond_a_float_do_not_raise() -> None:
    """Huge integers are numbers, and a check that cannot compute with them is unavailable."""
    huge = msgspec.json.decode(b"1" + b"0" * 200)
    assert conforms({"type": "integer", "minimum": 1}, huge)
    request = Requirements(json_schema={"multipleOf": 1e-300})
    text = str(huge) + "0" * 150
    assert judge(compile_rules(["json_schema"]), answer(text), request=request).decided


def test_grounding_never_judges_a_cut_text() -> None:
    """The rule cannot run without context, with too much context, or without vectors."""
    rules = compile_rules([{"grounded": 0.5}])
    unavailable = Verdict(True, reason="unavailable", unavailable=("grounded",))
    seen = answer("The invoice is due.")
    assert judge(rules, seen, request=Requirements(), embed=embed) == unavailable
    long = Requirements(context="It is due in May. " * 300)
    assert judge(rules, seen, request=long, embed=embed) == unavailable
    assert judge(rules, seen, request=REQUIREMENTS, embed=lambda texts: None) == unavailable
    broken = lambda texts: np.full((len(texts), 2), np.nan)  # noqa: E731
    assert judge(rules, seen, request=REQUIREMENTS, embed=broken) == unavailable


@pytest.mark.parametrize("malformed", ["frame too large", "answer too large"])
def test_an_answer_that_is_too_large_passes_unjudged(malformed: str) -> None:
    """The tier is not at fault, so the verdict accepts and says why no rule ran."""
    rules, seen = compile_rules(["complete", "json"]), answer(malformed=malformed, complete=False)
    expected = Verdict(True, reason="too_large", unavailable=("complete", "json"))
    assert judge(rules, seen) == judge_early(rules, seen) == expected


@pytest.mark.parametrize("finish", ["pause_turn", "compaction", "queued", "in_progress"])
def test_an_answer_that_continues_elsewhere_passes(finish: str) -> None:
    """No rule has judged it, and the verdict says so. Without rules there was nothing to judge."""
    rules, seen = compile_rules(["complete", "non_empty"]), answer("", finish=finish)
    expected = Verdict(True, reason="unavailable", unavailable=("complete", "non_empty"))
    assert (judge(rules, seen), judge((), seen)) == (expected, OK)
