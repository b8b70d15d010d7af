"""Fixtures of several test modules: the real encoder, loaded once, and an encoder that compares words only."""

import itertools
import os
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from extproc.encoder.features import FeatureEncoder
from extproc.encoder.protocols import Vectors

# Routers that tests start keep their last good files here.
_STATE = tempfile.TemporaryDirectory(prefix="extproc-tests-state-")
os.environ["XDG_STATE_HOME"] = _STATE.name
# Vectors of texts that commands keep. Several encoders in tests have the name of one, so each test has a folder.
_CACHE = tempfile.TemporaryDirectory(prefix="extproc-tests-cache-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = _CACHE.name
_FOLDERS = itertools.count()
# A busy machine may be slow. The fuzz tests have another profile.
settings.register_profile("ordinary", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ordinary")
_END_TO_END = "tests/e2e/"
# These take half a minute or more. They come first, so that no process has one left when the other process is done.
_LONGEST = tuple(f"{_END_TO_END}test_{name}.py" for name in (
    "faults", "cascade", "learn_page", "pods", "observe", "several_workers", "gateways", "commands", "listening",
))  # fmt: skip
# A test records a table under this name, and the summary at the end of the run prints it.
SUMMARY = "summary"


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Gives each module to one process. The first one takes the first module that is left, and others the last one.

    So one process runs the tests through Envoy, which measure times, and the others help when the rest is done.
    """

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]

    def _assign_work_unit(self, node: Any) -> None:
        if self.nodes.index(node) > 0:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Scheduling:
    return _Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under `pytest -n`, the tests through Envoy come first, because they take longest."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (not item.nodeid.startswith(_END_TO_END), not item.nodeid.startswith(_LONGEST)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests recorded under SUMMARY, also if other processes ran them."""
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for name, text in report.user_properties if report.when == "call" else ():
            if name == SUMMARY:
                terminalreporter.write_line(f"\n{text}")


class WordEncoder:
    """Texts -> unit vectors of their words. Texts are similar only if they share words."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        rows = np.full((len(texts), 512), 1e-3, dtype=np.float32)  # an empty text also needs a direction
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[zlib.crc32(word.encode()) % 512] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test find the vectors of another one."""
    monkeypatch.setenv("XDG_CACHE_HOME", f"{_CACHE.name}/{next(_FOLDERS)}")


@pytest.fixture(scope="session")
def encoder() -> FeatureEncoder:
    """The serving encoder with its real weights. Loading takes seconds, so tests load it once per session."""
    from extproc.encoder.backends import load_encoder

    return load_encoder("all-MiniLM-L6-v2")


@pytest.fixture(scope="session")
def words() -> WordEncoder:
    """An encoder without a model, for tests that need similarity but not meaning."""
    return WordEncoder()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
