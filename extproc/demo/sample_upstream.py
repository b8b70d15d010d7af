"""Sample model servers for the demo, the tests and the benchmarks: one a tier, OpenAI and Anthropic shapes.

They answer at once, in JSON or SSE, and say which model and reasoning fields they were asked with. Like real
ones they know their own model only, and answer 404 to any other name. The first of them is small and has three
weaknesses, for cascades to catch: it refuses whatever mentions a password, answers in prose when asked for JSON,
and is unsure of itself (as its log-probabilities tell) where the request says "unsure".
"""

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

_REASONING = ("chat_template_kwargs", "reasoning_effort", "reasoning", "thinking")
TIER = web.AppKey("tier", str)
_MAX_BODY_BYTES = 64 * 1024 * 1024


class Received(msgspec.Struct, frozen=True):
    """One request as it reached a tier."""

    tier: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answered(msgspec.Struct, frozen=True):
    """What a tier was paid for: one answer, whether the client saw it or not."""

    tier: str
    input_tokens: int  # a quarter of the bytes, as good as any tokenizer for a sample
    output_tokens: int
    logprob: float | None = None  # of each token; None: not asked for
    cached_tokens: int = 0  # of the input: half of it where the request says "as before"


class SampleUpstreams:
    """Model servers on free loopback ports, in a thread of their own; a context manager."""

    def __init__(self, models: Mapping[str, str], chunk_s: float = 0.0) -> None:
        """Serve `tier -> model`; streamed words come `chunk_s` seconds apart."""
        self.models = dict(models)
        self.ports: dict[str, int] = {}
        self.received: list[Received] = []
        self.answered: list[Answered] = []
        self.told: list[Answered] = []  # of them, those whose tokens were sent to the end
        self._chunk_s = chunk_s
        self._loop = asyncio.new_event_loop()
        self._runners: dict[str, web.AppRunner] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="upstreams", daemon=True)

    def __enter__(self) -> "SampleUpstreams":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _start(self) -> None:
        for tier in self.models:
            await self._start_tier(tier)

    async def _start_tier(self, tier: str) -> None:
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app[TIER] = tier
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.ports.get(tier, 0)).start()
        self._runners[tier] = runner
        self.ports[tier] = runner.addresses[0][1]

    def stop_tier(self, tier: str) -> None:
        """Close one tier's port, as when its server dies; twice is once."""
        asyncio.run_coroutine_threadsafe(self._runners[tier].cleanup(), self._loop).result(10)

    def restart_tier(self, tier: str) -> None:
        """Open it again, on the same port."""
        asyncio.run_coroutine_threadsafe(self._start_tier(tier), self._loop).result(10)

    async def _stop(self) -> None:
        for runner in self._runners.values():
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        tier = request.app[TIER]
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(tier, request.path, headers, body))
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": self.models[tier], "object": "model"}]})
        try:
            asked = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _error(400, "the body is not a JSON object")
        if asked.get("model") != self.models[tier]:
            return _error(404, f"this server has no model {asked.get('model')!r}")
        chosen = {name: asked[name] for name in _REASONING if name in asked}
        said = f"{self.models[tier]} here, reasoning {msgspec.json.encode(chosen).decode() if chosen else 'unset'}"
        if request.path not in _WHOLE:
            return _error(404, "no such path")
        weak = tier == next(iter(self.models))
        if weak and b"password" in body:
            said = "I'm sorry, but I can't help with that request."
        elif b'"json_schema"' in body:
            said = "The sender is Nordwind." if weak else '{"sender": "Nordwind", "total": 420}'
        sure = None if not asked.get("logprobs") else -2.0 if weak and b"unsure" in body else -0.05
        tokens = max(1, len(body) // 4)
        cached = tokens // 2 if b"as before" in body else 0
        paid = Answered(tier, tokens, max(1, len(said) // 4), sure, cached)
        self.answered.append(paid)
        if asked.get("stream"):
            options = asked.get("stream_options") or {}
            return await self._stream(request, said, paid, bool(options.get("include_usage")))
        self.told.append(paid)
        return web.json_response(_WHOLE[request.path](self.models[tier], said, paid))

    async def _stream(
        self, request: web.Request, said: str, paid: Answered, with_usage: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for frame in _frames(request.path, self.models[request.app[TIER]], said, paid, with_usage):
            await response.write(frame)
            if self._chunk_s:
                await asyncio.sleep(self._chunk_s)
        await response.write_eof()
        if with_usage or request.path in ("/v1/messages", "/v1/responses"):  # which always tell
            self.told.append(paid)
        return response


def _error(status: int, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "invalid_request_error", "code": status}}, status=status
    )


def _usage(paid: Answered) -> dict[str, Any]:
    total = paid.input_tokens + paid.output_tokens
    return {
        "prompt_tokens": paid.input_tokens,
        "completion_tokens": paid.output_tokens,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": paid.cached_tokens},
    }


def _logprobs(words: list[str], paid: Answered) -> dict[str, Any]:
    if paid.logprob is None:
        return {}
    return {"logprobs": {"content": [{"token": word, "logprob": paid.logprob} for word in words]}}


def _chat(model: str, said: str, paid: Answered) -> dict[str, Any]:
    message = {"role": "assistant", "content": said}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **_logprobs(said.split(), paid)}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": model,
            "choices": [choice], "usage": _usage(paid)}  # fmt: skip


def _completion(model: str, said: str, paid: Answered) -> dict[str, Any]:
    choice = {"index": 0, "text": said, "finish_reason": "stop", "logprobs": None}
    return {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": model,
            "choices": [choice], "usage": _usage(paid)}  # fmt: skip


def _response(model: str, said: str, paid: Answered) -> dict[str, Any]:
    content = {"type": "output_text", "text": said, "annotations": []}
    output = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [content],
    }
    return {"id": "resp_1", "object": "response", "created_at": 0, "model": model, "status": "completed",
            "output": [output], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
            "usage": {"input_tokens": paid.input_tokens, "output_tokens": paid.output_tokens,
                      "input_tokens_details": {"cached_tokens": paid.cached_tokens},
                      "total_tokens": paid.input_tokens + paid.output_tokens}}  # fmt: skip


def _message(model: str, said: str, paid: Answered) -> dict[str, Any]:
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": model,
            "content": [{"type": "text", "text": said}], "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": paid.input_tokens - paid.cached_tokens,  # here the cached are beside them
                      "cache_read_input_tokens": paid.cached_tokens,
                      "output_tokens": paid.output_tokens}}  # fmt: skip


_WHOLE = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
    "/v1/messages": _message,
}


def _frames(path: str, model: str, said: str, paid: Answered, with_usage: bool) -> list[bytes]:
    words = [f"{word} " for word in said.split()]
    if path == "/v1/messages":
        start = _message(model, "", paid) | {"content": [], "stop_reason": None}
        events: list[tuple[str, dict[str, Any]]] = [
            ("message_start", {"message": start}),
            ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
            *(("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": w}}) for w in words),
            ("content_block_stop", {"index": 0}),
            (
                "message_delta",
                {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": paid.output_tokens}},
            ),
            ("message_stop", {}),
        ]
        return [_named(kind, {"type": kind} | data) for kind, data in events]
    if path == "/v1/responses":
        whole = _response(model, said, paid)
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        events = [
            ("response.created", {"response": whole | {"status": "in_progress", "output": []}}),
            *(("response.output_text.delta", place | {"delta": w, "logprobs": []}) for w in words),
            ("response.completed", {"response": whole}),
        ]
        return [_named(kind, {"type": kind, "sequence_number": i} | data) for i, (kind, data) in enumerate(events)]
    whole_chunk = _WHOLE[path](model, said, paid)
    chunks = []
    for i, word in enumerate(words):
        delta = {"delta": {"content": word}} if path == "/v1/chat/completions" else {"text": word}
        finish = "stop" if i == len(words) - 1 else None
        choice = {"index": 0, "finish_reason": finish, **delta, **_logprobs([word], paid)}
        chunk = whole_chunk | {"choices": [choice]}
        chunk.pop("usage")
        if path == "/v1/chat/completions":
            chunk["object"] = "chat.completion.chunk"
        chunks.append(b"data: " + msgspec.json.encode(chunk) + b"\n\n")
    if with_usage:  # in a chunk of its own, without choices
        chunks.append(b"data: " + msgspec.json.encode(whole_chunk | {"choices": []}) + b"\n\n")
    return [*chunks, b"data: [DONE]\n\n"]


def _named(kind: str, data: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
