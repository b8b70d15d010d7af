"""Envoy accepts the output of `extproc envoy`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.traffic import INTENTS

_COMMAND = [sys.executable, "-m", "extproc", "envoy", "--intents", str(INTENTS)]
_OPTIONS = {
    "plain": [],
    "admin": ["--admin", "127.0.0.1:19901"],
    "otlp": ["--otlp", "127.0.0.1:4317"],
    "another listener": ["--listen", "127.0.0.1:18080"],
    "addresses of IPv6": ["--listen", "[::]:18080", "--extproc", "[::1]:50051", "--admin", "[::1]:19901"],
    "two routers": ["--extproc", "127.0.0.1:50051", "--extproc", "127.0.0.1:50052"],
    "a router by name": ["--extproc", "localhost:50051"],
    "a router on a unix socket": ["--extproc", "unix:///run/extproc.sock"],
    "everything": [
        "--listen", "127.0.0.1:18080", "--admin", "127.0.0.1:19901", "--otlp", "collector:4317",
        "--extproc", "router-0:50051", "--extproc", "router-1:50051", "--extproc", "127.0.0.1:50051",
    ],
}  # fmt: skip


def _rendered(*options: str) -> str:
    done = subprocess.run([*_COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _validated(config: Path) -> str:
    binary = shutil.which("envoy", path=str(Path(sys.executable).parent)) or "envoy"
    done = subprocess.run(
        [binary, "--mode", "validate", "-c", str(config), "--use-dynamic-base-id"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("options", _OPTIONS.values(), ids=_OPTIONS)
def test_envoy_accepts_it(tmp_path: Path, options: list[str]) -> None:
    """`envoy --mode validate` prints OK, with every option."""
    config = tmp_path / "envoy.yaml"
    config.write_text(_rendered(*options))
    assert "OK" in _validated(config)


def test_an_attempt_may_take_hours(tmp_path: Path, small_intents: Path) -> None:
    """Envoy accepts the timeouts, although it limits the time to a reply of the router to one hour."""
    intents, config = shutil.copytree(small_intents, tmp_path / "intents"), tmp_path / "envoy.yaml"
    with (intents / "policy.yaml").open("a") as policy:
        policy.write("\ntimeouts: {attempt_s: 7200, request_s: 9000}\n")
    config.write_text(_rendered("--intents", str(intents)))
    assert "OK" in _validated(config)


def test_the_options_show_in_it() -> None:
    """The bootstrap has the addresses of the options, and an admin interface only if --admin is given."""
    everything = yaml.load(_rendered(*_OPTIONS["everything"]), yaml.CSafeLoader)
    (listener,) = everything["static_resources"]["listeners"]
    assert listener["address"] == {"socket_address": {"address": "127.0.0.1", "port_value": 18080}}
    assert everything["admin"]["address"] == {"socket_address": {"address": "127.0.0.1", "port_value": 19901}}
    clusters = {cluster["name"]: cluster for cluster in everything["static_resources"]["clusters"]}
    assert {"extproc", "otlp", "small", "large", "frontier"} <= set(clusters)
    assert len(clusters["extproc"]["load_assignment"]["endpoints"][0]["lb_endpoints"]) == 3
    assert "admin" not in yaml.load(_rendered(), yaml.CSafeLoader)


@pytest.mark.parametrize(
    ("options", "also"),
    [
        (["--listen", "here"], ""),
        (["--extproc", "50051"], ", or unix:///PATH, as in unix:///run/extproc.sock"),
        (["--otlp", "host:"], ""),
    ],
)
def test_a_mistyped_address_is_named(options: list[str], also: str) -> None:
    """A mistyped address is an error with a remedy, and nothing is printed to stdout."""
    done = subprocess.run([*_COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    expected = f"HOST:PORT, as in 127.0.0.1:50051{also}"
    wanted = (
        f"extproc envoy: argument {options[0]}: found `{options[1]}`, expected {expected}\n"
        "`extproc envoy --help` shows how to use it.\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", wanted)
