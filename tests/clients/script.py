"""The script of the strict upstreams. An answer depends only on the conversation, so every run is the same."""

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec

# How each tool that reads a file takes its path. The names are those of the clients under test.
_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "read_file": lambda path: {"path": path},  # the tests' own tool
    "Read": lambda path: {"file_path": path},
    "read": lambda path: {"filePath": path},
    "exec_command": lambda path: {"cmd": f"cat {path}"},
    "shell_command": lambda path: {"command": f"cat {path}"},
    "shell": lambda path: {"command": ["cat", path]},
}  # fmt: skip
_FILE = re.compile(r"[\w./-]+\.txt\b")
_QUOTED_CHARS = 400  # of a tool's result
# A request with this word gets a stream that goes on until the client leaves.
ENDLESS = "endlessly"
# A request with this word gets a stream that stops after its first word, until the test has seen that word.
HALTING = "haltingly"
FIRST_WORD = "tier"  # of every answer
# A request with this word is refused.
FORBIDDEN = "forbidden"


class Item(msgspec.Struct, frozen=True):
    """One step of a conversation, in the same shape for every API."""

    kind: Literal["user", "assistant", "call", "result"]
    text: str
    call_id: str = ""


class Asked(msgspec.Struct, frozen=True):
    """A request, as far as the script needs it."""

    items: list[Item]
    tools: frozenset[str]
    stream: bool
    with_usage: bool = True
    reasons: bool = False  # the client asks for the model's reasoning, to send it back later


class Reply(msgspec.Struct, frozen=True):
    """Either a text or the call of one tool."""

    text: str = ""
    tool: str = ""
    arguments: dict[str, Any] = {}
    call_id: str = ""
    endless: bool = False
    halting: bool = False


class Refused(Exception):
    """The request is one that a real server of this API refuses."""

    def __init__(self, message: str, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def require(condition: object, message: str) -> None:
    """Raise Refused with `message` if the condition is false."""
    if not condition:
        raise Refused(message)


def answer_text(tier: str, number: int, seen: str = "") -> str:
    """Return the text of a tier's answer. `number` counts the answers in the conversation."""
    return f"{FIRST_WORD} {tier} gives answer {number}{': ' + seen if seen else '.'}"


def reply_to(asked: Asked, tier: str) -> Reply:
    """Call the tool that reads a file, if the last user message names a file and nothing was read for it yet."""
    last_user = max((i for i, item in enumerate(asked.items) if item.kind == "user"), default=0)
    since = asked.items[last_user:]
    require(FORBIDDEN not in since[0].text, f"the prompt has the word {FORBIDDEN!r}")
    number = 1 + sum(item.kind == "assistant" for item in asked.items)
    results = [item.text for item in since if item.kind == "result"]
    if results:
        return Reply(answer_text(tier, number, " ".join(results[-1].split())[:_QUOTED_CHARS]))
    tool = next((name for name in _READERS if name in asked.tools), None)
    file = _FILE.search(since[0].text)
    if tool is not None and file is not None:
        call_id = f"call_{sum(item.kind == 'call' for item in asked.items) + 1}"
        return Reply(tool=tool, arguments=_READERS[tool](file[0]), call_id=call_id)
    said = since[0].text
    return Reply(answer_text(tier, number), endless=ENDLESS in said, halting=HALTING in said)


def check_calls(items: Iterable[Item]) -> None:
    """Refuse a result without its call, and a call without its result, as every provider does."""
    open_calls: set[str] = set()
    for item in items:
        if item.kind == "call":
            open_calls.add(item.call_id)
        elif item.kind == "result":
            require(item.call_id in open_calls, f"no tool call has the id {item.call_id!r}")
            open_calls.remove(item.call_id)
        else:
            require(not open_calls, f"the tool calls {sorted(open_calls)} have no result")
    require(not open_calls, f"the tool calls {sorted(open_calls)} have no result")


def joined(content: Any, kinds: frozenset[str]) -> str:
    """Return the text of a content, which is a text or a list of parts of these kinds."""
    if isinstance(content, str):
        return content
    require(isinstance(content, list), "the content is neither a text nor a list")
    for part in content:
        require(part.get("type") in kinds, f"unknown kind of part: {part.get('type')!r}")
    return "\n".join(part.get("text", "") for part in content)


def refuse_unknown(members: Iterable[str], known: str) -> None:
    """Refuse a body with members that the API does not have."""
    unknown = sorted(set(members) - set(known.split()))
    require(not unknown, f"unrecognized request arguments: {unknown}")
