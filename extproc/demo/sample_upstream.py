"""Sample model servers for the demo, the tests and the benchmarks: one for each tier.

They have the OpenAI and Anthropic APIs and answer immediately, as JSON or SSE. The answer names the model and the
reasoning fields of the request. Like a real server, each knows only its own model and answers 404 to other names.

The first server is small and has three weaknesses, which give the cascade something to catch:

- it refuses every request that contains "password";
- it answers in prose when the request asks for JSON;
- its log-probabilities are low when the request contains "unsure".
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from extproc.demo.loop_thread import LoopThread
from extproc.demo.sample_answers import ANSWER_PATHS, BilledAnswer, sse_events, whole_answer

_REASONING = ("chat_template_kwargs", "reasoning_effort", "reasoning", "thinking")
TIER = web.AppKey("tier", str)
_MAX_BODY_BYTES = 64 * 1024 * 1024
_LOGPROB_SURE, _LOGPROB_UNSURE = -0.05, -2.0


class Received(msgspec.Struct, frozen=True):
    """One request as it reached a tier."""

    tier: str
    path: str  # with its query
    headers: dict[str, str]
    body: bytes


class SampleUpstreams:
    """Model servers on free loopback ports, in one thread. A context manager."""

    def __init__(self, models: Mapping[str, str], chunk_s: float = 0.0) -> None:
        """Serve `tier -> model`. A streamed answer sends one word every `chunk_s` seconds."""
        self.models = dict(models)
        self.ports: dict[str, int] = {}
        self.received: list[Received] = []
        self.billed: list[BilledAnswer] = []  # every answer, also one that no client saw
        self.reported: list[BilledAnswer] = []  # the answers whose token counts were sent
        self._chunk_s = chunk_s
        self._loop = LoopThread("upstreams")
        self._runners: dict[str, web.AppRunner] = {}

    def __enter__(self) -> "SampleUpstreams":
        self._loop.start()
        self._loop.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self._stop())
        self._loop.stop()

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
        """Close a tier's port, as if its server had died. A second call changes nothing."""
        self._loop.run(self._runners[tier].cleanup())

    def restart_tier(self, tier: str) -> None:
        """Open a stopped tier's port again. The port number stays the same."""
        self._loop.run(self._start_tier(tier))

    async def _stop(self) -> None:
        for runner in self._runners.values():
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        tier = request.app[TIER]
        model = self.models[tier]
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(tier, request.raw_path, headers, body))
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": model, "object": "model"}]})
        if request.path.startswith("/v1/responses/"):  # about a response that this server keeps
            return web.json_response({"id": request.path.split("/")[3], "object": "response", "model": model})
        try:
            asked = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _error(400, "the body is not a JSON object")
        if asked.get("model") != model:
            return _error(404, f"this server has no model {asked.get('model')!r}")
        if request.path not in ANSWER_PATHS:
            return _error(404, "no such path")
        weak = tier == next(iter(self.models))
        text = _text(model, body, asked, weak)
        billed = _billed(tier, body, asked, weak, text)
        self.billed.append(billed)
        if asked.get("stream"):
            options = asked.get("stream_options") or {}
            return await self._stream(request, text, billed, bool(options.get("include_usage")))
        self.reported.append(billed)
        whole = whole_answer(request.path, model, text, billed)
        return web.json_response(whole | ({"status": "queued", "output": []} if asked.get("background") else {}))

    async def _stream(
        self, request: web.Request, text: str, billed: BilledAnswer, with_usage: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in sse_events(request.path, self.models[request.app[TIER]], text, billed, with_usage):
            await response.write(event)
            if self._chunk_s:
                await asyncio.sleep(self._chunk_s)
        await response.write_eof()
        if with_usage or request.path in ("/v1/messages", "/v1/responses"):  # these two always report tokens
            self.reported.append(billed)
        return response


def _text(model: str, body: bytes, asked: dict[str, Any], weak: bool) -> str:
    if weak and b"password" in body:
        return "I'm sorry, but I can't help with that request."
    if b'"json_schema"' in body:
        return "The sender is Nordwind." if weak else '{"sender": "Nordwind", "total": 420}'
    reasoning = {name: asked[name] for name in _REASONING if name in asked}
    return f"{model} here, reasoning {msgspec.json.encode(reasoning).decode() if reasoning else 'unset'}"


def _billed(tier: str, body: bytes, asked: dict[str, Any], weak: bool, text: str) -> BilledAnswer:
    input_tokens = max(1, len(body) // 4)
    logprob = None
    if asked.get("logprobs"):
        logprob = _LOGPROB_UNSURE if weak and b"unsure" in body else _LOGPROB_SURE
    cached_tokens = input_tokens // 2 if b"as before" in body else 0
    return BilledAnswer(tier, input_tokens, max(1, len(text) // 4), logprob, cached_tokens)


def _error(status: int, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "invalid_request_error", "code": status}}, status=status
    )
