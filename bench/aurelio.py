"""aurelio's semantic-router on CLINC150, run by bench.peers in that package's own environment.

Standard input: one line of JSON {"model": path, "train": {intent: [text]}, "test": [[text, intent]]}, answered by a
line {"version": ..., "accuracy": {aggregation: share}}; then any number of lines ["text", ...], each answered by
the seconds that routing took, text by text. Nothing but the package's documented interface is used.
"""

import json
import sys
import time
from importlib.metadata import version

import torch
from semantic_router import IndexedRouter, Route  # type: ignore[import-not-found]
from semantic_router.encoders import HuggingFaceEncoder  # type: ignore[import-not-found]

# Of the five nearest utterances: the package's default, and the others that it offers.
_AGGREGATIONS = ("mean", "max", "sum")
_known: dict[str, list[float]] = {}


class Remembering(HuggingFaceEncoder):  # type: ignore[misc]
    """Encodes each text once: the aggregations differ only in what they make of the vectors."""

    def __call__(self, docs: list[str], **given: object) -> list[list[float]]:
        new = [text for text in dict.fromkeys(docs) if text not in _known]
        _known.update(zip(new, super().__call__(new, **given), strict=True) if new else ())
        return [_known[text] for text in docs]


def main() -> None:
    """Answer line by line until standard input ends."""
    torch.set_num_threads(1)  # as many as our encoder takes on two cores
    asked = json.loads(sys.stdin.readline())
    encoder = Remembering(name=asked["model"])
    routes = [Route(name=name, utterances=texts) for name, texts in asked["train"].items()]
    texts, intents = zip(*asked["test"], strict=True)
    encoder(list(texts))
    routers = {name: IndexedRouter(encoder=encoder, routes=routes, aggregation=name) for name in _AGGREGATIONS}
    accuracy = {name: router.evaluate(texts, intents) for name, router in routers.items()}
    print(json.dumps({"version": version("semantic-router"), "accuracy": accuracy}), flush=True)
    for line in sys.stdin:
        seconds = []
        for text in json.loads(line):
            _known.pop(text, None)
            began = time.perf_counter()
            routers[_AGGREGATIONS[0]](text)
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
