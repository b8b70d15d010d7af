"""One stack for the session: sample upstreams, the router with the sample intents, and the real Envoy."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from extproc.demo.stack import Stack, running
from tests.e2e.traffic import write_samples_with_floors, write_small_intents


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(write_samples_with_floors(tmp_path_factory.mktemp("samples") / "intents")) as stack:
        yield stack


@pytest.fixture
def stack(shared_stack: Stack) -> Iterator[Stack]:
    """The shared stack. The test fails if its router logs an error."""
    before = len(shared_stack.log("router.log"))
    yield shared_stack
    logged = shared_stack.log("router.log")[before:]
    assert "Traceback" not in logged and "ERROR" not in logged, logged


@pytest.fixture(scope="session")
def small_intents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three intents with few utterances."""
    return write_small_intents(tmp_path_factory.mktemp("small") / "intents")
