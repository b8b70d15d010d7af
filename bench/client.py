"""A client with one connection and one request at a time, for benchmarks that control their own pace."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from bench.load import BY_TEXT
from extproc.contract.names import HeaderName

# Without the end of a sentence, so that a text has one view for any number.
_TEXT = "please look at the order that came in on monday and tell the team what we should do next"


class Connection:
    """One keep-alive HTTP/1.1 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.unexpected: Counter[str] = Counter()  # reasons of answers that no decision by the text led to

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, body: bytes, header: str = "") -> float:
        """Send one chat request. Return the seconds until the answer was read. Raises RuntimeError if not 200.

        `unexpected` counts the answer if its tier was not chosen by its text, for example after a fail-open.
        """
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            f"{header}content-length: {len(body)}\r\n\r\n"
        )
        began = time.perf_counter()
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        await self._reader.readexactly(int(_header(answer, "content-length")))
        seconds = time.perf_counter() - began
        if b" 200 " not in answer.splitlines()[0]:
            raise RuntimeError(answer.decode())
        reason = _header(answer, HeaderName.REASON)
        if reason not in BY_TEXT:
            self.unexpected[reason or "no reason"] += 1
        return seconds


def _header(head: bytes, name: str) -> str:
    return head.decode("latin-1").lower().partition(f"\r\n{name}:")[2].partition("\r\n")[0].strip()


def unexpected(connections: Iterable[Connection]) -> str:
    """A line with the answers that no decision by the text led to, by reason. Nothing if there are none."""
    counts = sum((connection.unexpected for connection in connections), Counter[str]())
    return "FAILED: " + ", ".join(f"{n} {reason}" for reason, n in counts.items()) if counts else ""


def body(model: str, text: str) -> bytes:
    """The body of a chat request."""
    return msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": text}]})


def texts(words: int, fresh: bool) -> Iterator[str]:
    """Prompts of about `words` words. With `fresh` each is different, otherwise all are equal."""
    filler = " ".join(itertools.islice(itertools.cycle(_TEXT.split()), max(words - 2, 1)))
    return (f"case {i if fresh else 0:08} {filler}" for i in itertools.count())
