"""Reads the `Requirements` of a request on its answer. They are read only if an answer will be judged."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from extproc.acceptance.rules import AcceptRule, External, Gain, Grounded, JsonSchema, Score
from extproc.acceptance.score import QUESTION_CHARS, head_and_tail
from extproc.api.members import UNDECODABLE, MemberReader, TooManyObjects
from extproc.api.parts import MAX_ITEMS
from extproc.api.request import Request
from extproc.api.structure import has_at_most

# Envoy forwards the requirements with every message to the verifier: two for a whole answer, one per chunk of a
# stream. Above these limits, parts are left out in this order: descriptions in schemas, which no rule reads, the
# context, the schemas of tools. A rule that lacks its requirement cannot run, and the verdict names it.
MAX_REQUIREMENTS_BYTES = 256 * 1024
MAX_STREAM_REQUIREMENTS_BYTES = 16 * 1024
# Texts in a schema for a person or a model. A property may have these names, but its schema is not a text.
_DESCRIPTIONS = {"description", "title", "$comment"}
# Members of a schema that contain values, not schemas.
_VALUES = {"const", "enum", "default", "examples"}
_MAX_SCHEMA_DEPTH = 64
# Objects and lists in the tools and schemas of a request. Each takes a microsecond. With more of them, the
# requirements would not fit into the metadata.
_MAX_VALUES = 20_000


class Requirements(msgspec.Struct, frozen=True):
    """The parts of a request that its answer must meet."""

    json_schema: Any = None  # of the response format; None: the request has no schema
    # name -> schema of the arguments, or None without a schema; None: the tools are not known
    tools: Mapping[str, Any] | None = {}
    tool_required: bool = False
    context: str = ""  # the text that must support the answer, for `grounded`
    question: str | None = None  # for `score` and `gain`; None: not known
    columns: tuple[float, ...] = ()  # of the prompt, for `gain`; empty: there is no prediction
    fit: str = ""  # the seal of the file that the columns are of
    stream: bool | None = None  # None: not known, so the framing of the answer is not checked
    choices: int = 1
    # Requirements that are too large or cannot be read: `json_schema`, `tool_schemas`, `tool_choice`.
    left_out: tuple[str, ...] = ()


UNREAD = Requirements(tools=None, left_out=("json_schema", "tool_choice"))


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
    custom: "_Tool | None" = None
    tools: "list[_Tool] | None" = None  # a namespace of the Responses API


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
_decode_members = msgspec.json.Decoder(
    msgspec.defstruct(
        "Members",
        [(name, msgspec.Raw, msgspec.Raw()) for name in _Body.__struct_encode_fields__],
        omit_defaults=True,
    )
).decode


def read_requirements(
    request: Request, rules: Sequence[AcceptRule], columns: tuple[float, ...] = ()
) -> Requirements:
    """Read the requirements that `rules` use. Requirements that cannot be read are left out.

    `columns` are those of the prompt, from its match.
    """
    try:
        members = msgspec.json.encode(_decode_members(request.readable))
        if not has_at_most(members, _MAX_VALUES, 2 * _MAX_VALUES):
            return msgspec.structs.replace(UNREAD, stream=request.stream)
        body = _read_body(members)
    except (*UNDECODABLE, TooManyObjects):
        return msgspec.structs.replace(UNREAD, stream=request.stream)
    kinds = {type(rule) for rule in rules}
    requirements = Requirements(
        json_schema=_schema(body) if JsonSchema in kinds else None,
        tools=_tools(body, request),
        tool_required=_tool_required(body.tool_choice),
        context=_context(request) if kinds & {Grounded, External} else "",
        question=question_of(request) if kinds & {Score, Gain} else None,
        columns=columns if Gain in kinds else (),
        fit=_fit(rules),
        stream=request.stream,
        choices=body.n or 1,
    )
    limit = MAX_STREAM_REQUIREMENTS_BYTES if request.stream else MAX_REQUIREMENTS_BYTES
    for fewer in (_whole, _without_descriptions, _without_context, _without_tool_schemas, _without_schemas):
        requirements = fewer(requirements)
        if len(msgspec.json.encode(requirements)) <= limit:
            break
    return requirements


def _fit(rules: Sequence[AcceptRule]) -> str:
    predictors = (rule.predictor for rule in rules if isinstance(rule, Gain))
    return next((predictor.fit for predictor in predictors if predictor is not None), "")


def _read_body(members: bytes) -> _Body:
    try:
        return _decode(members)
    except UNDECODABLE:
        return MemberReader(MAX_ITEMS).read(members, _Body)


def _whole(requirements: Requirements) -> Requirements:
    return requirements


def _without_descriptions(requirements: Requirements) -> Requirements:
    tools = requirements.tools and {name: _bare(schema) for name, schema in requirements.tools.items()}
    return msgspec.structs.replace(requirements, json_schema=_bare(requirements.json_schema), tools=tools)


def _without_context(requirements: Requirements) -> Requirements:
    return msgspec.structs.replace(requirements, context="")


def _without_tool_schemas(requirements: Requirements) -> Requirements:
    tools = requirements.tools
    if not tools or all(schema is None for schema in tools.values()):
        return requirements
    return msgspec.structs.replace(requirements, tools=dict.fromkeys(tools), left_out=("tool_schemas",))


def _without_schemas(requirements: Requirements) -> Requirements:
    """Leave out the names of the tools and the schema of the answer, too. The rest is small."""
    left_out = () if requirements.json_schema is None else ("json_schema",)
    return msgspec.structs.replace(requirements, json_schema=None, tools=None, left_out=left_out)


def _bare(schema: Any, depth: int = 0) -> Any:
    """Return a schema without its descriptions."""
    if depth == _MAX_SCHEMA_DEPTH:
        return schema
    if isinstance(schema, list):
        return [_bare(item, depth + 1) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value if name in _VALUES else _bare(value, depth + 1)
        for name, value in schema.items()
        if not (name in _DESCRIPTIONS and isinstance(value, str))
    }


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


def _tools(body: _Body, request: Request) -> dict[str, Any] | None:
    """The tools by name. None when they were sent and cannot be read."""
    if body.tools is None and body.functions is None:
        return None if "tools" in request.needs else {}
    listed = [*(body.tools or ()), *(body.functions or ())]
    listed += [inner for tool in listed for inner in tool.tools or ()]
    tools = [tool.function or tool.custom or tool for tool in listed]
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
