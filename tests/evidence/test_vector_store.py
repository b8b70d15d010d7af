"""Vectors on disk: a command that is started again encodes only what is new, and no text is stored."""

import io
import stat

import msgspec
import numpy as np
import pytest

from extproc.config.compile import compile_snapshot, texts_of
from extproc.config.load import load_config
from extproc.encoder.features import FeatureEncoder
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.data.vector_store import StoredVectors, VectorStore, store_for
from extproc.evidence.progress import Progress
from extproc.evidence.routed_rows import Memory, route_all
from tests.evidence.test_sampling import CONFIGS


class Counting:
    """Encodes the length and the first letters of texts, and counts the texts. It fails after `most` texts."""

    def __init__(self, most=10**9, size=8):
        self.count, self._most, self._size = 0, most, size

    def encode(self, texts):
        if self.count + len(texts) > self._most:
            raise KeyboardInterrupt
        self.count += len(texts)
        rows = np.array([[len(text), *map(ord, text.ljust(self._size)[: self._size - 1])] for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cache" / "vectors.sqlite"


def test_an_interrupted_command_goes_on_where_it_stopped(file):
    """Texts that were encoded before Ctrl-C are not encoded again, and their vectors are the same."""
    texts = [f"text {i}" for i in range(2000)]
    interrupted = Memory(Counting(most=1500), store=VectorStore(file))
    with pytest.raises(KeyboardInterrupt):
        interrupted.encode(texts)
    encoder = Counting()
    rows = Memory(encoder, store=VectorStore(file)).encode(texts)
    assert encoder.count == 2000 - 2 * 512
    again = Counting(most=0)
    assert (Memory(again, store=VectorStore(file)).encode(texts) == rows).all()
    np.testing.assert_allclose(rows, Counting().encode(texts), atol=5e-4)


def test_a_new_vector_is_as_precise_as_a_stored_one(file):
    """So the second run decides as the first one did."""
    first = StoredVectors(Counting(), VectorStore(file)).encode(["one", "two", "one"])
    assert (first == StoredVectors(Counting(most=0), VectorStore(file)).encode(["one", "two", "one"])).all()
    assert (first == first.astype(np.float16)).all()


class OnePass(Counting):
    """Makes the vector of parts from the whole text, so it differs from that of the parts as a text."""

    def encode_parts(self, texts, parts):
        second = self.encode(
            [f"{text}{spans}" if spans else text for text, spans in zip(texts, parts, strict=True)]
        )
        return self.encode(texts), second


def test_parts_have_the_vectors_that_serve(file):
    """A command that measures decisions needs the vectors of the router, also for the second view of a text."""
    texts, parts = ["fix this: a b. done", "fix this: a b. done", "one"], [((0, 9), (15, 19)), ((0, 9),), ()]
    served = OnePass().encode_parts(texts, parts)
    first = StoredVectors(OnePass(), VectorStore(file)).encode_parts(texts, parts)
    again = StoredVectors(OnePass(most=0), VectorStore(file)).encode_parts(texts, parts)
    for serving, new, stored in zip(served, first, again, strict=True):
        np.testing.assert_allclose(new, serving, atol=5e-4)
        assert (new == stored).all()
    text = "Get the action items with owner and date out of this: Priya sends the quote by Tuesday, Tom calls them"
    plain, kept = FeatureEncoder(OnePass()), Memory(FeatureEncoder(OnePass()), store=VectorStore(file))
    np.testing.assert_allclose(kept.encode([text]), plain.encode([text]), atol=5e-4)


def test_the_file_has_no_text_and_is_its_owners_alone(file):
    """Vectors say what a text is about, so others cannot read them."""
    StoredVectors(Counting(), VectorStore(file)).encode(["a secret plan"])
    assert b"secret" not in file.read_bytes()
    assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)) == (0o600, 0o700)


@pytest.mark.parametrize("content", [b"", b"this is no database, and it is long enough to be read as one " * 20])
def test_a_damaged_file_costs_time_and_nothing_else(file, content, caplog):
    """The remedy is in the log. An empty file is filled."""
    file.parent.mkdir()
    file.write_bytes(content)
    encoder = StoredVectors(Counting(), VectorStore(file))
    assert (encoder.encode(["one"]) == encoder.encode(["one"])).all()
    assert encoder.encoded == (2 if content else 1)
    assert ("delete this file" in caplog.text) == bool(content)


def test_vectors_of_another_size_are_replaced(file):
    """The file is of another encoder with the same name."""
    StoredVectors(Counting(size=4), VectorStore(file)).encode(["one", "two"])
    encoder = StoredVectors(Counting(), VectorStore(file))
    assert encoder.encode(["three", "one"]).shape == (2, 8)
    assert encoder.encode(["one", "two"]).shape == (2, 8)


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    """`$XDG_CACHE_HOME`, otherwise `~/.cache`. Without a home nothing is left behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    store_for("e5").close()
    assert (tmp_path / "xdg" / "envoy-semantic-router" / "vectors" / "e5.sqlite").is_file()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    store_for("e5").close()
    assert (tmp_path / "home" / ".cache" / "envoy-semantic-router" / "vectors" / "e5.sqlite").is_file()
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    store_for("e5").close()
    assert not (tmp_path / "~").exists()


def test_only_the_vectors_of_sentences_are_stored(file, tmp_path):
    """Hashed words are five times as large, and are counted again. The decisions are the same without a store."""
    path = tmp_path / "traffic.jsonl"
    asks = ["Is my invoice wrong this month", "How long does the egg recipe take", "zebras graze"]
    path.write_bytes(b"".join(msgspec.json.encode({"text": ask}) + b"\n" for ask in asks))
    config, encoder = load_config(CONFIGS / "good"), FeatureEncoder(Counting())
    stored = Memory(encoder, store=VectorStore(file))
    stored.encode_utterances(texts_of(config))
    snapshot = compile_snapshot(config, stored)
    first, second = (
        [routed.decision.cohort for routed in route_all(snapshot, memory, read_traffic(path).rows)]
        for memory in (stored, Memory(encoder))
    )
    assert first == second
    assert len(VectorStore(file).read([])) == 0
    assert file.stat().st_size < 100_000


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_progress_is_one_line_on_a_terminal_and_a_line_a_minute_elsewhere(monkeypatch):
    """A log gets few lines, and a short command none."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    terminal, log = Terminal(), io.StringIO()
    shown = [Progress(terminal), Progress(log)]
    for done in range(0, 4001, 500):
        for progress in shown:
            progress.show(done, 4000, 0.0, "rows routed")
        now[0] += 25
    assert "\r2,000 of 4,000 rows routed, 100 s left" in terminal.getvalue()
    assert terminal.getvalue().count("\n") == 0
    assert log.getvalue().splitlines() == [
        "1,500 of 4,000 rows routed, 125 s left", "3,000 of 4,000 rows routed, 50 s left",
    ]  # fmt: skip
