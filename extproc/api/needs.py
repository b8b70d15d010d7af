"""The needs of a request: the capabilities that a tier must have to serve it.

The type of a hosted tool is defined by the provider, which runs most of them itself. Its need is `hosted:` and the
name of the tool, without version and date. A tool that has several types at one provider has one name.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from extproc.api.body import Body, Prompt, Tool
from extproc.api.members import UNDECODABLE
from extproc.api.parts import Message, Part, check_items, every_part, parts_of
from extproc.api.state import compacts

HOSTED = "hosted:"
# A part of an unknown type. No policy can list it.
UNKNOWN_PART = "unknown part"

_NEEDS = {
    "image": "vision",
    "image_url": "vision",
    "input_image": "vision",
    "image_file": "vision",
    "image_embeds": "vision",
    "image_pil": "vision",
    "computer_screenshot": "vision",
    "image_generation_call": "vision",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "document": "files",
    "file": "files",
    "input_file": "files",
    "document_url": "files",
    "container_upload": "files",
    "video": "video",
    "video_url": "video",
    "input_video": "video",
}
# Parts that every tier of their API reads.
_PLAIN = {
    "text", "input_text", "output_text", "refusal", "summary_text",
    "thinking", "redacted_thinking", "reasoning", "reasoning_text",
    "tool_use", "tool_result", "tool_call", "tool_reference", "function_call", "function_call_output",
    "search_result", "compaction",
}  # fmt: skip
# Parts about the tools of a conversation, and about its model. The server must know them.
_HOSTED_PARTS = {
    "mcp_tool_listing": "mcp",
    "tool_addition": "tool_changes",
    "tool_removal": "tool_changes",
    "fallback": "fallback",
}
# Items of the Responses API that every server of it reads, beside messages and parts.
_PLAIN_ITEMS = {
    "message", "reasoning", "item_reference", "compaction", "function_call", "function_call_output",
    "custom_tool_call", "custom_tool_call_output",
}  # fmt: skip
# Items about hosted tools, by the start of their type, and the name of the tool.
_HOSTED_ITEMS = {
    "web_search_": "web_search", "file_search_": "file_search", "code_interpreter_": "code_interpreter",
    "image_generation_": "image_generation", "mcp_": "mcp", "computer_": "computer", "shell_": "shell",
    "local_shell_": "local_shell", "apply_patch_": "apply_patch", "tool_search_": "tool_search",
    "program": "programmatic_tool_calling", "additional_tools": "tool_changes",
    "configuration_update": "configuration_update", "compaction_trigger": "compaction",
}  # fmt: skip
_SYSTEM = ("system", "developer")
_SEALED = ("thinking", "redacted_thinking")
# Parts of earlier answers about hosted tools: their calls, the results, and what is in the results.
_CALL, _RESULT, _IN_RESULTS = "_tool_use", "_tool_result", ("_result", "_output", "_error")
_OWN_TOOLS = ("function", "custom")  # the client runs them
_FUNCTIONS = ("function", "name", "functionDeclarations", "function_declarations", "toolSpec")  # members of others
_NOTHING = (b"", b"null", b"false", b"[]")
_VERSION = re.compile(r"(?:_preview)?(?:[_-](?:[0-9]{8}|[0-9]{4}[_-][0-9]{2}[_-][0-9]{2}))?$")
_TOOL_NAME = re.compile(r"[a-z0-9_]{1,64}")
# Types of the same tool. From the types of OpenAI's Python SDK 3.57 and Anthropic's 2.14 (November 2026).
_SAME_TOOL = {
    "computer_use": "computer",  # computer_use_preview
    "mcp_toolset": "mcp",
    "tool_search_tool_bm25": "tool_search",
    "tool_search_tool_regex": "tool_search",
}
# Gemini's own tools.
_MEMBER_TOOLS = {
    "google_search": "google_search", "googleSearch": "google_search",
    "google_maps": "google_maps", "googleMaps": "google_maps",
    "url_context": "url_context", "urlContext": "url_context",
    "code_execution": "code_execution", "codeExecution": "code_execution",
    "file_search": "file_search", "fileSearch": "file_search",
    "computer_use": "computer", "computerUse": "computer",
}  # fmt: skip


class _Added(msgspec.Struct):
    definition: Tool | None = None


_decode_tools = msgspec.json.Decoder(list[Tool]).decode
_decode_added = msgspec.json.Decoder(_Added).decode


class Media(NamedTuple):
    """The parts of a request other than text, each with its needs."""

    needs: list[tuple[Part, tuple[str, ...]]]

    @property
    def size(self) -> int:
        """Bytes of the media, which are not text tokens."""
        return sum(_size(part) for part, _ in self.needs)


def read_media(messages: Sequence[Message], prompt: object) -> Media:
    """Find all parts other than text, at any depth. Raises TooManyObjects above MAX_ITEMS."""
    places = [m.content for m in messages] + [m.output for m in messages if m.output is not None]
    if isinstance(prompt, Prompt) and prompt.variables:
        places += [value for value in prompt.variables.values() if isinstance(value, Part)]
    # A part in place of a message, or a picture that was made.
    media = [Part(m.type, file_data=m.result) for m in messages if m.type in _NEEDS]
    media += [part for message in messages for part in _own_media(message)]
    count = len(messages)
    for content in places:
        if content is not None and not isinstance(content, str):
            parts = every_part(content)
            count += len(parts)
            check_items(parts, count - len(parts))
            media += [part for part in parts if part.type not in _PLAIN]
    return Media([(part, tuple(_needs_of(part))) for part in media])


def _own_media(message: Message) -> Iterator[Part]:
    """Yield the media beside the content of a message, and the parts of a person's message that say nothing."""
    if bytes(message.images) not in _NOTHING:
        yield Part("image", image_url=message.images)
    if bytes(message.audio) not in _NOTHING:
        yield Part("audio")
    # The content of other messages may be any JSON.
    if message.role == "user" and message.content is not None and not isinstance(message.content, str):
        untyped = (part for part in parts_of(message.content) if not part.type)
        yield from (Part(UNKNOWN_PART) for part in untyped if part.text is None and not any(_needs_of(part)))


def conversation_needs(api: str, messages: Sequence[Message]) -> Iterator[str]:
    """Yield the needs of the conversation's form: items of hosted tools, late system messages, sealed reasoning."""
    talk, has_items = False, api == "responses"
    for message in messages:
        if has_items and message.type is not None and message.type not in _PLAIN_ITEMS:
            yield from _needs_of_item(message)
        if message.role in _SYSTEM:
            if talk:
                yield "mid_system"
        elif message.role is not None or message.type is not None:
            talk = True
        if message.type == "reasoning" or (
            message.role == "assistant"
            and isinstance(message.content, list)
            and any(isinstance(part, Part) and part.type in _SEALED for part in message.content)
        ):
            yield "reasoning_state"


def _needs_of(part: Part) -> Iterator[str]:
    kind = part.type.lower()
    if not kind:  # vLLM reads a part by its member
        members = ("image_url", "audio_url", "video_url", "input_audio", "file")
        kind = next((name for name in members if memoryview(getattr(part, name))), "text")
    if kind in _NEEDS:
        yield _NEEDS[kind]
    elif kind in _HOSTED_PARTS:
        yield HOSTED + _HOSTED_PARTS[kind]
        yield from _needs_of_tool(part.tool)
    elif kind.endswith((_CALL, _RESULT)):
        yield from _needs_of_result(kind)
    elif kind not in _PLAIN and not kind.endswith(_IN_RESULTS):
        yield UNKNOWN_PART
    if kind == "document" and b'"image' in bytes(part.source):  # a document may be made of parts
        yield "vision"


def _needs_of_result(kind: str) -> Iterator[str]:
    """Yield the need for the hosted tool whose result is in the conversation. Its call is beside it."""
    name = kind.removesuffix(_RESULT)
    if kind.endswith(_RESULT) or name.startswith("mcp"):
        name = "mcp" if name.startswith("mcp") else "code_execution" if name.endswith("code_execution") else name
        yield HOSTED + (name if _TOOL_NAME.fullmatch(name) else "other")


def _needs_of_item(message: Message) -> Iterator[str]:
    """Yield the needs of an item of the Responses API: the hosted tool that it belongs to, and tools in it."""
    kind = str(message.type)
    tool = next((tool for start, tool in _HOSTED_ITEMS.items() if kind.startswith(start)), None)
    if tool is not None:
        yield HOSTED + tool
    elif message.role is None and kind not in _PLAIN and kind not in _NEEDS:
        yield _need_of_unknown_item(kind)
    if bytes(message.tools) not in _NOTHING:
        yield "tools"
        try:
            tools = _decode_tools(message.tools)
        except UNDECODABLE:
            yield f"{HOSTED}other"
        else:
            yield from (need for tool in tools for need in hosted_tools(tool))


def _need_of_unknown_item(kind: str) -> str:
    """The tool of a provider (`x_search_call`, `openrouter:datetime`), which a policy can list, or the doubt."""
    name = kind.rpartition(":")[2].removesuffix("_output").removesuffix("_call")
    return HOSTED + name if name != kind and _TOOL_NAME.fullmatch(name) else UNKNOWN_PART


def _needs_of_tool(raw: msgspec.Raw) -> Iterator[str]:
    """Yield the needs of a tool that a part adds to the conversation. A tool that the part only names has none."""
    if not memoryview(raw):
        return
    yield "tools"
    try:
        tool = _decode_added(raw).definition
    except UNDECODABLE:
        yield f"{HOSTED}other"
    else:
        yield from hosted_tools(tool) if tool is not None else ()


def _size(part: Part) -> int:
    # The source of a document may also be plain text.
    source = b"" if part.type == "document" and b'"base64"' not in bytes(part.source) else part.source
    members = (part.image_url, part.audio_url, part.video_url, part.input_audio, source, part.file, part.file_data)
    return sum(len(memoryview(raw)) for raw in members)


def declared_needs(api: str, decoded: Body) -> Iterator[str]:
    """Yield the needs that the request declares beside its messages: tools, and the kinds of its answer."""
    if decoded.tools or decoded.functions:
        yield "tools"
    for tool in decoded.tools if isinstance(decoded.tools, list) else ():
        yield from hosted_tools(tool)
    if _searches_web(decoded):
        yield f"{HOSTED}web_search"
    if api == "messages" and decoded.thread is not None:
        yield f"{HOSTED}thread"
    if compacts(api, decoded):
        yield f"{HOSTED}compaction"
    google = decoded.extra_body.google if decoded.extra_body is not None else None
    if google is not None and google.cached_content:
        yield f"{HOSTED}cached_content"
    if bytes(decoded.data_sources) not in _NOTHING:
        yield f"{HOSTED}data_sources"
    if bytes(decoded.mcp_servers) not in _NOTHING:
        yield f"{HOSTED}mcp"
    for modality in decoded.modalities or ():
        if modality != "text":
            yield "audio" if modality == "audio" else UNKNOWN_PART


def _searches_web(decoded: Body) -> bool:
    """Whether a member of OpenAI and Perplexity, xAI, Qwen or OpenRouter asks for a search of the web."""
    search = decoded.search_parameters
    return (
        bytes(decoded.web_search_options) not in _NOTHING
        or (search is not None and search.mode != "off")
        or decoded.enable_search is True
        or any(plugin.id == "web" for plugin in decoded.plugins or ())
    )


def hosted_tools(tool: Tool) -> Iterator[str]:
    """Yield the needs for the hosted tools in an item of `tools`.

    `web_search_20250305`, `web_search_preview` and `openrouter:web_search` are `hosted:web_search`. The client runs
    the tools of a `namespace`, and some other types. They are needs too, as the server must know the type.
    """
    if tool.type and tool.type not in _OWN_TOOLS:
        name = _VERSION.sub("", tool.type[:80].lower().rpartition(":")[2], count=1)
        name = _SAME_TOOL.get(name, name)
        yield HOSTED + (name if _TOOL_NAME.fullmatch(name) else "other")
    elif not tool.type:
        names = [name for member, name in _MEMBER_TOOLS.items() if memoryview(getattr(tool, member))]
        if not names and not any(memoryview(getattr(tool, member)) for member in _FUNCTIONS):
            names = ["other"]
        yield from (HOSTED + name for name in names)
