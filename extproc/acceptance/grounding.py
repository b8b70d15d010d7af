"""How far an answer is supported by the context that the request carried, by embedding."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Texts to unit vectors, one row a text; None when they could not be made in time.
Embed = Callable[[list[str]], NDArray[np.floating[Any]] | None]

# What one check may embed: above it the rule cannot run, rather than judging a cut text.
MAX_SENTENCES = 64
MAX_WINDOWS = 256
# Two sentences a window: a claim often joins facts that stand next to each other.
WINDOW_SENTENCES = 2
# One sentence without a stop is cut into texts of this size, which MiniLM reads whole.
MAX_SENTENCE_CHARS = 600

# A stop followed by white space, or a line break; both simple, so linear.
_ENDS = re.compile(r"(?<=[.!?。！？])\s+|\n+")


def sentences(text: str) -> list[str]:
    """The sentences that say something: at least one letter or digit each."""
    found = (part.strip() for part in _ENDS.split(text))
    return [
        part[start : start + MAX_SENTENCE_CHARS]
        for part in found
        if any(map(str.isalnum, part))
        for start in range(0, len(part), MAX_SENTENCE_CHARS)
    ]


def windows(context: str) -> list[str]:
    """Overlapping runs of context sentences, each a candidate support."""
    parts = sentences(context)
    last = max(len(parts) - WINDOW_SENTENCES + 1, 1)
    return [" ".join(parts[i : i + WINDOW_SENTENCES]) for i in range(last)] if parts else []


def grounded_share(answer: str, context: str, level: float, embed: Embed) -> float | None:
    """The share of answer sentences whose best window reaches `level`; None: cannot be told."""
    claims, supports = sentences(answer), windows(context)
    if not claims or not supports or len(claims) > MAX_SENTENCES or len(supports) > MAX_WINDOWS:
        return None
    vectors = embed([*claims, *supports])
    if vectors is None or len(vectors) != len(claims) + len(supports):
        return None
    if not np.isfinite(vectors).all():
        return None
    best = (vectors[: len(claims)] @ vectors[len(claims) :].T).max(axis=1)
    return float((best >= level).mean())
