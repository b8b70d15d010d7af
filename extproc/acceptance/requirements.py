"""Reads the `Requirements` of a request on its answer. They are read only if an answer will be judged."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from extproc.acceptance.rules import AcceptRule, External, Grounded, JsonSchema, Score
from extproc.acceptance.score import QUESTION_CHARS, head_and_tail
from extproc.api.request import Request

# Envoy forwards the requirements with every message to the verifier: two for a whole answer, one per chunk of a
# stream. Above these limits the context is left out first. A rule that lacks its requirement cannot run, and the
# verdict names it.
MAX_REQUIREMENTS_BYTES = 256 * 1024
MAX_STREAM_REQUIREMENTS_BYTES = 8 * 1024


class Requirements(msgspec.Struct, frozen=True):
    """The parts of a request that its answer must meet."""

    json_schema: Any = None  # of the response format; None: the request has no schema
    # name -> schema of the arguments, or None without a schema; None: the tools are not known
    tools: Mapping[str, Any] | None = {}
    tool_required: bool = False
    context: str = ""  # the text that must support the answer, for `grounded`
    question: str | None = None  # for `score`; None: not known
    stream: bool | None = None  # None: not known, so the framing of the answer is not checked
    choices: int = 1


class _Format(msgspec.Struct):
    schema: Any = None
    json_schema: Any = None


class _Holder(msgspec.Struct):
    format: _Format | None = None


class _Tool(msgspec.Struct):
    name: str | None = None
    parameters: Any = None
    input_schema: Any = None
    function: "_Tool | None" = None


class _Body(msgspec.Struct):
    response_format: _Format | None = None
    text: _Holder | None = None
    output_config: _Holder | None = None
    output_format: _Format | None = None
    tools: list[_Tool] | None = None
    tool_choice: Any = None
    functions: list[_Tool] | None = None
    n: int | None = None


_decode = msgspec.json.Decoder(_Body).decode


def read_requirements(request: Request, rules: Sequence[AcceptRule]) -> Requirements:
    """Read the requirements that `rules` use. Requirements that cannot be read are left out."""
    try:
        body = _decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Requirements(tools=None, stream=request.stream)
    kinds = {type(rule) for rule in rules}
    requirements = Requirements(
        json_schema=_schema(body) if JsonSchema in kinds else None,
        tools=_tools(body),
        tool_required=_tool_required(body.tool_choice),
        context=_context(request) if kinds & {Grounded, External} else "",
        question=question_of(request) if Score in kinds else None,
        stream=request.stream,
        choices=body.n or 1,
    )
    limit = MAX_STREAM_REQUIREMENTS_BYTES if request.stream else MAX_REQUIREMENTS_BYTES
    if len(msgspec.json.encode(requirements)) <= limit:
        return requirements
    without_context = msgspec.structs.replace(requirements, context="")
    if len(msgspec.json.encode(without_context)) <= limit:
        return without_context
    return Requirements(tools=None, stream=request.stream, choices=body.n or 1)


def _tool_required(choice: Any) -> bool:
    if isinstance(choice, dict):
        choice = choice.get("mode") if choice.get("type") == "allowed_tools" else choice.get("type")
    return choice not in (None, "auto", "none")


def _schema(body: _Body) -> Any:
    formats = (
        body.response_format,
        body.text.format if body.text else None,
        body.output_config.format if body.output_config else None,
        body.output_format,
    )
    for format_ in formats:
        if format_ is not None and isinstance(format_.json_schema, dict):
            return format_.json_schema.get("schema")
        if format_ is not None and format_.schema is not None:
            return format_.schema
    return None


def _tools(body: _Body) -> dict[str, Any]:
    tools = [tool.function or tool for tool in (*(body.tools or ()), *(body.functions or ()))]
    return {
        tool.name: tool.parameters if tool.parameters is not None else tool.input_schema
        for tool in tools
        if tool.name is not None
    }


def question_of(request: Request) -> str:
    """Return the text of the last user turn, cut to its head and tail."""
    turn = next((turn for turn in reversed(request.turns) if turn.role == "user"), None)
    text = "\n".join(turn.texts) if turn is not None else ""
    return head_and_tail(text, QUESTION_CHARS)


def _context(request: Request) -> str:
    """Return all texts of the request that the model did not write."""
    return "\n".join(text for turn in request.turns if turn.role != "assistant" for text in turn.texts)
