"""The state in a request that only the upstream which made it can read, and the id of the conversation.

Three kinds of state:

- An id of something that an upstream keeps: a previous response, a conversation, an item, a container.
- A sealed item, which the client sends back unread: encrypted reasoning, the signature of a thinking block.
- A background job, whose answer the client fetches later by its id.
"""

import re
from collections.abc import Iterator, Sequence

import msgspec

from extproc.api.body import Body, Named
from extproc.api.parts import Message, Part, parts_of

# In `metadata.user_id`, Claude Code writes user_X_account_Y_session_Z, or JSON with a session_id.
_SESSION = re.compile(rb'(?:_session_|"session_id\\?"\s*:\s*\\?")([0-9A-Za-z_-]{8,128})')
# In chat messages: signatures of Gemini in tool calls or beside the text, reasoning of OpenRouter that is encrypted
# or signed, and signed thinking of LiteLLM.
_SIGNATURES = re.compile(rb'"(?:thought_signature|signature|data)"\s*:\s*"([^"\\]{4,})"')
_SIGNED_MARKS = (b'"thought_signature"', b'"reasoning.encrypted"', b'"reasoning.text"', b'"thinking_blocks"')
# Items of the Responses API that are answers without a role.
_ANSWER_ITEMS = ("reasoning", "function_call", "custom_tool_call", "local_shell_call", "shell_call")
_TRAIT_CHARS = 1024


class UpstreamState(msgspec.Struct, frozen=True):
    """The state of one request. Its texts are never stored: their hashes are."""

    ids: tuple[str, ...] = ()  # of responses, conversations and items that an upstream keeps; the newest last
    sealed: tuple[str, ...] = ()  # the unreadable text of each sealed item, in the order of the request
    fixed: bool = False  # a part of this state cannot be removed from the request without losing its meaning
    compacted: bool = False  # an item of it stands for earlier turns
    compacts: bool = False  # the answer is an item that stands for the turns so far
    background: bool = False  # the answer is a job that the client polls
    kept: bool = False  # the upstream keeps the response, and the client may refer to it by its id
    session: str | None = None  # the id of the conversation that the client wrote into the body
    conversation: str = ""  # the one of `ids` that an upstream keeps a whole conversation under
    first_answer: str = ""  # the text of the first answer in the request, or the id of its call

    @property
    def newest(self) -> tuple[str, ...]:
        """The ids and the newest sealed item, which the tier that answered last has made."""
        return self.ids + self.sealed[-1:]

    @property
    def bound(self) -> bool:
        """Whether only the upstream that made this state can read the request."""
        return bool(self.ids or self.sealed)


def read_state(api: str, decoded: Body, messages: Sequence[Message], text: bytes) -> UpstreamState:
    """Read the state of a request to `api`. `text` is its body."""
    signed = api == "chat" and any(mark in text for mark in _SIGNED_MARKS)
    ids = tuple(_ids(api, decoded, messages))
    compacted = _has_compaction(messages) if api == "messages" else any(m.type == "compaction" for m in messages)
    programs = api == "responses" and any(message.fingerprint for message in messages)
    return UpstreamState(
        ids=ids,
        sealed=tuple(seal for message in messages for seal in seals_of(message, signed, compacted)),
        fixed=bool(ids) or signed or compacted or programs,
        compacted=compacted,
        compacts=compacts(api, decoded),
        background=decoded.background is True,
        kept=decoded.store is not False if api == "responses" else api == "messages" and decoded.thread is not None,
        session=_session(decoded),
        conversation=_conversation(decoded) or "" if api == "responses" else "",
        first_answer=next(filter(None, map(_trait_of, messages)), ""),
    )


def compacts(api: str, decoded: Body) -> bool:
    """Return whether a request of the Messages API asks for an item that stands for the conversation so far."""
    return api == "messages" and bytes(decoded.compaction) not in (b"", b"null")


def _ids(api: str, decoded: Body, messages: Sequence[Message]) -> Iterator[str]:
    names: tuple[str | None, ...] = ()
    if api == "responses":
        yield from (message.id for message in messages if message.type == "item_reference" and message.id)
        names = (_conversation(decoded), decoded.previous_response_id)
    elif api == "messages":
        thread = decoded.thread
        names = (_name(decoded.container), thread.previous_message_id if thread is not None else None)
    yield from (name for name in names if name)


def _conversation(decoded: Body) -> str | None:
    return _name(decoded.conversation)


def _name(value: Named | str | None) -> str | None:
    return value.id if isinstance(value, Named) else value


def _has_compaction(messages: Sequence[Message]) -> bool:
    for message in messages:
        if isinstance(message.content, list):
            for part in message.content:
                if isinstance(part, Part) and part.type == "compaction":
                    return True
    return False


def seals_of(message: Message, signed: bool = False, compacted: bool = False) -> Iterator[str]:
    """Yield the unreadable text of each sealed item of a message.

    `signed`: its calls may have signatures. `compacted`: a message of any role may stand for earlier turns.
    """
    if message.encrypted_content:
        yield message.encrypted_content
    elif message.type == "reasoning" and message.id and not message.content:
        yield message.id  # the upstream keeps its content under this id
    elif message.fingerprint:
        yield message.fingerprint
    answers = message.role == "assistant"
    if not answers and not compacted:
        return
    for part in parts_of(message.content):
        if part.type == "compaction" or (answers and part.type in SEALED_PARTS):
            yield from (seal for seal in (part.signature or part.data or part.encrypted_content,) if seal)
    if not answers:
        return
    members = (message.tool_calls, message.reasoning_details, message.thinking_blocks, message.extra_content)
    for raw in members if signed else ():
        yield from (match.decode(errors="replace") for match in _SIGNATURES.findall(bytes(raw)))


SEALED_PARTS = ("thinking", "redacted_thinking", "reasoning", "compaction")


def _trait_of(message: Message) -> str:
    """The text of an answer, or its call, or its seal. "" if the message is not an answer."""
    if message.role != "assistant" and (message.role or message.type not in _ANSWER_ITEMS):
        return ""
    parts = parts_of(message.content)
    traits = (
        "".join(part.text or "" for part in parts),
        message.call_id,
        next((p.id for p in parts if p.id), None),
    )
    calls = bytes(message.tool_calls).decode(errors="replace")
    return next((trait[:_TRAIT_CHARS] for trait in (*traits, calls, *seals_of(message)) if trait), "")


def _session(decoded: Body) -> str | None:
    if decoded.prompt_cache_key:
        return decoded.prompt_cache_key
    session = _SESSION.search(bytes(decoded.metadata))
    return session[1].decode() if session is not None else None
