"""How many decisions change when requests are rewritten, or written as an attack: `make bench-robustness`.

Runs the changes of `extproc eval --perturb` and the search of bench/gadgets.py on two sets of requests. The first
is the sample intents with the prompts of tests/heldout.yaml. The second is CLINC150 with ten utterances per intent
and 600 texts of its test split. There, 90 intents have the small tier, 45 the large one, which is the default, and
15 the frontier tier. Upgrades are limited, so the table also shows the effect of a limit.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
import yaml

from bench.gadgets import NO_TARGET, NOTE, attacks, vocabulary
from bench.static_stage import load_tokenizer
from bench.views import few_shot
from extproc.cli.evidence import patient_encoder
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import execute
from extproc.evidence.perturb.robustness import perturb
from extproc.evidence.show.robustness import robustness_text

# Gadgets are made of the words of its vocabulary.
_MODEL = "all-MiniLM-L6-v2"
_UPGRADES = {"per_minute": 30, "burst": 10, "lower_floors": True}
_TIERS = ["small"] * 90 + ["large"] * 45 + ["frontier"] * 15
_TEXTS = 600
# The floor of intents with ten utterances. Texts below it are out of scope.
_FLOOR = 0.2

LabelledTexts = Iterable[tuple[str, str | None]]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--intents", type=Path, default=Path("intents"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print("Sample intents, held-out prompts")
        _print(*_sample(args.intents, Path(name)))
        data = args.data / "clinc150.jsonl.gz"
        if data.is_file():
            print(f"\nCLINC150, 10 utterances per intent, {_TEXTS} texts")
            _print(*_clinc(args.intents, data, Path(name)))


def _print(folder: Path, rows: LabelledTexts) -> None:
    data = folder / "traffic.jsonl"
    data.write_bytes(b"".join(msgspec.json.encode({"text": t, "intent": i}) + b"\n" for t, i in rows))
    memory = patient_encoder(folder)
    run = execute(folder, memory, read_traffic(data), Tokens())
    robustness = perturb(run, memory)
    attacked = list(attacks(run, memory, vocabulary(load_tokenizer(_MODEL))))
    effects = [*robustness.effects, *(effect for _, effect in attacked)]
    notes = [*robustness.notes, NOTE if attacked else NO_TARGET]
    print("\n".join(robustness_text(msgspec.structs.replace(robustness, effects=effects, notes=notes))))
    for gadget, effect in attacked:
        print(f"{effect.kind}: {gadget.text!r}")


def _with_upgrades(intents: Path, folder: Path, **more: object) -> None:
    policy = yaml.safe_load((intents / "policy.yaml").read_text()) | {"upgrades": _UPGRADES, **more}
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))


def _sample(intents: Path, parent: Path) -> tuple[Path, LabelledTexts]:
    folder = Path(shutil.copytree(intents, parent / "sample"))
    _with_upgrades(intents, folder)
    held_out = yaml.safe_load(Path("tests/heldout.yaml").read_text())
    return folder, [(t, None if i == "out_of_scope" else i) for i, texts in held_out.items() for t in texts]


def _clinc(intents: Path, data: Path, parent: Path) -> tuple[Path, LabelledTexts]:
    few, few_labels, texts, labels = few_shot(data)
    folder = parent / "clinc150"
    folder.mkdir()
    _with_upgrades(intents, folder, rules=[])
    utterances: dict[int, dict[str, None]] = {}
    for text, label in zip(few, few_labels, strict=True):
        utterances.setdefault(int(label), {})[text.strip().lower()] = None
    rng = np.random.default_rng(0)
    for label, tier in zip(utterances, rng.permutation(_TIERS), strict=True):
        intent = {
            "intent": f"i{label}",
            "tier": str(tier),
            "floor": _FLOOR,
            "utterances": list(utterances[label]),
        }
        (folder / f"i{label}.yaml").write_text(yaml.safe_dump(intent))
    drawn = rng.permutation(len(texts))[:_TEXTS]
    return folder, [(texts[i], f"i{labels[i]}" if labels[i] >= 0 else None) for i in drawn]


if __name__ == "__main__":
    main()
