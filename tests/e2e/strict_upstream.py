"""Model servers on raw sockets that write down each request exactly, and answer as a test asks."""

import asyncio
import contextlib
import functools
import ssl
import threading
from collections.abc import Iterable
from typing import Any

import msgspec

from extproc.demo.loop_thread import LoopThread


class Received(msgspec.Struct, frozen=True):
    """One request as it arrived. Header names are in lower case."""

    tier: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Script(msgspec.Struct, frozen=True):
    """How a server answers one request."""

    status: int = 200
    body: bytes = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}'
    wait_s: float = 0.0  # before the answer
    words: int = 0  # a stream of this many words
    thoughts: int = 0  # pieces of reasoning before the words
    gap_s: float = 0.0  # before each word and each piece
    stall_after: int | None = None  # after this word nothing follows
    until: threading.Event | None = None  # the last word waits for it
    hang_up: bool = False  # close the connection instead


FINE = Script()


class StrictUpstreams:
    """One server for each tier, in one thread. A context manager."""

    def __init__(self, tiers: Iterable[str], tls: dict[str, ssl.SSLContext] | None = None, host: str = "127.0.0.1"):
        self.ports = dict.fromkeys(tiers, 0)
        self.received: list[Received] = []
        self.scripts: dict[str, list[Script]] = {}  # for the next requests of a tier; after them, FINE
        self._tls, self._host = tls or {}, host
        self._loop = LoopThread("strict")
        self._servers: list[asyncio.Server] = []

    def __enter__(self) -> "StrictUpstreams":
        self._loop.start()
        self._loop.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self._stop())
        self._loop.stop()

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _start(self) -> None:
        for tier in self.ports:
            serve = functools.partial(self._serve, tier)
            server = await asyncio.start_server(serve, self._host, 0, ssl=self._tls.get(tier))
            self._servers.append(server)
            self.ports[tier] = server.sockets[0].getsockname()[1]

    async def _serve(self, tier: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._exchange(tier, reader, writer):
                pass
        writer.close()

    async def _exchange(self, tier: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. False: the connection ends."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await _body(reader, headers)
        self.received.append(Received(tier, first.split(" ")[1], headers, msgspec.json.decode(body or b"{}")))
        waiting = self.scripts.get(tier, [])
        script = waiting.pop(0) if waiting else FINE
        await asyncio.sleep(script.wait_s)
        if script.hang_up:
            return False
        if script.words:
            return await _stream(writer, script)
        head = f"HTTP/1.1 {script.status} S\r\ncontent-type: application/json\r\ncontent-length: {len(script.body)}"
        writer.write(head.encode() + b"\r\n\r\n" + script.body)
        await writer.drain()
        return True


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


async def _stream(writer: asyncio.StreamWriter, script: Script) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for number in range(-script.thoughts, script.words):
        await asyncio.sleep(script.gap_s)
        if number == script.stall_after:
            await asyncio.sleep(60)
        if script.until is not None and number == script.words - 1:
            await asyncio.to_thread(script.until.wait, 60)
        member = "content" if number >= 0 else "reasoning_content"
        choice = {"index": 0, "delta": {member: f"w{number} "}, "finish_reason": None}
        event = b"data: " + msgspec.json.encode({"choices": [choice]}) + b"\n\n"
        writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        await writer.drain()
    writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    await writer.drain()
    return True
