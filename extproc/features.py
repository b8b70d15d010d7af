"""Text -> the vector that is matched: what it is about, how it opens, and which words it uses.

Three views of the ask, because intents are *tasks* and sentence embeddings mostly see *topics* ("summarize this
contract" lies near contracts): the embedding of the whole, the embedding of its opening, where people put the
instruction, and hashed words, which know "summarize" from "extract" whatever the text. Side by side in one unit
vector they cost one inner product. What each view adds is measured by bench/views.py.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np

from extproc.vectors import Encoder, Vectors

# Hashed words (signed feature hashing, Weinberger et al. 2009). 2,048 buckets keep ten thousand centroids
# under 100 MB; with twice as many, accuracy was within noise.
_BUCKETS = 2048
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+")
# Weight of the words beside the embedding, by cross-validation on CLINC150 and on the sample intents.
WORDS_WEIGHT = 0.7
# The first sentence or clause; a greeting is shorter than this and opens nothing.
_OPENING = re.compile(r".{12,}?[:.?!\n](?=\s|$)", re.DOTALL)


class FeatureEncoder:
    """An encoder of texts into matched vectors, around an encoder of sentences."""

    def __init__(self, sentences: Encoder) -> None:
        self.sentences = sentences

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d + 2048], each row of unit length."""
        openings = [opening(text) for text in texts]
        differs = [i for i, (text, first) in enumerate(zip(texts, openings, strict=True)) if text != first]
        # In one call: a model's weights pass through memory once for all of it.
        vectors = self.sentences.encode([*texts, *(openings[i] for i in differs)])
        whole, first = vectors[: len(texts)], vectors[: len(texts)].copy()
        first[differs] = vectors[len(texts) :]
        return _unit(np.hstack([_unit(whole + first), WORDS_WEIGHT * words_view(texts)]))


def opening(text: str) -> str:
    """The first sentence or clause of `text`; all of it when it has only one."""
    found = _OPENING.match(text)
    return found[0] if found is not None else text


def words_view(texts: Sequence[str]) -> Vectors:
    """float32[n, 2048]: unit rows, the words of the whole and those of the opening."""
    return _unit(_unit(hashed_words(texts)) + _unit(hashed_words([opening(text) for text in texts])))


def hashed_words(texts: Sequence[str]) -> Vectors:
    """float32[n, 2048]: signed square roots of word counts; the first word counts twice, all numbers as one."""
    counts = np.zeros((len(texts), _BUCKETS), dtype=np.float32)
    for row, text in zip(counts, texts, strict=True):
        words = ["#" if word[0].isdigit() else word for word in _WORD.findall(text.lower())]
        for word in [*words, *(f"^{first}" for first in words[:1])]:
            number = zlib.crc32(word.encode(errors="replace"))
            row[number % _BUCKETS] += 1.0 if number >> 31 else -1.0
    return np.sign(counts) * np.sqrt(np.abs(counts))


def _unit(rows: Vectors) -> Vectors:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Vectors = rows / np.maximum(lengths, 1e-9)
    return unit
