"""Child processes: free ports, and the one sentence that says why a process did not start."""

import socket
import sys
from pathlib import Path

import pytest

from extproc.demo.processes import PortTaken, StackError, end, free_port_range, free_ports, start, taken

_WARNING = "[warning] this field is work in progress\n"


def script(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def listening_on(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port), reuse_port=True)


def test_chosen_ports_are_free_and_differ() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20 and taken(ports) == []


def test_a_port_range_has_no_port_that_another_process_uses() -> None:
    ports = free_port_range(3)
    with listening_on(ports[1]):
        assert taken(ports) == [ports[1]]
    assert taken(ports) == []


def test_the_port_of_a_connection_that_was_just_closed_is_free() -> None:
    """A process can start again on its own port."""
    (port,) = free_ports(1)
    with listening_on(port) as server, socket.create_connection(("127.0.0.1", port)) as client:
        server.accept()[0].close()
        assert client.recv(1) == b""
    assert taken([port]) == []


def test_a_process_that_becomes_ready_is_returned(tmp_path: Path) -> None:
    process = start("a process", script("import time; time.sleep(60)"), [], lambda: True, tmp_path / "log")
    assert process.poll() is None
    end(process)
    assert process.returncode == -15


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (f"import sys; sys.exit({_WARNING * 40!r} + 'no listener.\\n\\n')", "no listener"),
        ("import sys; sys.exit('extproc: no such folder')", "no such folder"),
        ("raise SystemExit(3)", "exit status 3"),
    ],
    ids=["warnings first", "our own prefix", "nothing printed"],
)  # fmt: skip
def test_the_error_is_the_last_line_that_the_process_printed(tmp_path: Path, code: str, cause: str) -> None:
    """Lines of an earlier start do not count."""
    log = tmp_path / "log"
    log.write_text("an earlier run\n")
    with pytest.raises(StackError) as caught:
        start("Envoy", script(code), [], lambda: False, log)
    assert str(caught.value) == f"Envoy did not start: {cause}. Its log: {log}"
    assert not isinstance(caught.value, PortTaken)


def test_a_process_that_is_never_ready_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extproc.demo.processes._START_S", 0.0)
    with pytest.raises(StackError) as caught:
        start("Envoy", script("import time; time.sleep(60)"), [], lambda: False, tmp_path / "out", tmp_path / "err")
    assert str(caught.value) == f"Envoy was not ready within 0 s. Its log: {tmp_path / 'err'}"


def test_another_process_that_answers_on_the_port_is_not_mistaken_for_ours(tmp_path: Path) -> None:
    """It is ready, but the process that was to start never runs."""
    (port,) = free_ports(1)
    with listening_on(port), pytest.raises(PortTaken) as caught:
        start("the router", script("open('started', 'w')"), [port], lambda: True, tmp_path / "log")
    assert str(caught.value) == f"the router did not start: another process has taken port {port}"
    assert not (tmp_path / "log").exists()


def test_a_port_that_is_taken_while_the_process_starts_is_named(tmp_path: Path) -> None:
    """The last moment at which a port can be lost: the process finds it taken when it binds."""
    (port,) = free_ports(1)
    bind = f"import socket, time; time.sleep(0.5); socket.create_server(('127.0.0.1', {port}))"
    servers: list[socket.socket] = []

    def take_the_port() -> bool:
        if not servers:
            servers.append(listening_on(port))
        return False

    try:
        with pytest.raises(PortTaken) as caught:
            start("the router", script(bind), [port], take_the_port, tmp_path / "log")
    finally:
        servers[0].close()
    assert str(caught.value) == f"the router did not start: another process has taken port {port}"
    assert "Address already in use" in (tmp_path / "log").read_text()
