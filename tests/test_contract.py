"""The contract: records survive the wire and odd metadata, and its names stand in one place."""

import ast
import contextlib
import json
import math
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extproc.api.paths import APIS
from extproc.config.load import load_config
from extproc.contract import names, records, words
from extproc.contract.names import CONTRACT, DECISION_LOG, VERDICT_HEADERS, HeaderName, HeaderPrefix, Key, Namespace
from extproc.contract.records import (
    AnswerRecord,
    AttemptRecord,
    AttemptsRecord,
    BodyPatch,
    CacheRecord,
    CascadeRecord,
    ConversationRecord,
    DecisionRecord,
    JudgedRecord,
    LedgerRecord,
    PackedRecord,
    RequirementsRecord,
    RungsRecord,
    VerdictRecord,
)
from extproc.contract.words import Bound, Course, JudgeMode, Reason, Undecided, VerdictWord
from extproc.envoy.bootstrap import render_envoy
from extproc.messages import Reply
from extproc.pb import ext_proc_pb2 as pb
from extproc.routing.policy import Policy
from extproc.serving.wire import read_opening, write_reply

REPOSITORY = Path(__file__).parents[1]
SCHEMA = json.loads((REPOSITORY / "docs/decision-log.schema.json").read_text())
LOGGED_DECISION = SCHEMA["$defs"]["decision"]["properties"]
# The records in Namespace.DECISION. Each is written by itself.
DECISION_RECORDS = (DecisionRecord, CascadeRecord, JudgedRecord, VerdictRecord)
RECORDS = (
    *DECISION_RECORDS, RungsRecord, BodyPatch, RequirementsRecord, AnswerRecord, AttemptRecord, LedgerRecord,
    ConversationRecord, AttemptsRecord, CacheRecord, PackedRecord,
)  # fmt: skip


# --- round trips --------------------------------------------------------------------------------------------

_COUNTS = st.integers(0, 2**53)  # metadata carries numbers as doubles
_VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(),
    int: _COUNTS,
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    list[str]: st.lists(st.text()),
    list[int]: st.lists(_COUNTS),
    dict[str, str]: st.dictionaries(st.text(), st.text()),
    list[list[BodyPatch]]: st.lists(st.lists(st.builds(BodyPatch, at=_COUNTS, length=_COUNTS, text=st.text()))),
}


def values_of(record: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Any record of this type, with and without the values that may be absent."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in msgspec.structs.fields(record):
        kinds = get_args(field.type) if type(None) in get_args(field.type) else (field.type,)
        if record is LedgerRecord and field.name == "attempts":
            fields[field.name] = st.dictionaries(st.integers(1, 10**8), values_of(AttemptRecord), max_size=3)
        elif record is LedgerRecord and field.name == "hit":
            fields[field.name] = st.none() | values_of(AttemptRecord)
        elif record is LedgerRecord and field.name == "failed":
            fields[field.name] = st.dictionaries(st.integers(1, 10**8), st.text(), max_size=3)
        else:
            fields[field.name] = st.one_of(*(st.none() if k is type(None) else _VALUES[k] for k in kinds))
    return st.builds(record, **fields)


def over_the_wire(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata that we wrote, as Envoy forwards it."""
    written = write_reply(Reply("request_body", metadata={Namespace.DECISION: metadata})).dynamic_metadata
    message = pb.ProcessingRequest()
    namespace = message.metadata_context.filter_metadata[Namespace.DECISION]
    namespace.CopyFrom(written.fields[Namespace.DECISION].struct_value)
    return read_opening(message).metadata[Namespace.DECISION]


@pytest.mark.parametrize("record", RECORDS)
@given(data=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_record_comes_back_as_it_was_written(record: Any, data: st.DataObject) -> None:
    """Through Envoy's metadata, where every number is a float."""
    written = data.draw(values_of(record))
    assert record.from_metadata(over_the_wire(written.to_metadata())) == written


def test_what_is_absent_has_no_key() -> None:
    assert VerdictRecord(verdict=VerdictWord.ACCEPT).to_metadata() == {"verdict": "accept"}
    assert LedgerRecord(session="s").to_metadata() == {"session": "s"}
    decision = DecisionRecord(
        cluster="c", tier="t", reason=Reason.RULE, reasoning="model", revision="r", mode="enforce"
    )
    assert decision.to_metadata() == {
        "cluster": "c", "tier": "t", "reason": "rule", "reasoning": "model", "revision": "r", "mode": "enforce",
    }  # fmt: skip


def test_words_are_written_as_plain_text() -> None:
    """Nothing outside sees our types."""
    record = CascadeRecord(contract=CONTRACT, max_retries=1, escalations=0, judge={"small": JudgeMode.STREAM})
    [word] = record.to_metadata()["judge"].values()
    assert (type(word), word) == (str, "stream")


# --- tolerance ----------------------------------------------------------------------------------------------

_KEYS = {field.name for record in RECORDS for field in msgspec.structs.fields(record)} | {"1", "2", "01", "٣", "0"}
_LEAVES = st.none() | st.booleans() | st.floats() | st.text(max_size=4)
_ODD = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(sorted(_KEYS)), inner, max_size=3),
    max_leaves=4,
)


@given(metadata=st.dictionaries(st.sampled_from(sorted(_KEYS)), _ODD, max_size=12))
def test_no_metadata_is_too_odd_to_read(metadata: dict[str, Any]) -> None:
    """Every record reads it, and can write again what it read."""
    for record in RECORDS:
        read = record.from_metadata(metadata)
        assert type(read) is record and isinstance(read.to_metadata(), dict)


_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.0, 1.5, 1e300, math.nan, math.inf, 2**70, [], {}, ["a"], {"a": 1},
    *("", "x", "null", "Null", "true", "1", " 1", "1.5", "1e3", "0x1", "NaN", "inf"),
)  # fmt: skip


@pytest.mark.parametrize("value", _ODD_VALUES, ids=repr)
def test_one_odd_value_costs_no_other_value(value: object) -> None:
    """A record that is read as a whole is the same as one that is read key by key."""
    kinds = {field.name: get_args(field.type) or (field.type,) for field in msgspec.structs.fields(DecisionRecord)}
    sound = {str: "small", int: 3, float: 0.5, bool: False}
    for name in kinds:
        metadata = {key: sound[kind[0]] for key, kind in kinds.items()} | {name: value}
        by_key: dict[str, Any] = dict.fromkeys(("cluster", "tier", "reason", "reasoning", "revision", "mode"), "")
        for key, member in metadata.items():
            with contextlib.suppress(msgspec.ValidationError):
                by_key[key] = msgspec.convert(member, kinds[key][0], strict=False)
        assert repr(DecisionRecord.from_metadata(metadata)) == repr(DecisionRecord(**by_key))


JUDGED = {
    "cohort": "c",
    "rungs": ["small"],
    "api": "chat",
    "escalations": 1.0,
    "logprobs_added": True,
    "skipped": 2.0,
}
NOBODY = JudgedRecord(cohort="", rungs=[], api="chat", escalations=0, logprobs_added=False)


def test_a_verifier_reads_what_it_knows_of_another_release() -> None:
    """Neither the version nor a key that is new to it stops it."""
    newer = JUDGED | {"contract": CONTRACT + 98, "new": {"a": 1.0}, "reason": "new_reason", "judge": "other"}
    expected = JudgedRecord(cohort="c", rungs=["small"], api="chat", escalations=1, logprobs_added=True, skipped=2)
    assert JudgedRecord.from_metadata(newer) == expected
    assert CascadeRecord.from_metadata(newer).contract == CONTRACT + 98
    assert DecisionRecord.from_metadata(newer).reason == "new_reason"


def test_a_decision_without_a_version_is_one_from_before_there_were_any() -> None:
    assert CascadeRecord.from_metadata({"max_retries": 1.0, "escalations": 0.0}).contract == 0


@pytest.mark.parametrize(
    "damage",
    [{"rungs": 2.0}, {"rungs": [1.0]}, {"skipped": "x"}, {"skipped": None}, {"escalations": float("nan")},
     {"escalations": float("inf")}, {"logprobs_added": "yes"}, {"cohort": None}, {"api": 1.0}],
)  # fmt: skip
def test_a_damaged_decision_is_of_no_cohort(damage: dict[str, Any]) -> None:
    """The router did not write it, so no answer is judged by it."""
    assert JudgedRecord.from_metadata(JUDGED | damage) == NOBODY
    assert JudgedRecord.from_metadata({}) == NOBODY


def test_of_other_records_each_value_is_read_alone() -> None:
    """An unreadable value counts as absent: it becomes empty if the record requires it, and None if not."""
    read = DecisionRecord.from_metadata(
        {"reason": 4.0, "cohort": "c", "mode": "enforce", "tokens": 7.0, "margin": []}
    )
    assert read == DecisionRecord(
        cluster="", tier="", reason="", reasoning="", revision="", mode="enforce", cohort="c", tokens=7
    )
    ledger = {
        "principal": 1.0,
        "session": "s",
        "1": "no record",
        "02": {},
        "3": {"verdict": "new", "input": "many"},
    }
    assert LedgerRecord.from_metadata(ledger) == LedgerRecord(
        session="s", attempts={3: AttemptRecord(verdict="new")}
    )


@pytest.mark.parametrize("damage", [{"body": 1.0}, {"type": None}, {"tier": []}])
def test_half_an_answer_is_none(damage: dict[str, Any]) -> None:
    kept = {"body": "{}", "type": "application/json", "tier": "small"}
    assert AnswerRecord.from_metadata(kept).body == "{}"
    assert AnswerRecord.from_metadata(kept | damage).body == ""


# --- agreement ----------------------------------------------------------------------------------------------


def test_each_key_is_a_field_of_a_record() -> None:
    fields = {field.name for record in RECORDS for field in msgspec.structs.fields(record)}
    assert {key.value for key in Key} - fields == set()


def test_clients_can_send_none_of_the_headers() -> None:
    """Each begins with a prefix that Envoy removes. The others belong to streams between Envoy and us."""
    outside = {name for name in HeaderName if not name.startswith(tuple(HeaderPrefix))}
    assert outside == {HeaderName.ROLE, HeaderName.COUNTS, HeaderName.ENDINGS}


def test_a_verifier_may_write_two_headers() -> None:
    matching = {name for name in HeaderName if re.fullmatch(VERDICT_HEADERS, name)}
    assert matching == {HeaderName.VERDICT, HeaderName.VERDICT_REASON}


def test_the_schema_lists_every_key_of_a_decision_with_its_type() -> None:
    json_types: dict[Any, str | None] = {str: "string", int: "integer", float: "number", bool: "boolean"}
    fields = {f.name: f.type for record in DECISION_RECORDS for f in msgspec.structs.fields(record)}
    assert LOGGED_DECISION.keys() == fields.keys()
    for name, kind in fields.items():
        [plain] = {json_type for k, json_type in json_types.items() if kind in (k, k | None)} or {None}
        if plain is not None and "type" in LOGGED_DECISION[name]:
            assert LOGGED_DECISION[name]["type"] == plain, name


def test_the_schema_requires_what_every_decision_has() -> None:
    """But for the version: decisions of routers that are older have none."""
    required = {
        f.name for record in (DecisionRecord, CascadeRecord) for f in msgspec.structs.fields(record) if f.required
    }
    assert set(SCHEMA["$defs"]["decision"]["required"]) == required - {"contract"}


def test_the_schema_lists_the_contracts_words() -> None:
    assert SCHEMA["properties"]["version"]["const"] == DECISION_LOG
    assert LOGGED_DECISION["reason"]["enum"] == [reason.value for reason in Reason]
    assert LOGGED_DECISION["verdict"]["enum"] == [word.value for word in VerdictWord]
    assert LOGGED_DECISION["conversation"]["enum"] == [course.value for course in Course]
    assert LOGGED_DECISION["bound"]["enum"] == [bound.value for bound in Bound]
    assert set(LOGGED_DECISION["judge"]["additionalProperties"]["enum"]) == {mode.value for mode in JudgeMode}
    assert set(LOGGED_DECISION["api"]["enum"]) == set(APIS.values())
    assert set(LOGGED_DECISION["mode"]["enum"]) == set(get_args(get_type_hints(Policy)["mode"]))
    never_a_header = {VerdictWord.RECORDED, VerdictWord.RESCUED}
    assert set(SCHEMA["properties"]["verdict"]["enum"]) == {*VerdictWord} - never_a_header | {None}


def test_the_schema_lists_what_envoy_logs() -> None:
    config = load_config(REPOSITORY / "tests/configs/good")
    bootstrap = yaml.load(render_envoy(config, "127.0.0.1:1", ["127.0.0.1:2"], None, None), yaml.CSafeLoader)
    [listener, *_] = bootstrap["static_resources"]["listeners"]
    [log, _] = listener["filter_chains"][0]["filters"][0]["typed_config"]["access_log"]
    line = log["typed_config"]["log_format"]["json_format"]
    assert line.keys() == SCHEMA["properties"].keys() == set(SCHEMA["required"])


# --- one place ----------------------------------------------------------------------------------------------

# Words that no other module writes as a literal. Ordinary words (cohort, tier, body, the roles, "none") are left
# out, because they have other uses everywhere.
ENUMS = (Reason, VerdictWord, Bound, HeaderName, Namespace)
WORDS = {word.value for enum in ENUMS for word in enum} | {
    Undecided.FAIL_OPEN, Key.MAX_RETRIES, Key.ESCALATIONS, Key.VERDICT_REASON, "logprobs_added", "proposed_tier",
}  # fmt: skip
# Nor does any literal hold one of these, Lua and regular expressions included.
PARTS = (*(prefix.value for prefix in HeaderPrefix), HeaderName.ROLE.value, names.PREFIX)
# By package: the same letters with another meaning.
OTHER_MEANINGS = {
    ("acceptance", "accept"): "a value of `on_unavailable` in an intent",
    ("accounting", "degraded"): "how an exchange ended, in the ledger",
    ("accounting", "human"): "how an exchange ended, in the ledger",
    ("api", "human"): "the role of a message",
    ("console", "budget"): "the title of a column",
    ("console", "degraded"): "how an exchange ended, in the ledger",
    ("console", "human"): "how an exchange ended, in the ledger",
    ("api", "budget"): "the code of an error, which has its own type",
    ("evidence", "background"): "a number of a match",
    ("cli", "background"): "a kind of YAML file",
    ("config", "accept"): "a key of an intent",
    ("config", "background"): "a kind of YAML file",
    ("config", "by_prompt"): "a key of an intent",
    ("evidence", "by_prompt"): "a key of an intent",
    ("config", "capability"): "what an error message calls an entry of `capabilities`",
    ("config", "tier_floor"): "a key of an intent",
    ("config", "rule"): "what an error message calls an entry of `rules`",
    ("envoy", "max_retries"): "a field of Envoy's circuit breakers",
    ("evidence", "accept"): "a key of an intent",
    ("demo", "background"): "a member of a request: the answer is a job",
    ("evidence", "escalate"): "a key of an intent",
    ("evidence", "out_of_scope"): "a count in an evaluation",
    ("evidence", "recorded"): "where prices come from",
    ("serving", "bound"): "a label: the limit that stopped an escalation",
    ("serving", "rule"): "a label: an acceptance rule that could not run",
    ("settings", "human"): "a rung in an intent",
}


def modules() -> dict[Path, ast.Module]:
    """Every module outside the contract that we wrote."""
    package = REPOSITORY / "extproc"
    files = (path.relative_to(package) for path in sorted(package.rglob("*.py")))
    return {
        file: ast.parse((package / file).read_text()) for file in files if file.parts[0] not in ("contract", "pb")
    }


def literals(tree: ast.Module) -> list[str]:
    """The texts in a module, parts of f-strings among them, docstrings left out."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in alone)
    return [constant.value for constant in constants if isinstance(constant.value, str)]


def test_no_other_module_spells_the_contracts_words() -> None:
    """Use the word from extproc.contract, or add it to OTHER_MEANINGS with its other meaning."""
    spelled = {
        (file.parts[0].removesuffix(".py"), text)
        for file, tree in modules().items()
        for text in literals(tree)
        if text in WORDS or any(part in text for part in PARTS)
    }
    assert spelled == OTHER_MEANINGS.keys()


def test_the_contracts_names_are_imported_from_the_contract() -> None:
    """A name has one import path, in tests and benchmarks, too."""
    ours = {
        name: module.__name__
        for module in (names, records, words)
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", module.__name__) == module.__name__
    }
    places = [
        path for folder in ("extproc", "tests", "bench", "deploy") for path in (REPOSITORY / folder).rglob("*.py")
    ]
    elsewhere = {
        (str(path.relative_to(REPOSITORY)), alias.name)
        for path in places
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("extproc.")
        for alias in node.names
        if alias.name in ours and node.module != ours[alias.name]
    }
    assert elsewhere == set()
