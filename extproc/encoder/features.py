"""Text -> the vector that is matched, from three views: the whole text, its opening, and its words.

Intents are *tasks*, but sentence embeddings mostly capture *topics*: "summarize this contract" is near contracts.
So the vector joins three views of the ask:

- the embedding of the whole text
- the embedding of its opening, where people usually put the instruction
- hashed words, which separate "summarize" from "extract" in any text

Joined into one unit vector, the views cost one inner product. bench/views.py measures what each of them adds.

Courtesies at either end of the ask are removed first. An opening would often contain nothing more.
"""

import re
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from extproc.encoder.protocols import Encoder, Vectors, unit

# Hashed words (signed feature hashing, Weinberger et al. 2009). 2,048 buckets keep ten thousand centroids
# under 100 MB. With twice as many, accuracy did not change beyond noise.
_BUCKETS = 2048
_HASHED_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+")
# Weight of hashed words relative to the embedding, from cross-validation on CLINC150 and the sample intents.
WORDS_WEIGHT = 0.7
# An apostrophe ends a word here, because phones type a curly one.
_COURTESY_WORD = re.compile(r"[^\W_]+")
# The end of a sentence or clause.
_END = re.compile(r"[:.?!\n](?=\s|$)")
# The first sentence or clause. Fewer than 12 characters are a word or two, which is not an opening.
_OPENING = re.compile(r".{12,}?[:.?!\n](?=\s|$)", re.DOTALL)
# A clause that has only these words greets, thanks, or states a wish without its content. The list has English
# courtesies and the words between them, but no words that ask ("what", "why") or that name a task or a label.
_COURTESIES = """
    hi hello hey hiya dear greetings welcome good morning afternoon evening day everyone everybody all team guys
    folks sir madam friend how doing going today hope hoping wish well fine great nice please pls plz kindly could
    can would will shall should may might must help helping assist assistance lend give take got hand look favour
    favor love like want wanted need needed wonder wondering know mind able possible let sorry excuse pardon
    apologies bother bothering trouble question questions request task ask asking following thank thanks thx ty
    cheers appreciate appreciated grateful much many very really advance lovely kind best regards sincerely wishes
    ok okay soon asap quick quickly moment second minute time just now again also i me my we us our you your u it
    they this that these those here there one some any something anything thing things bit little lot a an the to
    for of in on at with about from by out up over and or but so if as is are am was were be been have has had do
    does did s d m ve re ll don t not having get getting gave given giving taking took go come try trying tried
    use using make making done being below above new helpful useful assistant support glad happy pleased pleasure
    meet weekend week night yourself then too only even still maybe perhaps quite rather think sure stuck tell say
    min mins sec seconds yo real more because since
"""
_COURTEOUS = frozenset(_COURTESIES.split())


class FeatureEncoder:
    """Encodes texts into the vectors that are matched, with an encoder of sentences and the weight of words."""

    def __init__(self, sentences: Encoder, words_weight: float = WORDS_WEIGHT) -> None:
        self.sentences, self._words_weight = sentences, words_weight

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d + 2048], each row of unit length."""
        texts = [without_courtesies(text) for text in texts]
        openings = [opening(text) for text in texts]
        differs = [i for i, (text, first) in enumerate(zip(texts, openings, strict=True)) if text != first]
        # In one call, so that the model's weights are read from memory only once.
        vectors = self.sentences.encode([*texts, *(openings[i] for i in differs)])
        whole, first = vectors[: len(texts)], vectors[: len(texts)].copy()
        first[differs] = vectors[len(texts) :]
        return unit(np.hstack([unit(whole + first), self._words_weight * words_view(texts, openings)]))


def without_courtesies(text: str) -> str:
    """Return `text` without the clauses of courtesy at either end. Text with no other clause is unchanged."""
    cuts = [0, *(end.end() for end in _END.finditer(text)), len(text)]
    clauses = [text[start:end] for start, end in pairwise(cuts)]
    content = [
        i for i, clause in enumerate(clauses) if not _COURTEOUS.issuperset(_COURTESY_WORD.findall(clause.lower()))
    ]
    if not content:
        return text
    # The clause after a colon belongs to the clause before it.
    last = content[-1] + clauses[content[-1]].endswith(":")
    return "".join(clauses[content[0] : last + 1]).strip()


def opening(text: str) -> str:
    """Return the first sentence or clause of `text`, or all of it if it has only one."""
    match = _OPENING.match(text)
    return match[0] if match is not None else text


def words_view(texts: Sequence[str], openings: Sequence[str]) -> Vectors:
    """Return float32[n, 2048] with unit rows: hashed words of the whole text plus those of its opening."""
    return unit(unit(hashed_words(texts)) + unit(hashed_words(openings)))


def hashed_words(texts: Sequence[str]) -> Vectors:
    """Return float32[n, 2048]: signed square roots of word counts.

    The first word counts twice. All numbers count as the same word.
    """
    counts = np.zeros((len(texts), _BUCKETS), dtype=np.float32)
    for row, text in zip(counts, texts, strict=True):
        words = ["#" if word[0].isdigit() else word for word in _HASHED_WORD.findall(text.lower())]
        for word in [*words, *(f"^{first}" for first in words[:1])]:
            number = zlib.crc32(word.encode(errors="replace"))
            row[number % _BUCKETS] += 1.0 if number >> 31 else -1.0
    return np.sign(counts) * np.sqrt(np.abs(counts))
