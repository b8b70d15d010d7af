"""Fixtures of the modules that execute rows on the good folder of intents."""

from pathlib import Path
from typing import Any

import pytest

from extproc.cli import evidence as commands
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.execution import Memory
from tests.evidence.folders import good_folder


@pytest.fixture(scope="session")
def tokens() -> Tokens:
    return Tokens()


@pytest.fixture
def folder(tmp_path: Path, words: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The good folder, with floors that accept every match. The commands compare words."""
    monkeypatch.setattr(commands, "patient_encoder", lambda intents: Memory(words))
    return good_folder(tmp_path / "intents", floor=-1)
