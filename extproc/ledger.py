"""The ledger: outcomes from Envoy's access log, counted and kept, off the path of every request.

Batches come by gRPC when their exchanges are over. The event loop does no more than put their bytes on a queue of
bounded length; one thread reads, prices, counts and stores them. Where the store is full, locked or gone, batches
are dropped and counted, and traffic never learns of it.
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from extproc.outcome import Cost, Outcome
from extproc.response import Usage

log = logging.getLogger(__name__)

# Batches of at most a second or 1 MiB each (see extproc/envoy/listener.py): what a store may lag behind.
_WAITING = 64
# How long to wait for another process to be done writing; batches queue meanwhile.
_LOCK_S = 2.0
_PRUNE_S = 3600.0
# Envoy sends what it has every second.
_LAST_BATCH_S = 1.5
_SCHEMA = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS outcomes (
  id INTEGER PRIMARY KEY, time REAL NOT NULL, api TEXT NOT NULL, ending TEXT NOT NULL, status INTEGER NOT NULL,
  attempts INTEGER NOT NULL, failed_attempts INTEGER NOT NULL, reason TEXT NOT NULL, judged INTEGER NOT NULL,
  cohort TEXT, tier TEXT, principal TEXT, session TEXT, revision TEXT, mode TEXT,
  duration_s REAL, first_byte_s REAL,
  input INTEGER, output INTEGER, cached INTEGER, usage_from TEXT, cost REAL, default_cost REAL
);
CREATE INDEX IF NOT EXISTS outcomes_time ON outcomes (time);
CREATE TABLE IF NOT EXISTS rejections (
  outcome INTEGER NOT NULL REFERENCES outcomes (id) ON DELETE CASCADE, attempt INTEGER NOT NULL, tier TEXT,
  reason TEXT NOT NULL, input INTEGER, output INTEGER, cached INTEGER, cost REAL
);
CREATE INDEX IF NOT EXISTS rejections_outcome ON rejections (outcome);
"""

Priced = tuple[Outcome, Cost]


class Store:
    """Outcomes in one SQLite file, which several processes may write; used by one thread."""

    def __init__(self, path: Path, keep_days: float) -> None:
        """Nothing is opened yet. Raises OSError when there is no folder to put the file in."""
        if not path.parent.is_dir():
            raise OSError(f"no folder {path.parent} to keep the ledger in: create it")
        self._path = path
        self._keep_s = keep_days * 86400
        self._connection: sqlite3.Connection | None = None
        self._pruned_at = 0.0

    def add(self, rows: Sequence[Priced]) -> None:
        """Keep these, all or none. Raises sqlite3.Error or OSError; the next call starts afresh."""
        try:
            with self._opened() as connection:
                for outcome, cost in rows:
                    _insert(connection, outcome, cost)
                if time.monotonic() - self._pruned_at > _PRUNE_S or not self._pruned_at:
                    connection.execute("DELETE FROM outcomes WHERE time < ?", (time.time() - self._keep_s,))
                    self._pruned_at = time.monotonic()
        except (sqlite3.Error, OSError):
            self.close()
            raise

    def open(self) -> None:
        """Make the file, before there is anything to lose. Raises as `add` does."""
        self._opened()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_ledger(self._path)
        return self._connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def open_ledger(path: Path) -> sqlite3.Connection:
    """Open the file to write, and make it where it is none yet. Raises sqlite3.Error, or OSError with a remedy."""
    # Opened in one thread and closed in another, one after the other.
    connection = sqlite3.connect(path, timeout=_LOCK_S, check_same_thread=False)
    try:
        if _schema(connection, path) == 0:
            # Readers and writers do not wait for each other.
            connection.execute("PRAGMA journal_mode = WAL")
            with connection:
                connection.executescript(_TABLES)
                connection.execute(f"PRAGMA user_version = {_SCHEMA}")
        connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last second, never the file
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def read_ledger(path: Path) -> sqlite3.Connection:
    """Open the file to read. Raises sqlite3.Error, or OSError with a remedy."""
    if not path.is_file():
        raise OSError(f"there is no ledger {path}: `extproc serve --ledger {path}` keeps one")
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_LOCK_S)
    connection.row_factory = sqlite3.Row
    if _schema(connection, path) == 0:
        raise OSError(f"{path} is no ledger")
    return connection


def _schema(connection: sqlite3.Connection, path: Path) -> int:
    """The version of the tables in an open file; 0: there are none."""
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if schema not in (0, _SCHEMA):
        raise OSError(f"{path} is of another version of the ledger ({schema}): move it away")
    return int(schema)


def _insert(connection: sqlite3.Connection, outcome: Outcome, cost: Cost) -> None:
    row = (
        outcome.time, outcome.api, outcome.ending, outcome.status, outcome.attempts, outcome.failed_attempts,
        outcome.reason, outcome.judged, outcome.cohort, outcome.tier, outcome.principal, outcome.session,
        outcome.revision, outcome.mode, outcome.duration_s, outcome.first_byte_s,
        *_counts(outcome.usage), outcome.usage_from, cost.last, cost.default,
    )  # fmt: skip
    inserted = connection.execute(f"INSERT INTO outcomes VALUES (NULL{', ?' * len(row)})", row)
    connection.executemany(
        "INSERT INTO rejections VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                inserted.lastrowid,
                rejection.attempt,
                rejection.tier,
                rejection.reason,
                *_counts(rejection.usage),
                price,
            )
            for rejection, price in zip(outcome.rejections, cost.rejected, strict=True)
        ],
    )


def _counts(usage: Usage | None) -> tuple[int | None, int | None, int | None]:
    return (None, None, None) if usage is None else (usage.input, usage.output, usage.cached)


class Ledger:
    """Takes batches, never waits, and hands what is in them to the metrics and the store."""

    def __init__(
        self,
        read: Callable[[bytes], list[Outcome]],
        price: Callable[[Outcome], Cost],
        tell: Callable[[Outcome, Cost], None],
        lost: Callable[[int], None],
        store: Store | None = None,
    ) -> None:
        """`tell` is called for every outcome, `lost` with how many could not be kept; both in our thread."""
        self._read, self._price, self._tell, self._lost, self._store = read, price, tell, lost, store
        self._batches: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def offer(self, batch: bytes) -> None:
        """Take a batch as it came, or drop it if too many wait already."""
        try:
            self._batches.put_nowait(batch)
        except queue.Full:
            self._drop(len(self._read(batch)), "the store is too slow")

    def close(self) -> None:
        """Keep what waits, for as long as that is quick."""
        with contextlib.suppress(queue.Full):
            self._batches.put(None, timeout=_LOCK_S)
        self._thread.join(2 * _LOCK_S)

    def _run(self) -> None:
        if self._store is not None:
            # Several processes may make the file at once: whoever comes too late opens it with its first batch.
            with contextlib.suppress(sqlite3.Error, OSError):
                self._store.open()
        while (batch := self._batches.get()) is not None:
            try:
                rows = [(outcome, self._price(outcome)) for outcome in self._read(batch)]
            except ValueError:
                log.exception("a batch of the access log could not be read")
                continue
            for outcome, cost in rows:
                self._tell(outcome, cost)
            if self._store is not None and rows:
                self._keep(self._store, rows)
        if self._store is not None:
            self._store.close()

    def _keep(self, store: Store, rows: list[Priced]) -> None:
        try:
            store.add(rows)
        except (sqlite3.Error, OSError) as error:
            self._drop(len(rows), str(error))
            return
        if self._complained:
            self._complained = False
            log.warning("the ledger keeps outcomes again")

    def _drop(self, count: int, why: str) -> None:
        """Count what is lost, and say so once until it is mended."""
        self._lost(count)
        if not self._complained:
            self._complained = True
            log.error("outcomes are lost to the ledger, traffic is not: %s", why)


class LogStreams:
    """The access log service: every Envoy worker keeps one stream open and sends its batches on it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._open = 0
        self._over = asyncio.Event()

    async def take(self, batches: AsyncIterator[bytes], _context: Any) -> bytes:
        """Take what comes until the stream ends or `drain` has; Envoy never waits for the (empty) answer."""
        self._open += 1
        taking = asyncio.create_task(self._take_all(batches))
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait((taking, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open -= 1
            taking.cancel()
            over.cancel()
        return b""

    async def _take_all(self, batches: AsyncIterator[bytes]) -> None:
        async for batch in batches:
            self._ledger.offer(batch)

    @property
    def connected(self) -> bool:
        """Whether an Envoy is there."""
        return self._open > 0

    async def drain(self) -> None:
        """Let the last batch of an Envoy that is still there come, and end: such a stream never does by itself."""
        if self.connected:
            await asyncio.sleep(_LAST_BATCH_S)
        self._over.set()
