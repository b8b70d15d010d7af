"""Reading an upstream's answer: four APIs, JSON and SSE, cut at any byte, and no invented ending."""

import gzip
import itertools
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from extproc.api.answer import AnswerReader
from extproc.api.gathered import GatheredAnswer
from extproc.api.observation import TOO_LARGE, Observation, ToolCall, Usage
from extproc.api.paths import Api
from extproc.api.plain_chunk import read_plain_chunk
from extproc.api.sse import EventStream

JSON, SSE = "application/json", "text/event-stream; charset=utf-8"


def observe(api: Api, pieces: list[bytes], content_type: str | None, **limits: Any) -> Observation:
    reader = AnswerReader(api, content_type, **limits)
    for piece in pieces:
        reader.feed(piece)
    reader.finish()
    return reader.observation()


def events(*frames: Any, end: str = "\n", done: bool = True, named: bool = False) -> bytes:
    lines = []
    for frame in frames:
        if named:
            lines.append(f"event: {frame['type']}{end}")
        lines.append(f"data: {msgspec.json.encode(frame).decode()}{end}{end}")
    return ("".join(lines) + (f"data: [DONE]{end}{end}" if done else "")).encode()


def chunk(delta: Any = None, finish: str | None = None, index: int = 0, **more: Any) -> Any:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish, **more}
    return {"object": "chat.completion.chunk", "model": "m", "choices": [choice]}


def logprobs(*values: float) -> Any:
    return {"content": [{"token": "t", "logprob": value} for value in values]}


def call(index: int, arguments: str, name: str | None = None) -> Any:
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, "function": function}]}


CHAT_USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 3},
}
CHAT_JSON = msgspec.json.encode(
    {
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Zoë 🙂.", "reasoning_content": "hm"},
                "logprobs": logprobs(-0.5, -1.5),
                "finish_reason": "stop",
            }
        ],
        "usage": CHAT_USAGE,
        "error": None,
    }
)
CHAT_SSE = b": ping\n\n" + events(
    {"choices": [], "prompt_filter_results": []},
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "hm"}),
    chunk({"content": "Zoë "}, logprobs=logprobs(-0.5)),
    chunk({"content": [{"type": "text", "text": "🙂."}]}, logprobs=logprobs(-1.5)),
    chunk(finish="stop"),
    {"choices": [], "usage": CHAT_USAGE},
    end="\r\n",
)
TOOLS_SSE = events(
    chunk(call(0, "", "get_weather")),
    chunk(call(0, '{"city":')),
    chunk(call(1, "{}", "now")),
    chunk(call(0, '"Oslo"}')),
    chunk(finish="tool_calls"),
    end="\r",
)
TOOLS_JSON = msgspec.json.encode(
    {
        "model": "m",
        "choices": [
            {
                "message": {
                    "content": None,
                    "tool_calls": [
                        {"function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}},
                        {"function": {"name": "now", "arguments": "{}"}},
                    ],
                },
                "finish_reason": "tool_calls",
            }
        ],
    }
)
TEXT_JSON = msgspec.json.encode(
    {
        "model": "m",
        "choices": [{"text": "B", "finish_reason": "length", "logprobs": {"token_logprobs": [None, -9999]}}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 1},
    }
)
TEXT_SSE = events(
    {
        "model": "m",
        "choices": [{"index": 0, "text": "B", "logprobs": {"token_logprobs": [None, -9999]}}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 0},
    },
    {
        "choices": [{"index": 0, "text": "", "finish_reason": "length"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 1},
    },
)
RESPONSE = {
    "object": "response",
    "model": "m",
    "status": "completed",
    "error": None,
    "output": [
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {
            "type": "message",
            "content": [{"type": "output_text", "text": "Yes", "logprobs": [{"logprob": -0.5}]}],
        },
        {"type": "function_call", "name": "now", "arguments": '{"a":1}'},
    ],
    "usage": {
        "input_tokens": 5,
        "output_tokens": 2,
        "input_tokens_details": {"cached_tokens": 1},
    },
}
RESPONSE_SSE = events(
    {"type": "response.created", "response": {"model": "m", "status": "in_progress"}},
    {"type": "response.reasoning_summary_text.delta", "delta": "hm"},
    {
        "type": "response.output_text.delta",
        "output_index": 1,
        "delta": "Ye",
        "logprobs": [{"logprob": -0.5}],
    },
    {"type": "response.output_text.delta", "output_index": 1, "delta": "s"},
    {
        "type": "response.output_item.added",
        "output_index": 2,
        "item": {"type": "function_call", "name": "now", "arguments": ""},
    },
    {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": '{"a"'},
    {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": ":1}"},
    {
        "type": "response.output_item.done",
        "output_index": 2,
        "item": {"type": "function_call", "name": "now", "arguments": '{"a":1}'},
    },
    {"type": "response.completed", "response": RESPONSE},
    named=True,
    done=False,
)
MESSAGE_JSON = msgspec.json.encode(
    {
        "type": "message",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "hm"},
            {"type": "text", "text": "Yes"},
            {"type": "tool_use", "name": "now", "input": {}},
            {"type": "tool_use", "name": "get", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 4, "cache_read_input_tokens": 6, "output_tokens": 3},
    }
)
MESSAGE_SSE = events(
    {
        "type": "message_start",
        "message": {
            "model": "m",
            "content": [],
            "stop_reason": None,
            "usage": {"input_tokens": 4, "cache_read_input_tokens": 6, "output_tokens": 1},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}},
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "thinking_delta", "thinking": "hm"},
    },
    {"type": "ping"},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Yes"}},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "name": "now", "input": {}},
    },
    {
        "type": "content_block_start",
        "index": 3,
        "content_block": {"type": "tool_use", "name": "get", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 3,
        "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'},
    },
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use"},
        "usage": {"output_tokens": 3},
    },
    {"type": "message_stop"},
    named=True,
    done=False,
)

CHAT = Observation(
    text="Zoë 🙂.",
    finish="stop",
    logprobs=(-0.5, -1.5),
    reasoning_chars=2,
    usage=Usage(9, 4, 3),
    model="m",
    n_choices=1,
    complete=True,
    ended=True,
)
CALLS = (ToolCall("get_weather", '{"city":"Oslo"}'), ToolCall("now", "{}"))
TOOLS = Observation(tool_calls=CALLS, finish="tool_calls", model="m", n_choices=1, complete=True, ended=True)
TEXT = Observation(
    text="B",
    finish="length",
    logprobs=(-20.0,),
    usage=Usage(2, 1),
    model="m",
    n_choices=1,
    complete=True,
    ended=True,
)
RESPONSES = Observation(
    text="Yes",
    finish="tool_calls",
    tool_calls=(ToolCall("now", '{"a":1}'),),
    logprobs=(-0.5,),
    reasoning_chars=2,
    usage=Usage(5, 2, 1),
    model="m",
    n_choices=1,
    complete=True,
    ended=True,
)
MESSAGES = Observation(
    text="Yes",
    finish="tool_calls",
    tool_calls=(ToolCall("now", "{}"), ToolCall("get", '{"a":1}')),
    reasoning_chars=2,
    usage=Usage(10, 3, 6),
    model="m",
    n_choices=1,
    complete=True,
    ended=True,
)

ANSWERS: dict[str, tuple[Api, str, bytes, Observation]] = {
    "chat json": ("chat", JSON, CHAT_JSON, CHAT),
    "chat sse": ("chat", SSE, CHAT_SSE, CHAT),
    "tools json": ("chat", JSON, TOOLS_JSON, TOOLS),
    "tools sse": ("chat", SSE, TOOLS_SSE, TOOLS),
    "completions json": ("completions", JSON, TEXT_JSON, TEXT),
    "completions sse": ("completions", SSE, TEXT_SSE, TEXT),
    "responses json": ("responses", JSON, msgspec.json.encode(RESPONSE), RESPONSES),
    "responses sse": ("responses", SSE, RESPONSE_SSE, RESPONSES),
    "messages json": ("messages", JSON, MESSAGE_JSON, MESSAGES),
    "messages sse": ("messages", SSE, MESSAGE_SSE, MESSAGES),
}
FAULTS: dict[str, tuple[Api, str, bytes]] = {
    "cut json": ("chat", JSON, CHAT_JSON[:-2]),
    "cut sse": ("chat", SSE, CHAT_SSE[:-3]),
    "error in a stream": ("chat", SSE, events(chunk({"content": "a"}), {"error": {"code": "x"}})),
    "html": ("chat", SSE, b"\n<html>oops</html>"),
    "gzip": ("chat", JSON, b"\x1f\x8b\x08\x00abcdefg"),
    "plain words": ("chat", "text/plain", b"upstream connect error"),
    "bom": ("chat", SSE, b"\xef\xbb\xbf" + CHAT_SSE),
    "json where sse was promised": ("chat", SSE, CHAT_JSON),
    "sse where json was promised": ("chat", JSON, CHAT_SSE),
    "a frame that is no json": ("chat", SSE, events(chunk({"content": "a"})) + b"data: {oops\n\n"),
    "blank": ("chat", JSON, b" " * 5000 + b"{}"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_api_reads_the_same_from_json_and_from_a_stream(name: str) -> None:
    """Both framings of each API give the same observation."""
    api, content_type, body, expected = ANSWERS[name]
    seen = observe(api, [body], content_type)
    framing = "sse" if content_type == SSE else "json"
    assert seen == msgspec.structs.replace(expected, framing=framing, frames=seen.frames)


@pytest.mark.parametrize("name", [*ANSWERS, *FAULTS])
def test_every_split_reads_the_same(name: str) -> None:
    """An answer that is cut once at any byte, or at every byte, gives the same observation."""
    api, content_type, body = (ANSWERS.get(name) or FAULTS[name])[:3]
    whole = observe(api, [body], content_type)
    assert observe(api, [body[i : i + 1] for i in range(len(body))], content_type) == whole
    cuts = range(len(body)) if len(body) < 4096 else range(0, len(body), 97)
    for cut in cuts:
        assert observe(api, [body[:cut], b"", body[cut:]], content_type) == whole, cut


@pytest.mark.parametrize("name", [*ANSWERS, *FAULTS])
def test_an_answer_grows_only_by_text_while_the_rest_is_the_same(name: str) -> None:
    """Between two cuts with only text between them, only the text, the tokens and arguments differ."""
    api, content_type, body = (ANSWERS.get(name) or FAULTS[name])[:3]
    reader = AnswerReader(api, content_type)
    seen: dict[Any, Observation] = {}
    for end in range(len(body) + 1):
        part = reader.observation()
        grows = {"text": "", "tool_calls": (), "logprobs": (), "reasoning_chars": 0, "usage": None, "model": None}
        same = msgspec.structs.replace(part, **grows, frames=0)
        key = (*reader.beyond_text, len(part.tool_calls))
        assert seen.setdefault(key, same) == same, end
        reader.feed(body[end : end + 1])
    assert name in FAULTS or len(seen) > 1


@pytest.mark.parametrize("name", ANSWERS)
def test_a_part_reads_the_same_however_it_came(name: str) -> None:
    """The observation of a part depends only on its bytes, and calling `observation()` changes nothing."""
    api, content_type, body, _ = ANSWERS[name]
    slow = AnswerReader(api, content_type)
    for end in range(len(body)):
        quick = AnswerReader(api, content_type)
        quick.feed(body[:end])
        assert quick.observation() == slow.observation(), end
        slow.feed(body[end : end + 1])


@pytest.mark.parametrize("name", ANSWERS)
def test_a_cut_answer_is_never_complete(name: str) -> None:
    """No proper prefix of an answer is complete, except a stream of finished choices that lacks only [DONE]."""
    api, content_type, body, _ = ANSWERS[name]
    whole = len(body) - body.endswith(b"\r\n")  # a CR ends a line before its LF arrives
    for end in range(whole):
        seen = observe(api, [body[:end]], content_type)
        lacks_done = seen.finish is not None and body[end:].strip() in (b"", b"data: [DONE]")
        if seen.framing != "sse" or api not in ("chat", "completions"):
            assert not seen.complete, end
        elif not seen.complete:
            assert not lacks_done or not body[:end].endswith((b"\n\n", b"\r\n\r\n")), end
        else:
            assert seen.finish is not None, end
            pending = body[:end].replace(b"\r\n", b"\n").replace(b"\r", b"\n").rpartition(b"\n\n")[2].strip()
            assert pending in (b"", b"data: [DONE]"), end


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "empty"),
        (b"  \r\n ", "empty"),
        (b"<!doctype html>", "html"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00", "compressed"),
        (b"null", "not json"),
        (b"{", "not json"),
        (b'{"choices": NaN}', "not json"),
        (b'{"detail": "Not Found"}', "unknown shape"),
        (b'{"choices": []}', "unknown shape"),
        (b'{"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}', "unknown shape"),
        (b'[{"choices": []}]', "unknown shape"),
        (CHAT_JSON + b"}", "not json"),
        (b'{"a":' * 100_000, "not json"),
        (b" " * 5000, "blank"),
    ],
)
def test_what_cannot_be_read_says_why(body: bytes, why: str) -> None:
    """A body that is not an answer is malformed, with the reason, and never complete."""
    seen = observe("chat", [body], JSON)
    assert (seen.malformed, seen.complete, seen.text) == (why, False, "")


def test_an_encoding_that_we_cannot_decode_is_not_read() -> None:
    """Brotli has no magic bytes, so the header decides."""
    reader = AnswerReader("chat", JSON, "br")
    reader.feed(b"\x0b\x02\x80")
    assert reader.observation().malformed == "compressed"


_CHAT_SSE = events(chunk({"content": "Zoë says "}), chunk({"content": "🙂."}), chunk(finish="stop"))


def in_members(body: bytes) -> bytes:
    return gzip.compress(body[:30], mtime=0) + gzip.compress(body[30:], mtime=0)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("GZIP", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress),
     ("gzip", in_members), ("gzip", lambda body: gzip.compress(body) + b"more"), ("identity", bytes)],
    ids=["gzip", "upper case", "old name", "deflate", "members", "bytes after it", "identity"],
)  # fmt: skip
@pytest.mark.parametrize(("content_type", "body"), [(JSON, CHAT_JSON), (SSE, _CHAT_SSE)], ids=["json", "sse"])
def test_a_compressed_answer_reads_like_a_plain_one(
    content_type: str, body: bytes, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    """At any cut. Every prefix gives the same result as in one piece."""
    plain, packed = observe("chat", [body], content_type), pack(body)
    assert plain.complete
    for end in range(len(packed) + 1):
        cut, whole = (AnswerReader("chat", content_type, encoding) for _ in range(2))
        for byte in packed[:end]:
            cut.feed(bytes([byte]))
        whole.feed(packed[:end])
        assert cut.observation() == whole.observation()
    whole.finish()
    assert msgspec.structs.replace(whole.observation(), ended=True) == plain


@pytest.mark.parametrize(
    ("content_type", "bomb"),
    [(JSON, b'{"a":"' + b"a" * (40 << 20)), (SSE, (b":" + b"a" * (1 << 20) + b"\n\n") * 40)],
    ids=["json", "sse"],
)
def test_a_compressed_bomb_is_decoded_to_a_limit(content_type: str, bomb: bytes) -> None:
    """Forty megabytes are compressed to forty kilobytes. The reader stops, and keeps none of them."""
    packed = gzip.compress(bomb, 9)
    assert len(packed) < 200_000
    seen = observe("chat", [packed], content_type, content_encoding="gzip")
    assert seen.malformed in TOO_LARGE and not seen.complete


@pytest.mark.parametrize(
    ("limit", "body"),
    [("extproc.api.answer.MAX_FRAMES", b"data: {}\n\n"), ("extproc.api.sse.MAX_LINES", b":\n")],
    ids=["frames", "lines"],
)
def test_a_stream_of_very_many_small_frames_is_too_large(
    limit: str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few compressed kilobytes may have millions, and each takes some microseconds."""
    monkeypatch.setattr(limit, 100)
    opened = b"event: ping\ndata: {}\n\n"
    assert observe("chat", [opened + body * 97], SSE).malformed is None
    assert observe("chat", [opened + body * 110], SSE).malformed in TOO_LARGE


def test_fragments_that_each_name_another_call_take_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments that are never whole are not read again for each fragment."""
    checked: list[int] = []

    def is_json(text: str) -> bool:
        checked.append(len(text))
        return False

    monkeypatch.setattr("extproc.api.gathered._is_json", is_json)
    monkeypatch.setattr("extproc.api.gathered._MOST_CHECKED_CHARS", 1000)
    for name in (None, "a"):
        checked.clear()
        calls = [
            {"index": 0, "id": name and f"a{i}", "function": {"name": f"f{i}", "arguments": "["}}
            for i in range(200)
        ]
        seen = observe("chat", [events(*(chunk({"tool_calls": [call]}) for call in calls))], SSE)
        assert [call.arguments for call in seen.tool_calls] == ["[" * 200]
        assert sum(checked) <= 1100


def test_very_many_gzip_members_are_too_large() -> None:
    """Each takes time, also if nothing is in it."""
    packed = gzip.compress(b"", mtime=0) * 20_000
    assert observe("chat", [packed], SSE, content_encoding="gzip").malformed in TOO_LARGE


@pytest.mark.parametrize(
    ("api", "content_type", "body", "word"),
    [
        ("chat", JSON, b'{"error": {"message": "secret", "type": "overloaded"}}', "overloaded"),
        ("chat", JSON, b'{"error": "secret"}', "error"),
        ("chat", JSON, b'{"object": "error", "message": "secret", "code": 400}', "error"),
        ("chat", SSE, b'event: error\ndata: {"message": "secret"}\n\n', "error"),
        ("chat", SSE, events(chunk({"content": "a"}, "error")), "error"),
        (
            "messages",
            SSE,
            events({"type": "error", "error": {"type": "overloaded_error"}}, done=False),
            "overloaded_error",
        ),
        (
            "responses",
            SSE,
            events(
                {
                    "type": "response.failed",
                    "response": {"status": "failed", "error": {"code": "server_error"}},
                }
            ),
            "server_error",
        ),
    ],
)
def test_an_error_inside_a_200_is_told_without_its_prose(
    api: Api, content_type: str, body: bytes, word: str
) -> None:
    """The code of an error is kept. Its message is not, because it may quote the prompt."""
    seen = observe(api, [body], content_type)
    assert (seen.error, seen.complete) == (word, False)


def test_a_finish_reason_and_a_clean_end_are_an_ending() -> None:
    """Some servers send no [DONE]. A stream that ends inside a frame, or without a finish reason, is cut."""
    finished = events(chunk({"content": "a"}, "stop"), done=False)
    for rest in (b"", b": ping\n\n", b": ping", b"data: [DONE]", b"data:[DONE]\n", b"data: [DONE]\n\n"):
        assert observe("chat", [finished + rest], SSE).complete, rest
    for rest in (b"d", b"data:", b"data: {", b"data: [DO", b"event: x", b'data: {"choices":[]}\n'):
        assert not observe("chat", [finished + rest], SSE).complete, rest
    assert not observe("chat", [finished[:-1]], SSE).complete
    assert not observe("chat", [events(chunk({"content": "a"}))], SSE).complete
    assert not observe("chat", [b"data: [DONE]\n\n"], SSE).complete
    open_choice = events(chunk({}, "stop"), chunk({"content": "b"}, index=1), done=False)
    assert not observe("chat", [open_choice], SSE).complete
    text = {"choices": [{"text": "a", "finish_reason": "length"}]}
    assert observe("completions", [events(text, done=False)], SSE).complete


def test_a_stream_without_done_is_complete_only_at_its_end() -> None:
    """Before the end, more may come: an error, or counts."""
    reader = AnswerReader("chat", SSE)
    reader.feed(events(chunk({"content": "a"}, "stop"), done=False))
    assert not reader.observation().complete
    reader.finish()
    assert reader.observation().complete


@pytest.mark.parametrize(
    ("word", "finish"),
    [
        ("STOP", "stop"),
        ("Stop", "stop"),
        ("eos", "stop"),
        ("EOS_TOKEN", "stop"),
        ("END_TURN", "stop"),
        ("MAX_TOKENS", "length"),
        ("FINISH_REASON_STOP", "stop"),
        ("FINISH_REASON_MAX_TOKENS", "length"),
        ("LENGTH", "length"),
        ("Tool_Calls", "tool_calls"),
        ("SAFETY", "content_filter"),
        ("pause_turn", "pause_turn"),
        ("Abort", "abort"),
    ],
)
def test_finish_words_of_any_server_and_case(word: str, finish: str) -> None:
    """Servers spell the same reason in several ways. A word that is not known stays, in lower case."""
    body = msgspec.json.encode({"choices": [{"message": {"content": "a"}, "finish_reason": word}]})
    assert observe("chat", [body], JSON).finish == finish
    assert observe("chat", [events(chunk({"content": "a"}, word))], SSE).finish == finish
    body = msgspec.json.encode({"type": "message", "content": [], "stop_reason": word})
    assert observe("messages", [body], JSON).finish == finish


def test_calls_with_one_index_are_told_apart_by_their_ids() -> None:
    """Some servers give every call the index 0. A fragment may repeat the name, or have a separate id."""

    def fragment(id_: str | None, name: str | None, arguments: str) -> Any:
        return chunk({"tool_calls": [{"index": 0, "id": id_, "function": {"name": name, "arguments": arguments}}]})

    both = [
        fragment("a", "get", '{"n":'),
        fragment("a", "get", "1}"),
        fragment("b", "get", '{"n":'),
        fragment("", "", "2}"),
    ]
    expected = (ToolCall("get", '{"n":1}'), ToolCall("get", '{"n":2}'))
    assert observe("chat", [events(*both)], SSE).tool_calls == expected
    one = [fragment("a", "get", '{"n":'), fragment("b", "get", "1}")]
    assert observe("chat", [events(*one)], SSE).tool_calls == expected[:1]
    empty = [fragment("a", "now", ""), fragment("b", "now", ""), fragment("c", "get", '{"n":1}')]
    assert observe("chat", [events(*empty)], SSE).tool_calls == (ToolCall("now", ""), expected[0])
    nameless = [fragment(None, "get", '{"n":1}'), fragment(None, "now", "{}"), fragment(None, "ge", "")]
    assert observe("chat", [events(*nameless[:2])], SSE).tool_calls == (expected[0], ToolCall("now", "{}"))
    pieces = [nameless[2], fragment(None, "t", '{"n":'), fragment(None, None, "1}")]
    assert observe("chat", [events(*pieces)], SSE).tool_calls == expected[:1]
    items = [{"index": 0, "id": i, "function": {"name": "get", "arguments": f'{{"n":{i}}}'}} for i in "12"]
    whole = {"choices": [{"message": {"content": None, "tool_calls": items}, "finish_reason": "tool_calls"}]}
    assert observe("chat", [msgspec.json.encode(whole)], JSON).tool_calls == expected


@pytest.mark.parametrize("kind", ["server_tool_use", "mcp_tool_use"])
def test_the_input_of_a_tool_that_the_server_runs_is_no_call(kind: str) -> None:
    """The client gets nothing to do. It arrives in the same events as the input of the client's tools."""
    block = {"type": kind, "id": "s", "name": "web_search", "input": {}}
    delta = {"type": "input_json_delta", "partial_json": '{"query":"x"}'}
    frames = [
        {"type": "message_start", "message": {"content": []}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": "Found."}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    ]
    seen = observe("messages", [events(*frames, named=True, done=False)], SSE)
    assert (seen.tool_calls, seen.text, seen.complete) == ((), "Found.", True)


@pytest.mark.parametrize(
    ("api", "body"),
    [
        ("chat", {"choices": [{"message": {"content": None, "audio": {"id": "a", "data": "AA"}}}]}),
        ("chat", {"choices": [{"message": {"content": "", "images": [{"type": "image_url"}]}}]}),
        (
            "responses",
            {
                "object": "response",
                "status": "completed",
                "output": [
                    {"type": "message", "role": "assistant", "content": [{"type": "output_audio", "data": "AA"}]}
                ],
            },
        ),
        *(
            ("responses", {"object": "response", "status": "completed", "output": [{"type": kind, "id": "x"}]})
            for kind in (
                "image_generation_call",
                "computer_call",
                "shell_call",
                "apply_patch_call",
                "mcp_approval_request",
            )
        ),
    ],
)
def test_an_answer_may_have_neither_text_nor_calls_of_functions(api: Api, body: Any) -> None:
    seen = observe(api, [msgspec.json.encode(body)], JSON)
    assert (seen.other_output, seen.text, seen.tool_calls) == (True, "", ())


def test_half_of_a_character_is_one_odd_character() -> None:
    """A server writes it when a token ends within an emoji. Clients read it."""
    halves = events(chunk({"content": "a?"}), chunk({"content": "!"}, "stop"))
    halves = halves.replace(b"?", rb"\ud83d").replace(b"!", rb"\ude00")
    seen = observe("chat", [halves], SSE)
    assert (seen.text, seen.malformed, seen.complete) == ("a\ufffd\ufffd", None, True)
    whole = b'{"choices":[{"message":{"content":"\\ud83d"},"finish_reason":"stop"}]}'
    assert observe("chat", [whole], JSON).text == "\ufffd"
    assert observe("chat", [whole.replace(b":[", b":")], JSON).malformed == "not json"


def test_the_data_of_a_ping_is_not_read_where_clients_ignore_it() -> None:
    ping = b"event: ping\ndata: keep-alive\n\n"
    assert observe("messages", [ping + MESSAGE_SSE], SSE).complete
    assert observe("chat", [ping + CHAT_SSE], SSE).malformed == "not json"


def test_the_input_of_a_custom_tool_is_read_from_deltas() -> None:
    """The Responses API streams it with separate events."""
    item = {"type": "custom_tool_call", "name": "edit", "input": ""}
    frames = [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.custom_tool_call_input.delta", "output_index": 0, "delta": "*** Begin"},
        {"type": "response.custom_tool_call_input.delta", "output_index": 0, "delta": " Patch"},
        {"type": "response.output_item.done", "output_index": 0, "item": {**item, "input": "*** Begin Patch"}},
    ]
    assert observe("responses", [events(*frames, done=False)], SSE).tool_calls == (
        ToolCall("edit", "*** Begin Patch"),
    )


def test_several_choices_must_all_end() -> None:
    """The text is from choice 0, the finish is the worst one, and the answer is complete when all choices are."""
    one = [chunk({"content": "a"}, index=0), chunk({"content": "b"}, index=1)]
    half = observe("chat", [events(*one, chunk(finish="stop"))], SSE)
    assert (half.text, half.n_choices, half.finish, half.complete) == ("a", 2, None, False)
    cut = events(*one, chunk(finish="stop"), chunk(finish="length", index=1))
    full = observe("chat", [cut], SSE)
    assert (full.finish, full.complete) == ("length", True)


def test_usage_is_taken_from_wherever_it_comes() -> None:
    """Counts may be in the first, the last or every chunk. The latest count of each kind is used."""
    usage = {"usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    first = events({**chunk({"content": "a"}), **usage}, chunk(finish="stop"))
    every = events({**chunk({"content": "a"}), "usage": {"prompt_tokens": 7}}, {**chunk(), **usage})
    for body in (first, every):
        assert observe("chat", [body], SSE).usage == Usage(7, 2)
    odd = events({**chunk(), "usage": {"prompt_tokens": "7", "completion_tokens": -1}})
    assert observe("chat", [odd], SSE).usage is None


@pytest.mark.parametrize(
    ("api", "body", "refusal"),
    [
        ("chat", events(chunk({"refusal": "I "}), chunk({"refusal": "can't"}, "stop")), "I can't"),
        ("chat", events(chunk(finish="content_filter")), "content_filter"),
        (
            "messages",
            events({"type": "message_delta", "delta": {"stop_reason": "refusal"}}),
            "content_filter",
        ),
        ("responses", events({"type": "response.refusal.delta", "delta": "No"}), "No"),
    ],
)
def test_a_stated_refusal_is_no_text(api: Api, body: bytes, refusal: str) -> None:
    """Refusal fields, filters and stop reasons are not part of the answer's text."""
    seen = observe(api, [body], SSE)
    assert (seen.refusal, seen.text) == (refusal, "")


def test_a_label_that_contradicts_the_body_is_told() -> None:
    """The bytes decide how an answer is read. A wrong content type is reported, an absent one is not."""
    assert observe("chat", [CHAT_JSON], SSE).mislabelled
    assert observe("chat", [CHAT_SSE], JSON).mislabelled
    assert not observe("chat", [CHAT_SSE], None).mislabelled
    assert not observe("chat", [CHAT_JSON], "application/vnd.x+json").mislabelled
    assert observe("chat", [CHAT_JSON], SSE).text == CHAT.text


def test_tool_calls_without_an_index_are_told_apart_by_name() -> None:
    """Some servers send no index, and some repeat the name in each fragment."""
    first = {"tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}
    more = {"tool_calls": [{"function": {"arguments": "}"}}]}
    second = {"tool_calls": [{"function": {"name": "b", "arguments": "{}"}}]}
    body = events(chunk(first), chunk(more), chunk(second))
    assert observe("chat", [body], SSE).tool_calls == (ToolCall("a", "{}"), ToolCall("b", "{}"))
    body = events(chunk(call(0, "{", "a")), chunk(call(0, "}", "a")))
    assert observe("chat", [body], SSE).tool_calls == (ToolCall("a", "{}"),)


def test_early_facts_cost_nothing_and_come_with_the_frames() -> None:
    """Role and reasoning deltas are frames without answer text."""
    reader = AnswerReader("chat", SSE)
    reader.feed(events(chunk({"role": "assistant"}), chunk({"reasoning": "hm"}), done=False))
    assert (reader.frames, reader.text_chars) == (2, 0)
    reader.feed(events(chunk({"content": "abc"}), done=False))
    assert (reader.frames, reader.text_chars) == (3, 3)
    assert reader.observation().mean_logprob is None


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_event_streams_follow_the_whatwg_rules(end: bytes) -> None:
    """Comments, names, several data lines, one optional space, and no frame without a blank line."""
    lines = [b"\xef\xbb\xbf: hi", b"event: x", b"data:  a", b"data", b"data:b:c", b"id: 1", b""]
    lines += [b"event: lost", b"", b"data: d", b"", b"data: unended"]
    body = end.join(lines) + end
    expected = [("x", b" a\n\nb:c"), ("", b"d")]
    assert list(EventStream(100).feed(body)) == expected
    stream = EventStream(100)
    one_by_one = [f for i in range(len(body)) for f in stream.feed(body[i : i + 1])]
    assert one_by_one == expected


def test_the_limit_of_a_frame_does_not_depend_on_how_it_is_cut() -> None:
    """A frame that comes whole has the same limit as one that comes byte by byte."""
    for length, why in ((1999, None), (2000, "frame too large"), (2001, "frame too large")):
        empty = b"data: " + msgspec.json.encode({"choices": [], "id": ""})
        body = b": hi\n\n" + empty[:-2] + b"x" * (length - len(empty)) + empty[-2:] + b"\n\n"
        for size in (1, 7, 4096):
            pieces = [b": hi\n\n", *(body[i : i + size] for i in range(6, len(body), size))]
            assert observe("chat", pieces, "text/event-stream", max_frame_bytes=2000).malformed == why


def test_one_frame_and_all_that_is_kept_are_bounded() -> None:
    """A frame, a line, a JSON answer or a stream above its limit is malformed, so it cannot fill the memory."""
    big = events(chunk({"content": "x" * 3000}), done=False)
    for body, why in [
        (big, "frame too large"),
        (b"data: " + b"x" * 3000, "frame too large"),
        (b":" + b"x" * 3000, "frame too large"),
        (b"data:\n" * 500, "frame too large"),
        (CHAT_JSON + b" " * 3000, "frame too large"),
        (events(*[chunk({"content": "x" * 500})] * 5), "answer too large"),
        (events(*[chunk(call(i, "")) for i in range(50)]), "answer too large"),
    ]:
        for size in (1, 7, 4096):
            pieces = [body[i : i + size] for i in range(0, len(body), size)]
            limits = {"max_frame_bytes": 2000, "max_kept_chars": 2000}
            assert observe("chat", pieces, None, **limits).malformed == why


class _CountingBuffer(bytearray):
    """Counts the bytes that are appended to a buffered line, and the bytes that are copied out of it."""

    moved = 0

    def __iadd__(self, piece: Any) -> "_CountingBuffer":  # type: ignore[misc]
        self.moved += len(piece)
        super().__iadd__(piece)
        return self

    def __bytes__(self) -> bytes:
        self.moved += len(self)
        return bytes(memoryview(self))


@pytest.mark.parametrize("size", [1, 997, 65536])
def test_a_long_stream_costs_linear_work(size: int) -> None:
    """In pieces of any size, each byte of 10 MB moves through the line buffer at most twice."""
    total = 10_000_000 if size > 1 else 1_000_000
    frame = events(chunk({"content": "word " * 200}), done=False)
    body = frame * (total // len(frame))
    stream = EventStream(1 << 20)
    buffer = stream._line = _CountingBuffer()
    frames = sum(1 for i in range(0, len(body), size) for _ in stream.feed(body[i : i + size]))
    assert frames == total // len(frame)
    assert buffer.moved <= 2 * len(body)


def test_a_ten_megabyte_answer_is_kept_whole() -> None:
    """A long stream is kept whole, and bytes after the ending are ignored."""
    words = [chunk({"content": "x" * 1000}) for _ in range(10_000)]
    body = events(*words, chunk(finish="stop")) + b"data: {oops\n\n"
    pieces = [body[i : i + 1000] for i in range(0, len(body), 1000)]
    seen = observe("chat", pieces, SSE)
    assert (len(seen.text), seen.complete, seen.malformed) == (10_000_000, True, None)


# Members of a chunk, of its choice and of its delta, and values for each of them. Some are read, others ignored.
_TOOLS = [{"index": 0, "function": {"name": "f"}}]
_ODD: dict[str, tuple[tuple[str, ...], tuple[Any, ...]]] = {
    "delta": (
        ("content", "reasoning_content", "reasoning", "refusal", "role", "tool_calls"),
        ("hm", "", None, 7, ["x"], {"a": 1}, [], _TOOLS),
    ),
    "choice": (
        ("logprobs", "error", "stop_reason", "text", "index", "finish_reason"),
        (None, 0, 1, -1, 0.0, True, "stop", {"content": [{"logprob": -1}]}),
    ),
    "chunk": (
        ("usage", "error", "object", "type", "model", "id", "created", "choices"),
        (None, "error", "m2", 7, 7.5, [], {"prompt_tokens": 3}),
    ),
}


@pytest.mark.parametrize("place", _ODD)
def test_a_plain_chunk_reads_like_any_other(place: str) -> None:
    """A frame that only adds text is read in one step. It says the same if it is read member by member."""
    names, values = _ODD[place]
    for name, value in itertools.product(names, values):
        plain, odd = chunk({"content": "first "}), chunk({"content": "second "})
        parts = {"delta": odd["choices"][0]["delta"], "choice": odd["choices"][0], "chunk": odd}
        parts[place][name] = value
        stream = events(plain, odd, chunk({"content": "third"}), chunk(finish="stop"))
        by_members = stream.replace(b"data: ", b"event: message\ndata: ")  # a frame with a name is not plain
        assert observe("chat", [stream], SSE) == observe("chat", [by_members], SSE), (name, value)


def test_only_a_plain_chunk_is_read_in_one_step() -> None:
    """All others are left as they are, and nothing of them is read."""
    for frame, text in (
        (chunk({"content": "hm", "role": "assistant"}), "hm"),
        (chunk({"content": None, "reasoning_content": "hm"}), ""),
        (chunk({"content": "hm"}, system_fingerprint="f"), None),
        (chunk({"content": "hm"}, finish="stop"), None),
        (chunk({"content": "hm"}, index=1), None),
        ({**chunk({"content": "hm"}), "usage": CHAT_USAGE}, None),
        ({**chunk({"content": "hm"}), "object": "error"}, None),
        ({"choices": []}, None),
    ):
        answer = GatheredAnswer(1000)
        assert read_plain_chunk(answer, msgspec.json.encode(frame)) == (text is not None)
        assert ("".join(answer.text), answer.finishes) == (text or "", {0: None} if text is not None else {})
    assert not read_plain_chunk(GatheredAnswer(1000), b"{half a fr")
