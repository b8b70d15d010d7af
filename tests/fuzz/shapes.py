"""Inputs of the fuzz tests: JSON in odd spellings, faulty bodies of the four APIs, answers, and Envoy messages.

A `Writer` makes every choice with the dice of Hypothesis, so that Hypothesis can shrink an input that fails.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

from hypothesis import strategies as st

from extproc.api.paths import APIS
from extproc.pb.ext_proc_pb2 import ProcessingRequest as Message

CORPUS = Path(__file__).parent / "corpus"
PATHS = (*APIS, "/v1/chat/completions?x=1", "/v1/models", "")
T = TypeVar("T")


def corpus(kind: str) -> dict[str, bytes]:
    """Return the inputs that are worth keeping, by file name."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / kind).iterdir())}


# Texts that JSON parsers are known to read differently, also invalid ones.
_ODD = (
    b"NaN", b"-Infinity", b"01", b"+1", b"1.", b"'a'", b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"', b'"\xc0\x80"',
    b'"\n"', b"[1,]", b'{"a":1,"a":2}', b'{"a":1,"\\u0061":2}', b"[" * 500 + b"]" * 500, b'{"a":' * 500, b"",
    b"\xef\xbb\xbf1", b"[1]]", b'"a" "b"',
)  # fmt: skip
_NUMBERS = (
    b"0", b"1", b"-1", b"64", b"2.50", b"-0.0", b"1E+2", b"1e-999", b"1e308", b"1e999", b"18446744073709551616",
    b"9" * 400,
)  # fmt: skip
_WORDS = (
    "", "auto", "gpt-4o", "text", "user", "Prove that 17 is prime.", "<task>x</task>", "a\r\nx-evil: 1", 'a"b\\c',
    "Grüße 你好😀", "\x00", "\u2028", "yes",
)  # fmt: skip
# Member -> its usual values. "$" is a text, "#" a number, "?" a boolean, and "@name" another shape. A "*" at the
# end makes a list of them.
_SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "part": {
        "type": ("text", "input_text", "image_url", "input_audio", "tool_result", "image", "output_text",
            "thinking"),
        "text": ("$",), "image_url": ("@source",), "input_audio": ("@source",), "source": ("@source",),
    },
    "source": {"url": ("$",), "data": ("$",)},
    "message": {
        "role": ("user", "user", "user", "system", "assistant", "tool"), "content": ("$", "$", "@part*"),
        "type": ("message", "function_call", "function_call_output", "reasoning"),
    },
    "schema": {
        "type": ("object", "array", "string"), "properties": ("@any",), "required": ("$*",), "pattern": ("(a+)+$",
            "(", "$"),
        "items": ("@schema",), "enum": ("@any*",), "$ref": ("#", "#/properties/a", "http://x/"),
            "not": ("@schema",),
    },
    "format": {"type": ("json_schema", "json_object", "text"), "json_schema": ("@holder",), "schema": ("@schema",)},
    "holder": {"schema": ("@schema",), "format": ("@format",)},
    "function": {"name": ("$",), "parameters": ("@schema",), "input_schema": ("@schema",), "arguments": ("$",)},
    "tool": {"type": ("function", "tool", "any"), "function": ("@function",), "name": ("$",),
        "parameters": ("@schema",)},
    "effort": {"effort": ("low", "high", "none", "minimal"), "summary": ("$",)},
    "thinking": {"type": ("enabled", "disabled"), "budget_tokens": ("#",)},
    "template": {"enable_thinking": ("?",), "thinking": ("?",), "other": ("@any",)},
    "request": {
        "model": ("auto", "auto", "auto", "gpt-4o\r\nx-evil: 1", "other"), "messages": ("@message*",),
        "input": ("$", "@message*"), "prompt": ("$", "$*"), "instructions": ("$",), "system": ("$", "@part*"),
        "tools": ("@tool*",), "functions": ("@function*",), "tool_choice": ("auto", "required", "@tool"),
            "stream": ("?",),
        "response_format": ("@format",), "text": ("@holder",), "output_config": ("@holder",),
            "output_format": ("@format",),
        "max_tokens": ("#",), "max_completion_tokens": ("#",), "max_output_tokens": ("#",), "n": ("#",),
        "reasoning_effort": ("low", "none"), "reasoning": ("@effort",), "thinking": ("@thinking",),
        "chat_template_kwargs": ("@template",), "logprobs": ("?", "#"), "include": ("$*",), "temperature": ("#",),
        "top_k": ("#",), "top_p": ("#",), "user": ("$", "@any"),
    },
    "logprobs": {"content": ("@logprob*",), "token_logprobs": ("#*",)},
    "logprob": {"token": ("$",), "logprob": ("#",)},
    "call": {"index": ("#",), "function": ("@function",), "custom": ("@function",)},
    "said": {
        "role": ("assistant",), "content": ("$", "@part*"), "refusal": ("$",), "reasoning_content": ("$",),
        "tool_calls": ("@call*",), "function_call": ("@function",),
    },
    "choice": {
        "index": ("#",), "delta": ("@said",), "message": ("@said",), "text": ("$",), "logprobs": ("@logprobs",),
        "finish_reason": ("stop", "stop", "length", "tool_calls", "error", "content_filter"), "error": ("@any",),
    },
    "usage": {"prompt_tokens": ("#",), "input_tokens": ("#",), "output_tokens": ("#",),
        "prompt_tokens_details": ("@usage",)},
    "block": {
        "type": ("text", "text_delta", "thinking", "tool_use", "input_json_delta"), "text": ("$",), "name": ("$",),
        "input": ("@any",), "partial_json": ("$",), "thinking": ("$",), "stop_reason": ("end_turn", "refusal"),
    },
    "item": {"type": ("message", "function_call"), "content": ("@part*",), "name": ("$",), "arguments": ("$",
        "@any")},
    "response": {
        "object": ("response",), "status": ("completed", "incomplete", "failed"), "output": ("@item*",),
            "usage": ("@usage",),
        "incomplete_details": ("@any",), "error": ("@any",), "model": ("$",),
    },
    "chat frame": {
        "choices": ("@choice*",), "usage": ("@usage",), "model": ("$",), "error": ("@any",),
            "object": ("chat.completion", "error"),
    },
    "messages frame": {
        "type": ("message", "message_start", "content_block_start", "content_block_delta", "message_delta",
            "message_stop"),
        "message": ("@messages frame",), "content": ("@block*",), "index": ("#",), "content_block": ("@block",),
        "delta": ("@block",), "usage": ("@usage",), "stop_reason": ("end_turn",), "model": ("$",),
    },
    "responses frame": {
        "type": ("response.output_text.delta", "response.refusal.delta", "response.output_item.added",
                 "response.function_call_arguments.delta", "response.completed", "response.failed"),
        "output_index": ("#",), "delta": ("$",), "item": ("@item",), "response": ("@response",),
            "logprobs": ("@logprob*",),
    },
}  # fmt: skip


class Member(NamedTuple):
    """A member with the bytes that it was written with."""

    name: str
    head: bytes  # up to the colon and the white space after it
    value: bytes
    gap: bytes  # between the value and the comma or brace


class Document(NamedTuple):
    """A JSON object with the bytes that it was written with."""

    lead: bytes
    members: tuple[Member, ...]
    tail: bytes

    @property
    def body(self) -> bytes:
        """The bytes of the object."""
        return self.lead + b"{" + b",".join(m.head + m.value + m.gap for m in self.members) + b"}" + self.tail


class Writer:
    """Writes random values."""

    def __init__(self, dice: Random) -> None:
        self.dice = dice

    def rarely(self, once_in: int = 20) -> bool:
        """True once in this many calls, on average."""
        return self.dice.randrange(once_in) == once_in - 1

    def one(self, of: Sequence[T]) -> T:
        return self.dice.choice(of)

    def some(self, of: Sequence[T], most: int) -> list[T]:
        return self.dice.sample(of, self.dice.randrange(1, min(most, len(of)) + 1))

    def space(self) -> bytes:
        return self.one((b"", b"", b"", b"", b" ", b"\t \r\n"))

    def string(self, text: str) -> bytes:
        """Return the same text in one of its spellings."""
        if self.rarely():
            return b'"' + b"".join(f"\\u{ord(c) & 0xFFFF:04x}".encode() for c in text) + b'"'
        return json.dumps(text, ensure_ascii=self.one((True, False))).encode()

    def any(self, depth: int = 2) -> bytes:
        """Return any JSON, and sometimes a text that is not JSON."""
        if self.rarely(12):
            return self.one(_ODD)
        kind = self.dice.randrange(5 if depth else 3)
        if kind == 0:
            return self.one(_NUMBERS)
        if kind < 3:
            return self.string(self.one(_WORDS)) if kind == 1 else self.one((b"null", b"true", b"false"))
        if kind == 3:
            return self.array([self.any(depth - 1) for _ in range(self.dice.randrange(3))])
        return self.object({self.one(_WORDS): self.any(depth - 1) for _ in range(self.dice.randrange(3))})

    def array(self, items: Sequence[bytes]) -> bytes:
        gap = self.space()
        return b"[" + gap + (gap + b"," + gap).join(items) + gap + b"]"

    def object(self, members: dict[str, bytes]) -> bytes:
        gap = self.space()
        written = (self.string(name) + gap + b":" + value for name, value in members.items())
        return b"{" + gap + (b"," + gap).join(written) + gap + b"}"

    def value(self, of: str, depth: int) -> bytes:
        """Return a value for one entry of a shape, and sometimes any other value."""
        if self.rarely(25):
            return self.any()
        if of.endswith("*") and len(of) > 1:
            return self.array([self.value(of[:-1], depth - 1) for _ in range(self.dice.randrange(4))])
        if of == "@any":
            return self.any()
        if of.startswith("@"):
            return self.shape(of[1:], depth - 1)
        if of == "?":
            return self.one((b"true", b"false"))
        if of == "#":
            return self.one(_NUMBERS if self.rarely(6) else (b"0", b"1", b"512", b"100000"))
        return self.string(self.one(_WORDS) if of == "$" else of)

    def shape(self, name: str, depth: int = 5) -> bytes:
        """Return an object of this shape."""
        if depth < 0:
            return b"{}"
        holds = _SHAPES[name]
        return self.object(
            {member: self.value(self.one(holds[member]), depth) for member in self.some(list(holds), 6)}
        )

    def document(self) -> Document:
        """Return a request of any API, with its members and others, and sometimes with one of them twice."""
        holds = _SHAPES["request"]
        names = dict.fromkeys(
            ["model", self.one(("messages", "messages", "input", "prompt")), *self.some(list(holds), 6)]
        )
        said = [(name, self.value(self.one(holds[name]), 5)) for name in names]
        said += [(word, self.any()) for word in self.some(_WORDS, 2)]
        if self.rarely(15):
            said.append(self.one(said))
        self.dice.shuffle(said)
        members = [
            Member(name, self.space() + self.string(name) + self.space() + b":" + self.space(), value, self.space())
            for name, value in said
        ]
        return Document(self.space(), tuple(members), self.space())

    def stream(self) -> bytes:
        """Return server-sent events with all line endings."""
        frames = self.one(("chat frame", "chat frame", "messages frame", "responses frame"))
        said = []
        for _ in range(self.dice.randrange(1, 8)):
            line = self.one(
                (b"event: error", b"event: message_stop", b": ping", b"data", b"data:", b"id: 1", b"data: [DONE]")
            )
            if not self.rarely(4):
                line = b"data: " + self.shape(frames).replace(b"\n", b"").replace(b"\r", b"")
            ends = (
                (b"\n", b"\r\n", b"\r", b"\n\r\n", b"\r\r\n", b"")
                if self.rarely(3)
                else (b"\n\n", b"\r\n\r\n", b"\r\r")
            )
            said.append(line + self.one(ends))
        return b"".join(said)

    def answer(self) -> bytes:
        """Return an answer, whole or streamed."""
        if self.rarely(2):
            return self.shape(self.one(("chat frame", "messages frame", "response", "choice")))
        return self.stream()

    def damaged(self, raw: bytes) -> bytes:
        """Return the bytes with some inserted, removed or repeated, or with the end cut off."""
        for _ in range(self.dice.randrange(3)):
            start = self.dice.randrange(len(raw) + 1)
            end = min(len(raw), start + self.dice.randrange(40))
            piece = self.one((b"", raw[start:end] * 2, b"\xff", b"\x00", b'"', b"}", b"\r\n", b"\xef\xbb\xbf"))
            raw = raw[:start] + piece + raw[end:]
        return raw[: self.dice.randrange(len(raw) + 1)] if self.rarely(3) else raw

    def pieces(self, raw: bytes) -> list[bytes]:
        """Return the bytes in pieces. Some pieces may be empty."""
        cuts = sorted(self.dice.randrange(len(raw) + 1) for _ in range(self.dice.randrange(6)))
        return [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


def written(write: Callable[[Writer], T]) -> st.SearchStrategy[T]:
    """Return a strategy that calls `write` with a writer."""
    return st.randoms(use_true_random=False).map(lambda dice: write(Writer(dice)))


DOCUMENTS = written(Writer.document)
BODIES = st.one_of(
    DOCUMENTS.map(lambda d: d.body), written(lambda w: w.damaged(w.document().body)), st.binary(max_size=100)
)
ANSWERS = st.one_of(written(Writer.answer), written(lambda w: w.damaged(w.answer())), st.binary(max_size=100))

# --- Envoy's messages ---------------------------------------------------------------------------------------

KINDS = (
    "request_headers",
    "request_body",
    "request_trailers",
    "response_headers",
    "response_body",
    "response_trailers",
)
_NAMES = (
    ":path", ":path", ":status", ":status", "content-type", "content-length", "content-encoding", "x-user-tier",
    "authorization", "x-router-tier", "X-Odd", "",
)  # fmt: skip
_VALUES = (
    *(path.encode() for path in PATHS), b"200", b"200", b"500", b"text/event-stream",
        b"application/json; charset=x", b"gzip",
    b"identity", b"gold", b"a\r\nx-evil: 1", b"\xff\x00", b"\xed\xa0\x80", b"", b"9" * 300,
)  # fmt: skip
# Values that another filter may put into the metadata of a decision.
_PLAIN: tuple[Any, ...] = (
    None, True, 0.0, -1.0, 1e308, float("nan"), float("inf"), "", "auto", "early", "chat", "evil", "{}",
        '{"stream":1}',
    '{"json_schema":{"pattern":"("},"context":"x"}', [], ["a"], {}, {"a": {"b": [None]}},
)  # fmt: skip
_DECISION = ("cohort", "rungs", "api", "logprobs_added", "escalations", "judge", "facts")


class Messenger(Writer):
    """Writes messages as Envoy sends them."""

    def headers(self) -> dict[str, bytes]:
        return {self.one(_NAMES): self.one(_VALUES) for _ in range(self.dice.randrange(5))}

    def message(
        self, kind: str, body: bytes = b"", headers: dict[str, bytes] | None = None, end: bool = False
    ) -> Message:
        """Return one message, with header values in either of their two fields."""
        made = Message()
        part = getattr(made, kind)
        part.SetInParent()
        if not kind.endswith("_trailers"):
            part.end_of_stream = end
        if kind.endswith("_body"):
            part.body = body
            return made
        holder = part.headers if kind.endswith("_headers") else part.trailers
        for name, value in (headers or {}).items():
            if self.rarely(3):
                holder.headers.add(key=name, value=value.decode("utf-8", "replace"))
            else:
                holder.headers.add(key=name, raw_value=value)
        return made

    def anything(self) -> Message:
        """Return a message of any kind, with any other fields."""
        if self.rarely(15):
            return Message()  # of a kind that we do not know yet
        body = self.one((self.document().body, self.answer(), self.damaged(self.document().body)))
        made = self.message(self.one(KINDS), body, self.headers(), self.rarely(3))
        if not self.rarely(3):
            made.protocol_config.request_body_mode = self.one((0, 1, 2, 3, 4, 5, 99))  # type: ignore[assignment]
            made.protocol_config.response_body_mode = self.one((0, 1, 2, 3, 4, 5, 99))  # type: ignore[assignment]
        if not self.rarely(3):
            self.attributes(made, {name: self.one(_PLAIN) for name in self.some(_ATTRIBUTES, 4)})
        if not self.rarely(3):
            said = {name: self.one(_PLAIN) for name in self.some(_DECISION, 7)}
            if not self.rarely(3):
                said["cohort"] = self.one(("early", "buffer", "record", "person"))
            for namespace in ("semantic_router", "semantic_router.facts"):
                made.metadata_context.filter_metadata[namespace].update(said)
        return made

    def attributes(self, made: Message, values: dict[str, Any]) -> None:
        made.attributes["envoy.filters.http.ext_proc"].update(values)

    def body(self, kind: str, mode: int, raw: bytes, trailers: bool) -> list[Message]:
        """Return a body as Envoy sends it in this mode, with trailers if there are any."""
        said: list[Message] = []
        if mode == NONE:
            return said
        pieces = [raw] if mode == BUFFERED else self.pieces(raw)
        for piece in pieces:
            said.append(self.message(f"{kind}_body", piece, end=not trailers and len(said) == len(pieces) - 1))
        return [*said, self.message(f"{kind}_trailers", headers=self.headers())] if trailers else said

    def open(self, first: Message, request_mode: int, response_mode: int, waits: bool = False) -> None:
        """Make this the first message of a stream. A STREAMED body `waits` for our reply to the headers."""
        first.protocol_config.send_body_without_waiting_for_header_response = not waits
        first.protocol_config.request_body_mode = request_mode  # type: ignore[assignment]
        first.protocol_config.response_body_mode = response_mode  # type: ignore[assignment]


NONE, STREAMED, BUFFERED, PARTIAL, FULL_DUPLEX = range(5)
_ATTRIBUTES = (
    "request.path", "request.headers['x-user-tier']", "request.headers['authorization']", "request.headers['",
    "request.headers",
    "upstream.request_attempt_count", "other",
)  # fmt: skip


def sent(write: Callable[[Messenger], T]) -> st.SearchStrategy[T]:
    """Return a strategy that calls `write` with a messenger."""
    return st.randoms(use_true_random=False).map(lambda dice: write(Messenger(dice)))
