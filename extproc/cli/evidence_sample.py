"""The command `sample`: draw the rows of a log that a person should label."""

import shutil
import sys
import tempfile
from pathlib import Path

import msgspec

from extproc.cli.evidence import patient_encoder, report_unused, usable
from extproc.evidence.app_rows import execute_apps
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_lines
from extproc.evidence.measure.mapped_sample import draw_mapped
from extproc.evidence.measure.sampling import Draw, draw


def run_sample(intents: Path, data: Path, size: int, seed: int) -> int:
    """`extproc sample`: print the rows to label with their weights, and the counts on stderr."""
    if data.is_dir():
        return _sample_mapped(data, size, seed)
    if data.is_file():
        return _sample(intents, data, size, seed)
    with tempfile.TemporaryDirectory() as folder, data.open("rb") as source:  # a pipe can be read only once
        copy = Path(folder) / data.name
        with copy.open("wb") as file:
            shutil.copyfileobj(source, file)
        return _sample(intents, copy, size, seed, data)


def _sample(intents: Path, data: Path, size: int, seed: int, name: Path | None = None) -> int:
    drawn, lines = rows_to_label(intents, data, size, seed, name)
    for line in lines:
        sys.stdout.buffer.write(line)
    _report_draw(name or data, drawn)
    return 0


def rows_to_label(
    intents: Path, data: Path, size: int, seed: int, name: Path | None = None
) -> tuple[Draw, list[bytes]]:
    """Draw rows of a file, and return their lines with their weights. Messages call the file `name`."""
    run = execute_apps(intents, patient_encoder(intents), usable(data, name), Tokens())
    report_unused(name or data, run)
    drawn = draw(run, size, seed)
    weights, lines = {row.line: row.weight for row in drawn.rows}, []
    for number, line in read_lines(data):
        if number in weights:
            row = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
            row["weight"] = msgspec.Raw(msgspec.json.encode(weights[number]))
            lines.append(msgspec.json.encode(row) + b"\n")
    return drawn, lines


def _sample_mapped(folder: Path, size: int, seed: int) -> int:
    """Draw from the files that `extproc map` wrote."""
    drawn, lines = draw_mapped(folder, size, seed)
    for line in lines:
        sys.stdout.buffer.write(line)
    _report_draw(folder, drawn)
    return 0


def _report_draw(data: Path, drawn: Draw) -> None:
    print(
        f"{data}: {len(drawn.rows):,} rows drawn from {drawn.total:,}, which have {drawn.texts:,} different "
        f"texts in {drawn.units:,} conversations and {drawn.strata} strata; the weights add up to "
        f"{sum(row.weight for row in drawn.rows):,.0f}",
        file=sys.stderr,
    )
