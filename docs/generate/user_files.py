"""The pages about policy.yaml, intent files and rows of traffic."""

from typing import Any, get_args, get_type_hints

import msgspec

from docs.generate import words
from docs.generate.markdown import page
from docs.generate.yaml_keys import Structs
from extproc.config import schema
from extproc.evidence.data import traffic


def policy_page() -> str:
    """Every key of policy.yaml."""
    return _file_page(schema.PolicyFile, "policy.yaml", words.POLICY)


def intent_page() -> str:
    """Every key of an intent file."""
    return _file_page(schema.Intent, "Intent files", words.INTENT)


def traffic_page() -> str:
    """Every key of a row of traffic."""
    outcome = get_args(get_type_hints(traffic.Revealed)["outcomes"])[1]
    structs = Structs([_plain("Row", traffic._Line), _plain("Outcome", outcome)], words.TRAFFIC_KEYS)
    return page(
        "Traffic format",
        words.TRAFFIC,
        "## Row",
        structs.section("Row"),
        "## Outcome",
        words.OUTCOME,
        structs.section("Outcome"),
        words.TRAFFIC_END,
    )


def _plain(name: str, struct: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The struct under another name, with any value where it keeps JSON undecoded: that has no schema."""
    fields = []
    for field in msgspec.structs.fields(struct):
        raw = field.type is msgspec.Raw
        default = None if raw else field.default
        factory = field.default_factory
        if factory is not msgspec.NODEFAULT:
            default = msgspec.field(default_factory=factory)
        fields.append((field.name, Any if raw else field.type, default))
    return msgspec.defstruct(name, fields)


def _file_page(root: type, title: str, introduction: str) -> str:
    structs = Structs([root])
    parts = [introduction, "## Top level", structs.section(root.__name__)]
    for nested in structs.nested(root.__name__):
        parts += [f"## {nested}", structs.summary(nested), structs.section(nested)]
    return page(title, *parts)
