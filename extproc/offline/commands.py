"""The bodies of the commands: read, run, print. Exit codes: 0; 1, a regression; 2, the user's input is at fault."""

import sys
from collections.abc import Sequence
from pathlib import Path

from extproc.offline.convert import convert
from extproc.offline.traffic import BadRow

# Of the rows that cannot be used, so many are told one by one.
_TOLD = 10


def run_convert(kind: str, path: Path, where: dict[str, str]) -> int:
    """`extproc convert`: rows to stdout, what could not be converted to stderr."""
    count, bad = 0, []
    for row in convert(kind, path, where):
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            count += 1
            sys.stdout.buffer.write(row + b"\n")
    tell_bad_rows(path, bad)
    print(f"{path}: {count} rows converted, {len(bad)} skipped", file=sys.stderr)
    return 0


def tell_bad_rows(path: Path, bad: Sequence[BadRow]) -> None:
    """Say on stderr which lines are skipped, and why."""
    for row in bad[:_TOLD]:
        print(f"{path}:{row.line}: skipped: {row.what}", file=sys.stderr)
    if len(bad) > _TOLD:
        print(f"{path}: and {len(bad) - _TOLD} more lines skipped", file=sys.stderr)
