"""A ledger in a SQLite file."""

import contextlib
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from extproc.accounting import rollups
from extproc.accounting.connection import LOCK_S, Row, as_os_error
from extproc.accounting.inserts import Statement
from extproc.accounting.tables import (
    MIGRATIONS,
    SCHEMA,
    SQLITE_INDEXES,
    SQLITE_KEYS,
    TABLES,
    migrations,
    stand_ins,
)

# Pages that a report keeps in memory, in KiB.
_CACHE_KIB = 65536


class SqliteLedger:
    """A file. Transactions exclude other writers, so the last inserted row has the highest id."""

    last = "(SELECT max(id) FROM outcomes)"
    lateral = ""
    chunk = 2000  # no writer waits long
    pruned: Mapping[str, str] = {"outcomes": "rejections"}

    def __init__(self, path: Path, writing: bool) -> None:
        if path.is_dir():
            raise OSError(f"the ledger {path} is a folder, and a file is expected: add the name of the file")
        if not writing and not path.is_file():
            raise OSError(f"no ledger at {path}: `extproc serve --ledger {path}` creates one")
        uri = f"{path.resolve().as_uri()}?mode={'rwc' if writing else 'ro'}"
        with as_os_error(sqlite3.Error):
            # One thread opens it and another closes it, but never at the same time.
            self._connection = sqlite3.connect(uri, uri=True, timeout=LOCK_S, check_same_thread=False)
        try:
            with as_os_error(sqlite3.Error):
                self._begin(path, writing)
        except BaseException:
            self.close()
            raise

    def _begin(self, path: Path, writing: bool) -> None:
        self._connection.row_factory = sqlite3.Row
        # Not every build of SQLite has these.
        for name, count, function in (("floor", 1, math.floor), ("ln", 1, math.log), ("greatest", 2, max)):
            self._connection.create_function(name, count, function, deterministic=True)
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
        self._current, self._is_open = writing or schema == SCHEMA, False
        if not writing:
            if schema == 0:
                raise OSError(f"{path} is not a ledger: give a file that `extproc serve --ledger` has written")
            self._connection.executescript(";".join(stand_ins(schema)))
            self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            return
        if schema == 0:
            # Readers and writers do not wait for each other.
            self._connection.execute("PRAGMA journal_mode = WAL")
            with self._connection:
                self._connection.executescript(TABLES.format(**SQLITE_KEYS) + SQLITE_INDEXES + rollups.TABLES)
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
            # A ledger that began before version 3 has no index for `extproc why`.
            new = (SQLITE_INDEXES + rollups.TABLES).split(";")
            for statement in (*migrations(schema), *filter(str.strip, new)):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def write(self, statements: Sequence[Statement]) -> None:
        with as_os_error(sqlite3.Error), self._connection:
            for query, values in statements:
                self._connection.execute(query, values)

    def select(self, query: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        with as_os_error(sqlite3.Error):
            yield from self._connection.execute(query, values)

    def fetch(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        return list(self.select(query, values))

    def has_column(self, name: str) -> bool:
        return any(row["name"] == name for row in self.select("PRAGMA table_info(outcomes)"))

    def finds_requests(self) -> bool:
        query = (
            "SELECT 1 FROM pragma_index_list('outcomes') AS l, pragma_index_info(l.name) AS i "
            "WHERE i.seqno = 0 AND i.name = 'request'"
        )
        return bool(self.fetch(query))

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        with as_os_error(sqlite3.Error):
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.rollback()

    def settled_id(self) -> int:
        """Writers exclude each other, so every id up to the last one is there."""
        [row] = self.fetch("SELECT coalesce(max(id), 0) AS last FROM outcomes")
        last: int = row["last"]
        return last

    def rolled_id(self) -> int | None:
        if not self._current:
            return None
        [state] = self.fetch("SELECT rolled FROM rollup_state")
        rolled: int = state["rolled"]
        return rolled

    def run(self, *statements: str) -> None:
        with as_os_error(sqlite3.Error):
            for statement in statements:
                self._connection.execute(statement)
            if not self._is_open:
                self._connection.commit()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        with as_os_error(sqlite3.Error), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._is_open = True
            try:
                yield
            finally:
                self._is_open = False

    def cancel(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.interrupt()

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
