"""A ledger in a Postgres database."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from extproc.accounting import rollups
from extproc.accounting.connection import LOCK_S, Row, as_os_error
from extproc.accounting.inserts import Statement
from extproc.accounting.tables import (
    MIGRATIONS,
    POSTGRES_KEYS,
    SCHEMA,
    TABLES,
    comment_of,
    migrations,
    stand_ins,
)
from extproc.contract.names import CANDIDATE_PREFIX

# How long a question for a settled id may stand in the way of writers.
_SETTLE_MS = 200
# After this time the server ends a transaction whose router has vanished.
_IDLE_MS = 10_000
# The sequence of an identity column in older ledgers, and `outcomes_id` in others.
_SEQUENCE = "pg_get_serial_sequence('outcomes', 'id')"
# An index of the rows of candidates, which are few or none.
CANDIDATES = f"(revision, id) WHERE revision LIKE '{CANDIDATE_PREFIX}%'"
CREATE = f"""
CREATE SEQUENCE outcomes_id;
{TABLES.format(**POSTGRES_KEYS)}
ALTER SEQUENCE outcomes_id OWNED BY outcomes.id;
CREATE TABLE outcomes_other PARTITION OF outcomes DEFAULT;
CREATE INDEX ON outcomes_other (id);
CREATE INDEX ON outcomes_other (time);
CREATE INDEX ON outcomes_other USING hash (request);
CREATE INDEX ON outcomes_other {CANDIDATES};
COMMENT ON TABLE outcomes IS '{comment_of(SCHEMA)}';
"""
_REJECTIONS_OTHER = """
CREATE TABLE rejections_other PARTITION OF rejections DEFAULT;
CREATE INDEX ON rejections_other (outcome);
"""


class PostgresLedger:
    """Tables in the first schema of the connection's search path."""

    last = f"currval({_SEQUENCE})"
    lateral = "LATERAL"
    chunk = 200_000

    def __init__(self, url: str, name: str, writing: bool, limit_s: float | None = None) -> None:
        """`name` is the place for messages. `limit_s` is the timeout of a statement. None: there is none."""
        psycopg = psycopg_driver()
        self._errors = psycopg.errors
        self._error: type[Exception] = psycopg.Error
        with as_os_error(self._error):
            # In milliseconds: the time after which the kernel gives up on a server that no longer answers.
            limits = {"connect_timeout": int(LOCK_S), "tcp_user_timeout": int(LOCK_S * 1000)}
            row = psycopg.rows.dict_row
            self._connection = psycopg.connect(url, autocommit=True, row_factory=row, **limits)
        try:
            with as_os_error(self._error):
                self._begin(name, writing, limit_s)
        except BaseException:
            self.close()
            raise

    def _begin(self, name: str, writing: bool, limit_s: float | None) -> None:
        self._connection.execute("SET jit = off")  # to compile a query takes longer than most queries
        if limit_s is not None:
            self._connection.execute(f"SET statement_timeout = {int(limit_s * 1000)}")
        if writing:
            self._connection.execute(f"SET idle_in_transaction_session_timeout = {_IDLE_MS}")
        existing, comment = self._existing(), comment_of(SCHEMA)
        known = {comment_of(version) for version in (*MIGRATIONS, SCHEMA)}
        if existing["name"] is not None and existing["comment"] not in known:
            raise OSError(
                f"{name} has a table `outcomes` with the comment {existing['comment']!r}, and the ledger needs one "
                f"with {comment!r}: use another schema for the ledger, with ?options=-csearch_path%3DNAME"
            )
        if existing["name"] is None and not writing:
            raise OSError(f"no ledger in {name}: `extproc serve --ledger` creates one")
        self._current = existing["comment"] == comment
        if writing and not self._current:
            self._bring_up_to_date()
        elif not self._current:
            schema = next(version for version in MIGRATIONS if comment_of(version) == existing["comment"])
            self._connection.execute(";".join(stand_ins(schema)))

    def _existing(self) -> Row:
        # To look into pg_class also makes the server notice a table that another router has just created.
        query = (
            "SELECT c.relname AS name, obj_description(c.oid, 'pg_class') AS comment "
            "FROM (VALUES (1)) one LEFT JOIN pg_class c ON c.oid = to_regclass('outcomes')"
        )
        row: Row = self._connection.execute(query).fetchone()
        return row

    def _bring_up_to_date(self) -> None:
        """Create the tables, or add what they lack. Several routers may try it at the same time."""
        with self.locked():
            existing = self._existing()
            if existing["name"] is None:
                self._connection.execute(rollups.DROP + CREATE + _REJECTIONS_OTHER)
            else:
                version = next(v for v in (*MIGRATIONS, SCHEMA) if comment_of(v) == existing["comment"])
                for statement in migrations(version):
                    self._connection.execute(statement)
                self._connection.execute(f"COMMENT ON TABLE outcomes IS '{comment_of(SCHEMA)}'")
            self._connection.execute(rollups.TABLES + rollups.ALTERED)
        self._current = True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements in the block take effect, or none of them."""
        with as_os_error(self._error), self._connection.transaction():
            yield

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """A transaction that only one router process has at a time."""
        with self.transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(hashtext('extproc ledger'))")
            yield

    def keeps(self) -> bool:
        """Whether this connection, and no other, may maintain the ledger. It may until it is closed."""
        query = "SELECT pg_try_advisory_lock(hashtext('extproc ledger keeper')) AS mine"
        return bool(self.fetch(query)[0]["mine"])

    def write(self, statements: Sequence[Statement]) -> None:
        # In a pipeline, a batch waits for the network only once.
        with as_os_error(self._error), self._connection.pipeline(), self._connection.transaction():
            for query, values in statements:
                self._connection.execute(_with_places(query), values)

    def run(self, *statements: str) -> None:
        """Execute statements without values, each in its own transaction if none is open."""
        with as_os_error(self._error):
            for statement in statements:
                self._connection.execute(statement)

    def select(self, query: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        with as_os_error(self._error), self._connection.transaction(), self._connection.cursor("rows") as cursor:
            cursor.itersize = 10_000  # the result may be larger than memory
            yield from cursor.execute(_with_places(query), values)

    def fetch(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        # Not by a cursor of the server, which would keep Postgres from working on it in parallel.
        with as_os_error(self._error):
            rows: list[Row] = self._connection.execute(_with_places(query), values).fetchall()
        return rows

    def has_column(self, name: str) -> bool:
        query = "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('outcomes') AND attname = ?"
        return bool(self.fetch(query, (name,)))

    def finds_requests(self) -> bool:
        """Each partition has the index. An older table gets it before it becomes a partition."""
        query = (
            "SELECT 1 FROM pg_class c WHERE c.oid = to_regclass('outcomes') AND (c.relkind = 'p' OR EXISTS ("
            "SELECT 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] "
            "WHERE i.indrelid = c.oid AND a.attname = 'request' AND i.indisvalid))"
        )
        return bool(self.fetch(query))

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        with self.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield

    def settled_id(self) -> int | None:
        """Ids are given in order, and rows appear when their transactions end, in another order.

        A writer has a lock on the table before it takes an id, and until its transaction ends. A lock that excludes
        writers therefore means that every id so far has its row, or will never have one. It lasts milliseconds.
        """
        try:
            with self._connection.transaction():
                self._connection.execute(f"SET LOCAL lock_timeout = {_SETTLE_MS}")
                self._connection.execute("LOCK TABLE ONLY outcomes IN SHARE MODE")
                row = self._connection.execute(f"SELECT pg_sequence_last_value({_SEQUENCE}) AS last").fetchone()
        except self._errors.LockNotAvailable:
            return None
        except (self._errors.InsufficientPrivilege, self._errors.ReadOnlySqlTransaction):
            # A user who may only read follows nothing: the last rows may be incomplete.
            row = self.fetch("SELECT max(id) AS last FROM outcomes")[0]
        except self._error as error:
            raise OSError(str(error).strip()) from error
        return row["last"] or 0

    def rolled_id(self) -> int | None:
        if not self._current:
            return None
        [state] = self.fetch("SELECT rolled FROM rollup_state")
        rolled: int = state["rolled"]
        return rolled

    @property
    def pruned(self) -> dict[str, str]:
        """All partitions but those of single days, which are dropped."""
        names = self.fetch(
            "SELECT c.relname AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = to_regclass('outcomes') AND c.relname !~ '^outcomes_[0-9]+$'"
        )
        return {row["name"]: "rejections_other" for row in names} or {"outcomes": "rejections"}

    def cancel(self) -> None:
        """Cancel the running statement, from another thread. Never fails."""
        with contextlib.suppress(self._error):
            self._connection.cancel_safe(timeout=LOCK_S)

    def close(self) -> None:
        with contextlib.suppress(self._error):
            self._connection.close()


def _with_places(query: str) -> str:
    """Return the query as the driver needs it."""
    return query.replace("%", "%%").replace("?", "%s")


def psycopg_driver() -> Any:
    """Return the driver, which only a ledger in Postgres needs."""
    try:
        import psycopg.rows
    except ImportError as error:
        raise OSError(
            "a ledger in Postgres needs the package psycopg: pip install 'envoy-semantic-router[postgres]'"
        ) from error
    return psycopg
