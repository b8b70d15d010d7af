"""The model of ONNX Runtime without the runtime: how it is started, and what it reads for a text."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from extproc.encoder.onnx_model import SCALES_FILE, TABLE_FILE, OnnxModel, import_onnxruntime
from extproc.encoder.protocols import EncoderError, Vectors

TABLE = np.array([[127, 0], [0, 127], [64, 64]], dtype=np.int8)
SCALES = np.full((3, 1), 1 / 127, dtype=np.float32)


class Options:
    """The options of a session."""

    def __init__(self) -> None:
        self.intra_op_num_threads = self.inter_op_num_threads = 0
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


class Session:
    """Its vector of a text is the mean of those of its words."""

    def __init__(self, _: Path, options: Options, providers: list[str]) -> None:
        self.options, self.providers = options, providers

    def get_inputs(self) -> list[str]:
        return ["input_ids", "attention_mask", "words"]

    def run(self, _: None, inputs: Mapping[str, np.ndarray]) -> list[Vectors]:
        words, mask = inputs["words"], inputs["attention_mask"][:, :, None]
        return [(words * mask).sum(axis=1) / mask.sum(axis=1)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared folder, and a runtime that loads it."""
    np.save(tmp_path / TABLE_FILE, TABLE)
    np.save(tmp_path / SCALES_FILE, SCALES)
    runtime: Any = SimpleNamespace(SessionOptions=Options, InferenceSession=Session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    return tmp_path


def test_a_session_has_as_many_threads_as_are_asked_for_and_they_do_not_spin(folder: Path) -> None:
    """Envoy and the event loop need the other cores."""
    session: Any = OnnxModel(folder, 2)._session
    options = session.options
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.entries == {"session.intra_op.allow_spinning": "0"}
    assert session.providers == ["CPUExecutionProvider"]


def test_a_text_without_any_token_has_a_vector(folder: Path) -> None:
    """A tokenizer without special tokens gives none for the empty text. A mean over nothing would be NaN."""
    whole, second = OnnxModel(folder, 1).run([([], []), ([1], [])])
    assert whole.tolist() == second.tolist() == [[1, 0], [0, 1]]


def test_a_folder_that_was_replaced_serves_the_model_that_was_loaded(folder: Path) -> None:
    """`extproc prepare` moves a new folder into its place. The mapped file stays until the process ends."""
    model = OnnxModel(folder, 1)
    (folder / TABLE_FILE).unlink()
    np.save(folder / TABLE_FILE, TABLE[::-1])
    assert model.run([([0], [])])[0].tolist() == [[1, 0]]


def test_without_the_runtime_the_error_has_a_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of EXTPROC_PREPARED may come from a machine that has it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        EncoderError, match="not installed: pip install onnxruntime, or run `extproc prepare` again"
    ):
        OnnxModel(folder, 1)


def test_the_runtime_reports_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the variable when it is imported. A value of the environment does not turn its telemetry on."""
    (tmp_path / "onnxruntime.py").write_text("import os\n\nseen = os.environ['ORT_DISABLE_TELEMETRY']\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    runtime = import_onnxruntime()
    monkeypatch.delitem(sys.modules, "onnxruntime")
    assert (runtime.__file__, runtime.seen) == (str(tmp_path / "onnxruntime.py"), "1")
