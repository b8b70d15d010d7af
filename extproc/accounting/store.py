"""Stores outcomes in a SQLite file or in a Postgres database, with one schema. Every failure is an OSError.

The two differ only in how they connect and how they refer to the last inserted row. All other SQL, here and in
`queries` and `export`, works in both, with `?` for a value.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from extproc.accounting.inserts import Statement, explored_statement, outcome_statements
from extproc.accounting.outcome import Explored, Priced
from extproc.accounting.tables import (
    EXPLORATIONS_SINCE,
    MIGRATIONS,
    NO_EXPLORATIONS,
    SCHEMA,
    TABLES,
    comment_of,
    migrations,
)

# Timeout for another writer's lock, for a connection and for each statement. Batches queue during that time.
_LOCK_S = 2.0
_PRUNE_S = 3600.0
# How many outcomes one statement deletes, so that it takes less than the timeout. An hour of heavy traffic takes
# several statements.
_PRUNED_ROWS = 5000


class Connection(Protocol):
    """An open ledger, for one thread at a time. Every failure is an OSError, with a remedy if there is one."""

    last: str  # SQL for the id of the last inserted outcome

    def write(self, statements: Sequence[Statement]) -> None:
        """Execute all statements, or none of them."""

    def select(self, query: str, values: Sequence[Any] = ()) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of a query, without loading them all."""

    def has_column(self, name: str) -> bool:
        """Return whether `outcomes` has this column. A ledger of an older version may lack it."""

    def close(self) -> None:
        """Close the connection. Never fails."""


class Store:
    """Writes outcomes to a ledger that other processes may also write to. For one thread."""

    def __init__(self, place: Path | str, keep_days: float) -> None:
        """Check `place` without opening it. Raises OSError if it cannot hold a ledger."""
        if is_postgres(place):
            _psycopg()
        elif not Path(place).parent.is_dir():
            raise OSError(f"cannot write a ledger to {place}: create the folder {Path(place).parent}")
        self.place = place
        self._keep_s = keep_days * 86400
        self._connection: Connection | None = None
        self._pruned_at = 0.0

    def add(self, rows: Sequence[Priced]) -> None:
        """Store all of these rows, or none. Raises OSError, and the next call connects again."""
        last = self.open().last
        connection = self._write([statement for row in rows for statement in outcome_statements(*row, last)])
        if time.monotonic() - self._pruned_at > _PRUNE_S or not self._pruned_at:
            self._prune(connection)

    def add_explored(self, explored: Explored) -> None:
        """Store the answer of a second tier. Raises OSError, and the next call connects again."""
        self._write([explored_statement(explored)])

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
        oldest = "SELECT id FROM outcomes WHERE time < ? LIMIT ?"
        before = time.time() - self._keep_s
        try:
            count = sum(1 for _ in connection.select(oldest, (before, _PRUNED_ROWS)))
            if count:
                connection.write([(f"DELETE FROM outcomes WHERE id IN ({oldest})", (before, _PRUNED_ROWS))])
            connection.write([("DELETE FROM explorations WHERE time < ?", (before,))])
            if count < _PRUNED_ROWS:
                self._pruned_at = time.monotonic()
        except OSError:
            self._pruned_at = time.monotonic()
            self.close()

    def open(self) -> Connection:
        """Connect, and create the tables if there are none. Raises OSError."""
        if self._connection is None:
            self._connection = connect(self.place, writing=True)
        return self._connection

    def close(self) -> None:
        """Close the connection. The next `add` opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def is_postgres(place: Path | str) -> bool:
    """Return whether the place of a ledger is a Postgres URL. Otherwise it is the path of a file."""
    return str(place).startswith(("postgresql://", "postgres://"))


def name_of(place: Path | str) -> str:
    """Return the place without user and password, for output."""
    if not is_postgres(place):
        return str(place)
    url = urlsplit(str(place))
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def connect(place: Path | str, writing: bool = False) -> Connection:
    """Open a ledger for reading, or for writing, which creates it if there is none. Raises OSError."""
    return _Postgres(str(place), writing) if is_postgres(place) else _Sqlite(Path(place), writing)


@contextlib.contextmanager
def _as_os_error(kind: type[Exception]) -> Iterator[None]:
    """Raise errors of `kind` as OSError."""
    try:
        yield
    except kind as error:
        raise OSError(str(error).strip()) from error


class _Sqlite:
    """A file. Transactions exclude other writers, so the last inserted row has the highest id."""

    last = "(SELECT max(id) FROM outcomes)"

    def __init__(self, path: Path, writing: bool) -> None:
        if not writing and not path.is_file():
            raise OSError(f"no ledger at {path}: `extproc serve --ledger {path}` creates one")
        uri = f"{path.resolve().as_uri()}?mode={'rwc' if writing else 'ro'}"
        with _as_os_error(sqlite3.Error):
            # One thread opens it and another closes it, but never at the same time.
            self._connection = sqlite3.connect(uri, uri=True, timeout=_LOCK_S, check_same_thread=False)
        try:
            with _as_os_error(sqlite3.Error):
                self._begin(path, writing)
        except BaseException:
            self.close()
            raise

    def _begin(self, path: Path, writing: bool) -> None:
        self._connection.row_factory = sqlite3.Row
        try:
            (schema,) = self._connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
                raise
            raise OSError(
                f"{path} is not a ledger: give a file that `extproc serve --ledger` has written"
            ) from None
        if schema not in (0, *MIGRATIONS, SCHEMA):
            raise OSError(f"{path} has ledger version {schema}, but version {SCHEMA} is needed: move the file away")
        if not writing:
            if schema == 0:
                raise OSError(f"{path} is not a ledger: give a file that `extproc serve --ledger` has written")
            if schema < EXPLORATIONS_SINCE:
                self._connection.execute(NO_EXPLORATIONS)
            return
        if schema == 0:
            # Readers and writers do not wait for each other.
            self._connection.execute("PRAGMA journal_mode = WAL")
            with self._connection:
                self._connection.executescript(TABLES.format(identity="INTEGER", reference="INTEGER"))
                self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
        elif schema < SCHEMA:
            self._migrate()
        # A power failure may cost the last second, but never the file.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA foreign_keys = ON")

    def _migrate(self) -> None:
        """Bring the tables up to date. Several workers may try it at the same time."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            (schema,) = self._connection.execute("PRAGMA user_version").fetchone()
            for statement in migrations(schema):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def write(self, statements: Sequence[Statement]) -> None:
        with _as_os_error(sqlite3.Error), self._connection:
            for query, values in statements:
                self._connection.execute(query, values)

    def select(self, query: str, values: Sequence[Any] = ()) -> Iterator[Mapping[str, Any]]:
        with _as_os_error(sqlite3.Error):
            yield from self._connection.execute(query, values)

    def has_column(self, name: str) -> bool:
        return any(row["name"] == name for row in self.select("PRAGMA table_info(outcomes)"))

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()


class _Postgres:
    """Tables in the first schema of the connection's search path."""

    last = "currval(pg_get_serial_sequence('outcomes', 'id'))"

    def __init__(self, url: str, writing: bool) -> None:
        psycopg = _psycopg()
        self._error: type[Exception] = psycopg.Error
        with _as_os_error(self._error):
            # In milliseconds: the time after which the kernel gives up on a server that no longer answers.
            limits = {"connect_timeout": int(_LOCK_S), "tcp_user_timeout": int(_LOCK_S * 1000)}
            row = psycopg.rows.dict_row
            self._connection = psycopg.connect(url, autocommit=True, row_factory=row, **limits)
        try:
            with _as_os_error(self._error):
                self._begin(name_of(url), writing)
        except BaseException:
            self.close()
            raise

    def _begin(self, name: str, writing: bool) -> None:
        if writing:  # reports have no limit
            self._connection.execute(f"SET statement_timeout = {int(_LOCK_S * 1000)}")
        table = "to_regclass('outcomes')"
        query = f"SELECT {table} AS name, obj_description({table}, 'pg_class') AS comment"
        existing = self._connection.execute(query).fetchone()
        comment, known = comment_of(SCHEMA), {comment_of(version) for version in (*MIGRATIONS, SCHEMA)}
        if existing["name"] is not None and existing["comment"] not in known:
            raise OSError(
                f"{name} has a table `outcomes` with the comment {existing['comment']!r}, and the ledger needs one "
                f"with {comment!r}: use another schema for the ledger, with ?options=-csearch_path%3DNAME"
            )
        if existing["name"] is None:
            if not writing:
                raise OSError(f"no ledger in {name}: `extproc serve --ledger` creates one")
            with self._locked():
                identity = "BIGINT GENERATED ALWAYS AS IDENTITY"
                self._connection.execute(TABLES.format(identity=identity, reference="BIGINT"))
                self._connection.execute(f"COMMENT ON TABLE outcomes IS '{comment}'")
        elif writing and existing["comment"] != comment:
            with self._locked():
                current = self._connection.execute(query).fetchone()["comment"]
                for statement in migrations(next(v for v in (*MIGRATIONS, SCHEMA) if comment_of(v) == current)):
                    self._connection.execute(statement)
                self._connection.execute(f"COMMENT ON TABLE outcomes IS '{comment}'")
        elif existing["comment"] in {comment_of(version) for version in range(EXPLORATIONS_SINCE)}:
            self._connection.execute(NO_EXPLORATIONS)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """A transaction that only one router process has at a time."""
        with self._connection.transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(hashtext('extproc ledger'))")
            yield

    def write(self, statements: Sequence[Statement]) -> None:
        # In a pipeline, a batch waits for the network only once.
        with _as_os_error(self._error), self._connection.pipeline(), self._connection.transaction():
            for query, values in statements:
                self._connection.execute(query.replace("?", "%s"), values)

    def select(self, query: str, values: Sequence[Any] = ()) -> Iterator[Mapping[str, Any]]:
        with _as_os_error(self._error), self._connection.transaction(), self._connection.cursor("rows") as cursor:
            cursor.itersize = 10_000  # the result may be larger than memory
            yield from cursor.execute(query.replace("?", "%s"), values)

    def has_column(self, name: str) -> bool:
        query = "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('outcomes') AND attname = ?"
        return any(True for _ in self.select(query, (name,)))

    def close(self) -> None:
        with contextlib.suppress(self._error):
            self._connection.close()


def _psycopg() -> Any:
    """Return the driver, which only a ledger in Postgres needs."""
    try:
        import psycopg.rows
    except ImportError as error:
        raise OSError(
            "a ledger in Postgres needs the package psycopg: pip install 'envoy-semantic-router[postgres]'"
        ) from error
    return psycopg
