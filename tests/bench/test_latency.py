"""The benchmark of routing: its controls, its bars, and streams of other lengths."""

import contextlib
import http.client
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import growth, latency
from bench.controls import with_constant
from bench.flat_upstream import chunks_message, events
from bench.gateways import Running
from bench.load import Cell, System, check
from extproc.config.load import load_config
from extproc.demo.processes import end, free_ports
from extproc.envoy.bootstrap import render_envoy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bootstrap() -> dict[str, Any]:
    rendered = render_envoy(load_config(ROOT / "intents"), "127.0.0.1:1", ["127.0.0.1:2"], "127.0.0.1:3", None)
    loaded: dict[str, Any] = yaml.safe_load(rendered)
    return loaded


def test_the_minimal_chain_has_only_what_routes(bootstrap: dict[str, Any]):
    """The floor has no logs, and its upstream has no filters of attempts."""
    *_, whole, minimal = with_constant(bootstrap, 4, 5, 6)["static_resources"]["listeners"]
    managers = [listener["filter_chains"][0]["filters"][0]["typed_config"] for listener in (whole, minimal)]
    router = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    assert len(managers[0]["http_filters"]) == len(router["http_filters"]) and len(managers[0]["access_log"]) == 2
    assert [entry["name"] for entry in managers[1]["http_filters"]] == [
        "envoy.filters.http.ext_proc.router",
        "envoy.filters.http.buffer",
        "envoy.filters.http.router",
    ]
    assert "access_log" not in managers[1]
    assert "extproc" not in {str(name) for name in _clusters_of(managers)}


def _clusters_of(part: Any) -> Iterator[str]:
    """All clusters that a part of the configuration asks by gRPC."""
    if isinstance(part, list):
        for item in part:
            yield from _clusters_of(item)
    elif isinstance(part, dict):
        if "envoy_grpc" in part:
            yield part["envoy_grpc"]["cluster_name"]
        for item in part.values():
            yield from _clusters_of(item)


def test_the_router_s_own_listener_is_unchanged(bootstrap: dict[str, Any]):
    before = yaml.safe_dump(bootstrap)
    changed = with_constant(bootstrap, 4, 5, 6)
    assert yaml.safe_dump(bootstrap) == before
    assert changed["static_resources"]["listeners"][0] == bootstrap["static_resources"]["listeners"][0]


def cell(envoy: float, router: float, p50: float = 1.0, per_second: float = 100.0) -> Cell:
    return Cell(100, per_second, p50, 2 * p50, (envoy, router), 0.1, 0)


def test_the_bars_compare_figures_of_one_run():
    cells: latency.Cells = {}
    for count in (1, 16):
        cells[latency._PLAIN, count, False] = [cell(0.1, 0.0)]
        cells[latency._MINIMAL, count, False] = [cell(0.2, 0.05)]
        cells[latency._SEEN, count, False] = [cell(0.3, 0.2, p50=1.5)]
        cells[latency._NEW_TWO, count, False] = [cell(0.5, 2.5, p50=4.0, per_second=300)]
    cells[latency._STREAM, 16, True] = [cell(0.5, 0.5)]
    cells[latency._JUDGED, 16, True] = [cell(0.7, 0.8)]
    measured = [line[68:80] for line in list(latency.bars(cells, 0.25, 1.75))[1:]]
    assert [float(value) for value in measured] == [500, 2, 0.5, 3, 3, 300, 0.25, 1.5, 1.75]


def test_a_failed_turn_is_named_in_the_table():
    failed = Cell(100, 5000.0, 0.1, 0.2, (0.1, 0.0), 0.1, 0, {"fail_open": 3}, 3)
    lines = [*latency.table({(latency._PLAIN, 16, False): [cell(0.1, 0.0)], (latency._SEEN, 16, False): [failed]})]
    assert lines[2].endswith("1 of 1 turns FAILED: 3 fail-opens, 3 fail_open")
    [_, grown] = growth.table([("body of 16 KB", failed)])
    assert grown.endswith("FAILED: 3 fail-opens, 3 fail_open")


def test_gateways_that_are_not_installed_are_named(tmp_path: Path):
    with latency.peers(1, tmp_path) as (systems, missing):
        assert systems == [] and len(missing) == 3
        assert missing[0] == "LiteLLM not measured: `make bench-peers` installs and measures it"


@pytest.fixture
def upstream() -> Iterator[int]:
    (port,) = free_ports(1)
    process = subprocess.Popen([sys.executable, "-m", "bench.flat_upstream", str(port)])
    try:
        check(System("the upstream", f"http://127.0.0.1:{port}/", "m", ()))  # it waits until the upstream listens
        yield port
    finally:
        end(process)


def test_an_installed_gateway_has_a_row(upstream: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its CPU is in the column of the router, because it has no Envoy."""

    @contextlib.contextmanager
    def gateway(cache: Path, folder: Path, port: int, to: int) -> Iterator[Running]:
        yield Running("1.2", f"http://127.0.0.1:{to}/v1/chat/completions", "m", {}, 7)

    monkeypatch.setattr(latency, "GATEWAYS", {"Fast": gateway, "Absent": gateway})
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "installed").touch()
    with latency.peers(upstream, tmp_path) as (systems, missing):
        assert [(system.name, system.pids) for system in systems] == [("Fast 1.2", (7,))]
        assert missing == ["Absent not measured: `make bench-peers` installs and measures it"]
    alone = Cell(100, 100.0, 1.0, 2.0, (0.4,), 0.1, 0)
    lines = [*latency.table({(latency._PLAIN, 16, False): [cell(0.1, 0.0)], ("Fast 1.2", 16, False): [alone]})]
    assert lines[2].split()[-4:] == ["0", "400", "0.10", "0"]


def test_a_request_may_ask_for_a_longer_stream(upstream: int):
    """The message before the text says so, and the text of the user stays the same."""
    system = System("a system", "", "m", (), before=(chunks_message(120),))
    connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=10)
    connection.request("POST", "/", system.body(stream=True))
    assert connection.getresponse().read() == b"".join(events(120))


def test_a_search_is_timed_for_each_number_of_cohorts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(growth, "_COHORTS", (10, 20))
    assert list(growth.searches()) == [10, 20] and min(growth.searches().values()) > 0
