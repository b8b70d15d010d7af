"""Vectors, and the interfaces of encoders that make them."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
# Some libraries write a page about a damaged file.
_MOST_REASON_CHARS = 200


def unit(rows: Vectors) -> Vectors:
    """Return each row scaled to length 1. A row of zeros stays zero."""
    scaled: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return scaled


class EncoderError(RuntimeError):
    """The encoder cannot be loaded, or it failed on a text."""


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Read a file that `extproc prepare` wrote. Raises EncoderError with its name if it is damaged or missing."""
    try:
        yield
    except Exception as error:  # each of the libraries has its own errors, without a common class
        why = str(error).strip().partition("\n")[0][:_MOST_REASON_CHARS]
        raise EncoderError(f"{file} cannot be read ({why}): run `extproc prepare` again") from error


class DeadlineError(TimeoutError):
    """The vector was not ready in time, or too many texts were already waiting for the encoder."""


class Encoder(Protocol):
    """Texts -> vectors, in one blocking call."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length."""


class Embedder(Protocol):
    """Text -> vector within a deadline, with an encoder that several exchanges share."""

    async def embed(self, text: str, deadline_s: float, principal: str = "") -> Vectors:
        """Return float32[d] of unit length. Raises DeadlineError or EncoderError.

        `principal` names who asks. No principal takes the encoder from the others.
        """
