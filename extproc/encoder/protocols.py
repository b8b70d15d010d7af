"""Vectors, and what makes them, as far as the core knows."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def unit(rows: Vectors) -> Vectors:
    """Each row at length 1; what is next to nothing stays so."""
    found: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return found


class EncoderError(RuntimeError):
    """Our encoder cannot be loaded, or failed on a text."""


class DeadlineError(TimeoutError):
    """The vector was not ready in time, or too much was waiting for the encoder already."""


class Encoder(Protocol):
    """Texts -> vectors, at once."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length."""


class Embedder(Protocol):
    """Text -> vector within a deadline, sharing an encoder with other exchanges."""

    async def embed(self, text: str, deadline_s: float) -> Vectors:
        """Return float32[d] of unit length. Raises DeadlineError or EncoderError."""
