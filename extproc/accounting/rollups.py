"""Hourly sums of a ledger, so that a report of a month reads no rows of a month.

Routers add outcomes at the same time, and late ones, too. One router at a time adds new outcomes to the sums.
It begins after the last id in the sums, and ends at an id up to which no outcome can appear any more. The sums and
that id change in one transaction, so each outcome counts exactly once. A report adds the outcomes that are newer.
"""

from collections.abc import Iterable, Iterator

from extproc.accounting.queries import ALL, SUMS, Sum, Window

# Sums are kept this long, also when their rows are deleted. Those by principal are deleted with the rows.
KEPT_DAYS = 400
_DOLLARS = ("cost", "default_cost", "saved")
_KEY = "hour, dimension, name, word"


def _types(each: Sum) -> dict[str, str]:
    return {name: "DOUBLE PRECISION" if name in _DOLLARS else "BIGINT" for name in each.columns}


def _table(each: Sum) -> str:
    numbers = ", ".join(f"{name} {kind} NOT NULL DEFAULT 0" for name, kind in _types(each).items())
    return (
        f"CREATE TABLE IF NOT EXISTS {each.table} (hour BIGINT NOT NULL, dimension TEXT NOT NULL, "
        f"name TEXT NOT NULL, word TEXT NOT NULL, {numbers}, PRIMARY KEY ({_KEY}));\n"
    )


# `rolled` is the last id that the sums have, and `settled` the one they will have next. Routers look at `time`.
TABLES = (
    "".join(_table(each) for each in SUMS)
    + """
CREATE TABLE IF NOT EXISTS rollup_state (
  rolled BIGINT NOT NULL, settled BIGINT NOT NULL, time DOUBLE PRECISION NOT NULL
);
INSERT INTO rollup_state SELECT 0, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM rollup_state);
"""
)
# For Postgres: numbers that are new, and room in each page, because the rows of this hour change often.
ALTERED = "".join(
    f"ALTER TABLE {each.table} ADD COLUMN IF NOT EXISTS {name} {kind} NOT NULL DEFAULT 0;\n"
    for each in SUMS
    for name, kind in _types(each).items()
) + "".join(f"ALTER TABLE {each.table} SET (fillfactor = 70);\n" for each in SUMS)
# For the sums of a ledger whose tables were deleted.
DROP = "DROP TABLE IF EXISTS " + ", ".join((*(each.table for each in SUMS), "rollup_state")) + ";\n"


def add_up(each: Sum, after_id: int, last_id: int, dimensions: Iterable[str], lateral: str) -> str:
    """Return the statement that adds the outcomes of these ids to the sums of these dimensions.

    `lateral` is the word for a join that sees the row before it. SQLite has none, and takes one dimension.
    """
    names = [(dimension, sql) for dimension, sql in each.names.items() if dimension in dimensions]
    if lateral:
        values = ", ".join(f"('{dimension}', {sql})" for dimension, sql in names)
        join, name = f" CROSS JOIN {lateral} (VALUES {values}) d (dimension, name)", "d.dimension, d.name"
    else:
        [(dimension, sql)] = names
        join, name = "", f"'{dimension}', {sql}"
    added = ", ".join(f"{name} = {each.table}.{name} + excluded.{name}" for name in each.columns)
    return (
        f"INSERT INTO {each.table} ({_KEY}, {', '.join(each.columns)}) "
        f"SELECT CAST(floor(o.time / 3600) AS BIGINT), {name}, {each.word}, {each.numbers} "
        f"FROM {each.tables}{join} WHERE {each.where(Window(after_id=after_id, last_id=last_id))} "
        f"GROUP BY 1, 2, 3, 4 ON CONFLICT ({_KEY}) DO UPDATE SET {added}"
    )


def additions(after_id: int, last_id: int, lateral: str) -> Iterator[str]:
    """Yield the statements that add the outcomes of these ids to all sums."""
    for each in SUMS:
        for dimensions in [tuple(each.names)] if lateral else [(dimension,) for dimension in each.names]:
            yield add_up(each, after_id, last_id, dimensions, lateral)


def backfill(each: Sum) -> Iterator[str]:
    """Yield the statements that give earlier hours a dimension that is new: no outcome had a name in it."""
    for dimension in each.names.keys() - {ALL, "principal"}:  # callers are forgotten
        yield (
            f"INSERT INTO {each.table} ({_KEY}, {', '.join(each.columns)}) "
            f"SELECT hour, '{dimension}', '-', word, {', '.join(each.columns)} FROM {each.table} "
            f"WHERE dimension = '{ALL}' "
            f"AND NOT EXISTS (SELECT 1 FROM {each.table} WHERE dimension = '{dimension}')"
        )


def forget(each: Sum, before: float, principals_before: float) -> str:
    """Return the statement that deletes the sums of hours that are over."""
    return (
        f"DELETE FROM {each.table} WHERE hour < {int(before // 3600)} "
        f"OR (dimension = 'principal' AND hour < {int(principals_before // 3600)})"
    )


def rolled_query(each: Sum, dimension: str, first_hour: int) -> str:
    """Return the query on the hourly sums from this hour on, with the columns of the query on rows."""
    numbers = ", ".join(
        f"sum({name}) AS {name}" if name in _DOLLARS else f"CAST(sum({name}) AS BIGINT) AS {name}"
        for name in each.columns
    )
    return (
        f"SELECT name, word, {numbers} FROM {each.table} "
        f"WHERE hour >= {first_hour} AND dimension = '{dimension}' GROUP BY 1, 2"
    )
