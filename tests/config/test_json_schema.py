"""The JSON Schemas for editors: every key has a description, and they accept the same YAML as the router."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from extproc.acceptance.rules import compile_rules, rule_types
from extproc.cli.main import main
from extproc.config.json_schema import FILES, json_schema
from extproc.config.reading import yaml_files
from tests.config.test_load import CONFIGS

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "intents"
KINDS = {"policy.yaml": "policy", "_background.yaml": "background"}  # every other file is an intent
# Mistakes of a key or a type, which an editor can show during writing.
SHOWN_IN_EDITORS = [
    ("unknown_key", "billing.yaml"),
    ("unknown_key_in_tier", "policy.yaml"),
    ("type", "policy.yaml"),
    ("header_value", "policy.yaml"),
    ("enum", "policy.yaml"),
    ("list_items", "billing.yaml"),
    ("tiers_twice", "policy.yaml"),
    ("missing_field", "billing.yaml"),
    ("evidence_key", "billing.yaml"),
    ("background_items", "_background.yaml"),
    ("background_key", "_background.yaml"),
]
RULES: list[Any] = [
    "complete",
    "json_schema",
    {"non_empty": None},
    {"min_chars": 20},
    {"max_chars": {"chars": 4000}},
    {"json_schema": {"type": "object", "required": ["total"]}},
    {"json_schema": {"schema": "request", "on_unavailable": "reject"}},
    {"tool_calls": {"on_unavailable": "reject"}},
    {"regex": "^[A-E]$"},
    {"logprob": {"min": -0.8, "first": 16}},
    {"grounded": 0.5},
    {"judge": "a-judge"},
    {"agree": {"by": "a-judge", "level": 0.9}},
]
WRONG_RULES: list[Any] = [
    "min_chars",
    "completed",
    {"min_chars": 0},
    {"min_chars": "many"},
    {"logprob": {"min": 0.5}},
    {"grounded": {"mn": 0.5}},
    {"complete": True},
    {"judge": {"on_unavailable": "reject"}},
    {"json": None, "complete": None},
    3,
]


class Yaml12(yaml.SafeLoader):
    """YAML as editors read it: only true and false are booleans, so `off` is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Yaml12.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


def validator(path: Path) -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json_schema(KINDS.get(path.name, "intent")))


def described(info: Any, place: str) -> Iterator[tuple[str, bool]]:
    """Every key of the YAML below a type, and whether it has a description."""
    match info:
        case msgspec.inspect.Metadata():
            yield from described(info.type, place)
        case msgspec.inspect.UnionType():
            for member in info.types:
                yield from described(member, place)
        case msgspec.inspect.StructType():
            for field in info.fields:
                schema = field.type.extra_json_schema if isinstance(field.type, msgspec.inspect.Metadata) else None
                text = (schema or {}).get("description", "")
                yield f"{place}.{field.encode_name}", text[-1:] == "." and text[:1] != " "
                yield from described(field.type, f"{place}.{field.encode_name}")
        case msgspec.inspect.VarTupleType() | msgspec.inspect.ListType():
            yield from described(info.item_type, f"{place}[]")
        case msgspec.inspect.DictType():
            yield from described(info.value_type, f"{place}.*")


@pytest.mark.parametrize("file", FILES)
def test_every_key_has_a_description(file: str) -> None:
    """Editors show it beside the key, and the reference is made of it."""
    keys = dict(described(msgspec.inspect.type_info(FILES[file]), file))
    assert len(keys) > (40 if file != "background" else 0)
    assert [key for key, has in keys.items() if not has] == []


def test_every_rule_and_its_options_have_a_description() -> None:
    """Only the options that the router sets itself have none."""
    internal = {"score.scorer", "gain.predictor", "judge.name", "agree.name"}
    for name, (options, _) in rule_types().items():
        assert inspect.getdoc(options)
        keys = dict(described(msgspec.inspect.type_info(options), name))
        missing = {key for key, has in keys.items() if not has and not key.startswith("score.scorer.")}
        assert missing <= internal


@pytest.mark.parametrize("file", FILES)
def test_the_schemas_in_the_repository_are_fresh(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`make schema` writes what `extproc schema` prints."""
    assert main(["schema", file]) == 0
    assert capsys.readouterr().out == (ROOT / f"docs/schema/{file}.schema.json").read_text()


@pytest.mark.parametrize("loader", [yaml.SafeLoader, Yaml12])
@pytest.mark.parametrize("path", [*yaml_files(SAMPLES), *yaml_files(CONFIGS / "good")], ids=str)
def test_the_schema_accepts_the_yaml_that_the_router_reads(path: Path, loader: type[yaml.SafeLoader]) -> None:
    """In YAML 1.1, and in YAML 1.2 as editors read it."""
    assert list(validator(path).iter_errors(yaml.load(path.read_text(), loader))) == []


@pytest.mark.parametrize("path", yaml_files(SAMPLES), ids=lambda path: path.name)
def test_samples_name_their_schema(path: Path) -> None:
    """In the first line, where editors look for it."""
    first = path.read_text().splitlines()[0]
    kind, _, schema = first.partition("=")
    assert kind == "# yaml-language-server: $schema"
    file = KINDS.get(path.name, "intent")
    assert (path.parent / schema).resolve() == ROOT / f"docs/schema/{file}.schema.json"


@pytest.mark.parametrize(("mistake", "file"), SHOWN_IN_EDITORS)
def test_mistakes_of_keys_and_types_show_in_an_editor(mistake: str, file: str) -> None:
    """The schema refuses the same keys and types as `extproc check`."""
    path = CONFIGS / f"bad_{mistake}" / file
    assert list(validator(path).iter_errors(yaml.safe_load(path.read_text()))) != []


def accepts(rule: Any) -> bool:
    intent = {"intent": "a", "tier": "b", "utterances": [], "accept": [rule]}
    return not list(jsonschema.Draft7Validator(json_schema("intent")).iter_errors(intent))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_in_any_of_its_forms_is_accepted(rule: Any) -> None:
    """The forms are a name, a name with a plain value, and a name with options."""
    assert compile_rules([rule]) and accepts(rule)


@pytest.mark.parametrize("rule", WRONG_RULES, ids=str)
def test_a_wrong_rule_is_refused(rule: Any) -> None:
    """The name, a value or an option is wrong."""
    with pytest.raises(ValueError):
        compile_rules([rule])
    assert not accepts(rule)
