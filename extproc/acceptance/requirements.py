"""What a request asked for, as far as its answer will be held to it; read only when an answer is judged."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from extproc.acceptance.rules import AcceptRule, External, Grounded, JsonSchema, Score
from extproc.acceptance.score import QUESTION_CHARS, ends
from extproc.api.request import Request

# Envoy forwards the facts with every message to the verifier: two for a whole answer, one a chunk for a stream.
# More than this is not carried; context goes first, and rules that miss a fact say that they cannot run.
MAX_REQUIREMENTS_BYTES = 256 * 1024
MAX_STREAM_REQUIREMENTS_BYTES = 8 * 1024


class Requirements(msgspec.Struct, frozen=True):
    """What the request asked for, as far as an answer is held to it."""

    json_schema: Any = None  # of its response format; None: it asked for none
    # name: the schema of its arguments, None when it has none; None: not known what was offered
    tools: Mapping[str, Any] | None = {}
    tool_required: bool = False
    context: str = ""  # what `grounded` holds the answer to
    question: str | None = None  # what `score` reads the answer with; None: not known
    stream: bool | None = None  # None: not known, so the framing is not held to it
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


class _Asked(msgspec.Struct):
    response_format: _Format | None = None
    text: _Holder | None = None
    output_config: _Holder | None = None
    output_format: _Format | None = None
    tools: list[_Tool] | None = None
    tool_choice: Any = None
    functions: list[_Tool] | None = None
    n: int | None = None


_decode = msgspec.json.Decoder(_Asked).decode


def read_requirements(request: Request, rules: Sequence[AcceptRule]) -> Requirements:
    """The facts that `rules` look at; what cannot be read is left out, and its rules cannot run."""
    try:
        asked = _decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Requirements(tools=None, stream=request.stream)
    kinds = {type(rule) for rule in rules}
    facts = Requirements(
        json_schema=_schema(asked) if JsonSchema in kinds else None,
        tools=_tools(asked),
        tool_required=_tool_required(asked.tool_choice),
        context=_context(request) if kinds & {Grounded, External} else "",
        question=question_of(request) if Score in kinds else None,
        stream=request.stream,
        choices=asked.n or 1,
    )
    limit = MAX_STREAM_REQUIREMENTS_BYTES if request.stream else MAX_REQUIREMENTS_BYTES
    if len(msgspec.json.encode(facts)) <= limit:
        return facts
    if len(msgspec.json.encode(bounded := msgspec.structs.replace(facts, context=""))) <= limit:
        return bounded
    return Requirements(tools=None, stream=request.stream, choices=asked.n or 1)


def _tool_required(choice: Any) -> bool:
    if isinstance(choice, dict):
        choice = choice.get("mode") if choice.get("type") == "allowed_tools" else choice.get("type")
    return choice not in (None, "auto", "none")


def _schema(asked: _Asked) -> Any:
    holders = (
        asked.response_format,
        asked.text.format if asked.text else None,
        asked.output_config.format if asked.output_config else None,
        asked.output_format,
    )
    for found in holders:
        if found is not None and isinstance(found.json_schema, dict):
            return found.json_schema.get("schema")
        if found is not None and found.schema is not None:
            return found.schema
    return None


def _tools(asked: _Asked) -> dict[str, Any]:
    tools = [tool.function or tool for tool in (*(asked.tools or ()), *(asked.functions or ()))]
    return {
        tool.name: tool.parameters if tool.parameters is not None else tool.input_schema
        for tool in tools
        if tool.name is not None
    }


def question_of(request: Request) -> str:
    """The last that a person, or a program for one, said."""
    turn = next((turn for turn in reversed(request.turns) if turn.role == "user"), None)
    text = "\n".join(turn.texts) if turn is not None else ""
    return ends(text, QUESTION_CHARS)


def _context(request: Request) -> str:
    """Everything that was said to the model before its answer."""
    return "\n".join(text for turn in request.turns if turn.role != "assistant" for text in turn.texts)
