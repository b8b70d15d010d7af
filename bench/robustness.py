"""What flips when the same ask is put otherwise, or worded to flip it: `extproc eval --perturb` on data of ours.

The sample intents on tests/heldout.yaml; CLINC150 with ten utterances an intent, 90 intents at the small tier, 45
at the large one, which is the default, and 15 at the frontier, on 600 texts of its test split. Upgrades are
bounded, so that the table says what a bound leaves.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
import yaml

from bench.views import few_shot
from extproc.cli.evidence import patient_encoder
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import execute
from extproc.evidence.perturb.robustness import perturb
from extproc.evidence.show.robustness import robustness_text

_BOUND = {"per_minute": 30, "burst": 10, "lower_floors": True}
_TIERS = ["small"] * 90 + ["large"] * 45 + ["frontier"] * 15
_TEXTS = 600
# Of an intent of ten utterances: what is further away is out of scope.
_FLOOR = 0.2

Pairs = Iterable[tuple[str, str | None]]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--intents", type=Path, default=Path("intents"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print("Sample intents, held-out prompts")
        _print(*_sample(given.intents, Path(name)))
        data = given.data / "clinc150.jsonl.gz"
        if data.is_file():
            print(f"\nCLINC150, 10 utterances an intent, {_TEXTS} texts")
            _print(*_clinc(given.intents, data, Path(name)))


def _print(folder: Path, rows: Pairs) -> None:
    data = folder / "traffic.jsonl"
    data.write_bytes(b"".join(msgspec.json.encode({"text": t, "intent": i}) + b"\n" for t, i in rows))
    memory, tokens = patient_encoder(folder), Tokens()
    run = execute(folder, memory, read_traffic(data), tokens)
    print("\n".join(robustness_text(perturb(run, memory, tokens.words()))))


def _bounded(intents: Path, folder: Path, **more: object) -> None:
    policy = yaml.safe_load((intents / "policy.yaml").read_text()) | {"upgrades": _BOUND, **more}
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))


def _sample(intents: Path, under: Path) -> tuple[Path, Pairs]:
    folder = Path(shutil.copytree(intents, under / "sample"))
    _bounded(intents, folder)
    held_out = yaml.safe_load(Path("tests/heldout.yaml").read_text())
    return folder, [(t, None if i == "out_of_scope" else i) for i, texts in held_out.items() for t in texts]


def _clinc(intents: Path, data: Path, under: Path) -> tuple[Path, Pairs]:
    few, few_labels, texts, labels = few_shot(data)
    folder = under / "clinc150"
    folder.mkdir()
    _bounded(intents, folder, rules=[])
    said: dict[int, dict[str, None]] = {}
    for text, label in zip(few, few_labels, strict=True):
        said.setdefault(int(label), {})[text.strip().lower()] = None
    rng = np.random.default_rng(0)
    for label, tier in zip(said, rng.permutation(_TIERS), strict=True):
        intent = {"intent": f"i{label}", "tier": str(tier), "floor": _FLOOR, "utterances": list(said[label])}
        (folder / f"i{label}.yaml").write_text(yaml.safe_dump(intent))
    drawn = rng.permutation(len(texts))[:_TEXTS]
    return folder, [(texts[i], f"i{labels[i]}" if labels[i] >= 0 else None) for i in drawn]


if __name__ == "__main__":
    main()
