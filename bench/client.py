"""A client with one connection and one request at a time, for benchmarks that control their own pace."""

import asyncio
import itertools
import time
from collections.abc import Iterator

import msgspec

_TEXT = "please look at the order that came in on monday and tell the team what we should do next"


class Connection:
    """One keep-alive HTTP/1.1 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, body: bytes, header: str = "") -> float:
        """Send one chat request. Return the seconds until the answer was read. Raises RuntimeError if not 200."""
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            f"{header}content-length: {len(body)}\r\n\r\n"
        )
        began = time.perf_counter()
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in answer.lower().splitlines() if line.startswith(b"content-length:")
        )
        await self._reader.readexactly(length)
        seconds = time.perf_counter() - began
        if b" 200 " not in answer.splitlines()[0]:
            raise RuntimeError(answer.decode())
        return seconds


def body(model: str, text: str) -> bytes:
    """The body of a chat request."""
    return msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": text}]})


def texts(words: int, fresh: bool) -> Iterator[str]:
    """Prompts of about `words` words. With `fresh` each is different, otherwise all are equal."""
    filler = " ".join(itertools.islice(itertools.cycle(_TEXT.split()), max(words - 2, 1)))
    return (f"case {i if fresh else 0} {filler}" for i in itertools.count())
