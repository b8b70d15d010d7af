"""`extproc prepare`: convert the encoder once for this machine, and choose its back end by measurement.

The candidates are torch with the original model, OpenVINO in fp32, bf16 (if the CPU supports it) and int8, and ONNX
Runtime in int8. The fastest one whose vectors agree with torch fp32 is kept. bench/encoders.py measures them on
labelled data.

A portable model is for other machines, such as those that run an image. It is ONNX Runtime's int8, or OpenVINO's
fp32. OpenVINO's int8 and bf16 are fast or exact only on some CPUs. Nothing is compiled for the CPU of this machine,
and weights as fp32 are stored as fp16.
"""

import contextlib
import io
import itertools
import logging
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from extproc.encoder.backends import CHOICE_FILE, BackendChoice, Measured, TorchSentences, prepared_folder
from extproc.encoder.models import prompt_of
from extproc.encoder.openvino_model import import_openvino
from extproc.encoder.prepared_sentences import PreparedSentences
from extproc.encoder.protocols import Encoder, EncoderError, Vectors
from extproc.encoder.tokens import Tokens, load_tokens, write_tokens

log = logging.getLogger(__name__)

# Least mean cosine with fp32. int8 reaches 0.997, and loses less than 0.1 percentage points of CLINC150 accuracy.
_AGREEMENT = 0.99
_ROUNDS = 20
# Number of texts that set the scales of int8. More texts did not increase the agreement.
_SCALED_ON = 300
# A table with more rows than this is that of the words, and not that of the positions.
_WORDS = 4096
# Number of texts that measure the agreement. Its standard error is then below 0.0005.
_COMPARED_ON = 200
# One such word is about one token.
_ONE_TOKEN = "order "


def prepare(model: str, texts: Sequence[str], date: str, threads: int, portable: bool = False) -> BackendChoice:
    """Convert the model, measure the back ends, and save the choice for `load_sentences`.

    `portable`: for any x86-64 CPU with AVX2, and for machines without torch and without the model's package.
    `texts` should resemble the texts that will be encoded. Every second one sets the scales of int8, and others
    measure the agreement. Raises EncoderError or OSError.
    """
    warnings.simplefilter("ignore")  # tracing warns about every branch in the model's code
    reference = TorchSentences(model, threads)
    folder, prompt = prepared_folder(model), prompt_of(reference.model)
    with tempfile.TemporaryDirectory() as scratch:
        max_tokens = int(reference.model.max_seq_length or 512)
        scaled_on = _spread(texts[::2], _SCALED_ON)
        converted = convert_model(reference.model, scaled_on, max_tokens, Path(scratch), reference.centre, portable)
        encoders: dict[str, Encoder] = {"torch fp32": reference} | {
            name: PreparedSentences(path, name, max_tokens, threads, prompt, not portable)
            for name, path in converted.items()
        }
        compared = _spread(texts[1::2], _COMPARED_ON)
        candidates = _measure(encoders, compared)
        agreeing = [candidate for candidate in candidates if candidate.agreement >= _AGREEMENT]
        if portable:
            agreeing = [candidate for candidate in agreeing if candidate.name in converted]
        chosen = min(agreeing, key=lambda candidate: candidate.ms_16 + candidate.ms_64)
        choice = BackendChoice(model, chosen, tuple(candidates), len(compared), max_tokens, date, prompt, portable)
        keep(choice, converted.get(chosen.name), folder)
    if chosen.name in converted and not portable:
        PreparedSentences(folder, chosen.name, max_tokens, threads, prompt)  # compile now, not at every start
    for path in folder.iterdir():
        path.chmod(0o644)  # serving may be another user, and OpenVINO makes compiled models private
    return choice


def convert_model(
    model: Any,
    texts: Sequence[str],
    max_tokens: int,
    scratch: Path,
    centre: Vectors | None = None,
    portable: bool = False,
) -> dict[str, Path]:
    """Convert a sentence-transformers model for every back end of this CPU, or those of any CPU if `portable`.

    `centre`, float32[d], is subtracted from each vector.
    Returns back end -> folder in `scratch` with the model and its tokenizer. Raises EncoderError.
    """
    openvino = import_openvino()
    graph = _traced(model, centre)
    texts = [prompt_of(model) + text for text in texts]
    write_tokens(model.tokenizer.backend_tokenizer, scratch, texts, max_tokens)
    tokens = load_tokens(scratch, max_tokens)
    graphs = {"openvino fp32": graph}
    if not portable:
        graphs["openvino int8"] = _in_int8(graph, texts, tokens)
    folders = {}
    for name, converted in graphs.items():
        folders[name] = scratch / name
        shrink_word_table(converted)
        openvino.save_model(converted, folders[name] / "model.xml", compress_to_fp16=portable)
    folders |= _for_onnxruntime(model, centre, tokens.encode(texts), scratch / "onnxruntime int8")
    for folder, path in itertools.product(folders.values(), scratch.glob("tokenizer.*")):
        shutil.copy(path, folder)
    if not portable and "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        folders["openvino bf16"] = folders["openvino fp32"]
    return folders


def _for_onnxruntime(
    model: Any, centre: Vectors | None, token_ids: Sequence[list[int]], folder: Path
) -> dict[str, Path]:
    """Convert for ONNX Runtime into `folder`. Returns its name and `folder`, or nothing if that is not possible."""
    from extproc.encoder.forward import forward_of, pools_parts
    from extproc.encoder.onnx_export import write_onnx

    folder.mkdir()
    try:
        with _bars_on_a_terminal_only(), _tracing("ONNX Runtime is left out of the comparison."):
            write_onnx(forward_of(model, centre), token_ids, pools_parts(model), folder)
    except EncoderError as error:
        log.warning("not every back end is compared: %s", error)
        return {}
    return {folder.name: folder}


@contextlib.contextmanager
def _tracing(consequence: str) -> Iterator[None]:
    """Raise EncoderError, which says what follows, for any error of the model's code."""
    try:
        yield
    except Exception as error:
        raise EncoderError(f"the model cannot be converted: {error}. {consequence}") from error


def _traced(model: Any, centre: Vectors | None) -> Any:
    """Return the graph of OpenVINO that maps tokens to the vector of a sentence. Raises EncoderError."""
    openvino = import_openvino()
    import torch

    from extproc.encoder.forward import forward_of, pools_parts

    example = torch.ones(2, 8, dtype=torch.long)
    inputs = {"input_ids": example, "attention_mask": example}
    if pools_parts(model):
        inputs["parts"] = example
    with _tracing("Serving will run it in torch, unprepared."):
        graph = openvino.convert_model(forward_of(model, centre), example_input=inputs)
    graph.reshape({port.any_name: openvino.PartialShape([-1, -1]) for port in graph.inputs})
    return graph


def _in_int8(graph: Any, texts: Sequence[str], tokens: Tokens) -> Any:
    import nncf

    names = ("attention_mask", "parts")[: len(graph.inputs) - 1]

    def feed(text: str) -> dict[str, np.ndarray]:
        ids = np.array(tokens.encode([text]), dtype=np.int64)
        return {"input_ids": ids} | dict.fromkeys(names, np.ones_like(ids))

    with _bars_on_a_terminal_only():
        return nncf.quantize(
            graph.clone(),
            nncf.Dataset(texts, feed),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(texts),
        )


def _spread(texts: Sequence[str], most: int) -> Sequence[str]:
    """Return at most `most` texts, from all parts of the sequence."""
    return texts[:: -(-len(texts) // most) or 1]


def shrink_word_table(graph: Any) -> None:
    """Keep the vectors of words as int8 with a scale for each word. Only the words of a text become float32."""
    openvino = import_openvino()
    ops = openvino.opset13
    for gather in [op for op in graph.get_ops() if op.get_type_name() == "Gather"]:
        table, words, axis = (gather.input_value(i) for i in range(3))
        if table.get_node().get_type_name() != "Constant" or len(table.shape) != 2 or table.shape[0] < _WORDS:
            continue
        rows = table.get_node().data
        scales = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-9) / 127
        small = ops.constant(np.rint(rows / scales).astype(np.int8))
        picked = ops.convert(ops.gather(small, words, axis), "f32")
        scaled = ops.multiply(picked, ops.gather(ops.constant(scales.astype(np.float32)), words, axis))
        for target in gather.output(0).get_target_inputs():
            target.replace_source_output(scaled.output(0))


def _bars_on_a_terminal_only() -> contextlib.AbstractContextManager[object]:
    """Suppress what NNCF prints, which is progress bars, unless stdout is a terminal."""
    return contextlib.nullcontext() if sys.stdout.isatty() else contextlib.redirect_stdout(io.StringIO())


def _measure(encoders: dict[str, Encoder], texts: Sequence[str]) -> list[Measured]:
    """Measure the encoders alternately, so that other load on this machine affects all of them."""
    reference = encoders["torch fp32"].encode(texts)
    short, long = _ONE_TOKEN * 14, _ONE_TOKEN * 62  # plus two special tokens around each text
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(_ROUNDS):
        for name, encoder in encoders.items():
            for text in (short, long):
                began = time.perf_counter()
                encoder.encode([text])
                times.setdefault((name, text), []).append((time.perf_counter() - began) * 1e3)
    return [
        Measured(
            name,
            round(float(np.median(times[name, short])), 2),
            round(float(np.median(times[name, long])), 2),
            round(_agreement(encoder.encode(texts), reference), 4),
        )
        for name, encoder in encoders.items()
    ]


def _agreement(rows: Vectors, reference: Vectors) -> float:
    return float((rows * reference).sum(axis=1).mean())


def keep(choice: BackendChoice, source: Path | None, folder: Path) -> None:
    """Write a new folder and move it into place, so that a server never loads a half-written one."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            new_folder = Path(beside) / "new"
            new_folder.mkdir()
            for path in source.iterdir() if source is not None else ():
                if path.suffix != ".blob":  # a compiled model is valid only for the path it was compiled at
                    shutil.copy(path, new_folder)
            (new_folder / CHOICE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(choice), indent=2))
            shutil.rmtree(folder, ignore_errors=True)
            new_folder.rename(folder)
    except PermissionError as error:
        raise OSError(
            f"cannot write {folder}: set EXTPROC_PREPARED to a writable folder, for `prepare` and for `serve`"
        ) from error
