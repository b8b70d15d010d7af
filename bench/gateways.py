"""Other gateways to compare the router with, each in its own environment under a cache folder.

Each is configured for speed as its documentation advises: one worker, no debug output, no store of requests, and no
telemetry. Versions are pinned. A gateway that cannot be installed or started raises GatewayError with the reason.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import yaml

from extproc.demo.processes import end

_INSTALL_S = 900.0  # a busy machine needs more than 400 s for LiteLLM
_START_S = 90.0


class GatewayError(Exception):
    """A gateway cannot be measured on this machine. The message has the reason."""


class Running(msgspec.Struct, frozen=True):
    """A started gateway, and how to request the only model of the flat upstream."""

    version: str
    url: str  # of chat completions
    model: str
    headers: dict[str, str]
    pid: int


def python_environment(home: Path, *requirements: list[str]) -> Path:
    """The interpreter of a virtual environment, which is created if needed.

    Each list has alternatives. The first one that installs is used. Raises GatewayError if none does.
    """
    python = home / "bin" / "python"

    def install() -> None:
        _run([sys.executable, "-m", "venv", str(home)])
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        for alternatives in requirements:
            for i, wanted in enumerate(alternatives, start=1):
                try:
                    _run([*pip, *wanted.split()])
                    break
                except GatewayError:
                    if i == len(alternatives):
                        raise

    _installed(home, str(requirements), install)
    return python


def version_of(python: Path, package: str) -> str:
    """The version of `package` in that environment."""
    return _run([str(python), "-c", f"from importlib.metadata import version; print(version({package!r}))"]).strip()


@contextlib.contextmanager
def litellm(cache: Path, folder: Path, port: int, upstream: int) -> Iterator[Running]:
    """The proxy of LiteLLM. The version is 1.80.15 because release 1.107.0 was reported compromised."""
    python = python_environment(cache / "litellm", ["litellm[proxy]==1.80.15"])
    tier = {"model": "openai/m", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "m", "litellm_params": tier}],
        "litellm_settings": {"set_verbose": False},
    }
    (folder / "litellm.yaml").write_text(yaml.safe_dump(config))
    command = [str(python.parent / "litellm"), "--config", str(folder / "litellm.yaml"), "--telemetry", "False"]
    env = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with _started([*command, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"], folder, env) as pid:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        yield Running(version_of(python, "litellm"), url, "m", {}, pid)


@contextlib.contextmanager
def portkey(cache: Path, folder: Path, port: int, upstream: int) -> Iterator[Running]:
    """The gateway of Portkey, on Node."""
    home = cache / "portkey"
    # This release cannot stream with a newer server library: it answers 500 ("immutable" headers).
    wanted = {
        "private": True,
        "dependencies": {"@portkey-ai/gateway": "1.15.2"},
        "overrides": {"@hono/node-server": "1.13.8"},
    }

    def install() -> None:
        if shutil.which("npm") is None:
            raise GatewayError("npm is not installed")
        home.mkdir(parents=True)
        (home / "package.json").write_bytes(msgspec.json.encode(wanted))
        _run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(home)])

    _installed(home, msgspec.json.encode(wanted).decode(), install)
    package = home / "node_modules" / "@portkey-ai" / "gateway"
    version = msgspec.json.decode((package / "package.json").read_bytes())["version"]
    node = _run(["node", "--version"]).strip()
    command = ["node", str(package / "build" / "start-server.js"), f"--port={port}", "--headless"]
    headers = {
        "authorization": "Bearer none",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1",
    }
    with _started(command, folder, {"NODE_ENV": "production"}) as pid:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        yield Running(f"{version}, node {node}", url, "m", headers, pid)


# The package contains the gateway for its OpenAI client. This script starts it and writes down its address.
_TENSORZERO = """
import signal, sys
from tensorzero.tensorzero import _start_http_gateway
gateway = _start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
)
open(sys.argv[2], "w").write(gateway.base_url)
signal.sigwait({signal.SIGTERM})
gateway.close()
"""


@contextlib.contextmanager
def tensorzero(cache: Path, folder: Path, port: int, upstream: int) -> Iterator[Running]:
    """The gateway of TensorZero (Rust), from its Python package. It chooses its own port.

    Its streams take 40 ms longer if the client's system delays acknowledgements, as Linux does, because it leaves
    Nagle's algorithm on. With immediate acknowledgements (TCP_QUICKACK) streams are as fast as JSON.
    """
    python = python_environment(cache / "tensorzero", ["tensorzero==2026.6.0"])
    (folder / "tensorzero.toml").write_text(
        "[gateway]\nobservability.enabled = false\ndisable_pseudonymous_usage_analytics = true\n"
        '[models.m]\nrouting = ["flat"]\n[models.m.providers.flat]\ntype = "openai"\nmodel_name = "m"\n'
        f'api_base = "http://127.0.0.1:{upstream}/v1"\napi_key_location = "none"\n'
    )
    address = folder / "tensorzero.url"
    command = [str(python), "-c", _TENSORZERO, str(folder / "tensorzero.toml"), str(address)]
    with _started(command, folder, {"TOKIO_WORKER_THREADS": "1", "RUST_LOG": "error"}) as pid:
        deadline = time.monotonic() + _START_S
        while not (address.exists() and address.read_text()):
            if not Path(f"/proc/{pid}").exists() or time.monotonic() > deadline:
                raise GatewayError("the gateway did not report its address")
            time.sleep(0.1)
        version = version_of(python, "tensorzero")
        yield Running(version, f"{address.read_text()}/chat/completions", "tensorzero::model_name::m", {}, pid)


Gateway = Callable[[Path, Path, int, int], contextlib.AbstractContextManager[Running]]
GATEWAYS: dict[str, Gateway] = {"LiteLLM": litellm, "Portkey": portkey, "TensorZero": tensorzero}


def _installed(home: Path, wanted: str, install: Callable[[], None]) -> None:
    """Install, unless the folder records that exactly these requirements are installed."""
    mark = home / "installed"
    if mark.exists() and mark.read_text() == wanted:
        return
    shutil.rmtree(home, ignore_errors=True)
    install()
    mark.write_text(wanted)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GatewayError(str(error)) from error
    if done.returncode:
        output = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise GatewayError(f"{Path(command[0]).name}: {output[-1]}")
    return done.stdout


@contextlib.contextmanager
def _started(command: list[str], folder: Path, env: dict[str, str]) -> Iterator[int]:
    """The process id of `command`, which is ended afterwards. Its output goes to a log in `folder`."""
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=os.environ | env,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise GatewayError(str(error)) from error
    try:
        yield process.pid
    finally:
        end(process)
