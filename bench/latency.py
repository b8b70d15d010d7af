"""What routing adds, against the same Envoy without it, in interleaved rounds of one run: `make bench`.

The load is `wrk`, one thread, closed loop, over 1, 16 and 64 connections; every answer is 300 bytes of a flat
upstream. The plain listener is the same Envoy without any of our filters. "seen" repeats one text, "new" never
sends a text twice, so that each costs an embedding: the two ends between which traffic lies. CPU is per request:
Envoy's, the server's, and of the server's what the encoder takes (that of new texts less that of seen ones).
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
# Of the right length once CASE is a number; 512 characters are embedded, whatever the length.
_WORDS = "please look at the order that came in on monday and tell the team what to do next".split()  # noqa: SIM905
_PATH = "/v1/chat/completions"
# Vectors as the router matches them: the embedding beside hashed words.
_DIMENSIONS = 384 + 2048

Found = dict[tuple[int, int, str], list[Cell]]


def systems(stack: Stack, tokens: int) -> list[System]:
    """Envoy without us, and the router on texts of about so many tokens."""
    assert stack.envoy is not None and stack.router is not None
    tier, model = next(iter(stack.upstreams.models.items()))
    both = (stack.envoy.pid, stack.router.pid)
    text = "Case CASE: " + " ".join(_WORDS[i % len(_WORDS)] for i in range(tokens - 7))
    return [
        System("plain", stack.plain_url + _PATH, model, both, {PLAIN_CLUSTER: tier}, text=text),
        System("seen", stack.url + _PATH, "auto", both, text=text),
        System("new", stack.url + _PATH, "auto", both, text=text, fresh=True),
    ]


def run(stack: Stack, rounds: int, seconds: int) -> Found:
    """(tokens, connections, system) -> a cell a round; the systems take turns."""
    found: Found = {}
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        for _ in range(rounds):
            for tokens in _TOKENS:
                for connections in _CONNECTIONS:
                    for system in systems(stack, tokens):
                        cell = measure(system, False, connections, seconds, Path(folder))
                        found.setdefault((tokens, connections, system.name), []).append(cell)
    return found


def table(found: Found, ceilings: dict[int, float]) -> Iterator[str]:
    """Lines: medians over the rounds."""
    yield "                 plain Envoy    text seen before                              text never seen"
    yield (
        "tokens connections      per s     per s  +p50   +p99    CPU ms: Envoy server"
        "   per s    +p50   +p99  encoder ms  late  encoder alone"
    )
    for tokens in _TOKENS:
        for connections in _CONNECTIONS:
            plain, seen, new = (_median(found[tokens, connections, name]) for name in ("plain", "seen", "new"))
            line = f"{tokens:>6}{connections:>12}{plain.per_second:>11.0f}"
            line += f"{seen.per_second:>10.0f}{seen.p50_ms - plain.p50_ms:>6.2f}{seen.p99_ms - plain.p99_ms:>7.2f}"
            line += f"{seen.cpu_each[0]:>14.2f}{seen.cpu_each[1]:>7.2f}"
            line += f"{new.per_second:>8.0f}{new.p50_ms - plain.p50_ms:>8.2f}{new.p99_ms - plain.p99_ms:>7.2f}"
            line += f"{new.cpu_each[1] - seen.cpu_each[1]:>12.2f}{new.late:>6.0%}{ceilings[tokens]:>12.0f}/s"
            failed = sum(c.failed for n in ("plain", "seen", "new") for c in found[tokens, connections, n])
            yield line + (f"  {failed} failed" if failed else "")


def _median(cells: list[Cell]) -> Cell:
    middle = {
        name: statistics.median(getattr(cell, name) for cell in cells)
        for name in ("per_second", "p50_ms", "p99_ms", "late")
    }
    each = tuple(map(statistics.median, zip(*(cell.cpu_each for cell in cells), strict=True)))
    return msgspec.structs.replace(cells[0], cpu_each=each, **middle)


def encoder_alone() -> dict[int, float]:
    """Tokens -> texts a second that the encoder does by itself, sixteen at a time, threaded as in serving."""
    encoder = load_encoder("all-MiniLM-L6-v2")
    rates = {}
    for tokens in _TOKENS:
        filler = " ".join(_WORDS[i % len(_WORDS)] for i in range(tokens - 7))
        times = []
        for turn in range(8):
            # As serving has it: cut to what is read of a long text.
            batch = [f"Case {turn}{i}: {filler}"[:512] for i in range(16)]
            since = time.perf_counter()
            encoder.encode(batch)
            times.append(time.perf_counter() - since)
        rates[tokens] = 16 / statistics.median(times)
    return rates


def growth() -> Iterator[str]:
    """Lines: what a search costs as cohorts, and centroids of each, grow."""
    yield "cohorts   centroids each   search ms   index MB"
    rng = np.random.default_rng(0)
    for cohorts, each in ((10, 1), (100, 1), (1000, 1), (10_000, 1), (100, 10), (1000, 10)):
        rows = rng.standard_normal((cohorts * each, _DIMENSIONS), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        means = {str(i): rows[i * each].copy() for i in range(cohorts)}
        index = Index({str(i): rows[i * each : (i + 1) * each] for i in range(cohorts)}, means)
        took = [_search_s(index, rows[i % len(rows)]) for i in range(60)]
        size = (rows.nbytes + sum(row.nbytes for row in means.values())) / 2**20
        yield f"{cohorts:>7}{each:>17}{statistics.median(took) * 1e3:>12.3f}{size:>11.1f}"


def _search_s(index: Index, vector: Vectors) -> float:
    since = time.perf_counter()
    nearest(index, vector)
    return time.perf_counter() - since


def main() -> None:
    """Print the tables that the README quotes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of each turn")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    with flat_upstream() as (port, _), routing_stack(port, args.workers) as stack:
        for system in systems(stack, 16):
            check(system)
        before = stack.stats("http.llm.ext_proc.router.stream_msgs")
        sent = measure_messages(stack)
        messages = sum(stack.stats("http.llm.ext_proc.router.stream_msgs").values()) - sum(before.values())
        print(f"ext_proc messages per request, both ways: {messages / sent:.2f} (one in, one out is 2)\n")
        found = run(stack, args.rounds, args.seconds)
        assert stack.router is not None
        status = Path(f"/proc/{stack.router.pid}/status").read_text()
    print("\n".join(table(found, encoder_alone())))
    resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    print(f"\nresident memory of the router: {int(resident) / 1024:.0f} MB\n")
    print("\n".join(growth()))


def measure_messages(stack: Stack) -> int:
    """Send some requests; return how many."""
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        cell = measure(systems(stack, 16)[1], False, 1, 1, Path(folder))
    return cell.requests


if __name__ == "__main__":
    main()
