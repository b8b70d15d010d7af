"""Sentences -> unit vectors: a sentence-transformers model, run by the best back end for this machine.

`extproc prepare` converts the model once, measures the back ends and saves its choice (prepare.py). Serving then
imports neither torch nor sentence-transformers. Without a saved choice, the original model runs in torch: the same
vectors, several times slower.
"""

import functools
import hashlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from extproc.encoder import centre
from extproc.encoder.features import WORDS_WEIGHT, FeatureEncoder
from extproc.encoder.models import is_e5, locate, open_model, prompt_of
from extproc.encoder.parts import Parts, in_two_passes, moved, text_of, tokens_in
from extproc.encoder.prepared_sentences import PreparedSentences
from extproc.encoder.protocols import Encoder, EncoderError, Vectors, unit

log = logging.getLogger(__name__)

# Increase it when the conversion changes, so that models prepared before are prepared again.
_RECIPE = 3
CHOICE_FILE = "choice.json"
# Next to the weights of an adapted encoder (evidence/fit/adapt.py): the data and settings of the adaptation.
ADAPTED_FILE = "adapted.json"


class Measured(msgspec.Struct, frozen=True):
    """One back end, measured on the machine that prepared it."""

    name: str  # "onnxruntime int8", "openvino int8", "openvino bf16", "openvino fp32", "torch fp32"
    ms_16: float  # median time of one text of 16 tokens, in milliseconds
    ms_64: float  # the same with 64 tokens
    agreement: float  # mean cosine with torch fp32, on texts that were not used to set scales


class _AdaptedStamp(msgspec.Struct, frozen=True):
    """The only member of ADAPTED_FILE that serving reads."""

    words: float = WORDS_WEIGHT  # older files do not have it


class BackendChoice(msgspec.Struct, frozen=True):
    """The back end that serves, and the candidates it was chosen from."""

    model: str
    chosen: Measured
    candidates: tuple[Measured, ...]
    texts: int  # number of texts that the agreement was measured on
    max_tokens: int
    date: str
    prompt: str = ""  # text before every text, as the model was trained
    portable: bool = False  # prepared for other machines, which may lack the weights that it was made of

    def __str__(self) -> str:
        slow = next((m for m in self.candidates if m.name == "torch fp32"), self.chosen)
        return (
            f"{self.model} by {self.chosen.name}: {self.chosen.ms_16:.1f} ms for 16 tokens (torch fp32 "
            f"{slow.ms_16:.1f}), cosine {self.chosen.agreement:.4f} with fp32 on {self.texts} texts, "
            f"prepared {self.date}"
        )


class TorchSentences:
    """The original model, run by sentence-transformers."""

    def __init__(self, model: str, threads: int) -> None:
        """Load `model` from its package, a local path or this machine's cache. Raises EncoderError."""
        try:
            import torch
        except ModuleNotFoundError as error:
            raise EncoderError(
                f"encoder model {model!r} is not prepared here, and torch is not installed to run it: run `extproc "
                "prepare --portable` where torch is installed, and name its folder in EXTPROC_PREPARED"
            ) from error

        torch.set_num_threads(threads)
        self.model = open_model(model)
        self.centre = self._vectors(centre.PROMPTS).mean(axis=0) if is_e5(model) else None  # float32[d]

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length."""
        vectors = self._vectors(texts)
        return unit(vectors - self.centre) if self.centre is not None else vectors

    def encode_parts(self, texts: Sequence[str], parts: Sequence[Parts]) -> tuple[Vectors, Vectors]:
        """Return two float32[len(texts), d] with rows of unit length: of the texts, and of their parts."""
        import torch

        from extproc.encoder.forward import forward_of, pools_parts

        if not pools_parts(self.model):
            return in_two_passes(self, texts, parts)
        whole, second = in_two_passes(self, texts, [()] * len(texts))
        forward = forward_of(self.model, self.centre)
        for i, (text, spans) in enumerate(zip(texts, parts, strict=True)):
            ids, marked = self._tokens(text, spans) if spans else ([], [])
            if marked:
                mask = torch.zeros(1, len(ids), dtype=torch.long)
                mask[0, marked] = 1
                with torch.inference_mode():
                    second[i] = forward(torch.tensor([ids]), torch.ones_like(mask), mask)[1].float().numpy()[0]
            elif spans:  # the model does not read all of them
                second[i] = self.encode([text_of(text, spans)])[0]
        return whole, unit(second)

    def _tokens(self, text: str, parts: Parts) -> tuple[list[int], list[int]]:
        prompt = prompt_of(self.model)
        encoded = self.model.tokenizer(
            prompt + text, truncation=True, max_length=self.model.max_seq_length, return_offsets_mapping=True
        )
        return encoded["input_ids"], tokens_in(moved(parts, len(prompt)), encoded["offset_mapping"])

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        vectors = self.model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


def load_encoder(model: str, workers: int = 1) -> FeatureEncoder:
    """Load the encoder that all commands share, for one of `workers` processes. Raises EncoderError."""
    return FeatureEncoder(load_sentences(model, threads_for(workers)), words_weight(model))


def words_weight(model: str) -> float:
    """Return the weight of hashed words for this encoder. An adapted encoder has its own weight."""
    try:
        path = Path(locate(model)) / ADAPTED_FILE
    except EncoderError:  # a model of a package, in an image without its weights
        return WORDS_WEIGHT
    try:
        return msgspec.json.decode(path.read_bytes(), type=_AdaptedStamp).words
    except (FileNotFoundError, NotADirectoryError):
        return WORDS_WEIGHT
    except (OSError, msgspec.DecodeError) as error:
        raise EncoderError(f"{path} cannot be read ({error}): copy the folder again") from error


def load_sentences(model: str, threads: int) -> Encoder:
    """Load the encoder of sentences that `extproc prepare` chose, or torch without one. Raises EncoderError."""
    choice = read_choice(model)
    if choice is None:
        log.warning("encoder %s is not prepared for this machine: run `extproc prepare` to route faster", model)
        return TorchSentences(model, threads)
    if choice.chosen.name.startswith("torch"):
        return TorchSentences(model, threads)
    return PreparedSentences(
        prepared_folder(model), choice.chosen.name, choice.max_tokens, threads, choice.prompt, not choice.portable
    )


def read_choice(model: str) -> BackendChoice | None:
    """Return the choice for `model` and the installed versions. None if there is none, or it cannot be read.

    Raises EncoderError if neither the model's package nor a portable folder of it is here.
    """
    return _choice_in(prepared_folder(model))


def _choice_in(folder: Path) -> BackendChoice | None:
    try:
        return msgspec.json.decode((folder / CHOICE_FILE).read_bytes(), type=BackendChoice)
    except (OSError, msgspec.DecodeError):
        return None


def vectors_name(model: str) -> str:
    """Return a name that encoders share if they give the same vectors of sentences: model, weights and back end."""
    choice = read_choice(model)
    back_end = ("torch",) if choice is None else (choice.chosen.name, choice.max_tokens, choice.prompt)
    return f"{prepared_folder(model).name}-{hashlib.sha256(msgspec.json.encode(back_end)).hexdigest()[:8]}"


def prepared_folder(model: str) -> Path:
    """Return the folder of the prepared `model`: beside the installed packages, or under EXTPROC_PREPARED.

    A folder prepared with --portable is found without the package that has the weights. Raises EncoderError if
    neither is here.
    """
    root = Path(os.environ.get("EXTPROC_PREPARED") or Path(sys.prefix) / "share" / "extproc")
    try:
        return root / f"{Path(model).name}-{_digest(Path(locate(model)))}"
    except EncoderError:
        for folder in sorted(root.glob(f"{Path(model).name}-*")):
            choice = _choice_in(folder)
            if choice is not None and choice.portable and choice.model == model:
                return folder
        raise


@functools.cache  # called several times at start, and the weights are 90 MB
def _digest(located: Path) -> str:
    """Return a hash of the weights, the tokenizer, the version of OpenVINO and the recipe."""
    digest = hashlib.sha256(f"{_RECIPE} {importlib.metadata.version('openvino')} {located.name}".encode())
    for path in sorted(located.rglob("*")) if located.is_dir() else [located] if located.is_file() else ():
        if path.suffix in (".safetensors", ".bin", ".json"):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def threads_for(workers: int) -> int:
    """Return one worker's part of half the cores, from 1 to 4. Envoy and the event loops need the rest."""
    return max(1, min(4, (os.cpu_count() or 2) // 2 // workers))
