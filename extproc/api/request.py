"""Reads a client's request body into a `Request`: four APIs.

Only the members that routing needs are decoded. The bytes are kept, because they are edited and sent on.
"""

from collections.abc import Sequence

import msgspec

from extproc.api.body import Body, decode_body
from extproc.api.members import UNDECODABLE, TooManyObjects, raw_members
from extproc.api.needs import conversation_needs, declared_needs, read_media
from extproc.api.parts import Message, Part, check_items, messages_of, parts_of
from extproc.api.paths import Api, api_of
from extproc.api.reasoning import ReasoningChoice, read_choice, thinking_bars
from extproc.api.repair import BOM, TooManyRepairs, repaired
from extproc.api.state import UpstreamState, read_state
from extproc.api.structure import TooManyValues
from extproc.api.transcript import turns_in


class RequestError(ValueError):
    """The client sent a body that cannot be read at all. It is not routed."""


class TooLarge(RequestError):
    """The body has more values than any real request, or is nested deeper. Not even its model is read."""


class Turn(msgspec.Struct, frozen=True):
    """One message of a conversation: its role and its texts, without media and tool output."""

    role: str
    texts: tuple[str, ...] = ()
    tool_result: bool = False


class Request(msgspec.Struct, frozen=True):
    """A request: its bytes, and the values in them that routing uses."""

    api: Api
    body: bytes
    model: str | None
    turns: tuple[Turn, ...]
    needs: frozenset[str]  # capabilities a tier must have: see needs.py
    media_bytes: int  # size of images, sound and files in `body`, which are not text tokens
    strict_output: bool  # the client asked for JSON, with or without a schema
    stream: bool
    max_output_tokens: int | None  # the limit that the client set
    cap_field: str | None  # the member that sets this limit
    logprobs: bool | None  # the client asked for log-probabilities; None: this request cannot ask for them
    reasoning: ReasoningChoice | None  # the client's choice; None: it made no choice
    thinking_bars: frozenset[str]  # parts that Anthropic may refuse beside `thinking`
    context_management: bytes  # this member as JSON; empty: absent
    state: UpstreamState = UpstreamState()
    repaired: bytes | None = None  # `body` as it was read, where odd bytes had to be replaced; of the same length

    @property
    def readable(self) -> bytes:
        """The body as JSON that every reader accepts. An offset in it is an offset in `body`."""
        return self.body if self.repaired is None else self.repaired


_TOOL_TYPES = {
    "tool_result", "function_call_output", "custom_tool_call_output", "computer_call_output",
    "local_shell_call_output", "shell_call_output", "apply_patch_call_output",
}  # fmt: skip
_ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
# Names in some clients and prompt templates. Any other role that no API has counts as `user`.
_OTHER_ROLES = {
    **dict.fromkeys(("ai", "bot", "model", "chatbot", "gpt", "aimessage"), "assistant"),
    **dict.fromkeys(
        ("ipython", "observation", "tool_response", "tool_result", "tool_output", "toolmessage"), "tool"
    ),
    "systemmessage": "system",
}
# Types of a message without a role, and the role that they stand for.
_ROLES_OF_TYPES = {
    None: "", "message": "user", "text": "user", "input_text": "user", "human": "user", "ai": "assistant",
    "system": "system", "tool": "tool",
}  # fmt: skip


def parse_request(path: str, body: bytes) -> Request | None:
    """Read a request to `path`. Return None when the path is not one of an API, so the request is not routed.

    A member that cannot be read counts as absent. Raises RequestError when the path is one of an API and the body
    is not a JSON object, or has longer lists than any real request. Raises TooLarge when it has too many values.
    """
    api = api_of(path)
    if api is None:
        return None
    body = body.removeprefix(BOM)
    try:
        decoded, text = decode_body(body)
        _check_lists(decoded)
        messages = _messages(api, decoded)
        media = read_media(messages, decoded.prompt)
    except RecursionError as error:
        raise TooLarge("the body is nested too deeply") from error
    except UNDECODABLE as error:
        raise RequestError(f"{path}: the body is not a JSON object: {error}") from error
    except (TooManyValues, TooManyRepairs) as error:
        raise TooLarge(f"the body has {error}") from error
    except TooManyObjects as error:
        raise RequestError(f"{path}: the body has {error}") from error
    formats = (
        decoded.response_format,
        decoded.text.format if decoded.text else None,
        decoded.output_config.format if decoded.output_config else None,
        decoded.output_format,
    )
    cap, cap_field = _cap(api, decoded)
    return Request(
        api=api,
        body=body,
        model=decoded.model,
        turns=_turns(messages),
        needs=frozenset(
            (
                *(need for _, needs in media.needs for need in needs),
                *declared_needs(api, decoded),
                *conversation_needs(api, messages),
            )
        ),
        media_bytes=media.size,
        strict_output=any(f is not None and f.type.startswith("json") for f in formats),
        stream=decoded.stream is True,
        max_output_tokens=cap,
        cap_field=cap_field,
        logprobs=_asks_for_logprobs(api, decoded),
        reasoning=read_choice(decoded, api == "messages"),
        thinking_bars=thinking_bars(decoded),
        context_management=bytes(decoded.context_management),
        state=read_state(api, decoded, messages, text),
        repaired=None if text is body else text,
    )


def path_of(body: bytes) -> str:
    """Guess the path from the members of a body. Anthropic and OpenAI bodies can look the same.

    Raises ValueError when the body is not a JSON object.
    """
    try:
        keys = set(raw_members(repaired(body.removeprefix(BOM))))
    except UNDECODABLE as error:
        raise ValueError(f"the request is not a JSON object: {error}") from error
    if "input" in keys:
        return "/v1/responses"
    if "prompt" in keys:
        return "/v1/completions"
    return "/v1/messages" if "system" in keys or "thinking" in keys else "/v1/chat/completions"


def _check_lists(decoded: Body) -> None:
    """Each message, prompt and tool costs time."""
    for value in (decoded.messages, decoded.input, decoded.instructions, decoded.tools):
        check_items(value)
    if isinstance(decoded.prompt, list):
        check_items([prompt for prompt in decoded.prompt if isinstance(prompt, str)])


def _messages(api: Api, decoded: Body) -> list[Message]:
    """The messages in the member of the API, or in that of another API, which some clients send there."""
    prompts = decoded.prompt if isinstance(decoded.prompt, list) else [decoded.prompt]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if api == "completions":
        # Each prompt gets an answer, so they are parts of one ask.
        together = [Message("user", content=[*texts])] if len(texts) > 1 else texts
        return messages_of(together or decoded.messages or decoded.input)
    if api == "responses":
        return [*_system(decoded.instructions), *messages_of(decoded.input or decoded.messages or texts)]
    head = [Message("system", content=decoded.system)] if decoded.system else []
    return [*head, *messages_of(decoded.messages or decoded.input or texts)]


def _system(instructions: str | list[Message | str] | None) -> list[Message]:
    """The instructions are a text, or items with any role: none of them are words of the person."""
    return [Message("system", content=m.content, output=m.output) for m in messages_of(instructions or None)]


def _turns(messages: Sequence[Message]) -> tuple[Turn, ...]:
    """The turns. If none has the role `user`, those without a role get it.

    A conversation in one text is read only if it is alone. Between other turns, a person has pasted it.
    """
    turns = tuple([_turn(m) for m in messages if _is_turn(m)])
    if sum(turn.role not in ("system", "developer") for turn in turns) == 1:
        turns = tuple([part for turn in turns for part in _in_one_text(turn)])
    if all(turn.role for turn in turns) or any(turn.role == "user" for turn in turns):
        return turns
    return tuple(turn if turn.role else msgspec.structs.replace(turn, role="user") for turn in turns)


def _in_one_text(turn: Turn) -> Sequence[Turn]:
    """The turns of a conversation that is one text of the user, or the turn itself."""
    if turn.role not in ("user", "") or len(turn.texts) != 1 or turn.tool_result:
        return (turn,)
    return [Turn(role, (text,), role == "tool") for role, text in turns_in(turn.texts[0])] or (turn,)


def _is_turn(message: Message) -> bool:
    return message.type in _ROLES_OF_TYPES or message.type in _TOOL_TYPES or message.role is not None


def _turn(message: Message) -> Turn:
    role = _role(message)
    tool_result = role in ("tool", "function") or message.type in _TOOL_TYPES
    if isinstance(message.content, str):
        return Turn(role, (message.content,) if message.content and not tool_result else (), tool_result)
    parts = parts_of(message.content if message.content is not None else message.text)
    texts = () if role in ("tool", "function") else tuple([text for p in parts if (text := _text_of(p))])
    return Turn(role, texts, tool_result or not _TOOL_TYPES.isdisjoint([p.type for p in parts]))


def _role(message: Message) -> str:
    """The role, in lower case. A message without one may have it in its type. "" stands for none."""
    if message.role is None:
        return _ROLES_OF_TYPES.get(message.type, "")
    role = message.role.strip().lower()
    role = _OTHER_ROLES.get(role, role)
    return role if role in _ROLES else "user"


def _text_of(part: Part) -> str | None:
    """The text of a part. Some clients send it as its content."""
    return part.text or (part.content if part.type == "text" and isinstance(part.content, str) else None)


def _cap(api: Api, decoded: Body) -> tuple[int | None, str | None]:
    """The limit, and the member that sets it. A negative number is none: local servers take -1 as "no limit"."""
    fields = ("max_output_tokens",) if api == "responses" else ("max_completion_tokens", "max_tokens")
    for field in fields:
        if (cap := getattr(decoded, field)) is not None:
            return (cap if cap >= 0 else None), field
    return None, None


def _asks_for_logprobs(api: Api, decoded: Body) -> bool | None:
    if api == "responses":
        # An existing list cannot be extended in place, so None.
        return False if decoded.include is None else "message.output_text.logprobs" in decoded.include or None
    return None if api == "messages" else decoded.logprobs is not None and decoded.logprobs is not False
