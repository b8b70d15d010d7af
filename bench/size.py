"""Memory and time of the commands that work on traffic, by the number of rows.

Run: `make bench-size`, or `python -m bench.size --rows 10000 --encoder real` for a size that you can wait for.

The rows are synthetic, and no two of them count as one. By default their vectors come from a stand-in for the
encoder: sums of random vectors of words. It costs a fraction of a real encoder's time, and vectors of the same size
are stored, read and matched. Each command runs in a separate process. The first one runs twice: the second time it
finds the vectors.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from extproc.config.load import Config, load_config
from extproc.encoder.protocols import Vectors, unit

INTENTS = Path(__file__).parents[1] / "intents"
COMMANDS = ("eval", "calibrate", "target", "gate", "diff", "suggest", "sample")
_SIZES = (10_000, 100_000, 1_000_000)
_DIMENSIONS = 384
_LABELLED, _OUTSIDE = 0.5, 0.15  # shares of the rows


class WordSums:
    """Stands in for an encoder of sentences: a text is the sum of random vectors of its words."""

    def __init__(self) -> None:
        self._words: dict[str, Vectors] = {}
        self.encoded = 0

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), 384], each row of unit length."""
        self.encoded += len(texts)
        return unit(
            np.stack([np.sum([self._word(word) for word in text.lower().split()], axis=0) for text in texts])
        )

    def _word(self, word: str) -> Vectors:
        if word not in self._words:
            drawn = np.random.default_rng(zlib.crc32(word.encode())).normal(size=_DIMENSIONS)
            self._words[word] = drawn.astype(np.float32)
        return self._words[word]


def synthetic_rows(config: Config, count: int, seed: int = 0) -> Iterator[dict[str, object]]:
    """Yield rows of traffic: utterances with words that no other row has together. Half of them have a label."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("bcdfghjklmnprstvwz", k=2) + draw.choices("aeiou", k=1)) * 2 for _ in range(900)]
    names = [intent.intent for intent in config.intents]
    texts = {intent.intent: intent.utterances for intent in config.intents}
    tiers = [tier.name for tier in config.policy.tiers]
    for number in range(count):
        others = " ".join(draw.choices(words, k=8))
        if draw.random() < _OUTSIDE:
            text, label, easy = " ".join([others, *draw.choices(words, k=6)]), None, 0.5
        else:
            label = draw.choice(names)
            text, easy = f"{draw.choice(texts[label])} {others}", names.index(label) / len(names)
        row: dict[str, object] = {"text": text, "session": f"s{number}"}
        if draw.random() < _LABELLED:
            row["intent"] = label
        row["outcomes"] = {
            name: {"success": draw.random() < 0.35 + 0.6 * max(easy, rank / len(tiers)), "tokens_in": 40,
                   "tokens_out": draw.randrange(50, 400)}
            for rank, name in enumerate(tiers)
        }  # fmt: skip
        yield row


def write_rows(path: Path, config: Config, count: int) -> None:
    """Write synthetic rows as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for row in synthetic_rows(config, count):
            file.write(json.dumps(row) + "\n")


def changed_folder(target: Path) -> Path:
    """Return a copy of the intents in which one cohort goes to the cheapest tier."""
    config = load_config(INTENTS)
    target.mkdir()
    for file in INTENTS.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    cheapest = config.policy.tiers[0].name
    intent = next(intent for intent in config.intents if intent.tier != cheapest)
    path = target / config.files[intent.intent]
    path.write_text(path.read_text().replace(f"tier: {intent.tier}", f"tier: {cheapest}"))
    return target


def run_command(name: str, data: Path, changed: Path) -> int:
    """Run one command in this process, and return its exit code."""
    from extproc.cli.main import main

    intents = ["--intents", str(INTENTS)]
    arguments = {
        "eval": ["eval", *intents, str(data), "--out", os.devnull],
        "calibrate": ["calibrate", *intents, str(data)],
        "target": ["calibrate", *intents, str(data), "--target", "quality=0.6"],
        "gate": ["gate", "--baseline", str(INTENTS), str(changed), str(data)],
        "diff": ["diff", str(INTENTS), str(changed), str(data)],
        "suggest": ["suggest", *intents, str(data)],
        "sample": ["sample", *intents, str(data)],
    }
    return main(arguments[name])


def use_stand_in() -> WordSums:
    """Let the commands use the stand-in. The store of vectors is the one that they would use."""
    from extproc.cli import evidence, evidence_compare
    from extproc.encoder.features import FeatureEncoder
    from extproc.evidence.data.vector_store import store_for
    from extproc.evidence.execution import Memory

    sentences = WordSums()

    def patient(model: str) -> Memory:
        return Memory(FeatureEncoder(sentences), sentences.encode, progress=True, store=store_for("stand-in"))

    for commands in (evidence, evidence_compare):
        setattr(commands, "patient", patient)  # noqa: B010  # one of them only imports the name
    return sentences


def _child(args: argparse.Namespace) -> int:
    sentences = use_stand_in() if args.encoder == "stand-in" else None
    began = time.monotonic()
    code = run_command(args.child, args.data, args.changed)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "seconds": time.monotonic() - began, "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024, "code": code,
        "encoded": sentences.encoded if sentences is not None else None,
    }  # fmt: skip
    args.result.write_text(json.dumps(result))
    return 0


def measured(name: str, data: Path, changed: Path, encoder: str, cache: Path) -> dict[str, float]:
    """Run a command in a separate process."""
    result = cache / "result.json"
    command = [sys.executable, "-m", "bench.size", "--child", name, "--data", str(data), "--changed", str(changed),
               "--encoder", encoder, "--result", str(result)]  # fmt: skip
    with (cache / "output").open("wb") as output:
        subprocess.run(command, check=True, stdout=output, env={**os.environ, "XDG_CACHE_HOME": str(cache)})
    figures: dict[str, float] = json.loads(result.read_text())
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line for each size and command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=_SIZES, help="numbers of rows (default: %(default)s)"
    )
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS, help="commands to run")
    parser.add_argument("--encoder", choices=("stand-in", "real"), default="stand-in", help="source of the vectors")
    parser.add_argument("--child", choices=COMMANDS, help=argparse.SUPPRESS)
    for hidden in ("--data", "--changed", "--result"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child is not None:
        return _child(args)
    config = load_config(INTENTS)
    print(f"vectors from: {args.encoder}")
    print(
        f"{'rows':>10}  {'command':<10}{'seconds':>9}{'CPU s':>8}{'peak MiB':>10}{'encoded':>12}{'exit code':>11}"
    )
    for count in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            write_rows(work / "rows.jsonl", config, count)
            changed = changed_folder(work / "changed")
            for name in (args.commands[0], *args.commands):
                figures = measured(name, work / "rows.jsonl", changed, args.encoder, work)
                encoded = "-" if figures["encoded"] is None else f"{figures['encoded']:,}"
                cost = f"{figures['seconds']:>9.0f}{figures['cpu_s']:>8.0f}{figures['peak_mib']:>10.0f}"
                print(f"{count:>10,}  {name:<10}{cost}{encoded:>12}{figures['code']:>11}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
