"""Every part, item and tool that the clients of OpenAI and Anthropic know is known here, after each update."""

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from anthropic.types.beta import beta_content_block_param, beta_tool_union_param
from openai.types.responses import response_input_item_param, tool_param
from typing_extensions import is_typeddict

from extproc.api.needs import UNKNOWN_PART
from extproc.api.request import parse_request

USER = {"role": "user", "content": "Where is my parcel?"}


def types_of(union: Any) -> Iterator[str]:
    """Yield the values of `type` in a union of typed dictionaries."""
    if is_typeddict(union):
        yield from _texts(get_type_hints(union).get("type"))
    for member in get_args(union):
        yield from types_of(member)


def _texts(hint: Any) -> Iterator[str]:
    for value in get_args(hint):
        if isinstance(value, str):
            yield value
        else:
            yield from _texts(value)


BLOCKS = sorted(set(types_of(beta_content_block_param.BetaContentBlockParam)))
ITEMS = sorted(set(types_of(response_input_item_param.ResponseInputItemParam)))
TOOLS = sorted({*types_of(tool_param.ToolParam), *types_of(beta_tool_union_param.BetaToolUnionParam)})


def needs(path: str, **body: Any) -> set[str]:
    request = parse_request(path, msgspec.json.encode({"model": "auto"} | body))
    assert request is not None
    return set(request.needs)


def test_the_clients_have_types() -> None:
    assert "tool_use" in BLOCKS and "function_call" in ITEMS and "web_search" in TOOLS


@pytest.mark.parametrize("kind", BLOCKS)
def test_no_block_is_unknown(kind: str) -> None:
    turns = [USER, {"role": "assistant", "content": [{"type": kind}, {"type": "text", "text": "Here."}]}, USER]
    assert UNKNOWN_PART not in needs("/v1/messages", messages=turns)


@pytest.mark.parametrize("kind", ITEMS)
def test_no_item_is_unknown(kind: str) -> None:
    assert UNKNOWN_PART not in needs("/v1/responses", input=[USER, {"type": kind}, USER])


@pytest.mark.parametrize("kind", TOOLS)
def test_no_tool_is_without_a_name(kind: str) -> None:
    assert "hosted:other" not in needs("/v1/responses", tools=[{"type": kind, "name": "n"}])
