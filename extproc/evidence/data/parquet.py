"""Traffic in Parquet files: the columns are the keys of a row (docs/reference/traffic.md).

Values that are not plain (`request`, `headers`, `outcomes`, `intent` and `variants`) are JSON in a text. Other
columns are kept and not read.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from extproc.evidence.data.traffic import BadRow, Row, parse_row

# Columns with JSON in a text, and columns with the value itself.
_JSON_COLUMNS = ("request", "headers", "outcomes", "intent", "variants")
_PLAIN_COLUMNS = ("text", "path", "id", "session", "user", "weight")
COLUMNS = (*_JSON_COLUMNS, *_PLAIN_COLUMNS)


def arrow_parquet() -> Any:
    """Return the package that reads and writes Parquet. Raises ValueError without it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"{error}: Parquet files need more packages: pip install 'envoy-semantic-router[scale]'"
        ) from error
    return pyarrow.parquet


def parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files in a folder, by name. Raises OSError if there are none."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise OSError(f"{folder}: expected files whose names end in .parquet, found none")
    return files


def check_columns(files: Iterable[Path]) -> None:
    """Raise ValueError if a file is not Parquet, or has no column with what a person or a client wrote."""
    parquet = arrow_parquet()
    for file in files:
        try:
            names = parquet.read_schema(file).names
        except ValueError as error:  # pyarrow's own error is one
            raise ValueError(f"{file}: is not a valid Parquet file: {error}") from error
        if not {"text", "request"} & {*names}:
            raise ValueError(
                f"{file}: found the columns {', '.join(names) or 'none'}: expected `text` or `request` "
                "(see docs/reference/traffic.md)"
            )


def as_line(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of traffic from the values of its columns. JSON stays undecoded."""
    row = {name: values[name] for name in _PLAIN_COLUMNS if values.get(name) is not None}
    return row | {
        name: msgspec.Raw(values[name].encode()) for name in _JSON_COLUMNS if values.get(name) is not None
    }


def parse_rows(batch: Any, first: int) -> Iterator[Row | BadRow]:
    """Read the rows of a record batch. `first` is the number of its first row, from 1."""
    names = [name for name in COLUMNS if name in batch.schema.names]
    for number, values in enumerate(batch.select(names).to_pylist(), start=first):
        try:
            yield parse_row(number, msgspec.json.encode(as_line(values)))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            yield BadRow(number, str(error))
