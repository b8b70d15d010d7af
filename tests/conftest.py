"""Fixtures of several test modules: the real encoder, loaded once, and an encoder that compares words only."""

import subprocess
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from extproc.encoder.features import FeatureEncoder
from extproc.encoder.protocols import Vectors


class WordEncoder:
    """Texts -> unit vectors of their words. Texts are similar only if they share words."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        rows = np.full((len(texts), 512), 1e-3, dtype=np.float32)  # an empty text also needs a direction
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[zlib.crc32(word.encode()) % 512] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


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
    """A folder on a disk of 384 KiB, which is enough for the files of a stack."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=384k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
