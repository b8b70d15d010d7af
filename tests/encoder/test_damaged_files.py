"""The files that `extproc prepare` wrote, damaged or missing: the error names the file and the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extproc.encoder.onnx_model import MODEL_FILE, SCALES_FILE, TABLE_FILE, OnnxModel
from extproc.encoder.openvino_model import OpenVinoModel
from extproc.encoder.protocols import EncoderError
from extproc.encoder.tokens import PIECES_FILE, TOKENIZER_FILE, load_tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the tables of words and a model that does nothing."""
    onnx = pytest.importorskip("onnx")
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("vectors", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["input_ids"], ["vectors"])], "g", [ids], [out]
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), str(tmp_path / MODEL_FILE))
    np.save(tmp_path / TABLE_FILE, np.zeros((3, 2), np.int8))
    np.save(tmp_path / SCALES_FILE, np.zeros((3, 1), np.float32))
    OnnxModel(tmp_path, 1)
    return tmp_path


def damages(path: Path) -> list[Callable[[], Any]]:
    """Return what may have happened to a file: an empty copy, another file, half of it, or none."""
    half = path.read_bytes()[: path.stat().st_size // 2] if path.exists() else b"{"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    writes: list[Callable[[], Any]] = [
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(pointer),
        lambda: path.write_bytes(half),
    ]
    return [*writes, path.unlink]


def is_named(load: Callable[[], Any], path: Path) -> None:
    with pytest.raises(EncoderError) as caught:
        load()
    text = str(caught.value)
    assert text.startswith(f"{path} cannot be read (") and text.endswith("): run `extproc prepare` again")
    assert "\n" not in text


@pytest.mark.parametrize("name", [MODEL_FILE, TABLE_FILE, SCALES_FILE])
def test_a_damaged_file_of_onnx_runtime_is_named(folder: Path, name: str) -> None:
    for damage in damages(folder / name):
        damage()
        is_named(lambda: OnnxModel(folder, 1), folder / name)


def test_a_damaged_file_of_openvino_is_named(tmp_path: Path) -> None:
    for damage in damages(tmp_path / "model.xml"):
        damage()
        is_named(lambda: OpenVinoModel(tmp_path, "int8", 512, 1, False), tmp_path / "model.xml")


@pytest.mark.parametrize("name", [PIECES_FILE, TOKENIZER_FILE])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, name: str) -> None:
    for damage in damages(tmp_path / name)[:-1]:
        damage()
        is_named(lambda: load_tokens(tmp_path, 512), tmp_path / name)
    (tmp_path / name).unlink()
    is_named(lambda: load_tokens(tmp_path, 512), tmp_path / TOKENIZER_FILE)
