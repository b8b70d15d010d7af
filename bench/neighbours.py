"""A client beside an attacker: `python -m bench.neighbours`.

The victim sends 20 requests per second with texts that the router knows. The attacker has another key. It sends
large hostile bodies, or texts that are always new. The output has the victim's p50 and p99, alone and beside
the attacker, and its fallbacks in both. "code" is an ordinary body of the same size. It shows what the size alone
costs, because Envoy and gRPC copy each megabyte several times. The exit status is 1 if the victim fell back.
"""

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from extproc.config.load import load_config
from extproc.contract.names import HeaderName
from extproc.demo.processes import free_ports
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from tests.routing.test_hostile_bodies import CHAT, CODE, MEGABYTE, SHAPES

FLOOD = "never-seen texts"
_TEXTS = [f"Translate this sentence into French: the order {i} came in on Monday" for i in range(20)]
_VICTIM_RATE, _VICTIM_CONNECTIONS = 20.0, 4
# An attacker that gets no answers opens no further connections.
_MOST_OPEN = 64
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Latency(msgspec.Struct, frozen=True):
    """The victim's requests over one run."""

    p50_ms: float
    p99_ms: float
    reasons: dict[str, int]  # status and x-router-reason -> count

    @property
    def fallbacks(self) -> int:
        """Requests without a decision by the victim's own text."""
        return sum(count for reason, count in self.reasons.items() if reason != "200 matched")


class _Upstream(asyncio.Protocol):
    """Reads bodies of any size without keeping them, and answers `{}`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._head, self._left = transport, b"", -1

    def data_received(self, data: bytes) -> None:
        while data:
            if self._left < 0:
                head, end, rest = (self._head + data).partition(b"\r\n\r\n")
                self._head = b"" if end else head
                if not end:
                    return
                self._left, data = int(_header(head, "content-length") or 0), rest
            taken = min(self._left, len(data))
            self._left, data = self._left - taken, data[taken:]
            if self._left == 0:
                self._left = -1
                self._transport.write(_ANSWER)  # type: ignore[attr-defined]


def _header(head: bytes, name: str) -> str:
    return head.decode("latin-1").lower().partition(f"\r\n{name}: ")[2].partition("\r\n")[0]


def _serve_upstream(port: int) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Upstream, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(serve())


async def _post(
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: str, body: bytes, key: str
) -> tuple[float, str]:
    """Send a request. Return the seconds until its answer, and its status with the router's reason."""
    reader, writer = streams
    began = time.perf_counter()
    writer.write(
        f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
    )
    writer.write(body)
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(_header(head, "content-length") or 0))
    return time.perf_counter() - began, f"{head[9:12].decode()} {_header(head, HeaderName.REASON)}"


async def _attack(port: int, path: str, body: bytes | None, rate: float) -> None:
    sending: set[asyncio.Task[None]] = set()

    async def send(case: int) -> None:
        text = f"text {case} that was never sent before, with some more words in it"
        raw = body or msgspec.json.encode({"model": "auto", "messages": [{"role": "user", "content": text}]})
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            streams = await asyncio.open_connection("127.0.0.1", port)
            await _post(streams, path, raw, "attacker")
            streams[1].close()

    began = time.monotonic()
    for case in itertools.count():
        if len(sending) < _MOST_OPEN:
            task = asyncio.create_task(send(case))
            sending.add(task)
            task.add_done_callback(sending.discard)
        await asyncio.sleep(max(0.0, began + case / rate - time.monotonic()))


def _run_attack(port: int, shape: str, size: int, rate: float) -> None:
    path, make = SHAPES.get(shape, (CHAT, CODE))
    asyncio.run(_attack(port, path, None if shape == FLOOD else make(size), rate))


async def victim(port: int, seconds: float) -> Latency:
    """Send requests at a fixed rate, and return their latency."""
    waits: list[float] = []
    reasons: Counter[str] = Counter()

    async def send_all(place: int) -> None:
        streams = await asyncio.open_connection("127.0.0.1", port)
        began, gap = time.monotonic() + place / _VICTIM_RATE, _VICTIM_CONNECTIONS / _VICTIM_RATE
        for turn in range(int(seconds / gap)):
            await asyncio.sleep(max(0.0, began + turn * gap - time.monotonic()))
            text = _TEXTS[(turn * _VICTIM_CONNECTIONS + place) % len(_TEXTS)]
            raw = msgspec.json.encode({"model": "auto", "messages": [{"role": "user", "content": text}]})
            wait, reason = await _post(streams, CHAT, raw, "victim")
            waits.append(wait * 1e3)
            reasons[reason] += 1
        streams[1].close()

    await asyncio.gather(*(send_all(place) for place in range(_VICTIM_CONNECTIONS)))
    cuts = statistics.quantiles(waits, n=100)
    return Latency(cuts[49], cuts[98], dict(reasons))


def beside(port: int, shape: str, size: int, rate: float, seconds: float) -> Latency:
    """Return the victim's latency while an attacker, in its own process, sends this shape."""
    attacker = multiprocessing.get_context("spawn").Process(
        target=_run_attack, args=(port, shape, size, rate), daemon=True
    )
    attacker.start()
    try:
        time.sleep(2)  # it imports, makes its body and connects
        return asyncio.run(victim(port, seconds))
    finally:
        attacker.kill()
        attacker.join()


@contextlib.contextmanager
def running_stack(intents: Path) -> Iterator[Stack]:
    """Start an upstream that reads bodies of any size, the router and Envoy."""
    port = free_ports(1)[0]
    upstream = multiprocessing.get_context("spawn").Process(target=_serve_upstream, args=(port,), daemon=True)
    upstream.start()
    upstreams = SampleUpstreams({tier.name: tier.model for tier in load_config(intents).policy.tiers})
    upstreams.ports = dict.fromkeys(upstreams.models, port)  # never started
    with tempfile.TemporaryDirectory(prefix="neighbours-") as folder:
        stack = Stack(intents, Path(folder), upstreams)
        try:
            stack.start_router()
            stack.start_envoy()
            asyncio.run(victim(stack.port, 3))  # fills the cache of vectors
            yield stack
        finally:
            stack.stop()
            upstream.kill()
            upstream.join()


# How many times as long the victim may wait beside an attacker.
_MOST_RATIO = 2.0


def main() -> int:
    """Print a line for each shape. Return 1 if the victim fell back, or if its p99 was more than doubled."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = ["code", *SHAPES, FLOOD]
    parser.add_argument(
        "--shape", action="append", choices=names, help="an attack; can be repeated (default: three)"
    )
    parser.add_argument("--megabytes", type=float, default=1.0, help="size of the attacker's bodies (default 1)")
    parser.add_argument("--rate", type=float, default=20.0, help="the attacker's requests per second (default 20)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one measurement (default 10)")
    args = parser.parse_args()
    failed = False
    print(f"{'attack':<28}{'alone p50':>10}{'p99':>8}{'beside p50':>12}{'p99 ms':>8}{'ratio':>7}  victim's answers")
    with running_stack(Path("intents")) as stack:
        for shape in args.shape or ["code", "prompts that are objects", "backslashes and NaN", FLOOD]:
            alone = asyncio.run(victim(stack.port, args.seconds))
            crowd = beside(stack.port, shape, int(args.megabytes * MEGABYTE), args.rate, args.seconds)
            slower = crowd.p99_ms > _MOST_RATIO * alone.p99_ms
            failed |= slower or bool(alone.fallbacks + crowd.fallbacks)
            print(f"{shape:<28}{alone.p50_ms:>10.1f}{alone.p99_ms:>8.1f}{crowd.p50_ms:>12.1f}{crowd.p99_ms:>8.1f}"
                  f"{crowd.p99_ms / alone.p99_ms:>7.1f}  {crowd.reasons}"
                  f"{f'; alone {alone.reasons}' if alone.fallbacks else ''}", flush=True)  # fmt: skip
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
