"""Rows to label, drawn from files that `extproc map` wrote: nothing is encoded or decided again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from extproc.evidence.data.parquet import COLUMNS, arrow_parquet, as_line, parquet_files
from extproc.evidence.measure.sampling import Candidates, Draw, draw_from

# The columns that a draw needs. The others are read only of the rows that are drawn.
_NEEDED = ("cohort", "reason", "trusted", "margin", "text_hash")


def draw_mapped(folder: Path, size: int, seed: int) -> tuple[Draw, Iterator[bytes]]:
    """Draw at most `size` rows, and return them as lines of traffic with their weights.

    Raises OSError if the folder has no Parquet files, and ValueError if `extproc map` did not write them.
    """
    files, pq = parquet_files(folder), arrow_parquet()
    tables, starts = [], [0]
    for file in files:
        names = pq.read_schema(file).names
        missing = [name for name in _NEEDED if name not in names]
        if missing:
            raise ValueError(f"{file}: has no column {missing[0]}: run `extproc map` and give the folder of --out")
        tables.append(pq.read_table(file, columns=[*_NEEDED, *({"session", "weight"} & set(names))]))
        starts.append(starts[-1] + tables[-1].num_rows)
    usable, candidates = _candidates(tables)
    drawn = draw_from(candidates, size, seed)
    weights = {int(usable[row.line]): row.weight for row in drawn.rows}
    return drawn, _lines(files, starts, weights)


def _candidates(tables: list[Any]) -> tuple[np.ndarray, Candidates]:
    """Return the positions of the rows that could be used, and the rows."""
    values: dict[str, list[Any]] = {name: [] for name in (*_NEEDED, "session", "weight")}
    for table in tables:
        for name, column in values.items():
            column += table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
    usable = np.array([i for i, reason in enumerate(values["reason"]) if reason is not None], dtype=np.int64)

    def kept(name: str) -> list[Any]:
        return [values[name][i] for i in usable]

    candidates = Candidates(
        texts=kept("text_hash"),
        sessions=kept("session"),
        weights=np.array([1.0 if weight is None else weight for weight in kept("weight")], dtype=np.float64),
        cohorts=[cohort or reason for cohort, reason in zip(kept("cohort"), kept("reason"), strict=True)],
        margins=np.array([0.0 if margin is None else margin for margin in kept("margin")], dtype=np.float64),
        trusted=kept("trusted"),
    )
    return usable, candidates


def _lines(files: list[Path], starts: list[int], weights: dict[int, float]) -> Iterator[bytes]:
    """Yield the rows at these positions, in the order of the files."""
    pq = arrow_parquet()
    for file, start, end in zip(files, starts, starts[1:], strict=False):
        inside = sorted(at for at in weights if start <= at < end)
        if inside:
            names = [name for name in COLUMNS if name in pq.read_schema(file).names]
            rows = pq.read_table(file, columns=names).take([at - start for at in inside]).to_pylist()
            for at, values in zip(inside, rows, strict=True):
                yield msgspec.json.encode(as_line(values) | {"weight": weights[at]}) + b"\n"
