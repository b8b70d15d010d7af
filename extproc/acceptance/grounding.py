"""Measures how much of an answer the context in the request supports, by embedding."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Texts -> unit vectors, one row per text; None when they were not ready in time.
Embed = Callable[[list[str]], NDArray[np.floating[Any]] | None]

# Limits of one check. Above them the rule cannot run, because a cut text would be misjudged.
MAX_SENTENCES = 64
MAX_WINDOWS = 256
# Two sentences per window, because a claim often joins facts from neighbouring sentences.
WINDOW_SENTENCES = 2
# A longer sentence is cut into texts of this size, which MiniLM reads whole.
MAX_SENTENCE_CHARS = 600

# A full stop followed by white space, or a line break. Both patterns take linear time.
_ENDS = re.compile(r"(?<=[.!?。！？])\s+|\n+")


def sentences(text: str) -> list[str]:
    """Return the sentences that have at least one letter or digit."""
    parts = (part.strip() for part in _ENDS.split(text))
    return [
        part[start : start + MAX_SENTENCE_CHARS]
        for part in parts
        if any(map(str.isalnum, part))
        for start in range(0, len(part), MAX_SENTENCE_CHARS)
    ]


def windows(context: str) -> list[str]:
    """Return overlapping runs of context sentences. Each may support a sentence of the answer."""
    parts = sentences(context)
    last = max(len(parts) - WINDOW_SENTENCES + 1, 1)
    return [" ".join(parts[i : i + WINDOW_SENTENCES]) for i in range(last)] if parts else []


def grounded_share(answer: str, context: str, level: float, embed: Embed) -> float | None:
    """Return the share of answer sentences whose best window has similarity `level` or more.

    None when it cannot be measured: without sentences or vectors, or with too many sentences.
    """
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
