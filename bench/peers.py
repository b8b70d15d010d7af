"""The router and other gateways, which do not read the text, in one run: `make bench-peers`.

Every system forwards the same chat request to the same flat upstream (bench.flat_upstream), over 1 and 16
connections. Answers are 300 bytes of JSON or streams of 50 chunks. The load is `wrk`, with one thread in a closed
loop. Systems alternate within a round, and the table has medians over the rounds, so that other load on the machine
affects all of them. Each gateway has one worker, as Envoy has. The router is a second process beside Envoy, and its
CPU time is included.
"""

import argparse
import contextlib
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.clinc import Row, compare
from bench.flat_upstream import CHUNKS
from bench.gateways import GATEWAYS, GatewayError
from bench.load import (
    BY_TEXT,
    JUDGED,
    TEXT,
    Cell,
    System,
    check,
    faults,
    flat_upstream,
    interpreter,
    measure,
    routing_stack,
)
from extproc.contract.words import Reason
from extproc.demo.processes import free_ports
from extproc.demo.stack import PLAIN_CLUSTER, Stack

CONNECTIONS = (1, 16)


def own_systems(stack: Stack, bare_url: str, upstream: int, upstream_pid: int) -> list[System]:
    """The upstream itself, Envoy without and with our access logs, and the router on the sample intents."""
    assert stack.envoy is not None and stack.router is not None
    path = "/v1/chat/completions"
    tier, model = next(iter(stack.upstreams.models.items()))
    envoy, both = (stack.envoy.pid,), (stack.envoy.pid, stack.router.pid)

    def router(name: str, text: str, fresh: bool, reasons: tuple[str, ...]) -> System:
        return System(name, stack.url + path, "auto", both, {}, text, fresh, reasons, stack.admin_url)

    return [
        System("upstream itself", f"http://127.0.0.1:{upstream}{path}", "m", (upstream_pid,)),
        System("bare Envoy", bare_url + path, model, envoy, {PLAIN_CLUSTER: tier}),
        System("plain Envoy", stack.plain_url + path, model, envoy, {PLAIN_CLUSTER: tier}),
        router("router, text seen before", TEXT, False, BY_TEXT),
        router("router, text never seen", TEXT, True, BY_TEXT),
        router("router, seen, answer judged", JUDGED, False, (Reason.MATCHED,)),
    ]


@contextlib.contextmanager
def all_systems(cache: Path) -> Iterator[tuple[list[System], dict[str, str]]]:
    """(systems to measure, reasons by gateway why the others cannot be measured)."""
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
        upstream, upstream_pid = running.enter_context(flat_upstream())
        stack, bare_url = running.enter_context(routing_stack(upstream))
        systems = own_systems(stack, bare_url, upstream, upstream_pid)
        for system in systems:
            check(system)
        for name, gateway in GATEWAYS.items():
            print(f"starting {name} (the first run installs it)", file=sys.stderr, flush=True)
            try:
                with contextlib.ExitStack() as attempt:
                    started = attempt.enter_context(gateway(cache, folder, free_ports(1)[0], upstream))
                    system = System(
                        f"{name} {started.version}", started.url, started.model, (started.pid,), started.headers
                    )
                    check(system)
                    systems.append(system)
                    running.push(attempt.pop_all())
            except GatewayError as error:
                missing[name] = str(error)
        yield systems, missing


Cells = dict[tuple[str, bool, int], list[Cell]]


def rounds(systems: list[System], count: int, seconds: int) -> Cells:
    """(system, stream, connections) -> one cell per round. The order of the systems rotates."""
    cells: Cells = {}
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        for turn in range(count):
            for stream in (False, True):
                for connections in CONNECTIONS:
                    for system in systems[turn % len(systems) :] + systems[: turn % len(systems)]:
                        cell = measure(system, stream, connections, seconds, Path(folder))
                        cells.setdefault((system.name, stream, connections), []).append(cell)
            print(f"round {turn + 1} of {count}", file=sys.stderr, flush=True)
    return cells


def table(cells: Cells, stream: bool) -> Iterator[str]:
    """The lines of one table, with medians over the rounds."""
    title = f"Streams of {CHUNKS} chunks" if stream else "Answers of 300 bytes"
    yield f"{title:<32}" + "".join(f"{f'{c} connection' + 's' * (c > 1):^44}" for c in CONNECTIONS)
    yield " " * 32 + "   per s   p50 ms   added   of Envoy  CPU ms  " * len(CONNECTIONS)
    for name in dict.fromkeys(name for name, _, _ in cells):
        line = f"{name:<32}"
        for c in CONNECTIONS:
            this, plain, direct = (_medians(cells[n, stream, c]) for n in (name, "plain Envoy", "upstream itself"))
            of_envoy = this["p50_ms"] / plain["p50_ms"] if stream else this["per_second"] / plain["per_second"]
            line += f"{this['per_second']:>8.0f}{this['p50_ms']:>9.2f}{this['p50_ms'] - direct['p50_ms']:>8.2f}"
            line += f"{of_envoy:>10.2f}{this['cpu_ms']:>9.2f}  "
        turns = [cell for c in CONNECTIONS for cell in cells[name, stream, c]]
        wrong, late = faults(turns), statistics.mean(cell.late for cell in turns)
        yield line + (f"  {wrong}" if wrong else "") + (f"  {late:.0%} late" if late else "")


def _medians(cells: list[Cell]) -> dict[str, float]:
    return {
        name: statistics.median(getattr(cell, name) for cell in cells)
        for name in ("per_second", "p50_ms", "cpu_ms", "client_cores")
    }


def binding(cells: Cells) -> str:
    """A sentence about the limit of plain Envoy in this run."""
    direct, plain = (_medians(cells[name, False, 16]) for name in ("upstream itself", "plain Envoy"))
    return (
        f"At 16 connections and {plain['per_second']:.0f}/s, the one worker of plain Envoy is busy "
        f"{plain['per_second'] * plain['cpu_ms'] / 1000:.0%} of the time, and the client uses "
        f"{plain['client_cores']:.0%} of a core. "
        f"The client and the upstream alone reach {direct['per_second']:.0f}/s."
    )


def accuracy(rows: list[Row], sample: int) -> Iterator[str]:
    """The lines of the CLINC150 table."""
    yield f"CLINC150, 10 utterances per intent, {sample} test texts    accuracy    p50 ms"
    for row in rows:
        p50 = "" if row.seconds is None else f"{1000 * statistics.median(row.seconds):>10.1f}"
        yield f"{row.name:<54}{row.accuracy:>9.3f}{p50}"


def main() -> int:
    """Print the tables that the README quotes. Return 1 if a turn failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="rounds to take the median of (default 4)")
    parser.add_argument("--seconds", type=int, default=2, help="length of each turn (default 2)")
    parser.add_argument("--cache", type=Path, default=Path(".venv-peers"), help="folder of the gateways")
    parser.add_argument("--torch-index", help="package index with CPU builds of torch")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sample", type=int, default=1000, help="number of CLINC150 test texts (default 1000)")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("bench.peers: `wrk` is not on the PATH: run `apt-get install wrk`")
    with all_systems(args.cache.resolve()) as (systems, missing):
        cells = rounds(systems, args.rounds, args.seconds)
    for stream in (False, True):
        print(*table(cells, stream), "", sep="\n")
    for name, why in missing.items():
        print(f"{name} not measured: {why}")
    print(binding(cells))
    print(
        '"of Envoy": requests/s of answers, or p50 of streams, divided by that of plain Envoy. "late": share that '
        "missed\nthe encoder's deadline and went to the default tier. "
        f"{args.rounds} rounds, {args.seconds} s per turn.\n"
        f"The plain Envoy writes our access logs, and the bare one writes none. Router: {interpreter()}.\n"
    )
    status = 0 if all(cell.valid for turns in cells.values() for cell in turns) else 1
    clinc = args.data / "clinc150.jsonl.gz"
    if not clinc.exists():
        print(f"CLINC150 not measured: {clinc} does not exist")
        return status
    try:
        print(*accuracy(compare(clinc, args.cache.resolve(), args.torch_index, args.sample), args.sample), sep="\n")
    except GatewayError as error:
        print(f"semantic-router not measured: {error}")
    return status


if __name__ == "__main__":
    sys.exit(main())
