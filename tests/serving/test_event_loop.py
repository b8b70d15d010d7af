"""The loop of a server process."""

import asyncio
import sys
from collections.abc import Iterator

import pytest

from extproc.serving.event_loop import run


async def module_of_the_loop() -> str:
    return type(asyncio.get_running_loop()).__module__


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A machine with uvloop, and one without."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    else:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    yield request.param


def test_uvloop_serves_where_it_is_installed(loop: str) -> None:
    """Without it, the loop of asyncio serves."""
    assert run(module_of_the_loop()).startswith(loop)


def test_errors_leave_the_loop(loop: str) -> None:
    """A start that fails ends the process with its own error."""

    async def fail() -> None:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        run(fail())
