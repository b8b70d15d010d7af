"""`extproc calibrate` on some sources of real prompts, measured on the other sources: `make bench-unseen`.

The sources are split into random halves. Each half calibrates a copy of the intents, once with the names of its
sources and once without. The functions that serve then decide about the other half. The columns are those of
`python -m bench.wild --help`, and all halves are counted together.
"""

import argparse
import contextlib
import io
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench.wild import judge, names_of
from bench.wild_measures import Judged, measure
from extproc.cli.evidence import patient
from extproc.cli.evidence_calibrate import run_calibrate
from extproc.config.load import load_config
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_lines, read_traffic
from extproc.evidence.execution import Memory, execute

_COLUMNS = ("right", "right tier", "hard->small", "oos->small", "wrong", "accepted")
# A half has between these shares of the rows.
_EVEN = 0.4, 0.6
_RISK, _DATE = 0.05, "2026-01-01"

Rows = list[dict[str, object]]


def halves(rows: Rows, pairs: int) -> Iterator[set[str]]:
    """The sources of each half, in pairs: each half is also the other half of its pair. Deterministic."""
    names, rng, found = sorted({str(row["source"]) for row in rows}), random.Random(1), 0
    while found < pairs:
        drawn = names[:]
        rng.shuffle(drawn)
        half = set(drawn[: len(drawn) // 2])
        if _EVEN[0] < sum(row["source"] in half for row in rows) / len(rows) < _EVEN[1]:
            found += 1
            yield half
            yield set(names) - half


def decide(folder: Path, memory: Memory, path: Path) -> Judged:
    """The decisions about the rows of a file."""
    return judge(execute(folder, memory, read_traffic(path), Tokens()), names_of(path))


def table(intents: Path, data: Path, pairs: int) -> Iterator[str]:
    """The lines of the table."""
    memory = patient(load_config(intents).policy.encoder.model)
    names = names_of(data)
    rows = [msgspec.json.decode(line) | {"source": names[number][0]} for number, line in read_lines(data)]
    lines: dict[str, list[Judged]] = {"before": [], "one source": [], "named sources": []}
    with tempfile.TemporaryDirectory(prefix="unseen-") as name:
        fit, rest, copy = (Path(name) / part for part in ("fit.jsonl", "rest.jsonl", "intents"))
        for done, half in enumerate(halves(rows, pairs)):
            print(f"\r{done} of {2 * pairs} halves", end="", file=sys.stderr, flush=True)
            _write(rest, [row for row in rows if row["source"] not in half])
            lines["before"].append(decide(intents, memory, rest))
            for what in ("one source", "named sources"):
                left_out = {"source"} if what == "one source" else set()
                inside = [row for row in rows if row["source"] in half]
                _write(fit, [{key: row[key] for key in row.keys() - left_out} for row in inside])
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(intents, copy)
                with contextlib.redirect_stdout(io.StringIO()):
                    run_calibrate(copy, fit, _RISK, _DATE, 0, write=True, memory=memory)
                lines[what].append(decide(copy, memory, rest))
    print("\r\033[K", end="", file=sys.stderr)
    yield f"{'':<16}{'rows':>6}" + "".join(f"{title:>13}" for title in _COLUMNS)
    for what, judged in lines.items():
        measured = measure(_joined(judged))
        shares = "".join(f"{100 * measured[title]:>13.1f}" for title in _COLUMNS)
        yield f"{what:<16}{sum(len(each.label) for each in judged):>6}{shares}"


def _joined(parts: Sequence[Judged]) -> Judged:
    return Judged(*(np.concatenate([getattr(part, name) for part in parts]) for name in Judged.__struct_fields__))


def _write(path: Path, rows: Rows) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.unseen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data/wild_dev.jsonl.gz"),
                        help="traffic whose ids name part, source and language (default: %(default)s)")  # fmt: skip
    parser.add_argument("--intents", type=Path, default=Path("intents"), help="folder of YAML (default: intents)")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of halves (default: 4)")
    options = parser.parse_args()
    for line in table(options.intents, options.data, options.pairs):
        print(line, flush=True)


if __name__ == "__main__":
    main()
