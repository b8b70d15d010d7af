"""Utterances -> an encoder of the same size and speed that separates their cohorts better.

The model is trained for minutes on the sum of two losses. One classifies utterances by their cosine to one
centroid per cohort (normalised softmax, Wang et al. 2017). The other draws each utterance to the others of its
cohort and away from the rest of its batch (supervised contrastive learning, Khosla et al. 2020). The first finds
the cohort. The second gathers each cohort around its mean, so that a text far from every mean is recognised as out
of scope.

The weights are then moved part of the way back to the original ones (Wortsman et al. 2022). The original model
knows texts that are unlike all utterances, and that knowledge is needed to find what is out of scope. The result
is a folder for `encoder: {model: FOLDER}`. `extproc prepare` converts it like any other model.
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

# Cosines to centroids are multiplied by this scale, and cosines to other texts are divided by this temperature. On
# CLINC150's validation rows with 10 utterances per intent, each loss alone is less accurate or finds less that is
# out of scope. The scale is half of the one in routing/centroids.py, which finds more of it.
_SCALE, _TEMPERATURE = 10.0, 0.07
# Texts in a batch, and cohorts in a batch, all with the same number of texts. Each text needs others of its cohort.
_BATCH, _COHORTS = 64, 16
# The highest learning rates of the encoder and of the centroids. They rise during the first tenth of the steps and
# fall during the rest.
_RATE, _CENTROID_RATE, _WARM_UP = 2e-4, 1e-3, 0.1
# How many texts are read in total. Few utterances are read `_MOST` times, and very many at least `_LEAST` times.
_READ, _LEAST, _MOST = 30_000, 2, 8
# The part of the way from the original weights to the trained ones (0 to 1). On CLINC150's validation rows,
# training far and going part of the way back is more accurate than training at half the rate and keeping more of
# it. It finds as much out of scope, and is as good as averaging the scores of two encoders.
_SHARE = 0.6
# Utterances are short. In a longer text the request is at the beginning.
_MAX_TOKENS = 64
# How an adapted encoder is used, chosen on the same rows. Similarity is measured this far from the nearest
# centroid to the cohort's mean (routing/index.py), because the encoder was trained around the mean. Words have
# this weight (encoder/features.py), which is lower than usual because the encoder has learned part of it.
ADAPTED_BACK, ADAPTED_WORDS = 0.9, 0.5


class Adaptation(msgspec.Struct, frozen=True):
    """The origin of an adapted encoder, kept beside its weights."""

    model: str  # the original model
    data: str  # hash of the utterances and their cohorts
    cohorts: int
    utterances: int
    epochs: int
    seed: int
    share: float  # part of the way from the original weights to the trained ones
    words: float  # the weight of words beside its vectors
    date: str


def adapt(
    model: str,
    utterances: Mapping[str, Sequence[str]],
    folder: Path,
    date: str,
    share: float = _SHARE,
    seed: int = 0,
) -> Adaptation:
    """Train `model` on cohort -> texts and write it to `folder`, with its `Adaptation`.

    `share` is the part of the way from the original weights to the trained ones (0 to 1). Training uses one thread
    and one seed, so it is repeatable except for rounding, which grows over thousands of steps.

    Raises EncoderError if the model cannot be loaded, or if there are fewer than two cohorts with texts.
    """
    import torch

    from extproc.encoder.backends import TorchSentences

    if len(utterances) < 2 or not all(utterances.values()):
        raise EncoderError("cannot adapt an encoder to these cohorts: give two or more, each with utterances")
    sentences = TorchSentences(model, threads=1)
    texts = [text for cohort in utterances.values() for text in cohort]
    member = np.repeat(np.arange(len(utterances)), [len(cohort) for cohort in utterances.values()])
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
    """Return a hash of the cohorts and their texts, in this order."""
    encoded = msgspec.json.encode([[name, *texts] for name, texts in utterances.items()])
    return hashlib.sha256(encoded).hexdigest()[:12]


def _train(model: Any, texts: Sequence[str], member: np.ndarray, means: Vectors, epochs: int, seed: int) -> None:
    """Train the weights of `model` except its word embeddings, so that words outside the utterances keep theirs."""
    import torch
    from torch.nn import functional

    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.requires_grad = False
    centroids = torch.nn.Parameter(torch.from_numpy(means.copy()))
    groups = [
        {"params": [p for p in model.parameters() if p.requires_grad], "lr": _RATE, "weight_decay": 0.01},
        {"params": [centroids], "lr": _CENTROID_RATE, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    batches = list(_batches(member, epochs, seed))
    warm = max(1, round(_WARM_UP * len(batches)))
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
    """Return the supervised contrastive loss of a batch of unit vectors. Every label occurs at least twice."""
    import torch

    itself = torch.eye(len(labels), dtype=torch.bool)
    near = (vectors @ vectors.T / _TEMPERATURE).masked_fill(itself, -1e9)
    chances = near - near.logsumexp(dim=1, keepdim=True)
    alike = (labels[:, None] == labels) & ~itself
    return -((chances * alike).sum(dim=1) / alike.sum(dim=1)).mean()


def _batches(member: np.ndarray, epochs: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of indices, at least one per epoch. Cohorts take turns, and texts in a cohort do, too."""
    rng = np.random.default_rng(seed)
    cohorts = int(member.max()) + 1
    in_batch = min(_COHORTS, cohorts)
    each = _BATCH // in_batch
    texts = [_endless(np.flatnonzero(member == cohort), rng) for cohort in range(cohorts)]
    turns = _endless(np.arange(cohorts), rng)
    for _ in range(max(epochs, round(epochs * len(member) / (in_batch * each)))):
        yield [i for cohort in islice(turns, in_batch) for i in islice(texts[cohort], each)]


def _endless(items: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """Yield all items again and again, each time in another order."""
    while True:
        yield from rng.permutation(items).tolist()
