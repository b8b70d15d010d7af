"""The back ends of an encoder: CPU time, agreement with torch, and accuracy on CLINC150: `make bench-encoders`.

The model is converted as `extproc prepare` does it. In the first table the back ends alternate, so that other load
on the machine affects all of them. CPU time is that of all threads, in milliseconds for a text. "mixed" is 16 texts
of 6 to 200 tokens in one call, and "one by one" has the same texts.

The second table compares the vectors of 200 held-out prompts with those of torch in fp32. No scale of int8 was set
by these prompts. The control is torch's vector of another prompt. Accuracy is measured on 1,500 texts of the test
split, by centroids that were fitted on ten utterances of each intent. The last column is a paired difference.

With --keep, other benchmarks can run by each back end: `EXTPROC_PREPARED=DIR/onnxruntime-int8 make bench-wild`.
The command fails if no back end could be converted, or if the vectors do not separate texts.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from bench.intents_table import show
from bench.views import few_shot
from extproc.config.load import load_config
from extproc.encoder.backends import BackendChoice, Measured, TorchSentences, prepared_folder, threads_for
from extproc.encoder.features import FeatureEncoder
from extproc.encoder.models import prompt_of
from extproc.encoder.prepare import convert_model, keep
from extproc.encoder.prepared_sentences import PreparedSentences
from extproc.encoder.protocols import Encoder, EncoderError, Vectors
from extproc.evidence.measure.metrics import Floats, mean
from extproc.routing.centroids import fit_centroids

_REFERENCE = "torch fp32"
_ROUNDS = 9
_SCALED_ON, _MAX_TOKENS = 300, 256
# Every third text of CLINC150's test split in scope: 1,500 texts, ten of each intent.
_EVERY = 3
# Each word is one token, and two special tokens surround them.
_WORD, _LENGTHS = "order ", (16, 24, 64, 256)
_MIXED = np.clip(np.exp(np.random.default_rng(0).normal(3.4, 0.7, 16)), 6, 200).astype(int)


def calls() -> dict[str, list[list[str]]]:
    """Column -> the texts of each call."""
    mixed = [_WORD * (tokens - 2) for tokens in _MIXED]
    one = {f"{tokens} tokens": [[_WORD * (tokens - 2)]] for tokens in _LENGTHS}
    return one | {"mixed, one call": [mixed], "one by one": [[text] for text in mixed]}


def cpu_ms(encoders: Mapping[str, Encoder], rounds: int) -> dict[tuple[str, str], float]:
    """(back end, column) -> median milliseconds of CPU for a text."""
    used: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):  # the first round warms up
        for column, batches in calls().items():
            for name, encoder in encoders.items():
                began = time.process_time()
                for texts in batches:
                    encoder.encode(texts)
                ms = (time.process_time() - began) * 1e3 / sum(map(len, batches))
                if turn:
                    used.setdefault((name, column), []).append(ms)
    return {key: float(np.median(values)) for key, values in used.items()}


def cosines(rows: Vectors, reference: Vectors) -> Floats:
    """The cosine of each row with the reference, float[n].

    Raises EncoderError if nothing was encoded, a row is not a unit vector, or the rows do not separate texts.
    """
    if len(rows) < 2 or rows.shape != reference.shape:
        raise EncoderError(
            f"expected two or more vectors like the reference, found {rows.shape}, {reference.shape}"
        )
    if not np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3):
        raise EncoderError("expected vectors of unit length: nothing was encoded, or the model is broken")
    same: Floats = (rows * reference).sum(axis=1, dtype=np.float64)
    if np.allclose(rows, rows[0], atol=1e-3) or same.mean() <= another(rows, reference).mean():
        raise EncoderError("the vectors do not separate texts: those of another text are as near")
    return same


def another(rows: Vectors, reference: Vectors) -> Floats:
    """The cosine of each row with the reference of the next text: the control."""
    other: Floats = (rows * np.roll(reference, 1, axis=0)).sum(axis=1, dtype=np.float64)
    return other


def right(sentences: Encoder, data: Path) -> Floats:
    """1 for a text in scope whose nearest centroid is that of its intent, and 0 for the others: float[texts]."""
    few, few_labels, texts, labels = few_shot(data)
    encoder = FeatureEncoder(sentences)
    rows = encoder.encode(few)
    names = [str(n) for n in range(few_labels.max() + 1)]
    fitted = fit_centroids({name: rows[few_labels == int(name)] for name in names})
    centroids = np.stack([fitted[name].centroid for name in names])
    chosen = np.flatnonzero(labels >= 0)[::_EVERY]
    vectors = encoder.encode([texts[i] for i in chosen])
    hits: Floats = ((vectors @ centroids.T).argmax(axis=1) == labels[chosen]).astype(np.float64)
    return hits


def table(encoders: Mapping[str, Encoder], prompts: Sequence[str], data: Path) -> Iterator[str]:
    """The lines of both tables. The first encoder is the reference."""
    times = cpu_ms(encoders, _ROUNDS)
    columns = list(calls())
    yield f"{'CPU ms for a text':<20}" + "".join(f"{column:>17}" for column in columns)
    for name in encoders:
        yield f"{name:<20}" + "".join(f"{times[name, column]:>17.1f}" for column in columns)
    yield ""
    yield f"{'':<20}{'cosine':>8}{'least':>8}   {'CLINC150, % [95 %]':<21}minus {_REFERENCE} [95 %]"
    reference, first = encoders[_REFERENCE].encode(prompts), None
    for name, encoder in encoders.items():
        line = _cosines(name, cosines(encoder.encode(prompts), reference))
        if data.exists():
            hits = right(encoder, data)
            first = hits if first is None else first
            difference = show(mean(hits - first, least=-1.0).estimate(0)) if name != _REFERENCE else ""
            line += f"   {show(mean(hits).estimate(0)):<21}{difference}"
        yield line.rstrip()
    yield _cosines("another prompt", another(reference, reference))


def _cosines(name: str, values: Floats) -> str:
    return f"{name:<20}{values.mean():>8.4f}{values.min():>8.3f}"


def converted(model: str, scratch: Path, keep_in: Path | None) -> dict[str, Encoder]:
    """Back end -> the encoder by it. Torch is the first. Raises EncoderError if there is no other one."""
    utterances = [text for intent in load_config(Path("intents")).intents for text in intent.utterances]
    threads = threads_for(1)
    reference = TorchSentences(model, threads)
    prompt = prompt_of(reference.model)
    texts = utterances[::2][:: -(-len(utterances) // 2 // _SCALED_ON) or 1]
    folders = convert_model(reference.model, texts, _MAX_TOKENS, scratch, reference.centre)
    if not folders:
        raise EncoderError(f"{model} was converted for no back end, so there is nothing to compare with torch")
    encoders: dict[str, Encoder] = {_REFERENCE: reference}
    for name, folder in sorted(folders.items()):
        if keep_in is not None:
            choice = BackendChoice(
                model, Measured(name, 0, 0, 0), (), 0, _MAX_TOKENS, time.strftime("%Y-%m-%d"), prompt
            )
            keep(choice, folder, keep_in / name.replace(" ", "-") / prepared_folder(model).name)
        encoders[name] = PreparedSentences(folder, name, _MAX_TOKENS, threads, prompt)
    return encoders


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name of the encoder (default: that of the sample intents)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write each converted model below this folder")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    args = parser.parse_args()
    model = args.model or load_config(Path("intents")).policy.encoder.model
    held_out = yaml.safe_load(Path("tests/heldout.yaml").read_text())
    prompts = [prompt for of_intent in held_out.values() for prompt in of_intent]
    warnings.simplefilter("ignore")  # tracing warns about every branch in the model's code
    try:
        with tempfile.TemporaryDirectory() as scratch:
            print(f"{model}, threads: {threads_for(1)}")
            encoders = converted(model, Path(scratch), args.keep)
            for line in table(encoders, prompts, args.data / "clinc150.jsonl.gz"):
                print(line, flush=True)
    except EncoderError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
