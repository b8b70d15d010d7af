"""The back ends of the encoder: milliseconds, texts per second, and accuracy on CLINC150: `make bench-encoders`.

The back ends alternate, so that other load on the machine affects all of them. Accuracy is that of routing when it
serves: centroids fitted on ten utterances per intent, all views of the text, over the whole test split.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.views import few_shot
from extproc.config.load import load_config
from extproc.encoder.backends import TorchSentences, threads_for
from extproc.encoder.features import FeatureEncoder
from extproc.encoder.prepare import convert_model
from extproc.encoder.prepared_sentences import PreparedSentences
from extproc.encoder.protocols import Encoder
from extproc.routing.centroids import fit_centroids

_MODEL = "all-MiniLM-L6-v2"
_ROUNDS = 15
# Each word is one token, and two special tokens surround them.
_TEXTS = {tokens: "order " * (tokens - 2) for tokens in (16, 64, 256)}
_BATCH = 32


def main() -> None:
    """Print the table that docs/decisions/0004 quotes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    data = parser.parse_args().data / "clinc150.jsonl.gz"
    utterances = [text for intent in load_config(Path("intents")).intents for text in intent.utterances]
    threads = threads_for(1)
    with tempfile.TemporaryDirectory() as scratch:
        reference = TorchSentences(_MODEL, threads)
        converted = convert_model(reference.model, utterances[::2][:300], 256, Path(scratch))
        half = TorchSentences(_MODEL, threads)
        half.model.bfloat16()
        encoders: dict[str, Encoder] = {"torch fp32": reference, "torch bf16": half} | {
            name: PreparedSentences(path, name, 256, threads) for name, path in sorted(converted.items())
        }
        times = _medians(encoders)
        columns = [f"{tokens} tokens" for tokens in _TEXTS]
        print(f"{'':<16}" + "".join(f"{c:>13}" for c in columns) + f"{'texts/s at 32':>16}{'CLINC150':>11}")
        for name, encoder in encoders.items():
            ms = "".join(f"{times[name, tokens] * 1e3:>10.1f} ms" for tokens in _TEXTS)
            rate = _BATCH / times[name, _BATCH * 16]
            accuracy = f"{_accuracy(encoder, data) * 100:>9.2f} %" if data.exists() else f"{'no data':>11}"
            print(f"{name:<16}{ms}{rate:>16.0f}{accuracy}", flush=True)


def _medians(encoders: dict[str, Encoder]) -> dict[tuple[str, int], float]:
    """(back end, tokens in the call) -> median seconds."""
    calls = dict(_TEXTS.items())
    times: dict[tuple[str, int], list[float]] = {}

    def clock(name: str, tokens: int, run: Callable[[], object]) -> None:
        began = time.perf_counter()
        run()
        times.setdefault((name, tokens), []).append(time.perf_counter() - began)

    for _ in range(_ROUNDS):
        for name, encoder in encoders.items():
            for tokens, text in calls.items():
                clock(name, tokens, lambda e=encoder, t=text: e.encode([t]))  # type: ignore[misc]
            clock(name, _BATCH * 16, lambda e=encoder: e.encode([_TEXTS[16]] * _BATCH))  # type: ignore[misc]
    return {key: float(np.median(seconds)) for key, seconds in times.items()}


def _accuracy(sentences: Encoder, data: Path) -> float:
    few, few_labels, texts, labels = few_shot(data)
    encoder = FeatureEncoder(sentences)
    rows = encoder.encode(few)
    names = [str(n) for n in range(few_labels.max() + 1)]
    fitted = fit_centroids({name: rows[few_labels == int(name)] for name in names})
    centroids = np.stack([fitted[name].centroid for name in names])
    in_scope = labels >= 0
    vectors = encoder.encode([text for text, inside in zip(texts, in_scope, strict=True) if inside])
    return float(((vectors @ centroids.T).argmax(axis=1) == labels[in_scope]).mean())


if __name__ == "__main__":
    main()
