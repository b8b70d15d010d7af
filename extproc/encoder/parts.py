"""A text and parts of it -> a vector of the text and one of its parts, in one pass if the encoder can."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from extproc.encoder.protocols import Encoder, Vectors

# The parts of a text, in its order: (start, end) in characters. None of them begins or ends with a space.
# () is the whole text.
Parts = tuple[tuple[int, int], ...]


@runtime_checkable
class PartsEncoder(Encoder, Protocol):
    """An encoder that knows how its vectors of parts are made."""

    def encode_parts(self, texts: Sequence[str], parts: Sequence[Parts]) -> tuple[Vectors, Vectors]:
        """Return two float32[len(texts), d] with rows of unit length: of the texts, and of their parts."""


def encode_parts(sentences: Encoder, texts: Sequence[str], parts: Sequence[Parts]) -> tuple[Vectors, Vectors]:
    """Return two float32[len(texts), d] with rows of unit length: of the texts, and of their parts."""
    if isinstance(sentences, PartsEncoder):
        return sentences.encode_parts(texts, parts)
    return in_two_passes(sentences, texts, parts)


def in_two_passes(sentences: Encoder, texts: Sequence[str], parts: Sequence[Parts]) -> tuple[Vectors, Vectors]:
    """Return the same, with the parts of each text encoded as a separate text."""
    apart = [i for i, spans in enumerate(parts) if spans]
    # In one call, so that the model's weights are read from memory only once.
    vectors = sentences.encode([*texts, *(text_of(texts[i], parts[i]) for i in apart)])
    whole = vectors[: len(texts)]
    second = whole.copy()
    second[apart] = vectors[len(texts) :]
    return whole, second


def text_of(text: str, parts: Parts) -> str:
    """Return the parts as a separate text."""
    return " ".join(text[start:end] for start, end in parts) if parts else text


def moved(parts: Parts, by: int) -> Parts:
    """Return the parts of a text that has `by` more characters before it."""
    return tuple((start + by, end + by) for start, end in parts)


def tokens_in(parts: Parts, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return the numbers of the tokens that share a character with the parts.

    `spans` are the places of the tokens in the text. Returns none if they end before the parts do. The text is then
    too long for the model, which does not read all of the parts.
    """
    inside = [
        number
        for number, (start, end) in enumerate(spans)
        if any(start < last and first < end for first, last in parts)
    ]
    return inside if parts and max((spans[i][1] for i in inside), default=0) >= parts[-1][1] else []
