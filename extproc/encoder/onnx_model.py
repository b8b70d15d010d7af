"""Tokens -> vectors: a converted model, run by ONNX Runtime in int8.

The weights are int8, and activations are scaled to int8 while it runs. The scale of an activation comes from all
texts of a batch, and a change of shape costs nothing. So each text runs alone: without padding, and with the same
vector in any company.

The table of words is not in the graph. It is int8 with a scale for each word, and its file is mapped: only the
pages of words that texts have get into memory, and processes share them.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extproc.encoder.protocols import EncoderError, Vectors, reading, unit
from extproc.encoder.tokens import MarkedTokens

MODEL_FILE, TABLE_FILE, SCALES_FILE = "model.onnx", "words.npy", "scales.npy"
# Ids, mask and vectors of words. A fourth input, the mask of parts, is in models that pool a mean over tokens.
_INPUTS = 3


class OnnxModel:
    """A converted model, run by ONNX Runtime."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Load the files that `write_onnx` wrote into `folder`.

        Raises EncoderError without ONNX Runtime, and for a file that is damaged.
        """
        try:
            onnxruntime = import_onnxruntime()
        except ModuleNotFoundError as error:
            raise EncoderError(
                f"{folder} was prepared for ONNX Runtime, which is not installed: pip install onnxruntime, or run "
                "`extproc prepare` again"
            ) from error

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Threads that wait must not use the cores of Envoy and the event loop.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        with reading(folder / MODEL_FILE):
            self._session = onnxruntime.InferenceSession(folder / MODEL_FILE, options, providers=providers)
        with reading(folder / TABLE_FILE):
            self._table = np.load(folder / TABLE_FILE, mmap_mode="r")
        with reading(folder / SCALES_FILE):
            self._scales = np.load(folder / SCALES_FILE)
        self.takes_parts = len(self._session.get_inputs()) > _INPUTS

    def run(self, tokens: Sequence[MarkedTokens]) -> tuple[Vectors, Vectors]:
        """Return the vectors of the texts, and those of the tokens that are marked. No marks: of the text."""
        if not tokens:
            return np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)
        whole, second = zip(*(self._run_one(*each) for each in tokens), strict=True)
        return unit(np.concatenate(whole)), unit(np.concatenate(second))

    def _run_one(self, token_ids: list[int], marked: list[int]) -> tuple[Vectors, Vectors]:
        # Without any token, as a text without special tokens may be, a mean would be NaN.
        ids = np.array([token_ids or [0]], dtype=np.int64)
        mask = np.ones_like(ids)
        inputs = {"input_ids": ids, "attention_mask": mask, "words": self._table[ids] * self._scales[ids]}
        if not self.takes_parts:
            (whole,) = self._session.run(None, inputs)
            return whole, whole
        if marked:
            inputs["parts"] = np.zeros_like(ids)
            inputs["parts"][0, marked] = 1
        else:
            inputs["parts"] = mask
        whole, second = self._session.run(None, inputs)
        return whole, second


def import_onnxruntime() -> Any:
    """Import ONNX Runtime without its telemetry. Raises ModuleNotFoundError.

    Since 1.29, it sends events about the machine and the model to its maker, from a thread that the import starts.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it is read at the import, and later is too late
    import onnxruntime

    return onnxruntime
