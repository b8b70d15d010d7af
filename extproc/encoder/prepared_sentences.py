"""Sentences -> unit vectors, by a model that `extproc prepare` converted for OpenVINO or ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from extproc.encoder.parts import Parts, in_two_passes, moved, text_of
from extproc.encoder.protocols import Vectors
from extproc.encoder.tokens import MarkedTokens, load_tokens


class ConvertedModel(Protocol):
    """Tokens -> vectors, by one of the runtimes. Several threads may call it."""

    takes_parts: bool  # the vectors of parts come from the same pass

    def run(self, tokens: Sequence[MarkedTokens]) -> tuple[Vectors, Vectors]:
        """Return two float32[len(tokens), d] with rows of unit length: of the texts, and of their parts."""


class PreparedSentences:
    """A converted model with its tokenizer and prompt."""

    def __init__(
        self, folder: Path, backend: str, max_tokens: int, threads: int, prompt: str = "", keep: bool = True
    ) -> None:
        """Load the files of `folder`. `backend` is "onnxruntime int8" or "openvino" with "int8", "bf16" or "fp32".

        If `keep` is true and the folder is writable, OpenVINO keeps its compiled model there for later starts.
        Raises EncoderError for a file that is damaged.
        """
        self.vectors = folder / f"utterances-{backend.removeprefix('openvino ').replace(' ', '-')}.npz"
        self._tokens, self._prompt = load_tokens(folder, max_tokens), prompt
        self._model = load_model(folder, backend, max_tokens, threads, keep)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length."""
        ids = self._tokens.encode([self._prompt + text for text in texts])
        return self._model.run([(each, []) for each in ids])[0]

    def encode_parts(self, texts: Sequence[str], parts: Sequence[Parts]) -> tuple[Vectors, Vectors]:
        """Return two float32[len(texts), d] with rows of unit length: of the texts, and of their parts."""
        if not self._model.takes_parts:
            return in_two_passes(self, texts, parts)
        rows = [
            self._tokens.encode_parts(self._prompt + text, moved(spans, len(self._prompt)))
            for text, spans in zip(texts, parts, strict=True)
        ]
        # The model does not read all of these parts.
        cut = [i for i, (_, marked) in enumerate(rows) if parts[i] and not marked]
        apart = [self._prompt + text_of(texts[i], parts[i]) for i in cut]
        whole, second = self._model.run([*rows, *((ids, []) for ids in self._tokens.encode(apart))])
        second[cut] = whole[len(texts) :]
        return whole[: len(texts)], second[: len(texts)]


def load_model(folder: Path, backend: str, max_tokens: int, threads: int, keep: bool) -> ConvertedModel:
    """Load a converted model. Only the runtime that serves it is imported."""
    runtime, _, precision = backend.partition(" ")
    if runtime == "onnxruntime":
        from extproc.encoder.onnx_model import OnnxModel

        return OnnxModel(folder, threads)
    from extproc.encoder.openvino_model import OpenVinoModel

    return OpenVinoModel(folder, precision, max_tokens, threads, keep)
