"""The tables of a ledger, for SQLite and Postgres, and how those of older versions are brought up to date."""

from collections.abc import Mapping
from typing import Any

SCHEMA = 5
# From each older version to the next one. Readers also read these versions: a new column is then absent.
# `explorations` has the answers of second tiers: `explored` of an outcome is the id of one.
EXPLORATIONS = """
CREATE TABLE IF NOT EXISTS explorations (
  id TEXT PRIMARY KEY, time DOUBLE PRECISION NOT NULL, tier TEXT NOT NULL, propensity DOUBLE PRECISION NOT NULL,
  status INTEGER NOT NULL, accepted INTEGER, reason TEXT, input INTEGER, output INTEGER, cached INTEGER,
  cost DOUBLE PRECISION, duration_s DOUBLE PRECISION
)"""
# `signals` has what happened after an answer: see `contract.words.Signal`. `request` is that of the answer.
SIGNALS = """
CREATE TABLE IF NOT EXISTS signals (
  request TEXT NOT NULL, kind TEXT NOT NULL, principal TEXT NOT NULL, time DOUBLE PRECISION NOT NULL,
  score DOUBLE PRECISION, label TEXT, PRIMARY KEY (request, kind, principal)
)"""
# The version from which on a ledger has each of these tables.
_SINCE = {EXPLORATIONS: 4, SIGNALS: 5}
# No index here: on a large ledger it would take longer than the timeout of a statement.
MIGRATIONS = {
    2: ("ALTER TABLE outcomes ADD COLUMN conversation TEXT",),
    3: (
        "ALTER TABLE outcomes ADD COLUMN unjudged TEXT",
        "ALTER TABLE outcomes ADD COLUMN decision TEXT",
        "ALTER TABLE outcomes ADD COLUMN chances TEXT",
        "ALTER TABLE outcomes ADD COLUMN explored TEXT",
        EXPLORATIONS,
    ),
    4: (
        # A rejected answer is deleted with its day. Older rows have no time.
        "ALTER TABLE rejections ADD COLUMN time DOUBLE PRECISION",
        SIGNALS,
        # The word of the cache, and the cost that a hit saved.
        "ALTER TABLE outcomes ADD COLUMN cache TEXT",
        "ALTER TABLE outcomes ADD COLUMN saved DOUBLE PRECISION",
        "ALTER TABLE outcomes ADD COLUMN app TEXT",
        "ALTER TABLE outcomes ADD COLUMN team TEXT",
    ),
}
TABLES = f"""{EXPLORATIONS};
{SIGNALS};
CREATE TABLE IF NOT EXISTS outcomes (
  id {{id}}, time DOUBLE PRECISION NOT NULL, api TEXT NOT NULL, ending TEXT NOT NULL,
  status INTEGER NOT NULL, attempts INTEGER NOT NULL, failed_attempts INTEGER NOT NULL, reason TEXT NOT NULL,
  judged INTEGER NOT NULL, cohort TEXT, tier TEXT, principal TEXT, session TEXT, revision TEXT, mode TEXT,
  duration_s DOUBLE PRECISION, first_byte_s DOUBLE PRECISION, input INTEGER, output INTEGER, cached INTEGER,
  usage_from TEXT, cost DOUBLE PRECISION, default_cost DOUBLE PRECISION, request TEXT,
  conversation TEXT, unjudged TEXT, decision TEXT, chances TEXT, explored TEXT,
  cache TEXT, saved DOUBLE PRECISION, app TEXT, team TEXT
){{by_day}};
CREATE TABLE IF NOT EXISTS rejections (
  outcome {{outcome}}, attempt INTEGER NOT NULL, tier TEXT,
  reason TEXT NOT NULL, input INTEGER, output INTEGER, cached INTEGER, cost DOUBLE PRECISION,
  time DOUBLE PRECISION{{time}}
){{by_day}};
"""
# The parts that differ. In Postgres the tables are partitioned by day: see `days`.
SQLITE_KEYS = {
    "id": "INTEGER PRIMARY KEY",
    "outcome": "INTEGER NOT NULL REFERENCES outcomes (id) ON DELETE CASCADE",
    "time": "",
    "by_day": "",
}
POSTGRES_KEYS = {
    "id": "BIGINT NOT NULL DEFAULT nextval('outcomes_id')",
    "outcome": "BIGINT NOT NULL",
    # Routers of version 4 give no time during an upgrade.
    "time": " DEFAULT date_part('epoch', now())",
    "by_day": " PARTITION BY RANGE (time)",
}
SQLITE_INDEXES = """
CREATE INDEX IF NOT EXISTS outcomes_time ON outcomes (time);
CREATE INDEX IF NOT EXISTS outcomes_request ON outcomes (request);
CREATE INDEX IF NOT EXISTS rejections_outcome ON rejections (outcome);
"""
COLUMNS = (
    "time", "api", "ending", "status", "attempts", "failed_attempts", "reason", "judged", "cohort", "tier",
    "principal", "session", "revision", "mode", "duration_s", "first_byte_s", "input", "output", "cached",
    "usage_from", "cost", "default_cost", "request", "conversation", "unjudged", "decision",
    "chances", "explored", "cache", "saved", "app", "team",
)  # fmt: skip


def newer_column(row: Mapping[str, Any], name: str) -> Any:
    """Return a value that ledgers of older versions do not have."""
    return row[name] if name in row.keys() else None  # noqa: SIM118  # a sqlite3.Row


def migrations(schema: int) -> list[str]:
    """Return the statements that bring a ledger of this version up to date."""
    return [
        statement for version, statements in MIGRATIONS.items() if version >= schema for statement in statements
    ]


def comment_of(schema: int) -> str:
    """Return the comment on the tables of this version in Postgres."""
    return f"extproc ledger {schema}"


def stand_ins(schema: int) -> list[str]:
    """Return the statements by which a reader gets empty tables in place of those that a ledger lacks."""
    return [
        table.replace("CREATE TABLE IF NOT EXISTS", "CREATE TEMPORARY TABLE")
        for table, since in _SINCE.items()
        if schema < since
    ]
