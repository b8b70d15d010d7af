"""Stores outcomes in a SQLite file or in a Postgres database. Every failure is an OSError.

All SQL here and in `queries`, `export` and `why` works in both, with `?` for a value.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from extproc.accounting import days, postgres
from extproc.accounting.connection import LOCK_S, Connection
from extproc.accounting.inserts import Statement, explored_statement, outcome_statements, signal_statement
from extproc.accounting.outcome import Explored, Priced
from extproc.accounting.signals import AnswerSignal
from extproc.accounting.sqlite import SqliteLedger

_MAGIC = b"SQLite format 3\0"
_PRUNE_S = 3600.0
# How many outcomes one statement deletes, so that it takes less than the timeout. An hour of heavy traffic takes
# several statements. The rows of the other tables have their own time.
_PRUNED_ROWS, _BESIDE = 5000, ("explorations", "signals")


def _may_be_ledger(path: Path) -> bool:
    """Whether the file is absent, empty or begins as a database does."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except FileNotFoundError:
        return True
    return start in (b"", _MAGIC)


class Store:
    """Writes outcomes to a ledger that other processes may also write to. For one thread."""

    def __init__(self, place: Path | str, keep_days: float) -> None:
        """Check `place` without opening it. Raises OSError if it cannot hold a ledger."""
        _check_scheme(place)
        if is_postgres(place):
            postgres.psycopg_driver()
        elif not Path(place).parent.is_dir():
            raise OSError(f"cannot write a ledger to {place}: create the folder {Path(place).parent}")
        elif Path(place).is_dir() or not _may_be_ledger(Path(place)):
            raise OSError(f"cannot write a ledger to {place}: it is something else, so give another name")
        self.place = place
        self.keep_days, self._keep_s = keep_days, keep_days * 86400
        self._connection: Connection | None = None
        self._pruned_at = 0.0

    def add(self, rows: Sequence[Priced]) -> None:
        """Store all of these rows, or none. Raises OSError, and the next call connects again."""
        last = self.open().last
        connection = self._write([statement for row in rows for statement in outcome_statements(*row, last)])
        if time.monotonic() - self._pruned_at > _PRUNE_S or not self._pruned_at:
            self._prune(connection)

    def add_explored(self, explored: Explored) -> None:
        """Store the answer of a second tier, as `add` does."""
        self._write([explored_statement(explored)])

    def add_signal(self, signal: AnswerSignal) -> None:
        """Store a signal, once for each request, kind and principal, as `add` does."""
        self._write([signal_statement(signal)])

    def _write(self, statements: list[Statement]) -> Connection:
        connection = self.open()
        try:
            connection.write(statements)
        except OSError:
            self.close()
            raise
        return connection

    def _prune(self, connection: Connection) -> None:
        """Delete some of the oldest rows. The next batches delete the rest. A failure costs no outcome."""
        before = time.time() - self._keep_s
        try:
            count = max([self._prune_table(connection, *tables, before) for tables in connection.pruned.items()])
            connection.write([(f"DELETE FROM {table} WHERE time < ?", (before,)) for table in _BESIDE])
            if count < _PRUNED_ROWS:
                self._pruned_at = time.monotonic()
        except OSError:
            self._pruned_at = time.monotonic()
            self.close()

    def _prune_table(self, connection: Connection, table: str, rejections: str, before: float) -> int:
        """Delete some of the oldest rows of a table, with their rejected answers, and return their number."""
        oldest, values = f"SELECT id FROM {table} WHERE time < ? ORDER BY time, id LIMIT ?", (before, _PRUNED_ROWS)
        count = len(connection.fetch(oldest, values))
        if count:
            connection.write([
                (f"DELETE FROM {rejections} WHERE outcome IN ({oldest})", values),
                (f"DELETE FROM {table} WHERE id IN ({oldest})", values),
            ])  # fmt: skip
        return count

    def open(self) -> Connection:
        """Connect, and create the tables if there are none. Raises OSError."""
        if self._connection is None:
            self._connection = connection = connect(self.place, writing=True)
            if isinstance(connection, postgres.PostgresLedger) and days.is_partitioned(connection):
                days.add_days(connection, time.time())
        return self._connection

    def close(self) -> None:
        """Close the connection. The next `add` opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def is_postgres(place: Path | str) -> bool:
    """Return whether the place of a ledger is a Postgres URL. Otherwise it is the path of a file."""
    return str(place).startswith(("postgresql://", "postgres://"))


def _check_scheme(place: Path | str) -> None:
    scheme, is_url, _ = str(place).partition("://")
    if is_url and not is_postgres(place):
        raise OSError(
            f"a ledger is a file or a Postgres database, not {scheme}: write a path, or postgresql://HOST/DATABASE"
        )


def name_of(place: Path | str) -> str:
    """Return the place without user and password, for output."""
    if not is_postgres(place):
        return str(place)
    url = urlsplit(str(place))
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def connect(place: Path | str, writing: bool = False) -> Connection:
    """Open a ledger for reading, or for writing, which creates it if there is none. Raises OSError."""
    _check_scheme(place)
    if not is_postgres(place):
        return SqliteLedger(Path(place), writing)
    limit_s = LOCK_S if writing else None  # reports have no limit
    return postgres.PostgresLedger(str(place), name_of(place), writing, limit_s)
