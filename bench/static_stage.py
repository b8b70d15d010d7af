"""A stage ahead of the transformer that was tried and is not served: docs/decisions/0005.

Sentence vectors without a model, after Model2Vec (Tulkens and van Dongen 2024): each token of the vocabulary is
embedded once, these vectors are cut to their principal components and weighed by smooth inverse frequency (Arora et
al. 2017), and a text is the mean of its tokens. The stage may only accept: what is not plain is the transformer's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.intents_table import floor_on_average
from extproc.encoder.backends import locate
from extproc.encoder.features import FeatureEncoder
from extproc.encoder.protocols import Encoder, Vectors
from extproc.routing.centroids import fit, mean_directions
from extproc.routing.index import Index, Match, nearest

# Of 384: a vocabulary of 30,522 tokens is 16 MB in float16.
_COMPONENTS = 256
# The usual weight of SIF. Vocabularies list tokens by frequency, about: Zipf's law gives it from the rank.
_SIF = 1e-4
# Of a text's tokens; beyond this share of pieces and unknown signs it is another language, a code, or noise.
_MOST_PIECES = 0.25
# Of the utterances that the margin accepts, so many may be wrong: fewer than fifty utterances give no margin.
# Chosen, like the median below, with a table of bench/static.py in view.
_RISK = 0.02
# And nothing is accepted that is less like its cohort than half of the cohort's utterances are: they cannot say how
# texts of no cohort look.
_NEAR = 0.5
_FOLDS = 5


class TokenTable:
    """One vector a token."""

    def __init__(self, rows: np.ndarray, tokenizer: Any) -> None:
        """`rows`: float16[tokens, d], in the order of the tokenizer's vocabulary."""
        self.rows, self._tokenizer = rows, tokenizer
        names = [tokenizer.id_to_token(i) for i in range(len(rows))]
        self._piece = np.array([name.startswith("##") or name == "[UNK]" for name in names])

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length, or of zeros where a text has no token."""
        sums = np.stack([self.rows[self._ids(text)].sum(axis=0, dtype=np.float32) for text in texts])
        unit: Vectors = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        return unit

    def knows(self, text: str) -> bool:
        """Whether `text` is written in words that the table has whole."""
        ids = self._ids(text)
        return bool(ids) and float(self._piece[ids].mean()) <= _MOST_PIECES

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found


def load_tokenizer(model: str) -> Any:
    """The tokenizer of `model`, which neither pads nor cuts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(locate(model)) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def distil(sentences: Encoder, tokenizer: Any) -> TokenTable:
    """The table of a vocabulary, each token embedded as a text of its own; a piece as if it were a word."""
    names = (tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size()))
    return TokenTable(tabulate(sentences.encode([name.removeprefix("##") for name in names])), tokenizer)


def tabulate(embedded: Vectors) -> np.ndarray:
    """float16[tokens, 256 at most]: the table, from each token's embedding, in the order of the vocabulary."""
    centred = embedded - embedded.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    components = vectors[:, np.argsort(-values)][:, :_COMPONENTS]
    chance = 1 / np.arange(1, len(embedded) + 1)
    weight = _SIF / (_SIF + chance / chance.sum())
    table: np.ndarray = (centred @ components * weight[:, None]).astype(np.float16)
    return table


class StaticStage(msgspec.Struct, frozen=True):
    """The stage of some cohorts."""

    table: TokenTable
    index: Index
    margin: float  # accepted from here up, in every cohort; infinite where the utterances are too few
    floors: Mapping[str, float]  # and from here up in each
    longest: int  # characters; longer texts are like no utterance

    def match(self, text: str) -> Match | None:
        """The cohort that `text` plainly belongs to; None where the transformer is to say."""
        if len(text) > self.longest or not self.table.knows(text):
            return None
        [found] = self.nearest([text])
        return found if found.margin >= self.margin and found.similarity >= self.floors[found.cohort] else None

    def nearest(self, texts: Sequence[str]) -> list[Match]:
        """The nearest cohort of each, plain or not."""
        return [nearest(self.index, row) for row in FeatureEncoder(self.table).encode(texts)]


def fit_stage(utterances: Mapping[str, Sequence[str]], table: TokenTable) -> StaticStage:
    """Fit the stage on `cohort -> utterances`, two or more: each is judged by centroids that had not seen it."""
    names = list(utterances)
    counts = [len(texts) for texts in utterances.values()]
    texts = [text for some in utterances.values() for text in some]
    rows = FeatureEncoder(table).encode(texts)
    member = np.repeat(np.arange(len(names)), counts)
    fold = np.concatenate([np.arange(count) % _FOLDS for count in counts])
    blind = [_index(names, rows[fold != k], member[fold != k]) for k in range(_FOLDS)]
    found = [nearest(blind[k], row) for k, row in zip(fold, rows, strict=True)]
    right = np.array([match.cohort == names[i] for match, i in zip(found, member, strict=True)])
    margin = floor_on_average(np.array([match.margin for match in found]), ~right, _RISK)
    similar = np.array([match.similarity for match in found])
    floors = {name: _floor(similar[right & (member == i)]) for i, name in enumerate(names)}
    return StaticStage(table, _index(names, rows, member), margin, floors, max(map(len, texts)))


def _index(names: Sequence[str], rows: Vectors, member: np.ndarray) -> Index:
    means = mean_directions(rows, member, len(names))
    centroids = fit(rows, member, means, np.arange(len(names)))
    return Index(
        {name: row[None, :] for name, row in zip(names, centroids, strict=True)},
        dict(zip(names, means, strict=True)),
    )


def _floor(similarities: Vectors) -> float:
    """Half of a cohort's right matches are nearer; nothing is near enough for one without any."""
    return float(np.quantile(similarities, _NEAR)) if len(similarities) else np.inf
