"""Convert the encoder once for this machine, and choose its back end by measurement: `extproc prepare`.

Candidates are torch as the model comes, and OpenVINO in fp32, bf16 (where the CPU has it) and int8. The fastest
whose vectors agree with fp32's is kept. What int8 costs on labelled data is measured by bench/encoders.py.
"""

import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from extproc.encoder.backends import (
    CHOICE_FILE,
    BackendChoice,
    Measured,
    OpenVinoSentences,
    TorchSentences,
    import_openvino,
    prepared_folder,
)
from extproc.encoder.protocols import Encoder, EncoderError, Vectors

# Least mean cosine with fp32. int8 reaches 0.997 and loses less than 0.1 points of CLINC150 accuracy at it.
_AGREEMENT = 0.99
_ROUNDS = 20
# Texts that set the scales of int8: with more of them the agreement no longer grew.
_SCALED_ON = 300
# About one token each.
_WORD = "order "


def prepare(model: str, texts: Sequence[str], date: str, threads: int) -> BackendChoice:
    """Convert, measure, choose, and keep what was chosen where `load_sentences` finds it.

    `texts` are of the kind that will be encoded: every other one sets the scales of int8, the rest check it.
    Raises EncoderError or OSError.
    """
    warnings.simplefilter("ignore")  # tracing warns of every branch in the model's code
    reference = TorchSentences(model, threads)
    folder = prepared_folder(model)
    with tempfile.TemporaryDirectory() as scratch:
        max_tokens = int(reference.model.max_seq_length or 512)
        converted = quantise_model(reference.model, texts[::2][:_SCALED_ON], max_tokens, Path(scratch))
        encoders: dict[str, Encoder] = {"torch fp32": reference} | {
            f"openvino {precision}": OpenVinoSentences(path, precision, max_tokens, threads)
            for precision, path in converted.items()
        }
        candidates = _measure(encoders, texts[1::2])
        sound = [found for found in candidates if found.agreement >= _AGREEMENT]
        chosen = min(sound, key=lambda found: found.ms_16 + found.ms_64)
        choice = BackendChoice(model, chosen, tuple(candidates), len(texts[1::2]), max_tokens, date)
        precision = chosen.name.removeprefix("openvino ")
        _keep(choice, converted.get(precision), folder)
    if precision in converted:
        OpenVinoSentences(folder, precision, max_tokens, threads)  # compiled here and now, not at every start
    for path in folder.iterdir():
        path.chmod(0o644)  # who serves is not who prepared, and OpenVINO lets nobody else read what it compiled
    return choice


def quantise_model(model: Any, texts: Sequence[str], max_tokens: int, scratch: Path) -> dict[str, Path]:
    """Convert a sentence-transformers model: precision -> a folder in `scratch` with it and its tokenizer."""
    openvino = import_openvino()
    import nncf
    import torch

    class Whole(torch.nn.Module):
        """Tokens in, the sentence's vector out, whatever modules the model has."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            if "token_type_ids" in model.tokenizer.model_input_names:
                features["token_type_ids"] = torch.zeros_like(input_ids)
            return self.model(features)["sentence_embedding"]

    example = torch.ones(2, 8, dtype=torch.long)
    try:
        graph = openvino.convert_model(Whole(), example_input={"input_ids": example, "attention_mask": example})
    except Exception as error:  # tracing raises whatever the model's own code raises
        raise EncoderError(f"the model cannot be converted: {error}; it serves as it comes, by torch") from error
    graph.reshape({port.any_name: openvino.PartialShape([-1, -1]) for port in graph.inputs})
    tokenizer = model.tokenizer.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)

    def feed(text: str) -> dict[str, np.ndarray]:
        ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    quantized = nncf.quantize(
        graph.clone(),
        nncf.Dataset(texts, feed),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(texts),
    )
    folders = {}
    for name, made in (("fp32", graph), ("int8", quantized)):
        folders[name] = scratch / name
        openvino.save_model(made, folders[name] / "model.xml", compress_to_fp16=False)
        tokenizer.save(str(folders[name] / "tokenizer.json"))
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        folders["bf16"] = folders["fp32"]
    return folders


def _measure(encoders: dict[str, Encoder], texts: Sequence[str]) -> list[Measured]:
    """Measure them in turns, so that what else the machine does meets all alike."""
    reference = encoders["torch fp32"].encode(texts)
    short, long = _WORD * 14, _WORD * 62  # and the two tokens around each
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(_ROUNDS):
        for name, encoder in encoders.items():
            for text in (short, long):
                since = time.perf_counter()
                encoder.encode([text])
                times.setdefault((name, text), []).append((time.perf_counter() - since) * 1e3)
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


def _keep(choice: BackendChoice, source: Path | None, folder: Path) -> None:
    """Put all in place at once: a server that starts meanwhile finds the old or the new."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            made = Path(beside) / "made"
            made.mkdir()
            for path in source.iterdir() if source is not None else ():
                if path.suffix != ".blob":  # what was compiled is known by the path that it was made for
                    shutil.copy(path, made)
            (made / CHOICE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(choice), indent=2))
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    except PermissionError as error:
        raise OSError(
            f"cannot write {folder}: set EXTPROC_PREPARED to a folder of yours, here and for serve"
        ) from error
