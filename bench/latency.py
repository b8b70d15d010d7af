"""The cost of routing, compared with the same Envoy without it: `make bench`.

The load is `wrk` with one thread, closed loop, over 1, 16 and 64 connections. A flat upstream answers with 300
bytes. The systems alternate in rounds of one run. They are a plain listener of the same Envoy without our
filters, and the router with two kinds of text. A "seen" text is always the same. A "new" text is never sent
twice, so each one needs an embedding. Real traffic lies between these two. CPU is per request: that of Envoy,
that of the server, and its part for the encoder (new minus seen).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from bench.load import Cell, System, check, flat_upstream, measure, routing_stack
from extproc.demo.stack import PLAIN_CLUSTER, Stack
from extproc.encoder.backends import load_encoder
from extproc.encoder.protocols import Vectors
from extproc.routing.index import Index, nearest

_TOKENS = (16, 64, 256, 1024)
_CONNECTIONS = (1, 16, 64)
# Texts have the right length after CASE is replaced by a number. Only their first 512 characters are embedded.
_WORDS = "please look at the order that came in on monday and tell the team what to do next".split()  # noqa: SIM905
_PATH = "/v1/chat/completions"
# The router matches the embedding and hashed words, concatenated.
_DIMENSIONS = 384 + 2048

Cells = dict[tuple[int, int, str], list[Cell]]


def systems(stack: Stack, tokens: int) -> list[System]:
    """Envoy without the router, and the router on texts of about this many tokens."""
    assert stack.envoy is not None and stack.router is not None
    tier, model = next(iter(stack.upstreams.models.items()))
    both = (stack.envoy.pid, stack.router.pid)
    text = "Case CASE: " + " ".join(_WORDS[i % len(_WORDS)] for i in range(tokens - 7))
    return [
        System("plain", stack.plain_url + _PATH, model, both, {PLAIN_CLUSTER: tier}, text=text),
        System("seen", stack.url + _PATH, "auto", both, text=text),
        System("new", stack.url + _PATH, "auto", both, text=text, fresh=True),
    ]


def run(stack: Stack, rounds: int, seconds: int) -> Cells:
    """(tokens, connections, system) -> one cell per round. The systems alternate."""
    cells: Cells = {}
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        for _ in range(rounds):
            for tokens in _TOKENS:
                for connections in _CONNECTIONS:
                    for system in systems(stack, tokens):
                        cell = measure(system, False, connections, seconds, Path(folder))
                        cells.setdefault((tokens, connections, system.name), []).append(cell)
    return cells


def table(cells: Cells, ceilings: dict[int, float]) -> Iterator[str]:
    """Lines with medians over the rounds. `ceilings` has the texts per second of the encoder alone."""
    yield "                 plain Envoy    text seen before                              text never seen"
    yield (
        "tokens connections      per s     per s  +p50   +p99    CPU ms: Envoy server"
        "   per s    +p50   +p99  encoder ms  late  encoder alone"
    )
    for tokens in _TOKENS:
        for connections in _CONNECTIONS:
            plain, seen, new = (_median(cells[tokens, connections, name]) for name in ("plain", "seen", "new"))
            line = f"{tokens:>6}{connections:>12}{plain.per_second:>11.0f}"
            line += f"{seen.per_second:>10.0f}{seen.p50_ms - plain.p50_ms:>6.2f}{seen.p99_ms - plain.p99_ms:>7.2f}"
            line += f"{seen.cpu_each[0]:>14.2f}{seen.cpu_each[1]:>7.2f}"
            line += f"{new.per_second:>8.0f}{new.p50_ms - plain.p50_ms:>8.2f}{new.p99_ms - plain.p99_ms:>7.2f}"
            line += f"{new.cpu_each[1] - seen.cpu_each[1]:>12.2f}{new.late:>6.0%}{ceilings[tokens]:>12.0f}/s"
            failed = sum(c.failed for n in ("plain", "seen", "new") for c in cells[tokens, connections, n])
            yield line + (f"  {failed} failed" if failed else "")


def _median(cells: list[Cell]) -> Cell:
    middle = {
        name: statistics.median(getattr(cell, name) for cell in cells)
        for name in ("per_second", "p50_ms", "p99_ms", "late")
    }
    each = tuple(map(statistics.median, zip(*(cell.cpu_each for cell in cells), strict=True)))
    return msgspec.structs.replace(cells[0], cpu_each=each, **middle)


def encoder_alone() -> dict[int, float]:
    """Tokens -> texts per second of the encoder alone, in batches of sixteen, with the threads of serving."""
    encoder = load_encoder("all-MiniLM-L6-v2")
    rates = {}
    for tokens in _TOKENS:
        filler = " ".join(_WORDS[i % len(_WORDS)] for i in range(tokens - 7))
        times = []
        for turn in range(8):
            # Serving also reads only the start of a long text.
            batch = [f"Case {turn}{i}: {filler}"[:512] for i in range(16)]
            began = time.perf_counter()
            encoder.encode(batch)
            times.append(time.perf_counter() - began)
        rates[tokens] = 16 / statistics.median(times)
    return rates


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


def main() -> None:
    """Print the tables that the README quotes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take the median of (default 3)")
    parser.add_argument("--seconds", type=int, default=2, help="length of each turn (default 2)")
    parser.add_argument("--workers", type=int, default=1, help="processes of the router (default 1)")
    args = parser.parse_args()
    with flat_upstream() as (port, _), routing_stack(port, args.workers) as stack:
        for system in systems(stack, 16):
            check(system)
        before = stack.stats("http.llm.ext_proc.router.stream_msgs")
        sent = measure_messages(stack)
        messages = sum(stack.stats("http.llm.ext_proc.router.stream_msgs").values()) - sum(before.values())
        print(f"ext_proc messages per request, both directions: {messages / sent:.2f} (2 is one each way)\n")
        cells = run(stack, args.rounds, args.seconds)
        assert stack.router is not None
        status = Path(f"/proc/{stack.router.pid}/status").read_text()
    print("\n".join(table(cells, encoder_alone())))
    resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    print(f"\nresident memory of the router: {int(resident) / 1024:.0f} MB\n")
    print("\n".join(growth()))


def measure_messages(stack: Stack) -> int:
    """Send requests for one second. Return how many were sent."""
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        cell = measure(systems(stack, 16)[1], False, 1, 1, Path(folder))
    return cell.requests


if __name__ == "__main__":
    main()
