"""The benchmark with other gateways: its upstream, its table, and gateways that cannot be installed."""

import http.client
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.flat_upstream import ANSWER_BYTES, CHUNKS
from bench.gateways import GATEWAYS, GatewayError, python_environment
from bench.load import Cell, System, check, cpu_s
from bench.peers import CONNECTIONS, table
from extproc.demo.processes import end, free_ports

PATH = "/v1/chat/completions"


@pytest.fixture
def upstream() -> Iterator[int]:
    (port,) = free_ports(1)
    process = subprocess.Popen([sys.executable, "-m", "bench.flat_upstream", str(port)])
    try:
        yield port
    finally:
        end(process)


def system_at(port: int) -> System:
    return System("upstream itself", f"http://127.0.0.1:{port}{PATH}", "m", ())


def test_the_upstream_sends_the_documented_answers(upstream: int):
    """300 bytes of JSON or 50 events, over one connection, also for a request in several parts."""
    check(system_at(upstream))
    connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=10)
    connection.request("POST", PATH, b"{}")
    assert len(connection.getresponse().read()) == ANSWER_BYTES == 300
    connection.putrequest("POST", PATH)
    connection.putheader("content-length", "17")
    connection.endheaders(b'{"stream"')
    connection.send(b": true }")
    events = connection.getresponse().read().split(b"\n\n")
    assert (len(events), events[-2:]) == (CHUNKS + 1, [b"data: [DONE]", b""])


def test_a_gateway_that_cannot_be_installed_raises_the_reason(tmp_path: Path):
    """The reason is the last line of the installer. The incomplete environment is not used later."""
    home = tmp_path / "peer"
    with pytest.raises(GatewayError, match="No matching distribution"):
        python_environment(home, ["--no-index --find-links . no-such-gateway==1"])
    assert not (home / "installed").exists()


def test_a_missing_npm_raises_a_gateway_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A missing tool raises the error that the run expects."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(GatewayError, match="npm is not installed"), GATEWAYS["Portkey"](tmp_path, tmp_path, 1, 2):
        pass


def test_the_table_compares_with_plain_envoy():
    """Requests/s of JSON and times of streams are relative to plain Envoy. Failures are counted."""
    cells = {
        "upstream itself": Cell(800, 8000.0, 0.1, 0.3, (0.01,), 0.5, 0),
        "plain Envoy": Cell(400, 4000.0, 0.2, 0.5, (0.05,), 0.2, 0),
        "a gateway": Cell(100, 1000.0, 1.0, 2.0, (0.4, 0.1), 0.1, 3),
    }
    turns = {
        (name, stream, c): [cell] for name, cell in cells.items() for stream in (False, True) for c in CONNECTIONS
    }
    rows = {stream: list(table(turns, stream))[-1].split() for stream in (False, True)}
    failed = ["2", "of", "2", "turns", "FAILED:", "6", "errors"]
    of_envoy = {False: "0.25", True: "5.00"}
    for stream, row in rows.items():
        assert row == ["a", "gateway", *["1000", "1.00", "0.90", of_envoy[stream], "0.50"] * 2, *failed]


def test_cpu_time_includes_child_processes():
    """The CPU time of child processes is included."""
    busy = "import subprocess, sys, time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    with subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        assert cpu_s((process.pid,)) >= 0.5
        process.stdin.close()
