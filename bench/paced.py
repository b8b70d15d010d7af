"""The cost of streams whose chunks come one by one, as a model sends them. `make bench` prints it.

Each connection sends its streams one after another, and every stream is read to its end. Then the turn waits until
the access logs of the last ones are written. So its CPU is that of whole streams.

A turn failed if one stream did not come, was not routed, was not whole, or came faster than its pauses. It also
failed if a stream was not judged although its system is, or was judged although it is not.
"""

import asyncio
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

from bench.flat_upstream import CHUNKS, chunks_message
from bench.load import JUDGED, NO_REASON, SEEN_CASE, Cell, System, counted, cpu_s, fail_opens, faults
from extproc.contract.names import HeaderName
from extproc.contract.words import VerdictWord

PAUSE_MS, AT_ONCE = 20, 32
_STREAM_S = (CHUNKS - 1) * PAUSE_MS / 1000
# Between the starts of two connections, so that their chunks do not come together.
_BETWEEN_STARTS_S = 0.01
# Envoy sends its access logs once a second.
_LOGS_S = 1.3
_LONGEST_S, _LONGEST_ANSWER = 60.0, 1 << 20
_NO_VERDICT = "none"
_MESSAGES = ("stream_msgs_sent", "stream_msgs_received")


class Turn(msgspec.Struct, frozen=True):
    """The measurements of one turn. Rates and times are those of whole streams."""

    cell: Cell
    sent: float  # messages of Envoy to the verifier, for each stream
    received: float  # messages of the verifier to Envoy, for each stream


Turns = Mapping[str, Sequence[Turn]]


class _Stream(msgspec.Struct, frozen=True):
    """One stream as its client saw it."""

    seconds: float
    fault: str  # why it does not count; empty if it does


def with_pauses(system: System) -> System:
    """The same system, with requests for streams whose chunks have pauses."""
    return msgspec.structs.replace(system, before=(chunks_message(CHUNKS, PAUSE_MS),))


def rows(systems: Sequence[System], rounds: int, seconds: int) -> dict[str, list[Turn]]:
    """The turns of all systems, which alternate. A turn is at least one stream of each connection."""
    each = max(1, round(seconds / _STREAM_S))
    turns: dict[str, list[Turn]] = {}
    for _ in range(rounds):
        for system in systems:
            turns.setdefault(system.name, []).append(measure(system, AT_ONCE, each))
    return turns


def measure(system: System, at_once: int, each: int) -> Turn:
    """Measure one turn with this many connections, and this many streams of each connection."""
    opened, messages = fail_opens(system.admin_url), _messages(system)
    before, client, began = _cpu(system), time.process_time(), time.perf_counter()
    streams, failed = asyncio.run(_load(system, at_once, each))
    client_s, seconds = time.process_time() - client, time.perf_counter() - began
    time.sleep(_LOGS_S)
    count = len(streams) or float("nan")
    used_ms = [1000 * (late_s - early_s) / count for early_s, late_s in zip(before, _cpu(system), strict=True)]
    sent, received = ((late - early) / count for early, late in zip(messages, _messages(system), strict=True))
    times_ms = sorted(1000 * stream.seconds for stream in streams) or [float("inf")]
    unexpected = Counter(stream.fault for stream in streams if stream.fault)
    cell = Cell(
        len(streams), len(streams) / seconds, statistics.median(times_ms), times_ms[int(0.99 * len(times_ms))],
        tuple(used_ms), client_s / seconds, failed, unexpected, fail_opens(system.admin_url) - opened,
    )  # fmt: skip
    return Turn(cell, sent, received)


def _messages(system: System) -> list[int]:
    return [counted(system.admin_url, f"ext_proc.verifier.{name}") for name in _MESSAGES]


def _cpu(system: System) -> list[float]:
    return [cpu_s((pid,)) for pid in system.pids]


async def _load(system: System, at_once: int, each: int) -> tuple[list[_Stream], int]:
    """The streams that came to an end, and how many did not."""
    streams: list[_Stream] = []

    async def connection(number: int) -> None:
        await asyncio.sleep(number * _BETWEEN_STARTS_S)
        with contextlib.suppress(OSError, EOFError):  # a timeout is an OSError
            async with asyncio.timeout(_LONGEST_S):
                await _connection(system, each, streams)

    await asyncio.gather(*map(connection, range(at_once)))
    return streams, at_once * each - len(streams)


async def _connection(system: System, each: int, streams: list[_Stream]) -> None:
    """Send streams one after another over one connection. Raises OSError or EOFError if one does not come."""
    url, body = urlsplit(system.url), system.body(stream=True).replace("CASE", SEEN_CASE).encode()
    headers = {
        "host": url.netloc,
        "content-type": "application/json",
        "content-length": len(body),
        **system.headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    reader, writer = await asyncio.open_connection(url.hostname, url.port, limit=_LONGEST_ANSWER)
    try:
        for _ in range(each):
            began = time.perf_counter()
            writer.write(f"POST {url.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            if " 200 " not in answer.partition("\r\n")[0]:
                raise OSError(answer)
            received = await reader.readuntil(b"\r\n0\r\n\r\n")
            seconds = time.perf_counter() - began
            streams.append(_Stream(seconds, _fault(system, answer, received, seconds)))
    finally:
        writer.close()


def _fault(system: System, head: str, body: bytes, seconds: float) -> str:
    """Why a stream does not count. Empty if it was routed and judged as expected, and is whole and slow."""
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    reason, verdict = headers.get(HeaderName.REASON, NO_REASON), headers.get(HeaderName.VERDICT, _NO_VERDICT)
    if reason not in (system.reasons or (NO_REASON,)):
        return reason
    if verdict != (VerdictWord.ACCEPT if system.text == JUDGED else _NO_VERDICT):
        return f"verdict {verdict}"
    if body.count(b"data: {") != CHUNKS - 1 or b"data: [DONE]" not in body:
        return "incomplete"
    return "without pauses" if seconds < _STREAM_S else ""


def ratio(judged: Sequence[Turn], unjudged: Sequence[Turn]) -> float:
    """The CPU of a judged stream over that of one that is not judged, Envoy and router, medians of the turns."""
    over, under = (statistics.median(turn.cell.cpu_ms for turn in turns) for turns in (judged, unjudged))
    return over / under


def table(turns: Turns) -> Iterator[str]:
    """Lines with medians of the turns. Messages are for each stream: to the verifier, and back to Envoy."""
    title = f"{CHUNKS} chunks, {PAUSE_MS} ms apart, {AT_ONCE} streams at a time"
    yield f"{title:<52}{'p50 ms':>9}   CPU us: Envoy  router  messages to verifier  back"
    for name, measured in turns.items():
        cells = [turn.cell for turn in measured]
        envoy_us, router_us = (
            1000 * statistics.median(each) for each in zip(*(c.cpu_each for c in cells), strict=True)
        )
        p50_ms = statistics.median(cell.p50_ms for cell in cells)
        sent, received = (
            statistics.median(each) for each in zip(*((t.sent, t.received) for t in measured), strict=True)
        )
        line = f"{name:<52}{p50_ms:>9.0f}{envoy_us:>16.0f}{router_us:>8.0f}{sent:>22.1f}{received:>6.1f}"
        yield f"{line}  {faults(cells)}".rstrip()
