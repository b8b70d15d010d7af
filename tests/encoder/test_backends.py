"""The encoder of sentences: the prepared back end gives the vectors of torch, and without one torch serves."""

import logging
import random
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from extproc.encoder.backends import TorchSentences, load_sentences, prepared_folder, read_choice
from extproc.encoder.prepare import prepare
from extproc.encoder.prepared_sentences import PreparedSentences
from extproc.encoder.protocols import EncoderError

MODEL = "all-MiniLM-L6-v2"
TEXTS = [
    "Where is my parcel?",
    "Translate this letter into French: Dear Sir, thank you for yours of the 4th.",
    "Write a function that merges two sorted lists. " * 40,  # longer than the model reads
    "",
    "😀 日本語 \u0000 \ud800",
]


@pytest.fixture(scope="module")
def torch_sentences() -> TorchSentences:
    return TorchSentences(MODEL, 1)


@pytest.fixture(scope="module")
def prepared() -> PreparedSentences:
    encoder = load_sentences(MODEL, 1)
    if not isinstance(encoder, PreparedSentences):
        pytest.skip("another back end was chosen here, or `extproc prepare` was not run")
    return encoder


def test_the_prepared_model_gives_the_vectors_of_torch(torch_sentences, prepared):
    """Long texts are cut at the same place, and odd texts have vectors, too."""
    texts = [text.encode(errors="replace").decode() for text in TEXTS]
    fast, slow = prepared.encode(texts), torch_sentences.encode(texts)
    assert fast.shape == slow.shape and fast.dtype == slow.dtype == np.float32
    agreement = (fast * slow).sum(axis=1)
    assert agreement[:3].min() > 0.98 and agreement.min() > 0.9  # the empty text agrees least


def test_company_in_a_batch_changes_no_vector(prepared):
    """Padding in length and in batch size is masked, so each text has the vector that it has alone."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(["refund", "pasta", "prime", "number"], k=n)) for n in range(1, 60)]
    together = prepared.encode(texts)
    alone = np.vstack([prepared.encode([text]) for text in texts])
    assert (together * alone).sum(axis=1).min() > 0.995


def test_serving_loads_neither_torch_nor_anything_that_reports_to_others(prepared):
    """They would cost seconds and hundreds of megabytes, and telemetry would report usage to others."""
    script = f"""
import sys
from extproc.encoder.backends import load_encoder
load_encoder({MODEL!r}).encode(["hello"])
import extproc.serving.server
loaded = {{name.partition(".")[0] for name, module in sys.modules.items() if module is not None}}
print(sorted(loaded & {{"torch", "sentence_transformers", "transformers", "sklearn", "openvino_telemetry"}}))
if "onnxruntime" in loaded:
    import os
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_no_texts_have_no_vectors(prepared):
    assert len(prepared.encode([])) == 0


def test_a_machine_without_a_prepared_model_is_told_and_served_by_torch(tmp_path, monkeypatch, caplog):
    """Encoding is slower, but the router starts and works."""
    monkeypatch.setenv("EXTPROC_PREPARED", str(tmp_path))
    assert read_choice(MODEL) is None
    with caplog.at_level(logging.WARNING):
        assert isinstance(load_sentences(MODEL, 1), TorchSentences)
    assert "run `extproc prepare`" in caplog.text


def test_a_spoilt_choice_is_as_none(tmp_path, monkeypatch):
    """With a half-written or foreign file, the router is slower but still starts."""
    monkeypatch.setenv("EXTPROC_PREPARED", str(tmp_path))
    folder = prepared_folder(MODEL)
    folder.mkdir()
    (folder / "choice.json").write_text('{"model": 3}')
    assert read_choice(MODEL) is None


def test_prepare_chooses_the_fastest_that_agrees(tmp_path, monkeypatch, capsys):
    """The whole of `prepare` on a few texts: convert, measure, choose, save. Serving finds the result."""
    monkeypatch.setenv("EXTPROC_PREPARED", str(tmp_path))
    texts = [f"How do I return order {n}?" for n in range(8)]
    choice = prepare(MODEL, texts, "2026-01-02", 1)
    assert capsys.readouterr().out == "", "progress bars are for a terminal"
    names = {candidate.name for candidate in choice.candidates}
    assert {"torch fp32", "openvino fp32", "openvino int8", "onnxruntime int8"} <= names
    agreeing = [candidate for candidate in choice.candidates if candidate.agreement >= 0.99]
    assert choice.chosen == min(agreeing, key=lambda candidate: candidate.ms_16 + candidate.ms_64)
    assert read_choice(MODEL) == choice and choice.date == "2026-01-02" and choice.texts == 4
    kept = {path.name for path in prepared_folder(MODEL).iterdir()}
    weights = {"torch fp32": set(), "onnxruntime int8": {"model.onnx", "words.npy"}}
    assert kept >= {"choice.json"} | weights.get(choice.chosen.name, {"model.xml", "model.bin"})
    size = sum(path.stat().st_size for path in prepared_folder(MODEL).iterdir() if path.suffix != ".blob")
    assert size < 60e6, "the vectors of words are int8: as float32 they alone are 47 MB"
    modes = {path.suffix: path.stat().st_mode & 0o777 for path in prepared_folder(MODEL).iterdir()}
    assert set(modes.values()) == {0o644}, "another user may serve"
    assert (".blob" in modes) == (".xml" in modes), "compiled once, by a user who may write"
    assert str(choice).startswith(f"{MODEL} by {choice.chosen.name}: ")
    assert msgspec.json.decode((prepared_folder(MODEL) / "choice.json").read_bytes())["model"] == MODEL


def test_a_model_that_is_not_on_this_machine_is_an_error_with_a_remedy():
    """Nothing is downloaded at run time, and the error says what to do instead."""
    with pytest.raises(EncoderError, match=r"cannot be loaded: .* Give a local path"):
        TorchSentences("/no/such/model", 1)
