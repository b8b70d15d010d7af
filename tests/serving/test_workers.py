"""The addresses of workers, and how many workers fit a machine or a container."""

import pytest

from extproc.serving import workers
from extproc.serving.workers import cores, health_address, worker_addresses


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
