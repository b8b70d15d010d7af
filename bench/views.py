"""The gain from each view of the ask, and from fitted centroids: `make bench-views`.

The columns are:

- accuracy in 5-fold cross-validation on the utterances of the sample intents
- accuracy in scope, and AUROC of the similarity, on the held-out prompts in tests/heldout.yaml
- the same on CLINC150 with 10 utterances per intent, if the data exists
"""

import argparse
import gzip
from pathlib import Path

import msgspec
import numpy as np
import yaml

from extproc.config.load import load_config
from extproc.encoder import features
from extproc.encoder.backends import load_sentences, threads_for
from extproc.encoder.parts import encode_parts, text_of
from extproc.encoder.protocols import Encoder, Vectors, unit
from extproc.routing import centroids

_SHOTS = 10


class Views:
    """The sentence embeddings of texts and of their instructions, without courtesies. They are computed once."""

    def __init__(self, sentences: Encoder, texts: list[str]) -> None:
        texts = [features.without_courtesies(text) for text in texts]
        parts = [features.instruction_parts(text) for text in texts]
        instructions = [text_of(*pair) for pair in zip(texts, parts, strict=True)]
        self.whole, self.instruction = encode_parts(sentences, texts, parts)
        self.words = unit(features.hashed_words(texts)) + unit(features.hashed_words(instructions))

    def rows(self, view: str) -> Vectors:
        """float32[n, d]: the unit vectors of the view with this name."""
        embedded = self.whole if "ends" not in view else unit(self.whole + self.instruction)
        if "words" not in view:
            return embedded
        return unit(np.hstack([embedded, features.WORDS_WEIGHT * unit(self.words)]))


class Centroids:
    """One centroid per label, and the references of the similarity: the means, or the fitted ones that serve."""

    def __init__(self, rows: Vectors, labels: np.ndarray, fitted: bool) -> None:
        names = np.unique(labels)
        self.centroids = self.typical = unit(np.stack([rows[labels == n].mean(axis=0) for n in names]))
        if fitted:
            cohorts = centroids.fit_centroids({str(n): rows[labels == n] for n in names})
            self.centroids = np.stack([cohorts[str(n)].centroid for n in names])
            self.typical = np.stack([cohorts[str(n)].typical for n in names])

    def accuracy(self, rows: Vectors, labels: np.ndarray) -> float:
        """The share of rows whose nearest centroid has their label."""
        return float(((rows @ self.centroids.T).argmax(axis=1) == labels).mean())

    def similarity(self, rows: Vectors) -> Vectors:
        """float32[n]: the similarity of each row with the cohort of the nearest centroid."""
        similarity: Vectors = (rows * self.typical[(rows @ self.centroids.T).argmax(axis=1)]).sum(axis=1)
        return similarity


def _auroc(inside: Vectors, outside: Vectors) -> float:
    """The chance that a text in scope is more similar than one out of scope (Mann-Whitney)."""
    ranked = np.searchsorted(np.sort(outside), inside, side="left")
    ties = np.searchsorted(np.sort(outside), inside, side="right") - ranked
    return float((ranked + ties / 2).mean() / len(outside))


def _cross_validated(rows: Vectors, labels: np.ndarray, fitted: bool) -> float:
    fold = np.random.default_rng(0).permutation(len(rows)) % 5
    right = [
        Centroids(rows[fold != k], labels[fold != k], fitted).accuracy(rows[fold == k], labels[fold == k])
        for k in range(5)
    ]
    return float(np.mean(right))


def few_shot(path: Path) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """(ten utterances per intent, their labels, the test split, its labels). Label -1 is out of scope."""
    with gzip.open(path) as rows:
        lines = [msgspec.json.decode(row) for row in rows]
    names = {name: i for i, name in enumerate(sorted({r["intent"] for r in lines} - {"oos"}))}
    train = [r for r in lines if r["split"] == "train" and r["intent"] != "oos"]
    order = np.random.default_rng(0).permutation(len(train))
    counts: dict[str, int] = {}
    few = []
    for i in order:
        counts[train[i]["intent"]] = counts.get(train[i]["intent"], 0) + 1
        if counts[train[i]["intent"]] <= _SHOTS:
            few.append(train[i])
    test = [r for r in lines if r["split"] == "test"]
    return (
        [r["text"] for r in few],
        np.array([names[r["intent"]] for r in few]),
        [r["text"] for r in test],
        np.array([names.get(r["intent"], -1) for r in test]),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="name of the encoder (default: %(default)s)")
    args = parser.parse_args()
    data = args.data / "clinc150.jsonl.gz"
    sentences = load_sentences(args.model, threads_for(1))
    intents = load_config(Path("intents")).intents
    utterances = Views(sentences, [u for intent in intents for u in intent.utterances])
    labels = np.repeat(np.arange(len(intents)), [len(intent.utterances) for intent in intents])
    held_out = yaml.safe_load(Path("tests/heldout.yaml").read_text())
    prompts = Views(sentences, [p for intent in intents for p in held_out[intent.intent]])
    truth = np.repeat(np.arange(len(intents)), [len(held_out[intent.intent]) for intent in intents])
    outside = Views(sentences, held_out["out_of_scope"])
    clinc = None
    if data.exists():
        few, few_labels, test, test_labels = few_shot(data)
        clinc = (Views(sentences, few), few_labels, Views(sentences, test), test_labels)
    print("                                       sample intents                    CLINC150, 10 each")
    print("views                     centroids    own, 5-fold  held out  AUROC      accuracy  AUROC")
    for view in ("whole", "whole+ends", "whole+words", "whole+ends+words"):
        for fitted in (False, True):
            sample = Centroids(utterances.rows(view), labels, fitted)
            line = f"{view:<26}{'fitted' if fitted else 'means':<10}"
            line += f"{_cross_validated(utterances.rows(view), labels, fitted):>12.3f}"
            line += f"{sample.accuracy(prompts.rows(view), truth):>12.3f}"
            line += f"{_auroc(sample.similarity(prompts.rows(view)), sample.similarity(outside.rows(view))):>9.3f}"
            if clinc is not None:
                few_rows, test_rows = clinc[0].rows(view), clinc[2].rows(view)
                few_centroids = Centroids(few_rows, clinc[1], fitted)
                inside = clinc[3] >= 0
                similarity = few_centroids.similarity(test_rows)
                line += f"{few_centroids.accuracy(test_rows[inside], clinc[3][inside]):>14.3f}"
                line += f"{_auroc(similarity[inside], similarity[~inside]):>8.3f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
