"""The cost of routing, compared with the same Envoy without it: `make bench`, in less than six minutes.

The load is `wrk` with one thread, closed loop. A flat upstream answers with 300 bytes, or with 50 chunks. All
systems share one Envoy with one worker, and alternate in rounds of one run:

- bare Envoy: a listener without our filters and without access logs
- plain Envoy: the same with our access logs. It is what routing is compared with.
- constant reply: an ext_proc server in Python that replies the same to every request. With the minimal chain it is
  the floor of ext_proc. With our chain it shows what is left to a router that costs nothing.
- the router with three kinds of text. A "seen" text is always the same. A "new" text is never sent twice, so each
  of them needs an embedding. A text of two views has a first or last sentence beside the rest.
- streams: through plain Envoy, through the router, and judged by the verifier. First their chunks come without a
  pause, then one by one, as a model sends them (see bench.paced).

Other gateways are in the table if `make bench-peers` has installed them here. CPU is per request: that of Envoy,
and that of the router, the constant server or the gateway. The bars are for the figures of this run. Growth has one
turn for each size.

A turn failed if one answer failed open, was not routed, or did not come. Its rate means nothing, and the exit
status is 1.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from bench import growth, paced
from bench.controls import Controls, controls
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
from extproc.demo.processes import free_ports
from extproc.demo.stack import PLAIN_CLUSTER, Stack

_CONNECTIONS, _STREAMS_AT_ONCE = (1, 16), 16
# CASE is replaced by a number, and the text then has about the right length. Only the first 512 characters are
# embedded. Both heads match a cohort without acceptance rules. The first has no end of a clause, so its text has
# one view for any number.
_ONE_VIEW, _TWO_VIEWS = "Write a Python function for case CASE", "Write Python for case CASE:"
_HEAD_TOKENS = {_ONE_VIEW: 11, _TWO_VIEWS: 11}
_WORDS = "that reads the rows of a table and sorts them by the date in the first column and".split()  # noqa: SIM905
_SHORT = growth.TOKENS[0]
_PATH = "/v1/chat/completions"
_BARE, _PLAIN, _MINIMAL = "bare Envoy", "plain Envoy", "constant reply, minimal chain"
_WHOLE, _SEEN = "constant reply, our chain", "router, seen"
_NEW, _NEW_TWO = "router, new, one view", "router, new, two views"
_STREAM, _JUDGED = "router, stream", "router, judged stream"

# (system, connections, whether the answer is a stream) -> one cell per round
Cells = dict[tuple[str, int, bool], list[Cell]]


def text_of(head: str, tokens: int) -> str:
    """A text of about this many tokens that begins with `head`."""
    words = max(tokens - _HEAD_TOKENS[head], 1)
    return f"{head} " + " ".join(_WORDS[i % len(_WORDS)] for i in range(words))


class Systems:
    """Everything behind one Envoy: the controls, and the router with each kind of text."""

    def __init__(self, stack: Stack, bare_url: str, constant: Controls) -> None:
        assert stack.envoy is not None and stack.router is not None
        self._stack, self._bare_url, self._constant = stack, bare_url, constant
        self._envoy, self._router = stack.envoy.pid, stack.router.pid

    def answers(self) -> list[System]:
        """The systems that are measured with answers of 300 bytes."""
        one, two = text_of(_ONE_VIEW, _SHORT), text_of(_TWO_VIEWS, _SHORT)
        return [
            self._plain(_BARE, self._bare_url),
            self._plain(_PLAIN, self._stack.plain_url),
            self._replying(_MINIMAL, self._constant.minimal_url, ()),
            self._replying(_WHOLE, self._constant.whole_url, BY_TEXT),
            self.router(_SEEN, one, False),
            self.router(_NEW, one, True),
            self.router(_NEW_TWO, two, True),
        ]

    def streams(self) -> list[System]:
        """The systems that are measured with streams of 50 chunks."""
        plain = self._plain(_PLAIN, self._stack.plain_url)
        return [plain, self.router(_STREAM, TEXT, False), self.router(_JUDGED, JUDGED, False)]

    def router(self, name: str, text: str, fresh: bool) -> System:
        """The router with this text."""
        both = (self._envoy, self._router)
        return System(name, self._stack.url + _PATH, "auto", both, {}, text, fresh, BY_TEXT, self._stack.admin_url)

    def _plain(self, name: str, url: str) -> System:
        tier, model = next(iter(self._stack.upstreams.models.items()))
        one = text_of(_ONE_VIEW, _SHORT)
        return System(name, url + _PATH, model, (self._envoy, self._router), {PLAIN_CLUSTER: tier}, one)

    def _replying(self, name: str, url: str, reasons: tuple[str, ...]) -> System:
        both, one = (self._envoy, self._constant.pid), text_of(_ONE_VIEW, _SHORT)
        return System(name, url + _PATH, "auto", both, {}, one, False, reasons, self._stack.admin_url)


@contextlib.contextmanager
def peers(upstream: int, cache: Path) -> Iterator[tuple[list[System], list[str]]]:
    """(the gateways that are installed in `cache`, lines about the others)."""
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
        systems, missing = [], []
        for name, gateway in GATEWAYS.items():
            if not (cache / name.lower() / "installed").exists():
                missing.append(f"{name} not measured: `make bench-peers` installs and measures it")
                continue
            try:
                with contextlib.ExitStack() as attempt:
                    started = attempt.enter_context(gateway(cache, folder, free_ports(1)[0], upstream))
                    where, headers = (started.url, started.model, (started.pid,)), started.headers
                    system = System(f"{name} {started.version}", *where, headers)
                    check(system)
                    systems.append(system)
                    running.push(attempt.pop_all())
            except GatewayError as error:
                missing.append(f"{name} not measured: {error}")
        yield systems, missing


def run(answers: Sequence[System], streams: Sequence[System], rounds: int, seconds: int) -> Cells:
    """The cells of all systems, which alternate."""
    cells: Cells = {}
    turns = [(system, count, False) for count in _CONNECTIONS for system in answers]
    turns += [(system, _STREAMS_AT_ONCE, True) for system in streams]
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        for _ in range(rounds):
            for system, count, stream in turns:
                cell = measure(system, stream, count, seconds, Path(folder))
                cells.setdefault((system.name, count, stream), []).append(cell)
    return cells


def table(cells: Cells) -> Iterator[str]:
    """Lines with medians over the rounds. Ratios and added times are relative to plain Envoy."""
    head = "per s  of plain  p50 ms   added  p99 ms   added   CPU us: Envoy  router  client cores  fail-opens"
    yield f"connections  {'system':<32}{head}"
    for (name, connections, stream), turns in cells.items():
        cell, plain = median(turns), median(cells[_PLAIN, connections, stream])
        envoy_us, router_us = (1000 * each for each in (0.0, *cell.cpu_each)[-2:])  # a gateway has no Envoy
        shown = f"{name}, stream" if stream and "stream" not in name else name
        line = f"{connections:>11}  {shown:<32}{cell.per_second:>5.0f}"
        line += f"{cell.per_second / plain.per_second:>10.2f}" if plain.per_second else f"{'-':>10}"
        line += f"{cell.p50_ms:>8.2f}{cell.p50_ms - plain.p50_ms:>8.2f}{cell.p99_ms:>8.2f}"
        line += f"{cell.p99_ms - plain.p99_ms:>8.2f}{envoy_us:>16.0f}{router_us:>8.0f}{cell.client_cores:>14.2f}"
        line += f"{sum(turn.fail_opens for turn in turns):>12}"
        wrong = faults(turns)
        yield f"{line}  {wrong}" if wrong else line


def median(cells: Sequence[Cell]) -> Cell:
    """The median of each measurement over the rounds. Counts of faults are those of the first round."""
    middle = {
        name: statistics.median(getattr(cell, name) for cell in cells)
        for name in ("per_second", "p50_ms", "p99_ms", "client_cores")
    }
    each = tuple(map(statistics.median, zip(*(cell.cpu_each for cell in cells), strict=True)))
    return msgspec.structs.replace(cells[0], cpu_each=each, **middle)


def bars(cells: Cells, search_ms: float, paced_ratio: float) -> Iterator[str]:
    """Lines with the figures that have a bar. The bars were set on two quiet Zen 4 cores."""
    at = {key: median(turns) for key, turns in cells.items()}
    one, many = (
        {name: at[name, count, False] for name in (_PLAIN, _MINIMAL, _SEEN, _NEW_TWO)} for count in (1, 16)
    )
    stream, judged = (at[name, _STREAMS_AT_ONCE, True] for name in (_STREAM, _JUDGED))
    floor = many[_SEEN].cpu_ms / many[_MINIMAL].cpu_ms
    yield f"{'bar':<68}{'measured':>12}{'at most':>12}"
    for name, measured, bar in (
        ("seen, 16 connections, CPU us of router and Envoy", many[_SEEN].cpu_ms * 1000, "700"),
        ("the same over the constant reply with the minimal chain", floor, "-"),
        ("seen, 1 connection, p50 over plain Envoy, ms", _over(one, _SEEN), "0.6"),
        ("new, two views, 16 connections, CPU ms", many[_NEW_TWO].cpu_ms, "2.5"),
        ("new, two views, 1 connection, p50 over plain Envoy, ms", _over(one, _NEW_TWO), "3.5"),
        ("new, two views, 16 connections, requests/s", many[_NEW_TWO].per_second, "460 or more"),
        ("search among 10,000 cohorts, CPU ms", search_ms, "0.3"),
        ("judged stream of 50 chunks, CPU over one that is not judged", judged.cpu_ms / stream.cpu_ms, "1.3"),
        (
            f"judged stream of {CHUNKS} chunks, {paced.PAUSE_MS} ms apart, CPU over one not judged",
            paced_ratio,
            "1.3",
        ),
    ):
        yield f"{name:<68}{measured:>12.4g}{bar:>12}"


def _over(cells: dict[str, Cell], name: str) -> float:
    return cells[name].p50_ms - cells[_PLAIN].p50_ms


def main() -> int:
    """Print the tables. Return 1 if a turn failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take the median of (default 3)")
    parser.add_argument("--seconds", type=int, default=2, help="length of each turn (default 2)")
    parser.add_argument("--workers", type=int, default=1, help="processes of the router (default 1)")
    parser.add_argument("--cache", type=Path, default=Path(".venv-peers"), help="folder of other gateways")
    args = parser.parse_args()
    with (
        flat_upstream() as (port, _),
        controls() as constant,
        routing_stack(port, args.workers, constant.add) as (stack, bare_url),
        peers(port, args.cache.resolve()) as (others, missing),
    ):
        systems = Systems(stack, bare_url, constant)
        answers, streams = systems.answers(), systems.streams()
        slow = [paced.with_pauses(system) for system in streams]
        for system in answers[:2] + answers[4:] + streams + slow:
            check(system)
        print(
            f"ext_proc messages per request, both directions: {messages(stack, answers[4]):.2f} (2 is one each way)"
        )
        print(f"router: {interpreter()}\n", flush=True)
        cells = run([*answers, *others], streams, args.rounds, args.seconds)
        turns = paced.rows(slow, args.rounds, args.seconds)
        new = [systems.router(_NEW, text_of(_ONE_VIEW, tokens), True) for tokens in growth.TOKENS]
        grown = growth.rows(streams[1], new, streams[2], args.seconds)
        assert stack.router is not None
        status = Path(f"/proc/{stack.router.pid}/status").read_text()
    print(*table(cells), *missing, "", *paced.table(turns), "", sep="\n")
    searches = growth.searches()
    print(*bars(cells, searches[max(searches)], paced.ratio(turns[_JUDGED], turns[_STREAM])), sep="\n")
    resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    print(f"{'resident memory of the router, MB':<68}{int(resident) / 1024:>12.0f}{260:>12}\n")
    print(*growth.table(grown), sep="\n")
    print(*(f"{f'search among {count:,} cohorts':<32}{ms:>39.3f} ms" for count, ms in searches.items()), sep="\n")
    measured = [cell for each in cells.values() for cell in each] + [cell for _, cell in grown]
    measured += [turn.cell for each in turns.values() for turn in each]
    return 0 if all(cell.valid for cell in measured) else 1


def messages(stack: Stack, seen: System) -> float:
    """The ext_proc messages for each of the requests of one second."""
    before = stack.stats("http.llm.ext_proc.router.stream_msgs")
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        sent = measure(seen, False, 1, 1, Path(folder)).requests
    return (sum(stack.stats("http.llm.ext_proc.router.stream_msgs").values()) - sum(before.values())) / sent


if __name__ == "__main__":
    sys.exit(main())
