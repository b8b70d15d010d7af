"""The cost of routing, compared with the same Envoy without it: `make bench`.

The load is `wrk` with one thread, closed loop, over 1, 16 and 64 connections. A flat upstream answers with 300
bytes. The systems alternate in rounds of one run:

- bare Envoy: a listener without our filters and without access logs
- plain Envoy: the same with our access logs. It is what routing is compared with.
- the router with three kinds of text. A "seen" text is always the same. A "new" text is never sent twice, so each
  of them needs an embedding: of the whole text, or of two views if the text has a second sentence.

Real traffic lies between seen and new. CPU is per request: that of Envoy, and that of the router. The exit status
is 1 if a turn failed. The rate of a failed turn means nothing.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench.load import BY_TEXT, Cell, System, check, faults, flat_upstream, interpreter, measure, routing_stack
from extproc.demo.stack import PLAIN_CLUSTER, Stack
from extproc.encoder.backends import load_encoder
from extproc.encoder.protocols import Encoder, Vectors
from extproc.routing.index import Index, nearest

_TOKENS = (16, 64, 256, 1024)
_CONNECTIONS = (1, 16, 64)
# CASE is replaced by a number, and the text then has about the right length. Only the first 512 characters are
# embedded. Both heads match a cohort without acceptance rules. The first has no end of a clause, so its text has
# one view for any number.
_ONE_VIEW, _TWO_VIEWS = "Write a Python function for case CASE", "Write Python for case CASE:"
_HEAD_TOKENS = {_ONE_VIEW: 11, _TWO_VIEWS: 11}
_WORDS = "that reads the rows of a table and sorts them by the date in the first column and".split()  # noqa: SIM905
_PATH = "/v1/chat/completions"
# The router matches the embedding and hashed words, concatenated.
_DIMENSIONS = 384 + 2048
_PLAIN = "plain Envoy"

Cells = dict[tuple[int, int, str], list[Cell]]


def text_of(head: str, tokens: int) -> str:
    """A text of about this many tokens that begins with `head`."""
    words = max(tokens - _HEAD_TOKENS[head], 1)
    return f"{head} " + " ".join(_WORDS[i % len(_WORDS)] for i in range(words))


def systems(stack: Stack, bare_url: str, tokens: int) -> list[System]:
    """Envoy without the router, and the router on texts of about this many tokens."""
    assert stack.envoy is not None and stack.router is not None
    tier, model = next(iter(stack.upstreams.models.items()))
    both = (stack.envoy.pid, stack.router.pid)
    one, two = text_of(_ONE_VIEW, tokens), text_of(_TWO_VIEWS, tokens)

    def control(name: str, url: str) -> System:
        return System(name, url + _PATH, model, both, {PLAIN_CLUSTER: tier}, text=one)

    def router(name: str, text: str, fresh: bool) -> System:
        return System(name, stack.url + _PATH, "auto", both, {}, text, fresh, BY_TEXT, stack.admin_url)

    return [
        control("bare Envoy", bare_url),
        control(_PLAIN, stack.plain_url),
        router("router, seen", one, False),
        router("router, new, one view", one, True),
        router("router, new, two views", two, True),
    ]


def run(stack: Stack, bare_url: str, rounds: int, seconds: int, tokens: Sequence[int]) -> Cells:
    """(tokens, connections, system) -> one cell per round. The systems alternate."""
    cells: Cells = {}
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        for _ in range(rounds):
            for length in tokens:
                for connections in _CONNECTIONS:
                    for system in systems(stack, bare_url, length):
                        cell = measure(system, False, connections, seconds, Path(folder))
                        cells.setdefault((length, connections, system.name), []).append(cell)
    return cells


def table(cells: Cells) -> Iterator[str]:
    """Lines with medians over the rounds. Ratios and added times are relative to plain Envoy."""
    yield (
        "tokens connections  system                     per s  of plain  p50 ms   added  p99 ms   added"
        "   CPU us: Envoy  router  client cores"
    )
    for (tokens, connections, name), turns in cells.items():
        cell, plain = median(turns), median(cells[tokens, connections, _PLAIN])
        envoy_us, router_us = (1000 * each for each in cell.cpu_each)
        line = f"{tokens:>6}{connections:>12}  {name:<24}{cell.per_second:>8.0f}"
        line += f"{cell.per_second / plain.per_second:>10.2f}" if plain.per_second else f"{'-':>10}"
        line += f"{cell.p50_ms:>8.2f}{cell.p50_ms - plain.p50_ms:>8.2f}{cell.p99_ms:>8.2f}"
        line += f"{cell.p99_ms - plain.p99_ms:>8.2f}{envoy_us:>16.0f}{router_us:>8.0f}{cell.client_cores:>14.2f}"
        wrong = faults(turns)
        yield f"{line}  {wrong}" if wrong else line


def median(cells: list[Cell]) -> Cell:
    """The median of each measurement over the rounds. Counts of faults are those of the first round."""
    middle = {
        name: statistics.median(getattr(cell, name) for cell in cells)
        for name in ("per_second", "p50_ms", "p99_ms", "client_cores")
    }
    each = tuple(map(statistics.median, zip(*(cell.cpu_each for cell in cells), strict=True)))
    return msgspec.structs.replace(cells[0], cpu_each=each, **middle)


def encoder_alone() -> Iterator[str]:
    """Lines with the texts per second of the encoder alone, in batches of sixteen, with the threads of serving."""
    encoder = load_encoder("all-MiniLM-L6-v2")
    yield "encoder alone, texts/s   one view   two views"
    for tokens in _TOKENS:
        rates = [_texts_per_s(encoder, text_of(head, tokens)) for head in _HEAD_TOKENS]
        yield f"{tokens:>10} tokens      " + "".join(f"{rate:>12.0f}" for rate in rates)


def _texts_per_s(encoder: Encoder, text: str) -> float:
    times = []
    for turn in range(8):
        # Serving also reads only the start of a long text.
        batch = [text.replace("CASE", f"{turn:04}{i:04}")[:512] for i in range(16)]
        began = time.perf_counter()
        encoder.encode(batch)
        times.append(time.perf_counter() - began)
    return 16 / statistics.median(times)


def growth() -> Iterator[str]:
    """Lines with the time of a search for more cohorts and more centroids per cohort."""
    yield "cohorts   centroids each   search ms   index MB"
    rng = np.random.default_rng(0)
    for cohorts, each in ((10, 1), (100, 1), (1000, 1), (10_000, 1), (100, 10), (1000, 10)):
        rows = rng.standard_normal((cohorts * each, _DIMENSIONS), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        means = {str(i): rows[i * each].copy() for i in range(cohorts)}
        index = Index({str(i): rows[i * each : (i + 1) * each] for i in range(cohorts)}, means)
        seconds = [_search_s(index, rows[i % len(rows)]) for i in range(60)]
        size = (rows.nbytes + sum(row.nbytes for row in means.values())) / 2**20
        yield f"{cohorts:>7}{each:>17}{statistics.median(seconds) * 1e3:>12.3f}{size:>11.1f}"


def _search_s(index: Index, vector: Vectors) -> float:
    began = time.perf_counter()
    nearest(index, vector)
    return time.perf_counter() - began


def main() -> int:
    """Print the tables that the README quotes. Return 1 if a turn failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take the median of (default 3)")
    parser.add_argument("--seconds", type=int, default=2, help="length of each turn (default 2)")
    parser.add_argument("--workers", type=int, default=1, help="processes of the router (default 1)")
    args = parser.parse_args()
    with flat_upstream() as (port, _), routing_stack(port, args.workers) as (stack, bare_url):
        for system in systems(stack, bare_url, 16):
            check(system)
        before = stack.stats("http.llm.ext_proc.router.stream_msgs")
        sent = measure_messages(stack, bare_url)
        messages = sum(stack.stats("http.llm.ext_proc.router.stream_msgs").values()) - sum(before.values())
        print(f"ext_proc messages per request, both directions: {messages / sent:.2f} (2 is one each way)")
        print(f"router: {interpreter()}\n")
        cells = run(stack, bare_url, args.rounds, args.seconds, _TOKENS)
        assert stack.router is not None
        status = Path(f"/proc/{stack.router.pid}/status").read_text()
    print("\n".join(table(cells)))
    resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    print(f"\nresident memory of the router: {int(resident) / 1024:.0f} MB\n")
    print("\n".join(encoder_alone()), end="\n\n")
    print("\n".join(growth()))
    return 0 if all(cell.valid for turns in cells.values() for cell in turns) else 1


def measure_messages(stack: Stack, bare_url: str) -> int:
    """Send requests for one second. Return how many were sent."""
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        cell = measure(systems(stack, bare_url, 16)[2], False, 1, 1, Path(folder))
    return cell.requests


if __name__ == "__main__":
    sys.exit(main())
