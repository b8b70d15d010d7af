"""The commands of docs/guides/learn.md, word for word: from traffic to a promoted candidate."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from extproc.accounting.store import connect
from extproc.config.load import load_config
from tests.docs.fences import ROOT, read_fences
from tests.e2e.traffic import INTENTS, eventually

# Enough labels for floors. A page's reader waits for a minute, with more requests.
_REQUESTS = 150
_PAGE = ROOT / "docs" / "guides" / "learn.md"


def commands(terminal: str) -> list[str]:
    [fence] = [fence for fence in read_fences(_PAGE) if fence.title == f"{terminal} terminal"]
    return fence.text.splitlines()


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a reader in a copy of the repository, whose `extproc` is this one."""
    shutil.copytree(INTENTS, tmp_path / "intents")
    program = tmp_path / "bin" / "extproc"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m extproc "$@"\n')
    program.chmod(0o755)
    return os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def demo(tmp_path: Path, shell: dict[str, str]) -> Iterator[Path]:
    """The command of the first terminal, as soon as its users have asked enough."""
    [command] = commands("first")
    requests = tmp_path / "demo" / "requests.jsonl"
    with (tmp_path / "terminal.txt").open("w") as output:
        terminal = subprocess.Popen(
            command, shell=True, cwd=tmp_path, env=shell, stdout=output, stderr=output, start_new_session=True
        )
    try:

        def asked() -> bool:
            assert terminal.poll() is None, (tmp_path / "terminal.txt").read_text()
            return requests.exists() and len(requests.read_bytes().splitlines()) >= _REQUESTS

        eventually(asked, "the users ask", 300)
        yield tmp_path / "demo"
    finally:
        os.killpg(terminal.pid, signal.SIGTERM)  # a background job may ignore SIGINT
        terminal.wait(60)


def test_the_commands_of_the_page_lead_to_a_promoted_candidate(
    demo: Path, shell: dict[str, str], tmp_path: Path
) -> None:
    """Ten or fewer. Each exits with 0 and prints something, and the running router serves the candidate."""
    lines = commands("second")
    assert len(lines) + len(commands("first")) <= 10
    before = load_config(demo / "intents").revision
    output = {}
    for line in lines:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=shell, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0 and done.stdout, (line, done.stdout, done.stderr)
        output[line.split()[1:3][0] if "rollout" not in line else line.split()[2]] = done.stdout
        if "rollout start" in line:
            eventually(lambda: arms(demo / "ledger.sqlite"), "the candidate gets conversations", 120)
    assert "re-asked" in output["report"] and "labelled" in output["report"]
    steps = [line.partition(":")[0] for line in output["learn"].splitlines()]
    assert steps == ["export", "labels", "calibrate", "diff", "gate", "candidate"]
    assert output["status"].startswith(("HOLD", "PROMOTE", "STOP"))
    config = load_config(demo / "intents")
    assert config.policy.candidate is None and config.revision != before
    assert any(intent.evidence is not None for intent in config.intents)
    eventually(lambda: config.revision in (demo / "router.log").read_text(), "the router serves the candidate", 60)


def arms(place: Path) -> bool:
    with contextlib.closing(connect(place)) as ledger:
        return any(list(ledger.select("SELECT 1 FROM outcomes WHERE revision LIKE 'candidate-%' LIMIT 1")))
