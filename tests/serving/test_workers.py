"""The addresses of workers, and how many workers fit a machine or a container."""

import asyncio
import signal
import socket
import sys
from pathlib import Path

import pytest

from extproc.serving import workers
from extproc.serving.listening import check_free
from extproc.serving.workers import cores, health_address, supervise, worker_addresses

NO_ADDRESS = "the host is not an address of this machine: give 127.0.0.1, 0.0.0.0 or one of its addresses"


def test_workers_listen_on_consecutive_ports_or_numbered_sockets():
    assert worker_addresses("0.0.0.0:50051", 3) == ["0.0.0.0:50051", "0.0.0.0:50052", "0.0.0.0:50053"]
    assert worker_addresses("unix:///run/r.sock", 2) == ["unix:///run/r.sock", "unix:///run/r.sock.1"]
    assert worker_addresses("[::1]:1", 1) == ["[::1]:1"]


def test_the_health_of_all_workers_has_an_address_next_to_theirs():
    assert health_address("0.0.0.0:50051") == "0.0.0.0:50050"
    assert health_address("unix:///run/r.sock") == "unix:///run/r.sock.health"


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("150000 100000", 1), ("300000 100000", 3), ("20000 100000", 1), ("9900000 100000", 8), ("max 100000", 8)],
)
def test_a_containers_share_counts_not_the_nodes_cores(tmp_path, monkeypatch, quota, expected):
    """Sixty-four workers in a container with two cores would starve each other."""
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(workers, "_CGROUP_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    assert cores() == expected


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("127.0.0.1:70000", "give a port from 1 to 65535"),
        ("192.0.2.1:50051", NO_ADDRESS),
        ("nowhere.invalid:50051", NO_ADDRESS),
    ],
)
def test_an_address_that_cannot_be_used_is_named_with_the_reason(listen, why):
    with pytest.raises(OSError) as raised:
        check_free(listen)
    assert str(raised.value) == f"cannot listen on {listen}: {why}"
    check_free("unix:///run/there/is/none.sock")
    check_free("127.0.0.1:0")


def test_a_name_may_have_an_address_that_this_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container without IPv6, `localhost` and `::` are addresses that gRPC can listen on all the same."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as freed:
        busy, free = taken.getsockname()[1], freed.getsockname()[1]
        freed.close()
        lacking = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0))

        def addresses(host: str, port: str, type: int) -> list[object]:
            own = (socket.AF_INET, type, 6, "", ("127.0.0.1", int(port)))
            places: dict[str, list[object]] = {"localhost": [lacking, own], "::": [lacking], "0.0.0.0": [own]}
            return places[host]

        monkeypatch.setattr(socket, "getaddrinfo", addresses)
        for host in ("localhost", "[::]"):
            check_free(f"{host}:{free}")
            with pytest.raises(OSError, match="another program uses the port"):
                check_free(f"{host}:{busy}")


def test_a_mistake_of_one_worker_ends_those_that_still_load(tmp_path: Path) -> None:
    """A worker that loads its encoder does not look at signals. It has no request, so it is not waited for."""
    loads = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    mistaken = [sys.executable, "-c", "import sys; sys.exit(2)"]
    commands = {"a": [sys.executable, "-c", loads], "b": mistaken}
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert asyncio.run(asyncio.wait_for(supervise(commands, f"unix://{tmp_path}/health"), 60)) == 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
