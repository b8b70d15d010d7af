"""Utterances -> an encoder of the same size and speed that tells their cohorts apart.

The model is trained for minutes on two losses at once: utterances are classified by cosine to one centroid a cohort
(normalised softmax, Wang et al. 2017), and each is drawn to the others of its cohort and away from the rest of its
batch (supervised contrastive learning, Khosla et al. 2020). The first finds the cohort; the second draws cohorts
together around their means, and what is like no mean is out of scope. The weights are then drawn back towards those
the model came with (Wortsman et al. 2022): what it knew of texts that are like none of the utterances is what finds
those out of scope. The result is a folder for `encoder: {model: FOLDER}`; `extproc prepare` converts it like any
other.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from extproc.encoder.backends import ADAPTED_FILE
from extproc.encoder.protocols import EncoderError, Vectors
from extproc.routing.centroids import mean_directions

# Cosines to centroids are sharpened to this scale, those to other texts by this temperature. On CLINC150's
# validation rows, 10 utterances an intent, either loss by itself is less accurate or finds less that is out of
# scope; half the scale that centroids are fitted with (extproc/centroids.py) leaves more to find it by.
_SCALE, _TEMPERATURE = 10.0, 0.07
# A batch has so many texts, as many of each of so many cohorts: each needs others of its own to be drawn to.
_BATCH, _COHORTS = 64, 16
# Steps of the encoder and of the centroids, at their longest; a tenth of the steps lead up to it, the rest down.
_PACE, _CENTROID_PACE, _WARMING = 2e-4, 1e-3, 0.1
# Texts read in all: few utterances are read `_MOST` times, very many at least `_LEAST` times.
_READ, _LEAST, _MOST = 30_000, 2, 8
# Of the way from the weights it came with to the trained ones. On CLINC150's validation rows a long way there and
# part of it back is more accurate, and finds as much out of scope, as half the pace and more of the way: as good as
# two encoders with their scores averaged.
_SHARE = 0.6
# Utterances are short; of a longer text its beginning says what is asked.
_MAX_TOKENS = 64
# How an adapted encoder is matched with, by the same rows: similarity is measured so far back to the cohort's mean
# (match.py), which it was trained around, and words weigh less beside it (features.py): it has learned some of what
# they tell.
ADAPTED_BACK, ADAPTED_WORDS = 0.9, 0.5


class Adaptation(msgspec.Struct, frozen=True):
    """What an adapted encoder was made of; kept beside its weights."""

    model: str  # that it was made from
    data: str  # hash of the utterances and their cohorts
    cohorts: int
    utterances: int
    epochs: int
    seed: int
    share: float  # of the way from the old weights to the trained ones
    words: float  # their weight beside it
    date: str


def adapt(
    model: str,
    utterances: Mapping[str, Sequence[str]],
    folder: Path,
    date: str,
    share: float = _SHARE,
    seed: int = 0,
) -> Adaptation:
    """Train `model` on `cohort -> texts` and write it to `folder`, with its stamp.

    One thread and one seed, so that it can be repeated, up to what rounding grows to over thousands of steps.

    Raises EncoderError when the model cannot be loaded or there are fewer than two cohorts.
    """
    import torch

    from extproc.encoder.backends import TorchSentences

    if len(utterances) < 2 or not all(utterances.values()):
        raise EncoderError("an encoder is adapted to tell cohorts apart: give two or more, each with utterances")
    sentences = TorchSentences(model, threads=1)
    texts = [text for some in utterances.values() for text in some]
    member = np.repeat(np.arange(len(utterances)), [len(some) for some in utterances.values()])
    epochs = int(np.clip(_READ // len(texts), _LEAST, _MOST))
    before = {name: values.clone() for name, values in sentences.model.state_dict().items()}
    torch.manual_seed(seed)
    means = mean_directions(sentences.encode(texts), member, member.max() + 1)
    _train(sentences.model, texts, member, means, epochs, seed)
    after = sentences.model.state_dict()
    mixed = {name: torch.lerp(old, after[name], share) if old.is_floating_point() else old
             for name, old in before.items()}  # fmt: skip
    sentences.model.load_state_dict(mixed)
    stamp = Adaptation(
        model=model,
        data=adaptation_digest(utterances),
        cohorts=len(utterances),
        utterances=len(texts),
        epochs=epochs,
        seed=seed,
        share=share,
        words=ADAPTED_WORDS,
        date=date,
    )
    sentences.model.save(str(folder), create_model_card=False)
    (folder / ADAPTED_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(stamp), indent=2) + b"\n")
    return stamp


def adaptation_digest(utterances: Mapping[str, Sequence[str]]) -> str:
    """A hash of the cohorts and their texts, in this order."""
    return hashlib.sha256(msgspec.json.encode([[name, *some] for name, some in utterances.items()])).hexdigest()[
        :12
    ]


def _train(model: Any, texts: Sequence[str], member: np.ndarray, means: Vectors, epochs: int, seed: int) -> None:
    """Move the weights of `model`, but for its word embeddings: words that no utterance has keep their place."""
    import torch
    from torch.nn import functional

    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.requires_grad = False
    centroids = torch.nn.Parameter(torch.from_numpy(means.copy()))
    groups = [
        {"params": [p for p in model.parameters() if p.requires_grad], "lr": _PACE, "weight_decay": 0.01},
        {"params": [centroids], "lr": _CENTROID_PACE, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    batches = list(_batches(member, epochs, seed))
    warm = max(1, round(_WARMING * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (len(batches) - step) / max(1, len(batches) - warm))
    )
    labels = torch.from_numpy(member)
    model.train()
    for batch in batches:
        tokens = model.tokenizer(
            [texts[i] for i in batch], padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        )
        vectors = functional.normalize(model(dict(tokens))["sentence_embedding"], dim=1)
        cosines = vectors @ functional.normalize(centroids, dim=1).T
        loss = functional.cross_entropy(_SCALE * cosines, labels[batch]) + _contrast(vectors, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def _contrast(vectors: Any, labels: Any) -> Any:
    """The supervised contrastive loss of a batch of unit vectors; every label is there twice or more."""
    import torch

    itself = torch.eye(len(labels), dtype=torch.bool)
    near = (vectors @ vectors.T / _TEMPERATURE).masked_fill(itself, -1e9)
    chances = near - near.logsumexp(dim=1, keepdim=True)
    alike = (labels[:, None] == labels) & ~itself
    return -((chances * alike).sum(dim=1) / alike.sum(dim=1)).mean()


def _batches(member: np.ndarray, epochs: int, seed: int) -> Iterator[list[int]]:
    """Batches of indices, one or more an epoch: cohorts come in turn, and the texts of each in turn."""
    rng = np.random.default_rng(seed)
    cohorts = int(member.max()) + 1
    some = min(_COHORTS, cohorts)
    each = _BATCH // some
    texts = [_endless(np.flatnonzero(member == cohort), rng) for cohort in range(cohorts)]
    turns = _endless(np.arange(cohorts), rng)
    for _ in range(max(epochs, round(epochs * len(member) / (some * each)))):
        yield [i for cohort in islice(turns, some) for i in islice(texts[cohort], each)]


def _endless(items: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """All of them again and again, each time in another order."""
    while True:
        yield from rng.permutation(items).tolist()
