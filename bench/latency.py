"""What routing adds, against the same Envoy without it, in interleaved rounds of one run: `make bench`.

One connection, one request at a time, a sample upstream that answers at once; the client is a bare socket. The
plain listener is the same Envoy without any of our filters. Every round sends the same number of requests each
way, so that a noisy neighbour hits both. "seen" repeats one text, "new" never sends the same text twice.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from extproc.stack import PLAIN_CLUSTER, Stack, running

_ROUNDS, _REQUESTS = 12, 25
_TEXT = "please look at the order that came in on monday and tell the team what we should do next"


class Connection:
    """One keep-alive HTTP/1.1 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, body: bytes, header: str = "") -> float:
        """Send one chat request; return the seconds until its whole answer was read."""
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
    """A chat request as a client would send it."""
    return msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": text}]})


def texts(words: int, fresh: bool) -> Iterator[str]:
    """Prompts of about `words` words, all alike or never alike."""
    filler = " ".join(itertools.islice(itertools.cycle(_TEXT.split()), max(words - 2, 1)))
    return (f"case {i if fresh else 0} {filler}" for i in itertools.count())


async def measure(stack: Stack, words: int, fresh: bool) -> tuple[list[float], list[float]]:
    """Latencies in seconds (routed, plain) over interleaved rounds."""
    tier, model = next(iter(stack.upstreams.models.items()))
    routed, plain = await Connection.open(stack.port), await Connection.open(stack.plain_port)
    prompts = texts(words, fresh)
    with_us: list[float] = []
    without: list[float] = []
    for _ in range(_ROUNDS):
        for _ in range(_REQUESTS):
            with_us.append(await routed.post(body("auto", next(prompts))))
        for _ in range(_REQUESTS):
            sent = body(model, next(prompts))
            without.append(await plain.post(sent, f"{PLAIN_CLUSTER}: {tier}\r\n"))
    return with_us, without


def main() -> None:
    """Print the table that the README quotes."""
    with running(Path("intents")) as stack:
        before = stack.stats("http.llm.ext_proc.router.stream_msgs")
        asyncio.run(measure(stack, 12, fresh=False))  # warm up
        after = stack.stats("http.llm.ext_proc.router.stream_msgs")
        sent = sum(after.values()) - sum(before.values())
        print(
            f"ext_proc messages per request, both ways: {sent / (_ROUNDS * _REQUESTS):.2f} (one in, one out is 2)"
        )
        print("\nwords  text   plain p50   routed p50   added p50   added p99   (ms)")
        for words in (12, 48, 192, 768):
            for fresh in (False, True):
                routed, plain = asyncio.run(measure(stack, words, fresh))
                row = [_ms(plain, 50), _ms(routed, 50)]
                added = [_ms(routed, q) - _ms(plain, q) for q in (50, 99)]
                name = "new" if fresh else "seen"
                print(f"{words:>5}  {name:<5}{row[0]:>11.2f}{row[1]:>13.2f}{added[0]:>12.2f}{added[1]:>12.2f}")
        router = stack.router
        if router is not None:
            status = Path(f"/proc/{router.pid}/status").read_text()
            resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
            print(f"\nresident memory of the router: {int(resident) / 1024:.0f} MB")


def _ms(seconds: list[float], percentile: int) -> float:
    return statistics.quantiles(seconds, n=100)[percentile - 1] * 1000


if __name__ == "__main__":
    main()
