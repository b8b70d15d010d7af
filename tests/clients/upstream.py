"""Strict model servers, one for each tier. They refuse what a real server refuses. Each answer names its tier."""

import asyncio
import itertools
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from aiohttp import web

from extproc.demo.sample_upstream import TIER, Received, SampleUpstreams
from tests.clients import chat, messages, responses
from tests.clients.script import FIRST_WORD, Asked, Refused, Reply, reply_to

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
COUNT, MODELS = "/v1/messages/count_tokens", "/v1/models"
_LONGEST = 150  # events of a stream that ends
_WORD_S = 0.02  # between two words of an endless stream
_HALT_S = 60.0  # a halting stream breaks if its first word is not seen in this time


class Refusal(msgspec.Struct, frozen=True):
    """A request that a server refused, and why."""

    tier: str
    path: str
    message: str


class StrictUpstreams(SampleUpstreams):
    """Model servers with the APIs of the clients under test."""

    def __init__(self, models: Mapping[str, str]) -> None:
        super().__init__(models)
        self.endless: list[str] = []  # the tiers whose stream does not end by itself
        self.cancelled: list[str] = []  # the tiers whose client left during a stream
        self.refused: list[Refusal] = []
        self.first_word_seen = threading.Event()  # set by the test, so that halting streams go on
        self._kept = {tier: responses.Kept(tier, {}, {}) for tier in models}
        self._numbers = itertools.count(1)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        tier = request.app[TIER]
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(tier, request.path, headers, body))
        try:
            return await self._served(request, tier, body)
        except Refused as refused:
            self.refused.append(Refusal(tier, request.path, str(refused)))
            return _error(request.path, refused)

    async def _served(self, request: web.Request, tier: str, body: bytes) -> web.StreamResponse:
        if (request.method, request.path) == ("GET", MODELS):
            return web.json_response({"object": "list", "data": [{"id": self.models[tier], "object": "model"}]})
        if request.method != "POST" or request.path not in (CHAT, RESPONSES, MESSAGES, COUNT):
            raise Refused(f"no such path: {request.method} {request.path}", 404, "not_found_error")
        fields = _decoded(body)
        if fields.get("model") != self.models[tier]:
            raise Refused(f"model: {fields.get('model')!r} does not exist", 404, "not_found_error")
        if tier == list(self.models)[-1] and "chat_template_kwargs" in fields:
            raise Refused("unrecognized request argument: chat_template_kwargs")  # only vLLM has it
        if request.path == COUNT:
            messages.read(fields, tier, counts_only=True)
            return web.json_response({"input_tokens": max(1, len(body) // 4)})
        asked = self._read(request, tier, fields)
        reply = reply_to(asked, tier)
        whole, events = self._made(request.path, tier, fields, asked, reply)
        if not asked.stream:
            return web.json_response(whole)
        return await self._streamed(request, tier, events, reply.halting)

    def _read(self, request: web.Request, tier: str, fields: dict[str, Any]) -> Asked:
        if request.path == CHAT:
            return chat.read(fields)
        if request.path == RESPONSES:
            return responses.read(fields, self._kept[tier])
        if "anthropic-version" not in request.headers:
            raise Refused("anthropic-version: header is required")
        return messages.read(fields, tier)

    def _made(
        self, path: str, tier: str, fields: dict[str, Any], asked: Asked, reply: Reply
    ) -> tuple[dict[str, Any], Iterator[bytes]]:
        number, model = next(self._numbers), self.models[tier]
        if path == CHAT:
            return chat.whole(reply, model, number), chat.events(reply, model, number, asked.with_usage)
        if path == RESPONSES:
            store = fields.get("store") is not False
            response = responses.whole(asked, reply, model, number, self._kept[tier], store)
            return response, responses.events(asked, reply, response)
        message = messages.whole(asked, reply, model, number, tier)
        return message, messages.events(reply, message)

    async def _streamed(
        self, request: web.Request, tier: str, events: Iterator[bytes], halting: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        try:
            await response.prepare(request)
            for number, event in enumerate(events):
                await response.write(event)
                if halting and f'"{FIRST_WORD}"'.encode() in event:
                    halting = not await asyncio.to_thread(self.first_word_seen.wait, _HALT_S)
                    assert not halting, "the client did not show the first word before the rest was sent"
                if number == _LONGEST:
                    self.endless.append(tier)
                if number >= _LONGEST:
                    await asyncio.sleep(_WORD_S)
            await response.write_eof()
        except ConnectionError:
            self.cancelled.append(tier)
        return response


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"the body is not a JSON object: {error}") from None


def _error(path: str, refused: Refused) -> web.Response:
    if path.startswith(MESSAGES):
        error = {"type": "error", "error": {"type": refused.kind, "message": str(refused)}}
    else:
        error = {"error": {"message": str(refused), "type": refused.kind, "param": None, "code": refused.kind}}
    return web.json_response(error, status=refused.status)
