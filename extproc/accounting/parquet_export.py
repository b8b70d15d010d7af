"""`extproc export --parquet`: the lines of the export as Parquet files, one folder for each day (UTC).

DuckDB, Spark and ClickHouse read such folders as one table with a column `day`.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from extproc.accounting.days import DAY_S
from extproc.accounting.export import exported_lines
from extproc.accounting.store import connect

# Rows that are in memory at the same time, and that a reader skips together.
_GROUP = 50_000


def export_days(place: Path | str, since_s: float, folder: Path, share: float = 1.0) -> Iterator[tuple[Path, int]]:
    """Write whole days, from the day of `since_s` ago until now. Yield each file with its number of rows.

    The file of a day replaces an earlier one when it is whole. Raises OSError with a remedy.
    """
    pq = _parquet()
    now = time.time()
    with contextlib.closing(connect(place)) as ledger:
        for day in range(int((now - since_s) // DAY_S), int(now // DAY_S) + 1):
            lines = exported_lines(ledger, float(day * DAY_S), float((day + 1) * DAY_S), share)
            name = time.strftime("day=%Y-%m-%d", time.gmtime(day * DAY_S))
            file = folder / name / "outcomes.parquet"
            if count := _write(pq, file, lines):
                yield file, count


def _write(pq: Any, file: Path, lines: Iterable[Mapping[str, Any]]) -> int:
    """Write a file, unless there are no lines, and return their number."""
    import pyarrow as pa

    part, count, writer = file.with_name(f".{file.name}.part"), 0, None
    waiting = iter(lines)
    try:
        while group := list(itertools.islice(waiting, _GROUP)):
            if writer is None:
                file.parent.mkdir(parents=True, exist_ok=True)
                schema = _schema(group[0])
                writer = pq.ParquetWriter(part, schema, compression="zstd")
            writer.write_table(pa.Table.from_pylist([_values(line) for line in group], schema))
            count += len(group)
    finally:
        if writer is not None:
            writer.close()
    if count:
        os.replace(part, file)
    return count


def _values(line: Mapping[str, Any]) -> dict[str, Any]:
    chances = line["chances"]
    return {**line, "time": int(line["time"] * 1e6), "chances": list(chances.items()) if chances else None}


def _schema(line: Mapping[str, Any]) -> Any:
    """Return the types of the columns. Columns that are not listed here are texts."""
    import pyarrow as pa

    tokens = pa.struct({name: pa.int64() for name in ("input", "output", "cached")})
    answer = {"tier": pa.string(), "accepted": pa.bool_(), "reason": pa.string(), "cost": pa.float64()}
    second = {"propensity": pa.float64(), "status": pa.int32(), "duration_s": pa.float64(), "tokens": tokens}
    types = {
        "v": pa.int32(),
        "time": pa.timestamp("us", tz="UTC"),
        "status": pa.int32(),
        "duration_s": pa.float64(),
        "first_byte_s": pa.float64(),
        "chances": pa.map_(pa.string(), pa.float64()),
        "explored": pa.struct({**answer, **second}),
        "feedback": pa.struct({"score": pa.float64(), "label": pa.string()}),
        "signals": pa.list_(pa.string()),
        "answers": pa.list_(pa.struct({**answer, "tokens": tokens})),
    }
    return pa.schema({name: types.get(name, pa.string()) for name in line})


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise OSError(
            f"{error}: Parquet files need one more package: pip install 'envoy-semantic-router[parquet]'"
        ) from error
    return pyarrow.parquet
