"""Model servers on raw sockets that fail as each request asks, and a client that checks every answer.

A request has its script in `metadata`: an id, and the behaviour of each tier (one of `FAULTS`). Every answer names
its tier and the id. So a test can compare the bytes that a client received with those that a tier sent.
"""

import asyncio
import contextlib
import gzip
import itertools
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from extproc.demo.loop_thread import LoopThread
from extproc.demo.sample_upstream import Received
from extproc.demo.stack import Stack

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
MODELS = {"dead": "dead-1", "small": "qwen3-8b", "large": "qwen3-32b", "frontier": "frontier-1"}
# An early judgement sends the stream on after 200 characters, which is about half of this.
SHORT, LONG = 6, 160
STALL_S, SLOW_S = 60.0, 0.8
# Before a fault that must not overtake what was sent. A busy machine needs the time to judge it and let it go.
BEFORE_FAULT_S = 0.3
_ids = itertools.count(1)

# Each cohort gets one of these subjects, so that its requests match no other cohort.
_SUBJECTS = (
    ("Extract the vendor and total from this invoice", "Pull the due date out of the invoice",
     "Which amount is billed on this invoice?", "List the positions of the attached invoice"),
    ("Prove that the product of two even numbers is even", "Solve the quadratic equation for x",
     "Show that 17 is a prime number", "Compute the integral of the sine function"),
    ("How long do I roast a chicken?", "A recipe for tomato soup with basil",
     "Which spices go into a curry?", "How do I knead dough for bread?"),
    ("Will it rain in Lisbon tomorrow?", "What is the weather forecast for the weekend?",
     "How strong is the wind today?", "Is a thunderstorm coming tonight?"),
    ("Who won the football match last night?", "When is the next football cup final?",
     "How many goals did the striker score?", "Explain the offside rule in football"),
    ("Write a Python function that reverses a list", "Fix the null pointer bug in my Java code",
     "Explain this SQL query with two joins", "Refactor this C++ class"),
    ("Which symptoms does the flu have?", "How is a broken arm treated in hospital?",
     "What does high blood pressure do to the heart?", "When should a fever be seen by a doctor?"),
    ("How far away is the planet Saturn?", "Why do stars twinkle at night?",
     "What is a black hole in a galaxy?", "When is the next solar eclipse?"),
    ("How do I prune roses in the garden?", "When should tulips be planted?",
     "My tomato plants have yellow leaves", "Which hedge grows fast in the shade?"),
    ("Teach me the chords of this song on guitar", "Who composed the fifth symphony?",
     "What is the tempo of a waltz?", "Recommend a jazz album with piano"),
    ("Is this contract clause enforceable in court?", "Can my landlord lawfully evict me?",
     "What are the legal duties of an employer?", "How do I appeal against a court judgment?"),
    ("Book a flight from Lisbon to Oslo", "Which train goes to Vienna tonight?",
     "Find me a hotel near the airport", "How much luggage may I take on the plane?"),
    ("My dog will not stop barking", "What should a kitten eat?",
     "How often do I walk a puppy?", "Why does my cat scratch the sofa?"),
    ("Paint the living room walls white", "Which colour of paint suits a kitchen?",
     "How do I remove old wallpaper?", "How long must wall paint dry?"),
    ("How do I knit a warm scarf?", "Which wool is best for socks?",
     "My crochet hook is too small for this yarn", "How do I sew a button on a coat?"),
    ("What is the chess opening after e4 e5?", "Can a pawn become a queen in chess?",
     "Who is the world champion of chess?", "When is a chess game a draw?"),
)  # fmt: skip


def write_intents(
    folder: Path, cohorts: Mapping[str, str], policy: str = "", deadline_ms: int = 20_000
) -> dict[str, str]:
    """Write intents with these settings. Return a prompt for each that is certain to match it."""
    folder.mkdir(parents=True, exist_ok=True)
    tiers = "".join(
        f"  - {{name: {name}, url: 'http://{name}:80', model: {model}, context: 10000000, "
        f"price: {{input: 1, output: 1}}, reasoning: {'openai' if name == 'frontier' else 'qwen3'}}}\n"
        for name, model in MODELS.items()
    )
    # A test machine can be slow. With a long deadline no request falls back to the default tier.
    encoder = f"encoder: {{deadline_ms: {deadline_ms}}}\n"
    (folder / "policy.yaml").write_text(f"version: 1\ndefault_tier: large\n{encoder}{policy}tiers:\n{tiers}")
    prompts = {}
    for (name, settings), said in zip(cohorts.items(), _SUBJECTS[: len(cohorts)], strict=True):
        lines = "".join(f'  - "{utterance}"\n' for utterance in said)
        (folder / f"{name}.yaml").write_text(f"intent: {name}\nfloor: -1\n{settings}\nutterances:\n{lines}")
        prompts[name] = said[0]
    return prompts


def new_id() -> str:
    return f"id{next(_ids):06d}"


def text_of(tier: str, request_id: str, words: int) -> str:
    """Return the text of `tier`'s answer to a request."""
    return f"The {tier} model answers {request_id}: " + " ".join(f"{request_id}w{i}" for i in range(words))


def body_of(path: str, prompt: str, stream: bool, script: Mapping[str, Any], **more: Any) -> bytes:
    """Return a request with its script. The script needs an id."""
    said: dict[str, Any] = {"input": prompt}
    if path != RESPONSES:
        said = {"messages": [{"role": "user", "content": prompt}]}
    if path == MESSAGES:
        said["max_tokens"] = 1000
    return msgspec.json.encode({"model": "auto", **said, "stream": stream, "metadata": dict(script), **more})


# --- answers of healthy servers -----------------------------------------------------------------------------


def whole_of(path: str, model: str, said: str, calls: Any = None) -> bytes:
    """Return an answer as JSON."""
    if path == RESPONSES:
        return msgspec.json.encode(_response(model, said))
    if path == MESSAGES:
        return msgspec.json.encode(_message(model, [{"type": "text", "text": said}], "end_turn"))
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else said}
    if calls:
        message["tool_calls"] = _tool_calls(calls)
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    return msgspec.json.encode(_chat(model, "chat.completion", choice) | {"usage": {"prompt_tokens": 1}})


def frames_of(path: str, model: str, said: str, calls: Any = None) -> list[bytes]:
    """Return an answer as a stream. The last frame is the ending, and the one before has the finish reason."""
    words = [f"{word} " for word in said.split(" ")]
    words[-1] = words[-1].removesuffix(" ")
    if path == RESPONSES:
        whole = _response(model, said)
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": whole | {"status": "in_progress", "output": []}},
            *({"type": "response.output_text.delta", "output_index": 0, "delta": w} for w in words),
            {"type": "response.output_text.done", "text": said},
            {"type": "response.completed", "response": whole},
        ]
        return [_named(event) for event in events]
    if path == MESSAGES:
        events = [
            {"type": "message_start", "message": _message(model, [], None)},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": w}}
                for w in words
            ),
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 8}},
            {"type": "message_stop"},
        ]  # fmt: skip
        return [_named(event) for event in events]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"tool_calls": _tool_calls(calls)}] if calls else [{"content": w} for w in words]
    choices: list[Any] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else "stop"})
    return [*(_data(_chat(model, "chat.completion.chunk", choice)) for choice in choices), b"data: [DONE]\n\n"]


def _chat(model: str, kind: str, choice: Any) -> dict[str, Any]:
    return {"id": f"chatcmpl-{model}", "object": kind, "created": 0, "model": model, "choices": [choice]}


def _response(model: str, said: str) -> dict[str, Any]:
    content = {"type": "output_text", "text": said, "annotations": []}
    output = {"id": "m1", "type": "message", "role": "assistant", "status": "completed", "content": [content]}
    return {"id": "r1", "object": "response", "model": model, "status": "completed", "output": [output]}


def _message(model: str, content: list[Any], stop: str | None) -> dict[str, Any]:
    return {"id": "m1", "type": "message", "role": "assistant", "model": model, "content": content,
            "stop_reason": stop, "usage": {"input_tokens": 1, "output_tokens": 1}}  # fmt: skip


def _tool_calls(calls: Mapping[str, str]) -> list[Any]:
    return [
        {"index": i, "id": f"call{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls.items())
    ]


def _data(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _named(value: Mapping[str, Any]) -> bytes:
    return f"event: {value['type']}\n".encode() + _data(value)


# --- the servers --------------------------------------------------------------------------------------------


class Scripted:
    """One request at one tier, with methods that answer it in any way."""

    def __init__(self, servers: "FaultyUpstreams", tier: str, path: str, body: bytes, writer: asyncio.StreamWriter):
        asked = msgspec.json.decode(body)
        script = asked.get("metadata") or {}
        self.tier, self.path, self.writer, self.servers = tier, path, writer, servers
        self.stream = bool(asked.get("stream"))
        self.id = str(script.get("id", "none"))
        doing = script.get(tier, "fine")
        again = len(servers.attempts(self.id, tier)) - 1
        self.does = doing if isinstance(doing, str) else doing[min(again, len(doing) - 1)]
        said = (script.get("say") or {}).get(tier)
        self.words = int(script.get("words", SHORT))
        self.said = said if said is not None else text_of(tier, self.id, self.words)
        self.calls = (script.get("calls") or {}).get(tier)
        self.whole = whole_of(path, MODELS[tier], self.said, self.calls)
        self.frames = frames_of(path, MODELS[tier], self.said, self.calls)
        self.written: list[str] = script.get("written") or []
        if script.get("logprobs"):  # of one token in each frame
            found = b'"finish_reason":', b'"logprobs":{"content":[{"token":"t","logprob":-0.5}]},"finish_reason":'
            self.whole, self.frames = self.whole.replace(*found), [frame.replace(*found) for frame in self.frames]
        self.closed = False
        self.sent = bytearray()  # the body, as a client should see it
        servers.sent.setdefault((self.id, tier), []).append(self.sent)

    @property
    def type(self) -> str:
        return "text/event-stream" if self.stream else "application/json"

    def head(self, kind: str | None = None, status: int = 200, **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-type: {kind or self.type}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def send(self, body: bytes, kind: str | None = None, status: int = 200, **headers: str) -> None:
        """Send a whole answer with its length."""
        self.head(kind, status, content_length=str(len(body)), **headers)
        self.sent += body
        self.writer.write(body)
        await self.writer.drain()

    def open(self, kind: str | None = None, **headers: str) -> None:
        self.head(kind, 200, transfer_encoding="chunked", **headers)

    async def chunk(self, body: bytes) -> None:
        self.sent += body
        self.writer.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
        await self.writer.drain()

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def answer(self, frames: list[bytes] | None = None, pause_s: float = 0.0) -> None:
        """Send the whole answer as JSON or as a stream, or send these frames and a proper end."""
        if not self.stream and frames is None:
            return await self.send(self.whole)
        self.open()
        *first, last = [b""] if frames == [] else frames or self.frames
        for frame in first:
            await self.chunk(frame)
            await asyncio.sleep(pause_s)
        if frames is not None:
            await asyncio.sleep(0.3)  # the fault comes last, after the client has read the rest
        if last:
            await self.chunk(last)
        await self.end()

    async def part(self) -> None:
        """Send about half of the answer. Its framing promises more."""
        if not self.stream:
            half = self.whole[: len(self.whole) // 2]
            self.head(content_length=str(len(self.whole)))
            self.sent += half
            self.writer.write(half)
        else:
            self.open()
            for frame in self.frames[: len(self.frames) // 2]:
                await self.chunk(frame)
        await self.writer.drain()
        await asyncio.sleep(BEFORE_FAULT_S)

    def reset(self) -> None:
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        self.closed = True

    def close(self) -> None:
        self.writer.close()
        self.closed = True


class FaultyUpstreams:
    """One scripted server for each tier, in one thread. A context manager. The tier `dead` refuses connections."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self.received: list[Received] = []
        self.sent: dict[tuple[str, str], list[bytearray]] = {}  # (id, tier) -> the body of each attempt
        self.gone: set[tuple[str, str]] = set()  # (id, tier) of connections that Envoy closed early
        self.released: set[str] = set()
        self._attempts: dict[tuple[str, str], list[Received]] = {}
        self._arrived: dict[str, list[Received]] = {}
        self._refusing = socket.socket()  # bound, but never listens
        self._loop = LoopThread("faulty")
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    def __enter__(self) -> "FaultyUpstreams":
        self._refusing.bind(("127.0.0.1", 0))
        self.ports["dead"] = self._refusing.getsockname()[1]
        self._loop.start()
        self._loop.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self._stop())
        self._loop.stop()
        self._refusing.close()

    def attempts(self, request_id: str, tier: str | None = None) -> list[Received]:
        """Return the requests that arrived with an id, in order."""
        if tier is not None:
            return self._attempts.get((request_id, tier), [])
        return list(self._arrived.get(request_id, []))

    def forget(self, request_id: str) -> None:
        """Drop the records of an id. A long run cannot keep all of them."""
        for tier in MODELS:
            self.sent.pop((request_id, tier), None)
            self._attempts.pop((request_id, tier), None)
        self._arrived.pop(request_id, None)
        if len(self.received) > 10_000:
            self.received.clear()

    def release(self, request_id: str) -> None:
        """Let the requests with this id that wait continue."""
        self.released.add(request_id)

    async def _start(self) -> None:
        for tier in MODELS:
            if tier == "dead":
                continue
            server = await asyncio.start_server(self._serving(tier), "127.0.0.1", 0, limit=2**24, backlog=1024)
            self._servers.append(server)
            self.ports[tier] = server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _serving(self, tier: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                while await self._one(tier, reader, writer):
                    pass
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                self._tasks.discard(task)
                with contextlib.suppress(ConnectionError, RuntimeError):
                    writer.close()

        return serve

    async def _one(self, tier: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
        path = head[0].split(" ")[1]
        body = await _body(reader, headers)
        received = Received(tier, path, headers, body)
        self.received.append(received)
        script = msgspec.json.decode(body).get("metadata") or {}
        request_id = str(script.get("id", "none"))
        self._attempts.setdefault((request_id, tier), []).append(received)
        self._arrived.setdefault(request_id, []).append(received)
        scripted = Scripted(self, tier, path.partition("?")[0], body, writer)
        doing = asyncio.ensure_future(FAULTS[scripted.does](scripted))
        # The client sends nothing until it has the answer. So bytes or an end of file mean that it has hung up.
        listening = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({doing, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done() and (listening.exception() is not None or not listening.result()):
                self.gone.add((scripted.id, tier))
                return False
            await doing
        finally:
            for task in (doing, listening):
                if not task.done():
                    task.cancel()
            await asyncio.gather(doing, listening, return_exceptions=True)
        return not scripted.closed and not writer.is_closing()


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "chunked" in headers.get("transfer-encoding", ""):
        pieces = []
        while size := int((await reader.readline()).split(b";")[0], 16):
            pieces.append(await reader.readexactly(size))
            await reader.readline()
        await reader.readline()
        return b"".join(pieces)
    return await reader.readexactly(int(headers.get("content-length", "0")))


# --- faults that a script can ask for -----------------------------------------------------------------------

FAULTS: dict[str, Callable[[Scripted], Awaitable[None]]] = {}


def fault(act: Callable[[Scripted], Awaitable[None]]) -> Callable[[Scripted], Awaitable[None]]:
    FAULTS[act.__name__] = act
    return act


@fault
async def fine(x: Scripted) -> None:
    await x.answer()


@fault
async def slow_first_token(x: Scripted) -> None:
    if x.stream:
        x.open()
    await asyncio.sleep(SLOW_S)
    if not x.stream:
        return await x.answer()
    for frame in x.frames:
        await x.chunk(frame)
    await x.end()


@fault
async def slow_headers(x: Scripted) -> None:
    await asyncio.sleep(SLOW_S)
    await x.answer()


@fault
async def trickled(x: Scripted) -> None:
    """One byte in each chunk, and valid."""
    whole = b"".join(x.frames) if x.stream else x.whole
    x.open()
    for i in range(len(whole)):
        await x.chunk(whole[i : i + 1])
    await x.end()


@fault
async def hints_first(x: Scripted) -> None:
    """An informational response comes before the real one."""
    x.writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n")
    await x.answer()


@fault
async def with_trailers(x: Scripted) -> None:
    x.open()
    for frame in x.frames if x.stream else [x.whole]:
        await x.chunk(frame)
    x.writer.write(b"0\r\nx-late: yes\r\n\r\n")
    await x.writer.drain()


@fault
async def until_close(x: Scripted) -> None:
    """As in HTTP/1.0: no length and no chunks, and the answer ends when the connection closes."""
    x.head(connection="close")
    body = b"".join(x.frames) if x.stream else x.whole
    x.sent += body
    x.writer.write(body)
    await x.writer.drain()
    x.close()


@fault
async def reset_before_headers(x: Scripted) -> None:
    x.reset()


@fault
async def closed_before_headers(x: Scripted) -> None:
    x.close()


@fault
async def reset_after_headers(x: Scripted) -> None:
    x.open()
    await x.writer.drain()
    await asyncio.sleep(0.1)
    x.reset()


async def _status(x: Scripted, status: int) -> None:
    await x.send(msgspec.json.encode({"error": {"message": "no", "code": status}}), "application/json", status)


@fault
async def status_400(x: Scripted) -> None:
    await _status(x, 400)


@fault
async def status_429(x: Scripted) -> None:
    await _status(x, 429)


@fault
async def status_500(x: Scripted) -> None:
    await _status(x, 500)


@fault
async def status_503(x: Scripted) -> None:
    await _status(x, 503)


@fault
async def no_headers_in_time(x: Scripted) -> None:
    await asyncio.sleep(STALL_S)


@fault
async def no_body_in_time(x: Scripted) -> None:
    x.open()
    await x.writer.drain()
    await asyncio.sleep(STALL_S)


@fault
async def stalled_midway(x: Scripted) -> None:
    await x.part()
    await asyncio.sleep(STALL_S)


@fault
async def empty_content(x: Scripted) -> None:
    x.frames = frames_of(x.path, MODELS[x.tier], "")
    x.whole = whole_of(x.path, MODELS[x.tier], "")
    await x.answer()


@fault
async def null_content(x: Scripted) -> None:
    x.whole = whole_of(x.path, MODELS[x.tier], "%").replace(b'"%"', b"null")
    x.frames = [x.frames[0], *x.frames[-2:]]
    await x.answer()


@fault
async def no_body(x: Scripted) -> None:
    await x.send(b"")


@fault
async def no_content(x: Scripted) -> None:
    """A success that says that there is no answer."""
    x.head(status=204)
    await x.writer.drain()


@fault
async def html(x: Scripted) -> None:
    await x.send(b"<!doctype html><html><body>Service temporarily busy</body></html>", "text/html")


@fault
async def html_as_asked(x: Scripted) -> None:
    """An HTML page with the content type that the client asked for."""
    await x.send(b"<!doctype html><html><body>Service temporarily busy</body></html>")


@fault
async def truncated_json(x: Scripted) -> None:
    """The length is right, but the JSON is truncated."""
    await x.send(x.whole[: len(x.whole) // 2])


@fault
async def truncated_json_chunked(x: Scripted) -> None:
    x.open()
    await x.chunk(x.whole[: len(x.whole) // 2])
    await x.end()


@fault
async def length_too_long(x: Scripted) -> None:
    """The announced length is longer than the body."""
    body = b"".join(x.frames) if x.stream else x.whole
    x.head(content_length=str(len(body) + 100))
    x.sent += body
    x.writer.write(body)
    await x.writer.drain()
    await asyncio.sleep(BEFORE_FAULT_S)
    x.close()


@fault
async def length_too_short(x: Scripted) -> None:
    """The announced length ends the body in its middle."""
    body = b"".join(x.frames) if x.stream else x.whole
    x.head(content_length=str(len(body) // 2))
    x.sent += body[: len(body) // 2]
    x.writer.write(body)
    await x.writer.drain()
    x.close()


@fault
async def cut_before_first_token(x: Scripted) -> None:
    x.open()
    await x.writer.drain()
    await asyncio.sleep(0.1)
    x.close()


@fault
async def no_event_at_all(x: Scripted) -> None:
    """A stream that ends properly and has no event."""
    await x.answer([])


@fault
async def only_done(x: Scripted) -> None:
    await x.answer(x.frames[-1:])


@fault
async def cut_midway(x: Scripted) -> None:
    await x.part()
    x.close()


@fault
async def reset_midway(x: Scripted) -> None:
    await x.part()
    x.reset()


@fault
async def ended_midway(x: Scripted) -> None:
    """Half of the frames, then a proper end of the body, without finish reason and ending."""
    await x.answer(x.frames[: len(x.frames) // 2])


@fault
async def ended_in_a_frame(x: Scripted) -> None:
    frames = x.frames[: len(x.frames) // 2]
    await x.answer([*frames[:-1], frames[-1][: len(frames[-1]) // 2]])


@fault
async def without_ending(x: Scripted) -> None:
    """The whole answer with its finish reason, but without [DONE], message_stop or response.completed."""
    await x.answer(x.frames[:-1])


@fault
async def ending_without_finish(x: Scripted) -> None:
    """Half of the answer, and then [DONE]."""
    await x.answer([*x.frames[: len(x.frames) // 2], x.frames[-1]])


def _error_frame(x: Scripted) -> bytes:
    error = {"message": "overloaded", "type": "server_error", "code": "overloaded"}
    if x.path == CHAT:
        return _data({"error": error})
    return _named({"type": "error", "error": error})


@fault
async def error_event_first(x: Scripted) -> None:
    await x.answer([_error_frame(x)])


@fault
async def error_event_midway(x: Scripted) -> None:
    await x.answer([*x.frames[: len(x.frames) // 2], _error_frame(x)])


@fault
async def error_event_then_done(x: Scripted) -> None:
    await x.answer([*x.frames[: len(x.frames) // 2], _error_frame(x), x.frames[-1]])


@fault
async def error_in_200(x: Scripted) -> None:
    await x.send(
        msgspec.json.encode({"error": {"message": "overloaded", "code": "overloaded"}}), "application/json"
    )


@fault
async def other_framing(x: Scripted) -> None:
    """JSON if the client asked for a stream, and a stream if it asked for JSON."""
    if x.stream:
        await x.send(x.whole, "application/json")
    else:
        x.open("text/event-stream")
        for frame in x.frames:
            await x.chunk(frame)
        await x.end()


@fault
async def wrong_type(x: Scripted) -> None:
    """The right answer with a content type that clients do not read."""
    await x.send(b"".join(x.frames) if x.stream else x.whole, "text/plain")


@fault
async def gzipped(x: Scripted) -> None:
    await x.send(gzip.compress(b"".join(x.frames) if x.stream else x.whole), content_encoding="gzip")


@fault
async def brotlied(x: Scripted) -> None:
    """An encoding that the verifier does not decode: Brotli, which stores a short text between marks."""
    body = (b"".join(x.frames) if x.stream else x.whole)[:16]
    await x.send(bytes([0x0B, 0x80 | (len(body) - 1) // 2]) + body + b"\x03", content_encoding="br")


@fault
async def no_json(x: Scripted) -> None:
    if x.stream:
        await x.answer([x.frames[0], b"data: {oops\n\n", *x.frames[1:]])
    else:
        await x.send(b"Answer: " + x.whole)


@fault
async def refuses(x: Scripted) -> None:
    said = f"I'm sorry, but I can't help with that request, {x.id}."
    x.whole, x.frames = whole_of(x.path, MODELS[x.tier], said), frames_of(x.path, MODELS[x.tier], said)
    await x.answer()


@fault
async def refuses_late(x: Scripted) -> None:
    """The answer refuses in its first words and then continues for long, so it is stopped early or never."""
    said = f"I'm sorry, but I can't help with that request, {x.id}. " + "word " * x.words
    x.frames = frames_of(x.path, MODELS[x.tier], said)
    await x.answer(pause_s=0.03)


@fault
async def forged(x: Scripted) -> None:
    await _forged(x, {"x-cascade-verdict": "escalate", "x-cascade-reason": "forged", "x-router-tier": "forged"})


async def _forged(x: Scripted, headers: dict[str, str]) -> None:
    body = b"".join(x.frames) if x.stream else x.whole
    await x.send(body, None, 200, **{name.replace("-", "_"): value for name, value in headers.items()})


@fault
async def gated(x: Scripted) -> None:
    """Send nothing until the test releases the request."""
    await _released(x)
    await x.answer()


@fault
async def gated_refusal(x: Scripted) -> None:
    await _released(x)
    await refuses(x)


@fault
async def gated_midway(x: Scripted) -> None:
    """Send half of the answer, and the rest when the test releases the request."""
    half = len(x.frames) // 2
    if not x.stream:
        x.head(content_length=str(len(x.whole)))
        pieces = [x.whole[: len(x.whole) // 2], x.whole[len(x.whole) // 2 :]]
        for i, piece in enumerate(pieces):
            x.sent += piece
            x.writer.write(piece)
            await x.writer.drain()
            if i == 0:
                await _released(x)
        return
    x.open()
    for frame in x.frames[:half]:
        await x.chunk(frame)
    await _released(x)
    for frame in x.frames[half:]:
        await x.chunk(frame)
    await x.end()


@fault
async def as_written(x: Scripted) -> None:
    """Send the first text of the script, and each of the others in a chunk when the test releases the request."""
    first, *others = x.written
    x.open()
    await x.chunk(first.encode())
    await _released(x)
    for text in others:
        await x.chunk(text.encode())
    await x.end()


@fault
async def paced(x: Scripted) -> None:
    await x.answer(pause_s=0.01)


async def _released(x: Scripted) -> None:
    deadline = time.monotonic() + STALL_S
    while x.id not in x.servers.released and time.monotonic() < deadline:
        await asyncio.sleep(0.01)


# --- the client ---------------------------------------------------------------------------------------------


class Wire(msgspec.Struct):
    """The bytes of an answer. `fault` is how the transfer failed: refused, reset, truncated, malformed or hang."""

    status: int = 0
    headers: dict[str, str] = {}
    body: bytes = b""
    fault: str | None = None


class Reading(msgspec.Struct):
    """An answer as a strict client reads it. Each problem is one that the client would report to its user."""

    text: str = ""
    calls: dict[str, str] = {}
    problems: list[str] = []


async def post(
    port: int, path: str, body: bytes, headers: Mapping[str, str] | None = None, within_s: float = 90.0,
    cancel_after_s: float | None = None,
) -> Wire:  # fmt: skip
    """Send a request and read its answer to the end, or hang up after some seconds."""
    wire = Wire()
    writer = None
    try:
        async with asyncio.timeout(cancel_after_s if cancel_after_s is not None else within_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
            lines = ["content-type: application/json", f"content-length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in ({"host": "router"} | dict(headers or {})).items()]
            writer.write(f"POST {path} HTTP/1.1\r\n".encode() + "\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            await writer.drain()
            await _receive(reader, wire)
    except TimeoutError:
        wire.fault = "hang" if cancel_after_s is None else "cancelled"
    except asyncio.IncompleteReadError as error:
        wire.fault = "truncated"
        wire.body += error.partial
    except ConnectionRefusedError:
        wire.fault = "refused"
    except ConnectionError:
        wire.fault = "reset"
    except ValueError as error:
        wire.fault = f"malformed: {error}"
    finally:
        if writer is not None:
            writer.transport.abort()
    return wire


async def _receive(reader: asyncio.StreamReader, wire: Wire) -> None:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, status, *_ = head[0].split(" ")
        if version != "HTTP/1.1":
            raise ValueError("version")
        if not 100 <= int(status) < 200:
            break
    wire.status = int(status)
    for line in filter(None, head[1:]):
        name, colon, value = line.partition(":")
        if not colon or name.lower() in wire.headers:
            raise ValueError(f"header {line!r}")
        wire.headers[name.lower()] = value.strip()
    if wire.status == 204:
        return
    length, coding = wire.headers.get("content-length"), wire.headers.get("transfer-encoding")
    if (length is None) == (coding is None):
        raise ValueError("no single framing of the body")
    if length is not None:
        wire.body = await reader.readexactly(int(length))
        return
    if coding != "chunked":
        raise ValueError("transfer-encoding")
    while True:
        size_line = await reader.readline()
        if not size_line.endswith(b"\r\n"):
            raise asyncio.IncompleteReadError(b"", None)
        size = int(size_line, 16)
        if size == 0:
            break
        wire.body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise ValueError("chunk")
    while (trailer := await reader.readline()) != b"\r\n":
        if not trailer.endswith(b"\r\n"):
            raise asyncio.IncompleteReadError(b"", None)


def read(wire: Wire, path: str, stream: bool) -> Reading:
    """Read an answer with status 200 like the strictest client of its API."""
    reading = Reading()
    if wire.fault is not None:
        reading.problems.append(wire.fault)
    if wire.status != 200:
        reading.problems.append(f"status {wire.status}")
        return reading
    body = wire.body
    if wire.headers.get("content-encoding") == "gzip":  # what most clients read, whether or not they asked for it
        body = gzip.decompress(body)
    elif wire.headers.get("content-encoding", "identity") != "identity":
        reading.problems.append("compressed")
        return reading
    wanted = "text/event-stream" if stream else "application/json"
    if wire.headers.get("content-type", "").partition(";")[0] != wanted:
        reading.problems.append(f"content-type {wire.headers.get('content-type')}")
    try:
        _read_stream(body, path, reading) if stream else _read_whole(body, path, reading)
    except (msgspec.MsgspecError, KeyError, TypeError, IndexError, ValueError) as error:
        reading.problems.append(f"unreadable: {type(error).__name__}")
    return reading


def _read_whole(body: bytes, path: str, reading: Reading) -> None:
    answer = msgspec.json.decode(body)
    if answer.get("error"):
        reading.problems.append("error")
    elif path == RESPONSES:
        _finished(reading, answer["status"] == "completed")
        reading.text = answer["output"][0]["content"][0]["text"]
    elif path == MESSAGES:
        _finished(reading, answer["stop_reason"] == "end_turn")
        reading.text = answer["content"][0]["text"]
    else:
        choice = answer["choices"][0]
        _finished(reading, choice["finish_reason"] in ("stop", "tool_calls"))
        reading.text = choice["message"]["content"] or ""
        _take_calls(reading, choice["message"].get("tool_calls") or [])


def _finished(reading: Reading, finished: bool) -> None:
    if not finished:
        reading.problems.append("unfinished")


def _take_calls(reading: Reading, calls: list[Any]) -> None:
    for call in calls:
        reading.calls[call["function"]["name"]] = call["function"]["arguments"]


def _read_stream(body: bytes, path: str, reading: Reading) -> None:
    *frames, rest = body.split(b"\n\n")
    if rest:
        reading.problems.append("a frame without its end")
    models, finishes, over = set(), [], False
    for frame in frames:
        if over:
            raise ValueError("more after the ending")
        lines = dict(line.split(b": ", 1) for line in frame.split(b"\n"))
        if lines[b"data"] == b"[DONE]":
            if path != CHAT:
                raise ValueError("[DONE] in another API")
            over = True
            continue
        event = msgspec.json.decode(lines[b"data"])
        kind = event.get("type")
        if event.get("error") or kind == "error":
            reading.problems.append("error event")
        elif path == CHAT:
            models.add(event["model"])
            choice = event["choices"][0]
            reading.text += choice["delta"].get("content") or ""
            _take_calls(reading, choice["delta"].get("tool_calls") or [])
            finishes += [choice["finish_reason"]] if choice["finish_reason"] else []
        else:
            if lines[b"event"].decode() != kind:
                raise ValueError("event name")
            over = kind in ("message_stop", "response.completed")
            if kind == "message_start":
                models.add(event["message"]["model"])
            elif kind == "content_block_delta":
                reading.text += event["delta"]["text"]
            elif kind == "response.output_text.delta":
                reading.text += event["delta"]
            elif kind == "message_delta":
                finishes.append(event["delta"]["stop_reason"])
            elif kind == "response.completed":
                models.add(event["response"]["model"])
                finishes.append(event["response"]["status"])
                if event["response"]["output"][0]["content"][0]["text"] != reading.text:
                    reading.problems.append("mixed: the whole differs from its parts")
    if len(models) > 1:
        reading.problems.append(f"mixed: {sorted(models)}")
    if not over and not (path == CHAT and finishes):
        reading.problems.append("no ending")
    if len(finishes) != 1 or finishes[0] not in ("stop", "tool_calls", "end_turn", "completed"):
        reading.problems.append("no finish")


def ask(
    stack: Stack, prompt: str, script: Mapping[str, Any], stream: bool = False, path: str = CHAT,
    headers: Mapping[str, str] | None = None, query: str = "", **more: Any,
) -> tuple[Wire, Reading]:  # fmt: skip
    """Send one request. By default it has its own principal, so no rate limit applies."""
    own = {"authorization": f"Bearer {script['id']}"}
    body = body_of(path, prompt, stream, script, **more)
    wire = asyncio.run(post(stack.port, path + query, body, headers or own))
    return wire, read(wire, path, stream)


@contextlib.contextmanager
def running_faulty(
    folder: Path,
    cohorts: Mapping[str, str],
    policy: str = "",
    start_envoy: Callable[[Stack], None] = Stack.start_envoy,
) -> Iterator[tuple[Stack, dict[str, str]]]:
    """Start scripted upstreams, router and Envoy for these cohorts, with a prompt for each. Stop all at the end."""
    prompts = write_intents(folder / "written", cohorts, policy)
    with FaultyUpstreams() as upstreams:
        stack = Stack(folder / "written", folder, upstreams)  # type: ignore[arg-type]  # has what a stack asks for
        try:
            stack.start_router()
            start_envoy(stack)
            yield stack, prompts
        finally:
            stack.stop()
