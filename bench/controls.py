"""The floor of ext_proc: two more listeners of the same Envoy, in front of a server that always replies the same.

One has the whole chain of the router's listener. The other has only what a request cannot be routed without:
ext_proc, the buffer and Envoy's router. It has no access logs and no filters of attempts.
"""

import contextlib
import copy
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from extproc.demo.processes import end, free_ports
from extproc.demo.stack import Stack
from extproc.envoy.filters import BUFFER_FILTER, ROUTER_FILTER

_SERVER, _DIRECT = "constant", "direct"
_MINIMAL = (ROUTER_FILTER, BUFFER_FILTER, "envoy.filters.http.router")


class Controls:
    """The listeners, and the process of the server."""

    def __init__(self) -> None:
        self._port, self._whole, self._minimal = free_ports(3)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def whole_url(self) -> str:
        """The listener with the whole chain."""
        return f"http://127.0.0.1:{self._whole}"

    @property
    def minimal_url(self) -> str:
        """The listener with the minimal chain."""
        return f"http://127.0.0.1:{self._minimal}"

    @property
    def pid(self) -> int:
        """The process of the server."""
        assert self._process is not None
        return self._process.pid

    def add(self, stack: Stack, bootstrap: dict[str, Any]) -> dict[str, Any]:
        """Start the server and return a copy of the bootstrap with the listeners."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.constant", str(self._port), str(stack.router_port)]
        )
        return with_constant(bootstrap, self._port, self._whole, self._minimal)

    def stop(self) -> None:
        """End the server."""
        if self._process is not None:
            end(self._process)


@contextlib.contextmanager
def controls() -> Iterator[Controls]:
    """Controls whose server ends with this context."""
    added = Controls()
    try:
        yield added
    finally:
        added.stop()


def with_constant(bootstrap: dict[str, Any], port: int, whole_port: int, minimal_port: int) -> dict[str, Any]:
    """Return a copy with two listeners for the server on `port`. The first listener is that of the router."""
    bootstrap = copy.deepcopy(bootstrap)
    resources = bootstrap["static_resources"]
    server = copy.deepcopy(next(c for c in resources["clusters"] if c["name"] == "extproc"))
    server["name"] = server["load_assignment"]["cluster_name"] = _SERVER
    [group] = server["load_assignment"]["endpoints"]
    del group["lb_endpoints"][1:]
    group["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] = port
    tier = next(c for c in resources["clusters"] if c["name"] != "extproc")
    direct = {key: tier[key] for key in ("type", "connect_timeout", "circuit_breakers")}
    hosts = copy.deepcopy(tier["load_assignment"]) | {"cluster_name": _DIRECT}
    direct |= {"name": _DIRECT, "load_assignment": hosts}
    resources["clusters"] += [server, direct]
    router = resources["listeners"][0]
    resources["listeners"] += [_whole(router, whole_port), _minimal(router, minimal_port)]
    return bootstrap


def _whole(router: dict[str, Any], port: int) -> dict[str, Any]:
    listener = copy.deepcopy(router)
    listener["name"] = "constant"
    listener["address"]["socket_address"]["port_value"] = port
    _manager(listener)["stat_prefix"] = "constant"
    _ask_constant(listener)
    return listener


def _minimal(router: dict[str, Any], port: int) -> dict[str, Any]:
    listener = _whole(router, port)
    listener["name"] = "minimal"
    manager = _manager(listener)
    manager["stat_prefix"] = "minimal"
    for key in ("access_log", "early_header_mutation_extensions", "local_reply_config"):
        manager.pop(key, None)
    manager["http_filters"] = [entry for entry in manager["http_filters"] if entry["name"] in _MINIMAL]
    [host] = manager["route_config"]["virtual_hosts"]
    settings = next(r["typed_per_filter_config"] for r in host["routes"] if r.get("name") == "chat")
    enabled = {name: settings[name] for name in _MINIMAL if name in settings}
    route = {"match": {"prefix": "/"}, "route": {"cluster": _DIRECT}, "typed_per_filter_config": enabled}
    manager["route_config"]["virtual_hosts"] = [{"name": "minimal", "domains": ["*"], "routes": [route]}]
    return listener


def _manager(listener: dict[str, Any]) -> dict[str, Any]:
    manager: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def _ask_constant(part: Any) -> None:
    """Replace the router's cluster by that of the server, everywhere in `part`."""
    if isinstance(part, list):
        for item in part:
            _ask_constant(item)
    elif isinstance(part, dict):
        if part.get("cluster_name") == "extproc":
            part["cluster_name"] = _SERVER
        for item in part.values():
            _ask_constant(item)
