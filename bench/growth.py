"""How the cost of a request grows: with connections, text, body, history, chunks of a stream, and cohorts."""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench.flat_upstream import CHUNKS, chunks_message
from bench.load import Cell, System, faults, measure
from extproc.contract.words import Reason
from extproc.encoder.protocols import Vectors
from extproc.routing.index import Index, nearest

_AT_ONCE = 16
_CONNECTIONS = (1, 4, 16, 64, 256)
_BODY_KB = (0, 16, 128, 1024)
_TURNS = (0, 10, 100, 1000)
_CHUNKS = (10, CHUNKS, 250)
TOKENS = (16, 64, 256)
_COHORTS = (10, 100, 1000, 10_000)
# The router matches the embedding and hashed words, concatenated.
_DIMENSIONS = 384 + 2048
_SEARCHES = 60

Row = tuple[str, Cell]


def rows(seen: System, new: Sequence[System], judged: System, seconds: int) -> list[Row]:
    """One turn for each size. `seen` and `judged` repeat their texts. `new` has a system for each of TOKENS."""
    named: list[tuple[str, System, bool, int]] = []
    named += [(f"{n} connections", seen, False, n) for n in _CONNECTIONS]
    named += [(f"new, {n} tokens", system, False, _AT_ONCE) for n, system in zip(TOKENS, new, strict=True)]
    # A tier with a small context window cannot read the largest one.
    large = msgspec.structs.replace(seen, reasons=(*seen.reasons, Reason.CAPABILITY))
    named += [(f"body of {n} KB", _with(large, [_system(n * 1024)]), False, _AT_ONCE) for n in _BODY_KB]
    named += [(f"history of {n} turns", _with(seen, _history(n)), False, _AT_ONCE) for n in _TURNS]
    for name, system in (("stream", seen), ("judged stream", judged)):
        named += [(f"{name} of {n} chunks", _with(system, [chunks_message(n)]), True, _AT_ONCE) for n in _CHUNKS]
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        return [
            (name, measure(system, stream, connections, seconds, Path(folder)))
            for name, system, stream, connections in named
        ]


def _with(system: System, messages: list[dict[str, str]]) -> System:
    return msgspec.structs.replace(system, before=tuple(messages))


def _system(size: int) -> dict[str, str]:
    return {"role": "system", "content": ("Answer in a friendly tone. " * (size // 27 + 1))[: max(size, 1)]}


def _history(turns: int) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": f"This is turn {i} of the conversation."} for i in range(turns)]


def table(measured: Sequence[Row]) -> Iterator[str]:
    """Lines with one turn each, at 16 connections unless the line says another number."""
    yield f"{'growth':<32}{'per s':>8}{'p50 ms':>9}{'p99 ms':>9}   CPU us: Envoy  router"
    for name, cell in measured:
        envoy_us, router_us = (1000 * each for each in cell.cpu_each)
        line = f"{name:<32}{cell.per_second:>8.0f}{cell.p50_ms:>9.2f}{cell.p99_ms:>9.2f}"
        yield f"{line}{envoy_us:>16.0f}{router_us:>8.0f}  {faults([cell])}".rstrip()


def searches() -> dict[int, float]:
    """Cohorts -> milliseconds of a search, with a text of twelve words, as in the samples."""
    rng = np.random.default_rng(0)
    times = {}
    for cohorts in _COHORTS:
        centroids = _texts(rng, cohorts, words=200)
        means = {str(i): row for i, row in enumerate(centroids)}
        index = Index({name: row[None] for name, row in means.items()}, means)
        asks = _texts(rng, _SEARCHES, words=12)
        times[cohorts] = statistics.median(_search_s(index, row) for row in asks) * 1e3
    return times


def _texts(rng: np.random.Generator, count: int, words: int) -> Vectors:
    """float32[count, d]: random unit vectors in which this many columns of words are set."""
    rows = rng.standard_normal((count, _DIMENSIONS), dtype=np.float32)
    unset = np.argsort(rng.random((count, _DIMENSIONS - 384), dtype=np.float32), axis=1)[:, words:] + 384
    np.put_along_axis(rows, unset, 0, axis=1)
    scaled: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def _search_s(index: Index, vector: Vectors) -> float:
    began = time.thread_time()
    nearest(index, vector)
    return time.thread_time() - began
