"""The comparison of the encoder's back ends: its counts, and the encoders that it refuses."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bench import encoders
from bench.encoders import another, cosines, cpu_ms, table
from extproc.encoder.protocols import EncoderError, Vectors, unit

REFERENCE = np.eye(4, dtype=np.float32)
NEAR = unit(REFERENCE + np.float32(0.1))


class Fixed:
    """An encoder that gives these vectors in turn, and counts the texts."""

    def __init__(self, vectors: Vectors) -> None:
        self.vectors, self.texts = vectors, 0

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.texts += len(texts)
        return np.resize(self.vectors, (len(texts), self.vectors.shape[1]))


def test_a_vector_is_compared_with_that_of_its_text_and_with_that_of_another():
    np.testing.assert_allclose(cosines(NEAR, REFERENCE), 1.1 / np.sqrt(1.1**2 + 3 * 0.1**2), rtol=1e-6)
    np.testing.assert_allclose(another(REFERENCE, REFERENCE), 0)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (np.empty((0, 4), np.float32), "expected two or more vectors"),
        (REFERENCE[:2], "expected two or more vectors"),
        (np.zeros((4, 4), np.float32), "nothing was encoded"),
        (np.full((4, 4), np.nan, np.float32), "nothing was encoded"),
        (np.full((4, 4), 0.5, np.float32), "do not separate texts"),
        (np.roll(REFERENCE, 1, axis=0), "do not separate texts"),
    ],
)
def test_an_encoder_that_encodes_nothing_is_an_error(rows: Vectors, found: str):
    """No text, vectors of nothing, the same vector for each text, and vectors of other texts."""
    with pytest.raises(EncoderError, match=found):
        cosines(rows, REFERENCE)


def test_every_back_end_encodes_every_text_in_every_round():
    """One text of each length, and 16 in one call and one by one. The first round is not counted."""
    two = {"torch fp32": Fixed(REFERENCE), "other": Fixed(NEAR)}
    times = cpu_ms(two, rounds=2)
    assert {encoder.texts for encoder in two.values()} == {3 * (4 + 16 + 16)}
    assert {name for name, _ in times} == set(two) and len(times) == 2 * 6


def test_the_table_has_a_line_for_each_back_end_and_the_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the data set there is no accuracy."""
    monkeypatch.setattr(encoders, "_ROUNDS", 1)
    two = {"torch fp32": Fixed(REFERENCE), "other": Fixed(NEAR)}
    lines = list(table(two, ["a", "b", "c", "d"], tmp_path / "missing"))
    assert [line[:20].strip() for line in lines] == [
        "CPU ms for a text", "torch fp32", "other", "",
        "", "torch fp32", "other", "another prompt",
    ]  # fmt: skip
    assert [line[20:].split() for line in lines[5:]] == [
        ["1.0000", "1.000"],
        ["0.9878", "0.988"],
        ["0.0000", "0.000"],
    ]
