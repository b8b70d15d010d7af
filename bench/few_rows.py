"""`extproc calibrate` with ten labelled rows of each intent: `make bench-few-rows`.

77 intents of CLINC150 have ten utterances and ten labelled rows each, and 77 labelled rows are out of scope. The
functions that serve decide about texts of the test split, before and after. All intents have the same tier, or each
second one has a costlier tier. The columns, in per cent:

- right: of rows in scope, the share whose nearest cohort has the label's name
- accepted: of rows in scope, the share with a trusted match
- out of scope: of rows out of scope, the share with a trusted match
- wrong: of trusted matches, the share with another label
"""

import argparse
import contextlib
import gzip
import io
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from extproc.cli.evidence import patient
from extproc.cli.evidence_calibrate import run_calibrate
from extproc.config.load import load_config
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute
from extproc.evidence.measure.columns import columns

_INTENTS, _SHOTS, _OUTSIDE, _SEED = 77, 10, 257, 7
_RISK, _DATE = 0.05, "2026-01-01"
_TIERS = ("small", "large")

Row = dict[str, Any]


def write_folder(folder: Path, rows: list[Row], tiers: int) -> tuple[list[Row], list[Row]]:
    """Write a policy and intents from the rows of CLINC150. Return rows to calibrate on, and rows to measure on."""
    rng, texts = random.Random(_SEED), defaultdict[tuple[str, str], list[str]](list)
    for row in rows:
        texts[row["split"], row["intent"]].append(row["text"])
    names = sorted(rng.sample(sorted({name for _, name in texts} - {"oos"}), _INTENTS))
    price = {"input": 1, "output": 1}
    served = [
        {"name": name, "model": name, "url": "http://127.0.0.1:1", "context": 8000, "price": price}
        for name in _TIERS
    ]
    _write_yaml(folder / "policy.yaml", {"version": 1, "tiers": served, "default_tier": "large"})
    labelled: list[Row] = []
    tested: list[Row] = []
    for number, name in enumerate(names):
        drawn = texts["train", name][:]
        rng.shuffle(drawn)
        intent = {"intent": name, "tier": _TIERS[number % tiers], "utterances": drawn[:_SHOTS]}
        _write_yaml(folder / f"{name}.yaml", intent)
        labelled += [{"text": text, "intent": name} for text in drawn[_SHOTS : 2 * _SHOTS]]
        tested += [{"text": text, "intent": name} for text in texts["test", name]]
    for split, count, part in (("train", _INTENTS, labelled), ("test", _OUTSIDE, tested)):
        outside = texts[split, "oos"]
        rng.shuffle(outside)
        part += [{"text": text, "intent": None} for text in outside[:count]]
    return labelled, tested


def shares(folder: Path, memory: Memory, path: Path) -> tuple[float, ...]:
    """The columns of one line, as shares."""
    table = columns(execute(folder, memory, read_traffic(path), Tokens()))
    inside, outside = table.labelled & ~table.outside, table.outside
    wrong = (table.trusted & ~table.right).sum() / max(table.trusted.sum(), 1)
    return table.right[inside].mean(), table.trusted[inside].mean(), table.trusted[outside].mean(), wrong


def table(data: Path) -> Iterator[str]:
    """The lines of the table."""
    with gzip.open(data) as lines:
        rows = [msgspec.json.decode(line) for line in lines]
    memory = None
    yield f"{'':<22}{'right':>10}{'accepted':>10}{'out of scope':>14}{'wrong':>8}"
    for tiers, title in ((1, "one tier"), (2, "two tiers in turn")):
        with tempfile.TemporaryDirectory(prefix="few-rows-") as name:
            folder = Path(name) / "intents"
            folder.mkdir()
            fit, test = (Path(name) / f"{part}.jsonl" for part in ("fit", "test"))
            for path, part in zip((fit, test), write_folder(folder, rows, tiers), strict=True):
                path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in part))
            memory = memory or patient(load_config(folder).policy.encoder.model)
            yield _line(f"{title}, before", shares(folder, memory, test))
            with contextlib.redirect_stdout(io.StringIO()):
                run_calibrate(folder, fit, _RISK, _DATE, 0, write=True, memory=memory)
            yield _line("after", shares(folder, memory, test))


def _line(title: str, values: tuple[float, ...]) -> str:
    right, accepted, outside, wrong = (100 * value for value in values)
    return f"{title:<26}{right:>6.1f}{accepted:>10.1f}{outside:>14.1f}{wrong:>8.1f}"


def _write_yaml(path: Path, value: Row) -> None:
    path.write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000), encoding="utf-8")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.few_rows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data/clinc150.jsonl.gz"),
                        help="CLINC150 as rows with text, intent and split (default: %(default)s)")  # fmt: skip
    for line in table(parser.parse_args().data):
        print(line, flush=True)


if __name__ == "__main__":
    main()
