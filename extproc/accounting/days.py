"""The partitions of a ledger in Postgres: one of each table for a day (UTC), so that an old day is deleted
without reading it.

`outcomes_20261130` has the outcomes that began on that day, and `rejections_20261130` their rejected answers.
Outcomes of a day without a partition are in `outcomes_other`. The table of an older ledger becomes the partition
`outcomes_before_DAY`, which has all earlier outcomes and its own index of ids.
"""

import contextlib
import re
import time
from collections.abc import Iterator

from extproc.accounting.postgres import CANDIDATES, CREATE, PostgresLedger

DAY_S = 86400
# Partitions are made this many days ahead. The day before has late outcomes.
_AHEAD, _LATE = 2, 1
# How many days an older table still gets outcomes. A router that converts it has this long for it.
_OVERLAP = 7
_INDEXES = {"outcomes": ("(id)", "(time)", "USING hash (request)", CANDIDATES), "rejections": ("(outcome)",)}
_BEFORE = "outcomes_before"
# A statement that needs a table for itself gives up after half a second, so that no outcome waits for it.
SHORT_LOCKS = "SET lock_timeout = 500"


def day_name(day: int) -> str:
    """Return the day with this number since 1970 as YYYYMMDD."""
    return time.strftime("%Y%m%d", time.gmtime(day * DAY_S))


def partitions(ledger: PostgresLedger, table: str) -> list[str]:
    """Return the names of the partitions of a table. A table that has none returns an empty list."""
    query = (
        "SELECT c.relname AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = to_regclass(?) ORDER BY 1"
    )
    return [row["name"] for row in ledger.fetch(query, (table,))]


def is_partitioned(ledger: PostgresLedger) -> bool:
    """Whether the ledger has partitions. An older one has none until it is converted."""
    [row] = ledger.fetch("SELECT relkind::text AS kind FROM pg_class WHERE oid = to_regclass('outcomes')")
    return bool(row["kind"] == "p")


def add_days(ledger: PostgresLedger, now: float) -> None:
    """Make the partitions of the days around `now` that are missing.

    If `outcomes_other` already has outcomes of a day, that day stays there. A table that a report reads is tried
    again later.
    """
    today = int(now // DAY_S)
    for day in range(today - _LATE, today + _AHEAD + 1):
        for table in _INDEXES:
            with contextlib.suppress(OSError):
                _add_day(ledger, table, day)


def _add_day(ledger: PostgresLedger, table: str, day: int) -> None:
    name = f"{table}_{day_name(day)}"
    if name in (names := partitions(ledger, table)):
        return
    converted = next((other for other in names if other.startswith(_BEFORE)), None)
    if converted is not None and day_name(day) < converted.rpartition("_")[2]:
        return
    begin, end = day * DAY_S, (day + 1) * DAY_S
    if ledger.fetch(f"SELECT 1 FROM {table}_other WHERE time >= {begin} AND time < {end} LIMIT 1"):
        return
    with ledger.locked():
        if name not in partitions(ledger, table):
            ledger.run(
                f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS)",
                *(f"CREATE INDEX ON {name} {index}" for index in _INDEXES[table]),
                f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({begin}) TO ({end})",
            )


def drop_days(ledger: PostgresLedger, before: float) -> None:
    """Drop the partitions whose outcomes all began before this time, but not while a report reads them."""
    first_kept = day_name(int(before // DAY_S))
    for name in old_partitions(ledger, first_kept):
        with contextlib.suppress(OSError):
            ledger.run(f"DROP TABLE {name}")


def old_partitions(ledger: PostgresLedger, first_kept: str) -> Iterator[str]:
    """Yield the partitions of days before YYYYMMDD."""
    for table in _INDEXES:
        for name in partitions(ledger, table):
            match = re.fullmatch(rf"{table}_(before_)?(\d{{8}})", name)
            # The name of a converted table has the first day that it does not have.
            if match is not None and (match[2] <= first_kept if match[1] else match[2] < first_kept):
                yield name


def convert(ledger: PostgresLedger, now: float) -> None:
    """Take one step that turns the tables of an older ledger into partitions. Raises OSError; then call it again.

    Routers write all the time. A step that reads the whole table locks out no writer, and the last step
    takes milliseconds.
    """
    if not ledger.finds_requests():
        ledger.run("DROP INDEX IF EXISTS outcomes_request_hash")  # a part, if this step was stopped before
        try:
            ledger.run(
                "SET lock_timeout = 0",  # it waits for every report, and locks out no writer
                "CREATE INDEX CONCURRENTLY outcomes_request_hash ON outcomes USING hash (request)",
            )
        finally:
            ledger.run(SHORT_LOCKS)
    query = "SELECT conname AS name FROM pg_constraint WHERE conrelid = to_regclass('outcomes') AND conname LIKE ?"
    names = [row["name"] for row in ledger.fetch(query, (f"{_BEFORE}%",))]
    if names and names[0].rpartition("_")[2] <= day_name(int(now // DAY_S) + 1):
        ledger.run(f"ALTER TABLE outcomes DROP CONSTRAINT {names[0]}")  # or it would soon refuse outcomes
        names = []
    if not names:
        [latest] = ledger.fetch("SELECT coalesce(max(time), 0) AS time FROM outcomes")
        day = max(int(now // DAY_S) + _OVERLAP, int(latest["time"] // DAY_S) + 1)
        names = [f"{_BEFORE}_{day_name(day)}"]
        limit = f"CHECK (time < {day * DAY_S})"
        ledger.run(f"ALTER TABLE outcomes ADD CONSTRAINT {names[0]} {limit} NOT VALID")
    ledger.run(f"ALTER TABLE outcomes VALIDATE CONSTRAINT {names[0]}")
    _swap(ledger, names[0])


def _swap(ledger: PostgresLedger, name: str) -> None:
    """Put a partitioned table in the place of the older one, which becomes a partition."""
    end = re.sub(r"(\d{4})(\d\d)(\d\d)", r"\1-\2-\3", name.rpartition("_")[2])
    last = "coalesce(pg_sequence_last_value(pg_get_serial_sequence('outcomes', 'id')), 0)"
    with ledger.locked():
        ledger.run("LOCK TABLE outcomes, rejections IN ACCESS EXCLUSIVE MODE")
        [ends] = ledger.fetch(f"SELECT {last} AS id, extract(epoch FROM timestamptz '{end} 00:00+0') AS time")
        grants = _grants(ledger)
        ledger.run(
            f"ALTER TABLE outcomes RENAME TO {name}",
            "ALTER TABLE rejections RENAME TO rejections_other",
            "ALTER TABLE rejections_other DROP CONSTRAINT rejections_outcome_fkey",
            f"ALTER TABLE {name} ALTER id DROP IDENTITY",
            CREATE,
            *([f"SELECT setval('outcomes_id', {ends['id']})"] if ends["id"] else []),
            f"ALTER TABLE outcomes ATTACH PARTITION {name} FOR VALUES FROM (MINVALUE) TO ({ends['time']})",
            "ALTER TABLE rejections ATTACH PARTITION rejections_other DEFAULT",
            *grants,
        )


def _grants(ledger: PostgresLedger) -> list[str]:
    """Return the statements that let other users read the new tables as they could read the older ones."""
    query = """
      SELECT format('GRANT %s ON %I TO %s', a.privilege_type, c.relname,
        CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END) AS statement
      FROM pg_class c, aclexplode(c.relacl) a
      WHERE c.oid IN (to_regclass('outcomes'), to_regclass('rejections')) AND a.grantee <> c.relowner
    """
    return [row["statement"] for row in ledger.fetch(query)]
