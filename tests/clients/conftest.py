"""One stack for all clients, in a separate network namespace: strict upstreams, the router and the real Envoy."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from extproc.demo.stack import Stack
from tests.clients.loopback import loopback_only
from tests.clients.recipes import recipe
from tests.clients.served import NODE_PACKAGES, PYTHON_PACKAGES, Served
from tests.clients.upstream import StrictUpstreams
from tests.e2e.traffic import MODELS, write_small_intents


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The stack. While it runs, the tests, and everything that they start, can only reach each other."""
    if not (NODE_PACKAGES.is_dir() and PYTHON_PACKAGES.is_dir()):
        # CI installs npm first, so there a missing client is a mistake.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the clients under test are not installed")
    folder = tmp_path_factory.mktemp("clients")
    intents = write_small_intents(folder / "written")
    policy = yaml.safe_load((intents / "policy.yaml").read_text())
    policy |= yaml.safe_load(recipe("part of intents/policy.yaml"))
    for tier in policy["tiers"]:
        tier["context"] = 200_000  # agents ask for up to 64,000 tokens of output
        tier["reasoning"] = "none"  # the upstreams speak all APIs, and get the client's own choice in each
    policy["rules"] = []  # a floor for risk also moves a conversation with sealed state
    policy["encoder"]["deadline_ms"] = 20_000  # a test machine can be slow
    (intents / "policy.yaml").write_text(yaml.safe_dump(policy))
    with contextlib.ExitStack() as running:
        try:
            running.enter_context(loopback_only())
        except PermissionError:
            pytest.skip("only root can make a network namespace")
        upstreams = StrictUpstreams(MODELS)
        running.enter_context(upstreams)
        stack = Stack(intents, _made(folder / "stack"), upstreams)
        running.callback(stack.stop)
        stack.start_router()
        stack.start_envoy()
        yield Served(stack, upstreams, _made(folder / "home"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
