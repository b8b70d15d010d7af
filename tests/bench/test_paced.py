"""Streams whose chunks come one by one: the upstream has pauses, and a turn with other streams has failed."""

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import msgspec
import pytest

from bench import paced
from bench.load import BY_TEXT, JUDGED, Cell, System, check, faults
from extproc.demo.processes import end, free_ports


@pytest.fixture(scope="module")
def upstream() -> Iterator[System]:
    """The upstream alone. It has neither a reason nor a verdict in its headers."""
    (port,) = free_ports(1)
    process = subprocess.Popen([sys.executable, "-m", "bench.flat_upstream", str(port)])
    system = System("the upstream", f"http://127.0.0.1:{port}/", "m", (process.pid,))
    try:
        check(system)  # it waits until the upstream listens
        yield system
    finally:
        end(process)


@pytest.fixture(autouse=True)
def _no_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paced, "_LOGS_S", 0)


def test_a_turn_has_every_stream_with_its_pauses(upstream: System):
    """Two connections with one stream each. No stream is shorter than the sum of its pauses."""
    turn = paced.measure(paced.with_pauses(upstream), 2, 1)
    assert turn.cell.valid and turn.cell.requests == 2 and (turn.sent, turn.received) == (0, 0)
    assert turn.cell.p50_ms >= 980


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"reasons": BY_TEXT}, "no_reason"),
        ({"text": JUDGED}, "verdict none"),
        ({"before": ()}, "without pauses"),
        ({"before": ({"role": "system", "content": "This is a stream of 49 chunks."},)}, "incomplete"),
    ],
    ids=["not routed", "not judged", "without pauses", "incomplete"],
)
def test_a_turn_with_other_streams_has_failed(upstream: System, change: dict[str, object], what: str):
    turn = paced.measure(msgspec.structs.replace(upstream, **change), 2, 2)
    assert faults([turn.cell]) == f"1 of 1 turns FAILED: 4 {what}"


@pytest.mark.parametrize(
    ("head", "what"),
    [
        ("x-router-reason: matched\r\nx-cascade-verdict: accept\r\n", "verdict accept"),
        ("x-router-reason: deadline\r\n", "deadline"),
        ("x-router-reason: matched\r\n", "incomplete"),
    ],
)
def test_a_stream_that_is_not_to_be_judged_has_no_verdict(head: str, what: str):
    system = System("router", "", "auto", (), reasons=BY_TEXT)
    assert paced._fault(system, f"http/1.1 200 ok\r\n{head}\r\n", b"", 1.0) == what


class _Refusing(BaseHTTPRequestHandler):
    """A server without a free place. Its answer has no mark of the end of a stream."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.send_error(503)

    def log_message(self, *_: object) -> None:
        pass


def test_a_refused_stream_is_an_error():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        turn = paced.measure(System("full", f"http://127.0.0.1:{server.server_port}/", "m", ()), 3, 2)
        server.shutdown()
    assert not turn.cell.valid and faults([turn.cell]) == "1 of 1 turns FAILED: 6 errors"


def test_a_turn_without_a_server_has_failed():
    (port,) = free_ports(1)
    turn = paced.measure(System("nothing", f"http://127.0.0.1:{port}/", "m", ()), 3, 2)
    assert not turn.cell.valid and faults([turn.cell]) == "1 of 1 turns FAILED: 6 errors"


def turn(envoy: float, router: float, sent: float = 0.0, unexpected: dict[str, int] | None = None) -> paced.Turn:
    cell = Cell(64, 30.0, 1000.0, 1100.0, (envoy, router), 0.1, 0, unexpected or {})
    return paced.Turn(cell, sent, sent / 2)


def test_the_table_has_medians_and_names_failed_turns():
    """CPU is microseconds of Envoy and of the router for each stream."""
    unjudged, judged = (
        [turn(2.0, 1.0)] * 3,
        [turn(3.0, 1.0, 4), turn(4.0, 2.0, 6), turn(9.0, 9.0, 8, {"deadline": 2})],
    )
    _, plain, failed = paced.table({"router, stream": unjudged, "router, judged stream": judged})
    assert plain.split()[2:] == ["1000", "2000", "1000", "0.0", "0.0"]
    assert failed.split(maxsplit=8)[3:] == [
        "1000", "4000", "2000", "6.0", "3.0", "1 of 3 turns FAILED: 2 deadline",
    ]  # fmt: skip
    assert paced.ratio(judged, unjudged) == 2.0


def test_the_systems_alternate(monkeypatch: pytest.MonkeyPatch):
    """A turn is as many streams of a connection as fit into it, and at least one."""
    asked: list[tuple[str, int, int]] = []

    def measure(system: System, at_once: int, each: int) -> paced.Turn:
        asked.append((system.name, at_once, each))
        return turn(1.0, 1.0)

    monkeypatch.setattr(paced, "measure", measure)
    systems = [System("a", "", "m", ()), System("b", "", "m", ())]
    assert {name: len(turns) for name, turns in paced.rows(systems, 2, 2).items()} == {"a": 2, "b": 2}
    assert asked == [("a", 32, 2), ("b", 32, 2)] * 2
    paced.rows(systems[:1], 1, 0)
    assert asked[-1] == ("a", 32, 1)
