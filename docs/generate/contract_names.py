"""The pages about headers, metadata, reasons, verdicts and the decision log."""

import json
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from docs.generate import words
from docs.generate.acceptance_rules import rejections
from docs.generate.markdown import MissingWordsError, code, described, no_leftovers, page, table
from extproc.accounting.outcome import Ending, Unjudged
from extproc.contract.names import HeaderName, Namespace
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
from extproc.contract.words import (
    NOT_A_COHORT,
    Bound,
    CacheWord,
    Course,
    JudgeMode,
    Reason,
    Role,
    Undecided,
    VerdictWord,
)
from extproc.serving import telemetry

_SCHEMA = Path(__file__).parents[1] / "decision-log.schema.json"
# The records of each namespace.
_RECORDS: dict[Namespace, tuple[type[msgspec.Struct], ...]] = {
    Namespace.DECISION: (DecisionRecord, CascadeRecord, JudgedRecord, VerdictRecord),
    Namespace.RUNGS: (RungsRecord, BodyPatch),
    Namespace.REQUIREMENTS: (RequirementsRecord,),
    Namespace.ANSWER: (AnswerRecord,),
    Namespace.LEDGER: (LedgerRecord, AttemptRecord),
    Namespace.ATTEMPT: (AttemptsRecord,),
    Namespace.PACKED: (PackedRecord,),
    Namespace.CONVERSATION: (ConversationRecord,),
    Namespace.CACHE: (CacheRecord,),
}


def contract_page() -> str:
    """Headers, then metadata namespace by namespace."""
    headers = [header.value for header in HeaderName]
    no_leftovers(words.HEADERS, headers, "header")
    rows = [(code(name), *described(words.HEADERS, name, "header").split(": ", 1)) for name in headers]
    namespaces = [namespace.value for namespace in Namespace]
    no_leftovers(words.NAMESPACES, namespaces, "namespace")
    parts = ["## Headers", table(("Header", "Where", "Meaning"), rows), "## Metadata", words.METADATA]
    parts.append(
        table(
            ("Namespace", "What it holds"),
            [(code(name), described(words.NAMESPACES, name, "namespace")) for name in namespaces],
        )
    )
    for namespace, records in _RECORDS.items():
        parts += [f"### {namespace.value}", table(("Key", "Type", "Meaning"), _keys(records))]
    return page("Headers and metadata", words.CONTRACT, *parts)


def _keys(records: tuple[type[msgspec.Struct], ...]) -> list[tuple[str, str, str]]:
    """The keys of the records, each once."""
    rows: dict[str, tuple[str, str, str]] = {}
    for record in records:
        for field in msgspec.structs.fields(record):
            key = f"{record.__name__}.{field.name}"
            text = words.RECORD_KEYS.get(key) or words.RECORD_KEYS.get(field.name)
            if text is None:
                raise MissingWordsError(
                    f"the key `{key}` has no description: write one in RECORD_KEYS of docs/generate/words.py"
                )
            rows.setdefault(field.name, (code(field.name), _type(field.type), text))
    return list(rows.values())


def _type(kind: Any) -> str:
    """A type in plain words; None only says that a key may be absent."""
    arguments = [argument for argument in get_args(kind) if argument is not type(None)]
    if get_args(kind) and type(None) in get_args(kind):
        return " or ".join(map(_type, arguments))
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if kind in names:
        return names[kind]
    if get_origin(kind) is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    if get_origin(kind) is list:
        return f"list of {_type(arguments[0])}"
    return "text" if issubclass(kind, str) else "object"


def reasons_page() -> str:
    """Every word that is spelled the same in header, log, metric and span."""
    return page(
        "Reasons and verdicts",
        words.REASONS_INTRODUCTION,
        "## Reasons of a decision",
        _words_table(list(Reason), words.REASONS, "reason", fallback=True),
        "Words that stand for a reason if the router decided nothing:",
        _words_table(list(Undecided), words.UNDECIDED, "reason"),
        "## Requests of no cohort",
        words.NOT_A_COHORT,
        ", ".join(code(word) for word in [*Reason, *Undecided] if word in NOT_A_COHORT) + ".",
        "## Conversations",
        "Whether a conversation stays at the tier that answered it last (`conversation` in the decision log).",
        _words_table(list(Course), words.COURSES, "course"),
        "## Cache",
        "What the cache of a cohort did (`cache` in the decision log, `x-router-cache` in the answer).",
        _words_table(list(CacheWord), words.CACHE_WORDS, "word of the cache"),
        "## Verdicts",
        _words_table(list(VerdictWord), words.VERDICTS, "verdict"),
        "## Reasons of a rejection",
        words.REJECTIONS_INTRODUCTION,
        _words_table(_in_order(rejections(), words.REJECTIONS), words.REJECTIONS, "reason of a rejection"),
        "## Bounds",
        "Why a rejected answer did not escalate (`bound` in the decision log).",
        _words_table(list(Bound), words.BOUNDS, "bound"),
        "## Endings",
        "How an exchange ended (`ending` in the ledger, `outcome` in metrics).",
        _words_table(list(Ending), words.ENDINGS, "ending"),
        "## Answers that were not judged",
        "Why no rule looked at an answer that was served (`unjudged` in `extproc report --json`).",
        _words_table(list(Unjudged), words.UNJUDGED, "word"),
        "## Reloads",
        "`reason` of `semantic_router.reloads`.",
        _words_table(list(telemetry._RELOADS), words.RELOADS, "outcome of a reload"),
        "## Modes and roles",
        _words_table([*JudgeMode, *Role], words.MODES, "mode or role"),
    )


def _in_order(names: list[str], texts: dict[str, str]) -> list[str]:
    """The names in the order of their descriptions."""
    order = list(texts)
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _words_table(values: list[Any], texts: dict[str, str], kind: str, fallback: bool = False) -> str:
    names = [str(value) for value in values]
    no_leftovers(texts, names, kind)
    rows = []
    for value, name in zip(values, names, strict=True):
        is_fallback = ["yes" if value.is_fallback else ""] if fallback else []
        rows.append((code(name), *is_fallback, described(texts, name, kind)))
    return table(("Word", *(["Fallback"] if fallback else []), "Meaning"), rows)


def decision_log_page() -> str:
    """The fields of a line of Envoy's log, from the schema that a test holds it to."""
    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    return page(
        "Decision log",
        words.DECISION_LOG,
        "## Line",
        _fields(schema),
        "## Decision",
        _fields(schema["$defs"]["decision"]),
    )


def _fields(schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = []
    for name, field in schema["properties"].items():
        text = field.get("description") or words.RECORD_KEYS.get(name)
        if text is None:
            raise MissingWordsError(
                f"the field `{name}` of the decision log has no description: add it to {_SCHEMA.name}"
            )
        rows.append((code(name), _json_type(field), "yes" if name in required else "", text))
    return table(("Field", "Type", "Always there", "Meaning"), rows)


def _json_type(field: dict[str, Any]) -> str:
    if "const" in field:
        return code(json.dumps(field["const"]))
    if "enum" in field:
        return ", ".join(code(word) for word in field["enum"] if word is not None)
    if "$ref" in field or "oneOf" in field:
        return "number" if field.get("$ref", "").endswith("share") else "object"
    kind = field.get("type")
    kinds = [kind] if isinstance(kind, str) else list(kind or ())
    return " or ".join(kinds)
