"""Text -> the vector that is matched: what it is about, how it opens, and which words it uses.

Three views of the ask, because intents are *tasks* and sentence embeddings mostly see *topics* ("summarize this
contract" lies near contracts): the embedding of the whole, the embedding of its opening, where people put the
instruction, and hashed words, which know "summarize" from "extract" whatever the text. Side by side in one unit
vector they cost one inner product. What each view adds is measured by bench/views.py.

Courtesies around the ask are no part of it (before it, they would be all that its opening holds): they are left out
before anything is measured.
"""

import re
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from extproc.encoder.protocols import Encoder, Vectors, unit

# Hashed words (signed feature hashing, Weinberger et al. 2009). 2,048 buckets keep ten thousand centroids
# under 100 MB; with twice as many, accuracy was within noise.
_BUCKETS = 2048
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+")
# Weight of the words beside the embedding, by cross-validation on CLINC150 and on the sample intents.
WORDS_WEIGHT = 0.7
# As _WORD, but an apostrophe of any kind ends a word: telephones type a curly one.
_PART = re.compile(r"[^\W_]+")
# Where a sentence or clause ends.
_END = re.compile(r"[:.?!\n](?=\s|$)")
# The first of them; a word or two is shorter than this and opens nothing.
_OPENING = re.compile(r".{12,}?[:.?!\n](?=\s|$)", re.DOTALL)
# A clause of these alone greets, thanks, or says that something is wanted, never what: English courtesies and the
# words between them. What asks for something by itself ("what", "why") or names a task or label is none of them.
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
    """An encoder of texts into matched vectors, around an encoder of sentences; `words`: their weight beside it."""

    def __init__(self, sentences: Encoder, words: float = WORDS_WEIGHT) -> None:
        self.sentences, self._words = sentences, words

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d + 2048], each row of unit length."""
        texts = [without_courtesies(text) for text in texts]
        openings = [opening(text) for text in texts]
        differs = [i for i, (text, first) in enumerate(zip(texts, openings, strict=True)) if text != first]
        # In one call: a model's weights pass through memory once for all of it.
        vectors = self.sentences.encode([*texts, *(openings[i] for i in differs)])
        whole, first = vectors[: len(texts)], vectors[: len(texts)].copy()
        first[differs] = vectors[len(texts) :]
        return unit(np.hstack([unit(whole + first), self._words * words_view(texts, openings)]))


def without_courtesies(text: str) -> str:
    """`text` less the clauses at either end that only greet, thank or beg; all of it when it has no others."""
    cuts = [0, *(end.end() for end in _END.finditer(text)), len(text)]
    clauses = [text[start:end] for start, end in pairwise(cuts)]
    telling = [i for i, clause in enumerate(clauses) if not _COURTEOUS.issuperset(_PART.findall(clause.lower()))]
    if not telling:
        return text
    # What a colon announces belongs to what announces it.
    last = telling[-1] + clauses[telling[-1]].endswith(":")
    return "".join(clauses[telling[0] : last + 1]).strip()


def opening(text: str) -> str:
    """The first sentence or clause of `text`; all of it when it has only one."""
    found = _OPENING.match(text)
    return found[0] if found is not None else text


def words_view(texts: Sequence[str], openings: Sequence[str]) -> Vectors:
    """float32[n, 2048]: unit rows, the words of the whole and those of its opening."""
    return unit(unit(hashed_words(texts)) + unit(hashed_words(openings)))


def hashed_words(texts: Sequence[str]) -> Vectors:
    """float32[n, 2048]: signed square roots of word counts; the first word counts twice, all numbers as one."""
    counts = np.zeros((len(texts), _BUCKETS), dtype=np.float32)
    for row, text in zip(counts, texts, strict=True):
        words = ["#" if word[0].isdigit() else word for word in _WORD.findall(text.lower())]
        for word in [*words, *(f"^{first}" for first in words[:1])]:
            number = zlib.crc32(word.encode(errors="replace"))
            row[number % _BUCKETS] += 1.0 if number >> 31 else -1.0
    return np.sign(counts) * np.sqrt(np.abs(counts))
