"""A sentence-transformers model -> int8 for ONNX Runtime, for `extproc prepare`.

Weights have a scale for each output channel. Activations have one scale, set while the model runs, so a few large
channels would take the precision of the others. Before the quantisation, these channels are divided by a factor,
and the weights that read them are multiplied by it (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438).

Weights have 7 bits. CPUs without VNNI add products in 16 bits, and with 8 bits the sums would overflow.
"""

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from extproc.encoder.onnx_model import MODEL_FILE, SCALES_FILE, TABLE_FILE, import_onnxruntime
from extproc.encoder.protocols import EncoderError, Vectors

# The share of a channel's range that moves into the weights. With 0.5 the mean cosine with fp32 is 0.986, and with
# 0.7 it is 0.998, by multilingual-e5-small and by all-MiniLM-L6-v2.
_MOVED = 0.7
_OPSET = 20
_LEAST = 1e-5
# Without this mark, the quantiser logs the advice to optimise the model first. Loading the model does that.
_NO_ADVICE = {"onnx.quant.pre_process": "onnxruntime.quant"}
_Feed = dict[str, np.ndarray]


def write_onnx(forward: Any, token_ids: Sequence[list[int]], parts: bool, folder: Path) -> None:
    """Convert `forward`, a torch module of forward.py, and write it into `folder`.

    `token_ids` are those of texts like the ones that will be encoded. They set the factors of channels. `parts`:
    the module takes a mask of parts. Raises EncoderError.
    """
    import_onnxruntime()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = _exported(forward, parts)
    table, scales = _without_words(graph)
    np.save(folder / TABLE_FILE, table)
    np.save(folder / SCALES_FILE, scales)
    feeds = [_feed(np.array([ids], dtype=np.int64), table, scales, parts) for ids in token_ids]
    _smooth(graph, feeds)
    onnx.helper.set_model_props(graph, _NO_ADVICE)
    smooth = folder / f"fp32-{MODEL_FILE}"
    onnx.save(graph, smooth)
    quantize_dynamic(
        smooth, folder / MODEL_FILE, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True,
        weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip
    smooth.unlink()


def _feed(ids: np.ndarray, table: np.ndarray, scales: Vectors, parts: bool) -> _Feed:
    mask = np.ones_like(ids)
    feed = {"input_ids": ids, "attention_mask": mask, "words": table[ids] * scales[ids]}
    return {**feed, "parts": mask} if parts else feed


def _exported(forward: Any, parts: bool) -> Any:
    import onnx
    import torch

    names = ["input_ids", "attention_mask", *(["parts"] if parts else [])]
    example, file = torch.ones(2, 8, dtype=torch.long), io.BytesIO()
    with torch.inference_mode():
        torch.onnx.export(
            forward, tuple(example for _ in names), cast("Any", file), input_names=names, opset_version=_OPSET,
            dynamo=False,
            dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names},
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def _without_words(graph: Any) -> tuple[np.ndarray, Vectors]:
    """Make the vectors of words an input of the graph. Return their table as int8, and the scale of each word."""
    import onnx

    weights = {weight.name: weight for weight in graph.graph.initializer}
    for node in graph.graph.node:
        weight = weights.get(node.input[0]) if node.op_type == "Gather" and node.input[1] == "input_ids" else None
        if weight is None:
            continue
        rows = onnx.numpy_helper.to_array(weight)
        scales = (np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-9) / 127).astype(np.float32)
        _rename(graph, node.output[0], "words")
        shape = ["texts", "tokens", rows.shape[1]]
        graph.graph.input.append(onnx.helper.make_tensor_value_info("words", onnx.TensorProto.FLOAT, shape))
        graph.graph.node.remove(node)
        graph.graph.initializer.remove(weight)
        return np.rint(rows / scales).astype(np.int8), scales
    raise EncoderError("the model has no table of words that ONNX Runtime could read")


def _rename(graph: Any, name: str, new: str) -> None:
    for node in graph.graph.node:
        for i, value in enumerate(node.input):
            if value == name:
                node.input[i] = new


def _smooth(graph: Any, feeds: Sequence[_Feed]) -> None:
    """Divide the channels that multiplications read, and multiply their weights by the same factors."""
    import onnx

    weights = {weight.name: weight for weight in graph.graph.initializer}
    readers = defaultdict(list)
    for node in graph.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            readers[node.input[0]].append(node)
    for (name, nodes), largest in zip(readers.items(), _largest(graph, list(readers), feeds), strict=True):
        arrays = [onnx.numpy_helper.to_array(weights[node.input[1]]) for node in nodes]
        reach = np.max([np.abs(array).max(axis=1) for array in arrays], axis=0)
        factors = np.maximum(largest, _LEAST) ** _MOVED / np.maximum(reach, _LEAST) ** (1 - _MOVED)
        factors = np.maximum(factors, _LEAST).astype(np.float32)
        for node, array in zip(nodes, arrays, strict=True):
            scaled = onnx.numpy_helper.from_array(array * factors[:, None], node.input[1])
            weights[node.input[1]].CopyFrom(scaled)
            node.input[0] = f"{name}/smooth"
        graph.graph.initializer.append(onnx.numpy_helper.from_array(1 / factors, f"{name}/factors"))
        divide = onnx.helper.make_node("Mul", [name, f"{name}/factors"], [f"{name}/smooth"])
        graph.graph.node.insert(list(graph.graph.node).index(nodes[0]), divide)


def _largest(graph: Any, names: Sequence[str], feeds: Sequence[_Feed]) -> list[Vectors]:
    """Return the largest magnitude of each channel of these values, over all feeds."""
    import onnx

    onnxruntime = import_onnxruntime()
    probe = onnx.ModelProto()
    probe.CopyFrom(graph)
    probe.graph.ClearField("output")
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, ["CPUExecutionProvider"])
    largest: list[Vectors] = []
    for feed in feeds:
        values = [np.abs(value).reshape(-1, value.shape[-1]).max(axis=0) for value in session.run(names, feed)]
        largest = [np.maximum(*pair) for pair in zip(largest, values, strict=True)] if largest else values
    return largest
