"""Where outcomes are kept: a SQLite file, or tables of a Postgres. One schema, and whatever fails is an OSError.

What differs between the two is how they connect and what they call the row that was inserted last. SQL here and in
`report` and `export` is what both understand, with `?` where a value goes.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from extproc.accounting.outcome import Cost, Outcome, Priced
from extproc.api.observation import Usage

# How long to wait for another writer, for a connection, and for each statement; batches queue meanwhile.
_LOCK_S = 2.0
_PRUNE_S = 3600.0
# Outcomes that one statement forgets: an hour of much traffic takes several batches, and none of them longer than a
# store is waited for.
_FORGOTTEN = 5000
_SCHEMA = 2
_TABLES = """
CREATE TABLE IF NOT EXISTS outcomes (
  id {identity} PRIMARY KEY, time DOUBLE PRECISION NOT NULL, api TEXT NOT NULL, ending TEXT NOT NULL,
  status INTEGER NOT NULL, attempts INTEGER NOT NULL, failed_attempts INTEGER NOT NULL, reason TEXT NOT NULL,
  judged INTEGER NOT NULL, cohort TEXT, tier TEXT, principal TEXT, session TEXT, revision TEXT, mode TEXT,
  duration_s DOUBLE PRECISION, first_byte_s DOUBLE PRECISION, input INTEGER, output INTEGER, cached INTEGER,
  usage_from TEXT, cost DOUBLE PRECISION, default_cost DOUBLE PRECISION, request TEXT
);
CREATE INDEX IF NOT EXISTS outcomes_time ON outcomes (time);
CREATE TABLE IF NOT EXISTS rejections (
  outcome {reference} NOT NULL REFERENCES outcomes (id) ON DELETE CASCADE, attempt INTEGER NOT NULL, tier TEXT,
  reason TEXT NOT NULL, input INTEGER, output INTEGER, cached INTEGER, cost DOUBLE PRECISION
);
CREATE INDEX IF NOT EXISTS rejections_outcome ON rejections (outcome);
"""
_COLUMNS = (
    "time", "api", "ending", "status", "attempts", "failed_attempts", "reason", "judged", "cohort", "tier",
    "principal", "session", "revision", "mode", "duration_s", "first_byte_s", "input", "output", "cached",
    "usage_from", "cost", "default_cost", "request",
)  # fmt: skip

Statement = tuple[str, Sequence[Any]]


class Connection(Protocol):
    """An open ledger, used by one thread at a time. Everything raises OSError, with a remedy where there is one."""

    last: str  # SQL for the id of the outcome that was inserted last

    def write(self, statements: Sequence[Statement]) -> None:
        """Do all of these, or none."""

    def select(self, query: str, values: Sequence[Any] = ()) -> Iterator[Mapping[str, Any]]:
        """Yield rows as they come."""

    def close(self) -> None:
        """Never fails."""


class Store:
    """Keeps outcomes, in what several processes may write; used by one thread."""

    def __init__(self, place: Path | str, keep_days: float) -> None:
        """Nothing is opened yet. Raises OSError where no ledger can ever be kept at `place`."""
        if is_postgres(place):
            _psycopg()
        elif not Path(place).parent.is_dir():
            raise OSError(f"no folder {Path(place).parent} to keep the ledger in: create it")
        self._place = place
        self._keep_s = keep_days * 86400
        self._connection: Connection | None = None
        self._pruned_at = 0.0

    def add(self, rows: Sequence[Priced]) -> None:
        """Keep these, all or none. Raises OSError; the next call starts afresh."""
        connection = self.open()
        try:
            connection.write([statement for row in rows for statement in _inserts(*row, connection.last)])
        except OSError:
            self.close()
            raise
        if time.monotonic() - self._pruned_at > _PRUNE_S or not self._pruned_at:
            self._prune(connection)

    def _prune(self, connection: Connection) -> None:
        """Forget some of what is too old, with the next batches the rest of it; failing costs no outcome."""
        old = "SELECT id FROM outcomes WHERE time < ? LIMIT ?"
        before = time.time() - self._keep_s
        try:
            count = sum(1 for _ in connection.select(old, (before, _FORGOTTEN)))
            if count:
                connection.write([(f"DELETE FROM outcomes WHERE id IN ({old})", (before, _FORGOTTEN))])
            if count < _FORGOTTEN:
                self._pruned_at = time.monotonic()
        except OSError:
            self._pruned_at = time.monotonic()
            self.close()

    def open(self) -> Connection:
        """Make the tables, before there is anything to lose. Raises as `add` does."""
        if self._connection is None:
            self._connection = connect(self._place, writing=True)
        return self._connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _inserts(outcome: Outcome, cost: Cost, last: str) -> Iterator[Statement]:
    row = (
        outcome.time, outcome.api, outcome.ending, outcome.status, outcome.attempts, outcome.failed_attempts,
        outcome.reason, int(outcome.judged), outcome.cohort, outcome.tier, outcome.principal, outcome.session,
        outcome.revision, outcome.mode, outcome.duration_s, outcome.first_byte_s,
        *_counts(outcome.usage), outcome.usage_from, cost.last, cost.default, outcome.request,
    )  # fmt: skip
    yield f"INSERT INTO outcomes ({', '.join(_COLUMNS)}) VALUES (?{', ?' * (len(row) - 1)})", row
    for found, price in zip(outcome.rejections, cost.rejected, strict=True):
        told = (found.attempt, found.tier, found.reason, *_counts(found.usage), price)
        yield f"INSERT INTO rejections VALUES ({last}, ?, ?, ?, ?, ?, ?, ?)", told


def _counts(usage: Usage | None) -> tuple[int | None, int | None, int | None]:
    return (None, None, None) if usage is None else (usage.input, usage.output, usage.cached)


def is_postgres(place: Path | str) -> bool:
    """Whether a ledger's place is a URL of Postgres; else it is a file's path."""
    return str(place).startswith(("postgresql://", "postgres://"))


def name_of(place: Path | str) -> str:
    """The place without a password or a user, to print."""
    if not is_postgres(place):
        return str(place)
    found = urlsplit(str(place))
    return f"{found.scheme}://{found.netloc.rpartition('@')[2]}{found.path}"


def connect(place: Path | str, writing: bool = False) -> Connection:
    """Open a ledger: to read what is there, or to write, and make it where there is none yet. Raises OSError."""
    return _Postgres(str(place), writing) if is_postgres(place) else _Sqlite(Path(place), writing)


@contextlib.contextmanager
def _told(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind as error:
        raise OSError(str(error).strip()) from error


class _Sqlite:
    """A file. Nobody else writes within a transaction, so the last row is the highest."""

    last = "(SELECT max(id) FROM outcomes)"

    def __init__(self, path: Path, writing: bool) -> None:
        if not writing and not path.is_file():
            raise OSError(f"there is no ledger {path}: `extproc serve --ledger {path}` keeps one")
        uri = f"{path.resolve().as_uri()}?mode={'rwc' if writing else 'ro'}"
        with _told(sqlite3.Error):
            # Opened in one thread and closed in another, one after the other.
            self._connection = sqlite3.connect(uri, uri=True, timeout=_LOCK_S, check_same_thread=False)
        try:
            with _told(sqlite3.Error):
                self._begin(path, writing)
        except BaseException:
            self.close()
            raise

    def _begin(self, path: Path, writing: bool) -> None:
        self._connection.row_factory = sqlite3.Row
        (schema,) = self._connection.execute("PRAGMA user_version").fetchone()
        if schema not in (0, _SCHEMA):
            raise OSError(f"{path} is of another version of the ledger ({schema}): move it away")
        if not writing:
            if schema == 0:
                raise OSError(f"{path} is no ledger")
            return
        if schema == 0:
            # Readers and writers do not wait for each other.
            self._connection.execute("PRAGMA journal_mode = WAL")
            with self._connection:
                self._connection.executescript(_TABLES.format(identity="INTEGER", reference="INTEGER"))
                self._connection.execute(f"PRAGMA user_version = {_SCHEMA}")
        self._connection.execute(
            "PRAGMA synchronous = NORMAL"
        )  # a power cut may cost the last second, never the file
        self._connection.execute("PRAGMA foreign_keys = ON")

    def write(self, statements: Sequence[Statement]) -> None:
        with _told(sqlite3.Error), self._connection:
            for query, values in statements:
                self._connection.execute(query, values)

    def select(self, query: str, values: Sequence[Any] = ()) -> Iterator[Mapping[str, Any]]:
        with _told(sqlite3.Error):
            yield from self._connection.execute(query, values)

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()


class _Postgres:
    """Tables in the first schema of the connection's search path."""

    last = "currval(pg_get_serial_sequence('outcomes', 'id'))"

    def __init__(self, url: str, writing: bool) -> None:
        psycopg = _psycopg()
        self._error: type[Exception] = psycopg.Error
        with _told(self._error):
            # A server that is gone without a word is given up on by the kernel: milliseconds.
            limits = {"connect_timeout": int(_LOCK_S), "tcp_user_timeout": int(_LOCK_S * 1000)}
            row = psycopg.rows.dict_row
            self._connection = psycopg.connect(url, autocommit=True, row_factory=row, **limits)
        try:
            with _told(self._error):
                self._begin(name_of(url), writing)
        except BaseException:
            self.close()
            raise

    def _begin(self, name: str, writing: bool) -> None:
        if writing:  # reports may take their time
            self._connection.execute(f"SET statement_timeout = {int(_LOCK_S * 1000)}")
        there = "to_regclass('outcomes')"
        query = f"SELECT {there} AS there, obj_description({there}, 'pg_class') AS schema"
        found = self._connection.execute(query).fetchone()
        ours = f"extproc ledger {_SCHEMA}"
        if found["there"] is not None and found["schema"] != ours:
            raise OSError(
                f"{name} has a table `outcomes` that is no ledger, or of another version ({found['schema']}): "
                "give the ledger a schema of its own, by ?options=-csearch_path%3DNAME"
            )
        if found["there"] is None:
            if not writing:
                raise OSError(f"there is no ledger in {name}: `extproc serve --ledger` keeps one")
            with self._connection.transaction():
                self._connection.execute("SELECT pg_advisory_xact_lock(hashtext('extproc ledger'))")
                identity = "BIGINT GENERATED ALWAYS AS IDENTITY"
                self._connection.execute(_TABLES.format(identity=identity, reference="BIGINT"))
                self._connection.execute(f"COMMENT ON TABLE outcomes IS '{ours}'")

    def write(self, statements: Sequence[Statement]) -> None:
        # Sent all at once: a batch waits for the network once, not once a row.
        with _told(self._error), self._connection.pipeline(), self._connection.transaction():
            for query, values in statements:
                self._connection.execute(query.replace("?", "%s"), values)

    def select(self, query: str, values: Sequence[Any] = ()) -> Iterator[Mapping[str, Any]]:
        with _told(self._error), self._connection.transaction(), self._connection.cursor("rows") as cursor:
            cursor.itersize = 10_000  # of a result that may be larger than memory
            yield from cursor.execute(query.replace("?", "%s"), values)

    def close(self) -> None:
        with contextlib.suppress(self._error):
            self._connection.close()


def _psycopg() -> Any:
    """The driver, which only a ledger in Postgres needs."""
    try:
        import psycopg.rows
    except ImportError as error:
        raise OSError(
            "a ledger in Postgres needs its driver: pip install 'envoy-semantic-router[postgres]'"
        ) from error
    return psycopg
