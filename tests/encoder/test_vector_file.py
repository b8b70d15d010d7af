"""The file of vectors: an utterance is encoded once, and a file that is lost or damaged costs only time."""

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from extproc.encoder import vector_file
from extproc.encoder.features import FeatureEncoder
from extproc.encoder.prepared_sentences import PreparedSentences
from extproc.encoder.protocols import Vectors, unit
from extproc.encoder.vector_file import StoringSentences, storing


class Counting:
    """An encoder that lists the texts that it was asked for. A vector has the lengths of its text's words."""

    def __init__(self, dimension: int = 4) -> None:
        self.asked: list[str] = []
        self._dimension = dimension

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.asked += texts
        rows = np.ones((len(texts), self._dimension), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            lengths = [len(word) for word in text.split()][: self._dimension]
            row[: len(lengths)] = lengths
        return unit(rows)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "utterances.npz"


def stored(file: Path, texts: Sequence[str], sentences: Counting | None = None) -> list[str]:
    """Encode `texts` as a new process does, and return those that the encoder was asked for."""
    sentences = sentences or Counting()
    rows = StoringSentences(sentences, file).encode(texts)
    asked = list(sentences.asked)
    assert rows.dtype == np.float32 and np.array_equal(rows, sentences.encode(texts))
    return asked


def test_a_later_process_encodes_only_new_texts(file):
    assert stored(file, ["pay my bill", "where is it"]) == ["pay my bill", "where is it"]
    assert stored(file, ["where is it", "pay my bill"]) == []
    assert stored(file, ["pay my bill", "a new one", "a new one"]) == ["a new one"]
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.stat().st_mode & 0o777 == 0o644, "another user may serve"


def test_no_texts_have_no_vectors(file):
    assert stored(file, []) == [] and not file.exists()


def test_the_file_has_no_text(file):
    """An utterance may name a customer, and the file may be readable by more users than the YAML."""
    stored(file, ["refund the order of Zebedee", "\ud800 is half a character"])
    assert b"Zebedee" not in file.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "folder", "other arrays", "pickled"])
def test_a_damaged_file_is_replaced(file, damage):
    """The texts are encoded again, and the next process reads them."""
    stored(file, ["pay my bill", "where is it"])
    raw = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(raw[: len(raw) // 2])
        case "flipped":  # in the last row
            at = raw.rindex(b"PK\x01\x02", 0, raw.rindex(b"PK\x01\x02")) - 8
            file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        case "empty":
            file.write_bytes(b"")
        case "foreign":
            file.write_bytes(b"no vectors at all")
        case "folder":
            file.unlink()
            file.mkdir()
        case "other arrays":
            np.savez(file, keys=np.zeros((2, 3), np.uint8), vectors=np.zeros((2, 4), np.float32))
        case "pickled":
            np.savez(file, keys=np.array([{}]), vectors=np.array([{}]))
    assert stored(file, ["pay my bill", "where is it"]) == ["pay my bill", "where is it"]
    if damage != "folder":  # nothing can take its place
        assert stored(file, ["pay my bill", "where is it"]) == []


def test_vectors_of_another_dimension_are_not_mixed_in(file):
    """A file that a person copied from another encoder. The router still starts."""
    stored(file, ["pay my bill"])
    assert stored(file, ["pay my bill", "where is it"], Counting(6))[-2:] == ["pay my bill", "where is it"]


def test_a_file_that_vanishes_and_a_folder_that_vanishes_cost_only_time(file, caplog):
    stored(file, ["pay my bill"])
    file.unlink()
    assert stored(file, ["pay my bill"]) == ["pay my bill"]
    file.unlink()
    file.parent.rmdir()
    with caplog.at_level("INFO"):
        assert stored(file, ["pay my bill"]) == ["pay my bill"]
    assert "each start encodes all of them" in caplog.text


def test_a_read_only_file_system_is_read_and_not_written(file):
    """As in a container whose image was prepared: its vectors serve, and new ones are encoded at each start."""
    stored(file, ["pay my bill"])
    folder = str(file.parent)
    for command in (["mount", "--bind", folder, folder], ["mount", "-o", "remount,bind,ro", folder]):
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("a folder can be mounted by root only")
    try:
        for _ in range(2):
            assert stored(file, ["pay my bill", "a new one"]) == ["a new one"]
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_failed_write_leaves_the_old_file_and_no_other(small_disk):
    """A full disk."""
    file = small_disk / "utterances.npz"
    stored(file, ["pay my bill"])
    (small_disk / "filler").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize))
    many = [f"text {i}" for i in range(4000)]
    assert len(stored(file, many)) == len(many)
    assert stored(file, ["pay my bill"]) == []
    assert {path.name for path in small_disk.iterdir()} == {"filler", file.name}


def test_writers_at_once_leave_a_whole_file(file):
    """Workers of one router start together, and other configurations may start beside them."""
    folders = [[f"text {i} of {n}" for i in range(200)] for n in range(4)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            list(pool.map(lambda texts: StoringSentences(Counting(), file).encode(texts), folders * 2))
    for texts in folders:
        stored(file, texts)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert [stored(file, texts) for texts in folders] == [[], [], [], []], "one after the other, nothing is lost"


def test_the_file_is_bounded(file, monkeypatch):
    """Vectors of texts that are not used any more are dropped, oldest first. Every vector in use is stored."""
    monkeypatch.setattr(vector_file, "_MOST_OTHERS", 3)
    for texts in (["a", "b"], ["c", "d"], ["e", "f", "g", "h", "i"]):
        stored(file, texts)
    assert stored(file, ["e", "f", "g", "h", "i", "c", "d", "a"]) == []
    assert stored(file, ["b"]) == ["b"]


def test_only_a_prepared_encoder_has_a_file(words):
    """Torch and the encoders of tests have no folder for the file."""
    assert storing(words) is words
    encoder = FeatureEncoder(words)
    assert storing(encoder) is encoder


def test_a_prepared_encoder_reads_its_utterances_from_its_folder(encoder, tmp_path, monkeypatch):
    """The vectors are the same as in serving. Texts of requests go to the encoder itself, which stores nothing."""
    if not isinstance(encoder.sentences, PreparedSentences):
        pytest.skip("another back end was chosen here, or `extproc prepare` was not run")
    monkeypatch.setattr(encoder.sentences, "vectors", tmp_path / "utterances.npz")
    texts = ["Where is my parcel? It is late.", "Summarize this contract."]
    first = storing(encoder).encode(texts)
    assert np.abs(first - encoder.encode(texts)).max() < 1e-5
    monkeypatch.setattr(encoder.sentences._model, "run", None)  # the model may not run
    assert np.array_equal(storing(encoder).encode(texts), first)
    with pytest.raises(TypeError):
        encoder.encode(texts)
