"""The sentence about a value of the wrong type, in the words of YAML: the found value and the expected ones."""

import re
from typing import Any

import msgspec
import pytest
import yaml

from extproc.acceptance.score import Scorer
from extproc.mismatch import Mismatch, convert_or_mismatch, dotted_path
from extproc.settings import App, Conditions, Escalate, Evidence, Human, Judge, Reasoning, Tier, Timeouts, UsdBudget

_PYTHON = re.compile(r"\b(int|str|float|bool|object|array|null|None|True|False|dict|tuple)\b")


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    """A struct with mappings in a mapping."""

    nested: dict[str, dict[str, int]] = {}


EXPECTED = {
    (Reasoning, "maybe"): "expected on, off or {budget_tokens: N}, found the text `maybe`",
    (Reasoning, "900"): "expected on, off or {budget_tokens: N}, found the number 900",
    (Reasoning, "{budget_tokens: many}"): ".budget_tokens: expected a whole number, found the text `many`",
    (Human, "status: 4.5"): ".status: expected a whole number, found the number 4.5",
    (Human, "queue: 5"): ".queue: expected text, found the number 5: put it in quotes",
    (Human, "queue: yes"): ".queue: expected text, found true: put it in quotes",
    (Human, "queue: [a, b]"): ".queue: expected text, found a list of 2 values",
    (Human, "queue: {a: b}"): ".queue: expected text, found a mapping: put a text with a colon in quotes",
    (Human, "queue:"): ".queue: expected text, found nothing",
    (Human, "keep_text: maybe"): ".keep_text: expected true or false, found the text `maybe`",
    (Human, "[]"): "expected a mapping, found an empty list",
    (Timeouts, "request_s: soon"): ".request_s: expected a number, found the text `soon`",
    (Conditions, "risk: medium"): ".risk: expected high or low, found the text `medium`",
    (Conditions, "risk: lowe"): ".risk: expected high or low, found the text `lowe`: did you mean `low`?",
    (Conditions, "intents: code"): ".intents: expected a list, found the text `code`: write [code]",
    (Conditions, "intents: [code, 7]"): ".intents[1]: expected text, found the number 7: put it in quotes",
    (Conditions, "headers: {a: b, x.y: 5, z: 6}"): (
        ".headers.x.y: expected text, found the number 5: put it in quotes"
    ),
    (Conditions, "tokens_over: 32k"): (
        ".tokens_over: expected a whole number, found the text `32k`: write digits only"
    ),
    (Timeouts, "request_s: 0,5"): (
        ".request_s: expected a number, found the text `0,5`: write 0.5"
    ),
    (UsdBudget, "{usd_month: 2k, over: s}"): ".usd_month: expected a number, found the text `2k`: write 2000",
    (UsdBudget, "{usd_month: €2000, over: s}"): (
        ".usd_month: expected a number, found the text `€2000`: write digits and a point only"
    ),
    (Conditions, "tokens_over: 2000.0"): (
        ".tokens_over: expected a whole number, found the number 2000.0: write 2000"
    ),
    (Tier, "capabilities: [tools, ~]"): (
        ".capabilities[1]: expected text, found nothing: put a text that begins with `#` in quotes"
    ),
    (Escalate, "to: 5"): ".to: expected text, {tier: ...} or a list, found the number 5: put it in quotes",
    (Judge, "{url: h, model: m, price: 3}"): (
        ".price: expected a mapping {input: N, output: N}, found the number 3"
    ),
    (Judge, "{url: h, models: m}"): ".models: unknown key `models`: did you mean `model`?",
    (App, "default_tier: {msgs: small}"): (
        ".default_tier: expected text or a mapping with the keys chat, completions, messages, responses, found the "
        "key `msgs`"
    ),
    (App, "default_tier: {chat: 5}"): (
        ".default_tier.chat: expected text, found the number 5: put it in quotes"
    ),
    (Judge, "{url: h}"): "`model` is missing: add it (model name to ask for)",
    (Tier, "capabilities: [5]"): ".capabilities[0]: expected text, found the number 5: put it in quotes",
}  # fmt: skip


def told(kind: Any, text: str) -> str:
    mismatch = convert_or_mismatch(yaml.safe_load(text), kind)
    assert isinstance(mismatch, Mismatch)
    place = dotted_path(mismatch.steps)
    return f"{place}: {mismatch.what}" if place else mismatch.what


@pytest.mark.parametrize(("kind", "text"), EXPECTED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_value_is_explained_in_the_words_of_yaml(kind: Any, text: str) -> None:
    """The sentence has the place of the value, and a remedy if there is one."""
    assert told(kind, text) == EXPECTED[kind, text]


@pytest.mark.parametrize("kind", [Reasoning, Human, Judge, Tier, Conditions, Escalate, Evidence, Scorer, Timeouts])
@pytest.mark.parametrize(
    "text", ["5", "2.5", "true", "maybe", "[1, {}]", "{a: b}", "null", "{budget_tokens: {}}", "{to: {tier: 5}}"]
)
def test_no_word_of_python_is_used(kind: Any, text: str) -> None:
    """This holds for any value and any type."""
    value = convert_or_mismatch(yaml.safe_load(text), kind)
    if isinstance(value, Mismatch):
        assert _PYTHON.search(value.what) is None


def test_the_right_key_of_a_mapping_is_named_and_nothing_is_changed() -> None:
    """This holds for mappings in mappings as well."""
    data = {"nested": {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": "two", "z": 3}, "c": {}}}
    before = msgspec.json.encode(data)
    mismatch = convert_or_mismatch(data, Limits)
    assert mismatch == Mismatch(("nested", "b", "y"), "expected a whole number, found the text `two`")
    assert msgspec.json.encode(data) == before


def test_what_was_found_is_shown_on_one_short_line() -> None:
    """A long text is cut, and no line break or other control character gets through."""
    assert told(Timeouts, "request_s: " + "x" * 300) == (
        f".request_s: expected a number, found the text `{'x' * 37}...`"
    )
    assert told(Timeouts, 'request_s: "a\\nb\\0"') == r".request_s: expected a number, found the text `a\nb\x00`"
