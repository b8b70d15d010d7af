"""The members of a request body that routing reads, as typed values: four APIs in one shape.

`decode_body` reads a usual body in one pass. If that fails, odd bytes are replaced and members read one by one.
"""

import msgspec

from extproc.api.members import MAX_DEPTH, UNDECODABLE, MemberReader, TooManyObjects, raw_items
from extproc.api.parts import MAX_ITEMS, Content, Message, Part, check_items
from extproc.api.repair import is_wide, repaired
from extproc.api.structure import check_structure, has_at_most


class Typed(msgspec.Struct):
    type: str = ""
    budget_tokens: int | None = None


class Holder(msgspec.Struct):
    format: Typed | None = None
    effort: str | None = None


class Effort(msgspec.Struct):
    effort: str | None = None
    enabled: bool | None = None
    max_tokens: int | None = None


class Template(msgspec.Struct):
    enable_thinking: bool | None = None
    thinking: bool | None = None


class ThinkingConfig(msgspec.Struct):
    thinking_budget: int | None = None
    thinking_level: str | None = None


class Google(msgspec.Struct):
    thinking_config: ThinkingConfig | None = None
    cached_content: str | None = None


class ExtraBody(msgspec.Struct):
    google: Google | None = None


class Tool(msgspec.Struct):
    """An item of `tools`. Gemini's own tools have no type, but one member of any name."""

    type: str | None = None
    # The members of functions without a type: of Chat, Anthropic, Gemini and Bedrock.
    function: msgspec.Raw = msgspec.Raw()
    name: msgspec.Raw = msgspec.Raw()
    functionDeclarations: msgspec.Raw = msgspec.Raw()
    function_declarations: msgspec.Raw = msgspec.Raw()
    toolSpec: msgspec.Raw = msgspec.Raw()
    google_search: msgspec.Raw = msgspec.Raw()
    googleSearch: msgspec.Raw = msgspec.Raw()
    google_maps: msgspec.Raw = msgspec.Raw()
    googleMaps: msgspec.Raw = msgspec.Raw()
    url_context: msgspec.Raw = msgspec.Raw()
    urlContext: msgspec.Raw = msgspec.Raw()
    code_execution: msgspec.Raw = msgspec.Raw()
    codeExecution: msgspec.Raw = msgspec.Raw()
    file_search: msgspec.Raw = msgspec.Raw()
    fileSearch: msgspec.Raw = msgspec.Raw()
    computer_use: msgspec.Raw = msgspec.Raw()
    computerUse: msgspec.Raw = msgspec.Raw()


class Plugin(msgspec.Struct):
    """An item of OpenRouter's `plugins`."""

    id: str | None = None


class SearchParameters(msgspec.Struct):
    """How much of the web xAI's models search."""

    mode: str | None = None


class Named(msgspec.Struct):
    id: str | None = None


class Thread(msgspec.Struct):
    """A conversation that the server of the Messages API keeps."""

    previous_message_id: str | None = None


class Prompt(msgspec.Struct):
    """A prompt template of the Responses API: the server fills the variables in."""

    variables: dict[str, str | Part] | None = None


class ToolsByName(msgspec.Struct):
    """Tools as an object, which some clients send. It only matters that there are any."""


# Texts, or token ids, which are numbers. A prompt of a hundred thousand of them is real.
PromptItem = str | int | float | list[int | float] | Part | None


class Body(msgspec.Struct):
    """The members that routing reads. Each member that is absent or unreadable has its default."""

    model: str | None = None
    messages: str | list[Message | str] | Message | None = None
    input: str | list[Message | str] | Message | None = None
    prompt: str | list[PromptItem] | Prompt | None = None
    instructions: str | list[Message | str] | None = None
    system: Content = None
    tools: list[Tool] | ToolsByName | None = None
    functions: list[Tool] | ToolsByName | None = None
    web_search_options: msgspec.Raw = msgspec.Raw()
    search_parameters: SearchParameters | None = None
    enable_search: bool | None = None
    plugins: list[Plugin] | None = None
    data_sources: msgspec.Raw = msgspec.Raw()
    mcp_servers: msgspec.Raw = msgspec.Raw()
    modalities: list[str] | None = None
    tool_choice: str | Typed | None = None
    stream: bool | None = None
    response_format: Typed | None = None
    text: Holder | None = None
    output_config: Holder | None = None
    output_format: Typed | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    reasoning_effort: str | None = None
    reasoning: Effort | None = None
    thinking: bool | Typed | None = None
    chat_template_kwargs: Template | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    think: bool | str | None = None
    extra_body: ExtraBody | None = None
    context_management: msgspec.Raw = msgspec.Raw()
    logprobs: bool | int | None = None
    include: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    previous_response_id: str | None = None
    conversation: str | Named | None = None
    thread: Thread | None = None
    container: str | Named | None = None
    compaction: msgspec.Raw = msgspec.Raw()
    prompt_cache_key: str | None = None
    metadata: msgspec.Raw = msgspec.Raw()
    background: bool | None = None
    store: bool | None = None


class _BodyLists(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    functions: msgspec.Raw = msgspec.Raw()
    modalities: msgspec.Raw = msgspec.Raw()
    include: msgspec.Raw = msgspec.Raw()


class _ItemLists(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw()
    output: msgspec.Raw = msgspec.Raw()


class _Variables(msgspec.Struct):
    variables: msgspec.Raw = msgspec.Raw()


class _PromptVariables(msgspec.Struct):
    prompt: msgspec.Raw = msgspec.Raw()


class _Needs(msgspec.Struct):
    tools: msgspec.Raw = msgspec.Raw()
    functions: msgspec.Raw = msgspec.Raw()
    modalities: msgspec.Raw = msgspec.Raw()
    include: msgspec.Raw = msgspec.Raw()


class _Nothing(msgspec.Struct):
    """Decodes any JSON object, to find out whether it is one."""


_decode = msgspec.json.Decoder(Body).decode
_decode_body_lists = msgspec.json.Decoder(_BodyLists).decode
_decode_variables = msgspec.json.Decoder(_Variables).decode
_decode_needs = msgspec.json.Decoder(_Needs).decode
_decode_nothing = msgspec.json.Decoder(_Nothing).decode
_decode_prompt = msgspec.json.Decoder(_PromptVariables).decode
_decode_item_lists = msgspec.json.Decoder(_ItemLists).decode


def decode_body(body: bytes) -> tuple[Body, bytes]:
    """Return the members of `body`, and the text that they were read from, which has the same length.

    Raises one of UNDECODABLE when the body is not a JSON object, and TooManyValues when it has too many values.
    Raises TooManyObjects when its lists are too long or too much of it is odd.
    """
    if is_wide(body):
        raise msgspec.DecodeError("it is UTF-16 or UTF-32, and JSON is UTF-8")
    check_structure(body)
    try:
        _check_lengths(body)
        return _without_empty_tools(_decode(body), body), body
    except UNDECODABLE:
        pass
    text = body if _is_json(body) else repaired(body)
    _check_lengths(text)
    decoded = MemberReader(MAX_ITEMS).read(text, Body)
    return _doubted(_without_empty_tools(decoded, text), text), text


def _without_empty_tools(decoded: Body, text: bytes) -> Body:
    """An object without members has no tools. The members of others are not decoded."""
    for name in ("tools", "functions"):
        if isinstance(getattr(decoded, name), ToolsByName):
            sent = bytes(getattr(_decode_needs(text), name))
            if not sent.strip(b"{} \t\r\n"):
                setattr(decoded, name, None)
    return decoded


def _check_lengths(text: bytes) -> None:
    """Raise TooManyObjects when a list of `text` is too long, before an object is made of each item."""
    if text.count(b",") >= MAX_ITEMS:
        lists = _decode_body_lists(text)
        for name in lists.__struct_fields__:
            _check_length(bytes(getattr(lists, name)), MAX_DEPTH)
        _check_variables(bytes(_decode_prompt(text).prompt))


def _check_variables(prompt: bytes) -> None:
    """Raise TooManyObjects when a prompt template has too many variables."""
    if prompt.startswith(b"{"):
        variables = bytes(_decode_variables(prompt).variables)
        if not has_at_most(variables, MAX_ITEMS, MAX_ITEMS):
            raise TooManyObjects(f"more than {MAX_ITEMS} variables")


def _check_length(value: bytes, depth: int) -> None:
    if depth == 0 or value.count(b",") < MAX_ITEMS:
        return
    if value.startswith(b"["):
        items = raw_items(value)
        check_items(items)
        for item in items:
            if bytes(memoryview(item)[:1]) == b"{":
                _check_length(bytes(item), depth - 1)
    elif value.startswith(b"{"):
        lists = _decode_item_lists(value)
        _check_length(bytes(lists.content), depth - 1)
        _check_length(bytes(lists.output), depth - 1)


def _is_json(body: bytes) -> bool:
    """Whether a strict reader accepts this as a JSON object."""
    try:
        body.decode()
        _decode_nothing(body)
    except UNDECODABLE:
        return False
    return True


def _doubted(decoded: Body, text: bytes) -> Body:
    """Give a member that may be a need the value that lifts, where it was sent and cannot be read."""
    sent = _decode_needs(text)
    for name, doubt in (("tools", [_DOUBT]), ("functions", [_DOUBT]), ("modalities", ["?"]), ("include", ["?"])):
        if getattr(decoded, name) is None and bytes(getattr(sent, name)) not in _NOTHING:
            setattr(decoded, name, doubt)
    return decoded


_DOUBT = Tool("function")
# Any member with one of these values asks for nothing.
_NOTHING = (b"", b"null", b"false", b'""', b"{}", b'"text"')
