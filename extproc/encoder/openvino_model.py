"""Tokens -> vectors: a converted model, run by OpenVINO."""

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extproc.encoder.protocols import Vectors, reading, unit
from extproc.encoder.tokens import MarkedTokens

# The runtime needs milliseconds to plan a new shape, so lengths and batch sizes are rounded up to these.
_LENGTHS = (8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
_BATCHES = (1, 2, 4, 6, 8, 12, 16, 24, 32)
# The first text of these lengths takes 20 to 40 ms more, because new kernels are compiled, so a start encodes one
# of each. The first text of any other length takes at most 10 ms more.
_KERNEL_LENGTHS = (8, 96)
# Most tokens in one batch. Larger batches encode no more texts per second, and their activations take tens of
# megabytes.
_BATCH_TOKENS = 1024
# Ids and mask. A third input, the mask of parts, is in models whose vector is a mean over tokens.
_INPUTS = 2
# Padding a batch up to this many tokens costs less than a second batch.
_CHEAP_TOKENS = 96


class OpenVinoModel:
    """A converted model, run by OpenVINO."""

    def __init__(self, folder: Path, precision: str, max_tokens: int, threads: int, keep: bool) -> None:
        """Load "model.xml" from `folder`; `precision` is "int8", "bf16" or "fp32". Raises EncoderError.

        If `keep` is true and the folder is writable, the compiled model is kept there for later starts.
        """
        openvino = import_openvino()
        self._lengths = [*(n for n in _LENGTHS if n < max_tokens), max_tokens]
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # Envoy and the event loop use the same cores
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        model, cached = folder / "model.xml", {"CACHE_DIR": str(folder)} if keep else {}
        try:
            # With a compiled model in the folder, a start takes a fifth of the time.
            self._compiled = openvino.Core().compile_model(model, "CPU", settings | cached)
        except RuntimeError:
            # OpenVINO removes a model that was compiled on another CPU, and fails if the folder is read-only.
            with reading(model):
                self._compiled = openvino.Core().compile_model(model, "CPU", settings)
        self._local = threading.local()  # two threads must not run the same inference request
        # The vectors of parts come from the same pass, if `prepare` found that this model pools a mean.
        self.takes_parts = len(self._compiled.inputs) > _INPUTS
        for length in _KERNEL_LENGTHS:
            self._infer([([0] * min(length, max_tokens), [])])

    def run(self, tokens: Sequence[MarkedTokens]) -> tuple[Vectors, Vectors]:
        """Return the vectors of the texts, and those of the tokens that are marked. No marks: of the text."""
        # Texts of similar length share a batch, because each row costs as much as the longest one. Short texts may
        # share any batch: below _CHEAP_TOKENS, most of the cost is reading the weights from memory.
        lengths = [len(ids) for ids, _ in tokens]
        order = sorted(range(len(tokens)), key=lambda i: -lengths[i])
        rows: dict[int, tuple[Vectors, Vectors]] = {}
        while order:
            longest = _at_least(self._lengths, lengths[order[0]])
            count = max(n for n in _BATCHES if n == 1 or n * longest <= _BATCH_TOKENS)
            near = [
                i for n, i in enumerate(order[:count]) if 2 * lengths[i] >= longest or n * longest < _CHEAP_TOKENS
            ]
            order = order[len(near) :]
            rows |= zip(near, zip(*self._infer([tokens[i] for i in near]), strict=True), strict=False)
        if not rows:
            return np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)
        whole, second = zip(*(rows[i] for i in range(len(tokens))), strict=True)
        return np.stack(whole), np.stack(second)

    def _infer(self, tokens: Sequence[MarkedTokens]) -> tuple[Vectors, Vectors]:
        """Run one batch. The results may have more rows than `tokens`, and these are padding."""
        length = _at_least(self._lengths, max(len(ids) for ids, _ in tokens))
        ids = np.zeros((_at_least(_BATCHES, len(tokens)), length), dtype=np.int64)
        mask = np.zeros_like(ids)
        mask[:, 0] = 1  # also in padding rows, because a mean over no tokens is NaN
        for row, (token_ids, _) in enumerate(tokens):
            ids[row, : len(token_ids)] = token_ids
            mask[row, : len(token_ids)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.takes_parts:
            inputs["parts"] = mask.copy()
            for row, (_, marked) in enumerate(tokens):
                if marked:
                    inputs["parts"][row] = 0
                    inputs["parts"][row, marked] = 1
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        outputs = request.infer(inputs, share_outputs=False)
        whole = unit(outputs[0])
        return whole, unit(outputs[1]) if self.takes_parts else whole


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry package, through which OpenVINO and NNCF would report usage."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


def _at_least(steps: Sequence[int], count: int) -> int:
    return next(step for step in steps if step >= count)
