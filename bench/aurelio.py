"""The semantic-router package by aurelio on CLINC150. bench.peers runs this in the package's own environment.

The first line of standard input is JSON {"model": path, "train": {intent: [text]}, "test": [[text, intent]]}. The
answer is a line {"version": ..., "accuracy": {aggregation: share}}. Each further line is ["text", ...]. Its answer
is the seconds that routing took for each text. Only the documented interface of the package is used.
"""

import json
import sys
import time
from importlib.metadata import version

import torch
from semantic_router import IndexedRouter, Route  # type: ignore[import-not-found]
from semantic_router.encoders import HuggingFaceEncoder  # type: ignore[import-not-found]

# How the scores of the five nearest utterances are combined: the package's default first, then its other ways.
_AGGREGATIONS = ("mean", "max", "sum")
_vectors: dict[str, list[float]] = {}


class Remembering(HuggingFaceEncoder):  # type: ignore[misc]
    """Encodes each text once, because the aggregations share the vectors."""

    def __call__(self, docs: list[str], **options: object) -> list[list[float]]:
        new = [text for text in dict.fromkeys(docs) if text not in _vectors]
        _vectors.update(zip(new, super().__call__(new, **options), strict=True) if new else ())
        return [_vectors[text] for text in docs]


def main() -> None:
    """Answer each line until standard input ends."""
    torch.set_num_threads(1)  # as many as this project's encoder uses on two cores
    task = json.loads(sys.stdin.readline())
    encoder = Remembering(name=task["model"])
    routes = [Route(name=name, utterances=texts) for name, texts in task["train"].items()]
    texts, intents = zip(*task["test"], strict=True)
    encoder(list(texts))
    routers = {name: IndexedRouter(encoder=encoder, routes=routes, aggregation=name) for name in _AGGREGATIONS}
    accuracy = {name: router.evaluate(texts, intents) for name, router in routers.items()}
    print(json.dumps({"version": version("semantic-router"), "accuracy": accuracy}), flush=True)
    for line in sys.stdin:
        seconds = []
        for text in json.loads(line):
            _vectors.pop(text, None)
            began = time.perf_counter()
            routers[_AGGREGATIONS[0]](text)
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
