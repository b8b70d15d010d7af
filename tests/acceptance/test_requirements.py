"""The requirements of a request on its answer, from bodies of usual and unusual shape."""

import json
from typing import Any

import msgspec
import pytest

from extproc.acceptance.requirements import (
    MAX_STREAM_REQUIREMENTS_BYTES,
    UNREAD,
    Requirements,
    read_requirements,
)
from extproc.acceptance.rules import compile_rules
from extproc.api.request import parse_request

RULES = compile_rules(["complete", "tool_calls", "json_schema"])


def requirements_of(**body: Any) -> Requirements:
    body = {"model": "auto", "messages": [{"role": "user", "content": "Edit the file"}], **body}
    request = parse_request("/v1/chat/completions", json.dumps(body).encode())
    assert request is not None
    return read_requirements(request, RULES)


def tools_of(**body: Any) -> Any:
    return requirements_of(**body).tools


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "custom", "custom": {"name": "edit"}},
        {"type": "custom", "name": "edit", "format": {"type": "text"}},
        {"type": "namespace", "name": "files", "tools": [{"type": "function", "name": "edit"}]},
    ],
)
def test_a_tool_of_any_kind_is_known_by_its_name(tool: Any) -> None:
    assert "edit" in tools_of(tools=[tool])


def test_an_odd_member_leaves_the_tools_known() -> None:
    assert tools_of(tools=[{"function": {"name": "edit"}}], n="1", text="x") == {"edit": None}
    assert tools_of(tools="edit") is None


def large(count: int) -> list[Any]:
    texts = {"type": "string", "description": "One of the values that this function takes, in plain words."}
    schema = {"type": "object", "properties": {f"p{i}": texts for i in range(10)}, "required": ["p0"]}
    return [{"type": "function", "function": {"name": f"f{i}", "parameters": schema}} for i in range(count)]


@pytest.mark.parametrize("count", [8, 20, 200])
def test_large_tools_are_known_to_the_verifier_of_a_stream(count: int) -> None:
    """First their descriptions are left out, and then their schemas, but not the names."""
    requirements = requirements_of(tools=large(count), stream=True)
    tools = requirements.tools
    assert tools is not None
    assert requirements.left_out == (("tool_schemas",) if count == 200 else ())
    assert list(tools) == [f"f{i}" for i in range(count)]
    assert len(json.dumps(tools)) <= MAX_STREAM_REQUIREMENTS_BYTES
    assert (tools["f0"] is None) == (count == 200)


def test_what_is_too_large_is_named_and_the_rest_is_kept() -> None:
    """A rule that needs it must not take it for absent."""
    schema = {"type": "object", "properties": {f"p{i}": {"enum": ["x" * 50]} for i in range(400)}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    requirements = requirements_of(response_format=form, n=2, tool_choice="required", stream=True)
    expected = Requirements(tools=None, tool_required=True, stream=True, choices=2, left_out=("json_schema",))
    assert requirements == expected
    many = requirements_of(tools=[[0] * 50_000], stream=True)
    assert many == msgspec.structs.replace(UNREAD, stream=True)
