"""A stage before the transformer that was tried and is not served (docs/decisions/0005).

It makes sentence vectors without a model, after Model2Vec (Tulkens and van Dongen 2024). Each token of the
vocabulary is embedded once. These vectors are reduced to their principal components and weighted by smooth inverse
frequency (Arora et al. 2017). A text is the mean of its tokens. The stage can only accept a match. All other texts
go to the transformer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.intents_table import floor_on_average
from extproc.encoder.features import FeatureEncoder
from extproc.encoder.models import locate
from extproc.encoder.protocols import Encoder, Vectors
from extproc.routing.centroids import fit, mean_directions
from extproc.routing.index import Index, Match, nearest

# Components of the 384 dimensions. The table of 30,522 tokens then has 16 MB in float16.
_COMPONENTS = 256
# The usual weight of SIF. Vocabularies list tokens roughly by frequency, so Zipf's law gives it from the rank.
_SIF = 1e-4
# A text with a larger share of word pieces and unknown tokens is another language, code or noise.
_MOST_PIECES = 0.25
# The allowed share of wrong ones among the utterances above the margin. Fewer than fifty utterances give no margin.
# This value and the median below were chosen with the table of bench/static.py.
_RISK = 0.02
# A match also needs at least the median similarity of the cohort's utterances, because utterances do not show how
# out-of-scope texts look.
_NEAR = 0.5
_FOLDS = 5


class TokenTable:
    """One vector per token."""

    def __init__(self, rows: np.ndarray, tokenizer: Any) -> None:
        """`rows` is float16[tokens, d], in the order of the tokenizer's vocabulary."""
        self.rows, self._tokenizer = rows, tokenizer
        names = [tokenizer.id_to_token(i) for i in range(len(rows))]
        self._piece = np.array([name.startswith("##") or name == "[UNK]" for name in names])

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length, or of zeros if the text has no token."""
        sums = np.stack([self.rows[self._ids(text)].sum(axis=0, dtype=np.float32) for text in texts])
        unit: Vectors = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        return unit

    def knows(self, text: str) -> bool:
        """Whether enough tokens of `text` are whole words of the vocabulary."""
        ids = self._ids(text)
        return bool(ids) and float(self._piece[ids].mean()) <= _MOST_PIECES

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def load_tokenizer(model: str) -> Any:
    """The tokenizer of `model`, without padding and truncation."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(locate(model)) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def distil(sentences: Encoder, tokenizer: Any) -> TokenTable:
    """The table of a vocabulary. Each token is embedded as one text, and a word piece as if it were a word."""
    names = (tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size()))
    return TokenTable(tabulate(sentences.encode([name.removeprefix("##") for name in names])), tokenizer)


def tabulate(embedded: Vectors) -> np.ndarray:
    """float16[tokens, at most 256]: the table, from the embedding of each token in the order of the vocabulary."""
    centred = embedded - embedded.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    components = vectors[:, np.argsort(-values)][:, :_COMPONENTS]
    chance = 1 / np.arange(1, len(embedded) + 1)
    weight = _SIF / (_SIF + chance / chance.sum())
    table: np.ndarray = (centred @ components * weight[:, None]).astype(np.float16)
    return table


class StaticStage(msgspec.Struct, frozen=True):
    """The stage for a set of cohorts."""

    table: TokenTable
    index: Index
    margin: float  # lowest accepted margin for all cohorts. Infinite if there are too few utterances
    floors: Mapping[str, float]  # lowest accepted similarity by cohort
    longest: int  # characters. Longer texts are not like any utterance

    def match(self, text: str) -> Match | None:
        """The match of `text` if it is clear. None if the transformer has to decide."""
        if len(text) > self.longest or not self.table.knows(text):
            return None
        [match] = self.nearest([text])
        return match if match.margin >= self.margin and match.similarity >= self.floors[match.cohort] else None

    def nearest(self, texts: Sequence[str]) -> list[Match]:
        """The nearest cohort of each text, clear or not."""
        return [nearest(self.index, row) for row in FeatureEncoder(self.table).encode(texts)]


def fit_stage(utterances: Mapping[str, Sequence[str]], table: TokenTable) -> StaticStage:
    """Fit the stage on the utterances of two or more cohorts. Each is tried with centroids fitted without it."""
    names = list(utterances)
    counts = [len(texts) for texts in utterances.values()]
    texts = [text for cohort_texts in utterances.values() for text in cohort_texts]
    rows = FeatureEncoder(table).encode(texts)
    member = np.repeat(np.arange(len(names)), counts)
    fold = np.concatenate([np.arange(count) % _FOLDS for count in counts])
    held_out = [_index(names, rows[fold != k], member[fold != k]) for k in range(_FOLDS)]
    matches = [nearest(held_out[k], row) for k, row in zip(fold, rows, strict=True)]
    right = np.array([match.cohort == names[i] for match, i in zip(matches, member, strict=True)])
    margin = floor_on_average(np.array([match.margin for match in matches]), ~right, _RISK)
    similarity = np.array([match.similarity for match in matches])
    floors = {name: _floor(similarity[right & (member == i)]) for i, name in enumerate(names)}
    return StaticStage(table, _index(names, rows, member), margin, floors, max(map(len, texts)))


def _index(names: Sequence[str], rows: Vectors, member: np.ndarray) -> Index:
    means = mean_directions(rows, member, len(names))
    centroids = fit(rows, member, means, np.arange(len(names)))
    return Index(
        {name: row[None, :] for name, row in zip(names, centroids, strict=True)},
        dict(zip(names, means, strict=True)),
    )


def _floor(similarities: Vectors) -> float:
    """The median similarity of a cohort's right matches. Infinite without any."""
    return float(np.quantile(similarities, _NEAR)) if len(similarities) else np.inf
