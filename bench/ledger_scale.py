"""A large ledger: the speed of writing, of reports and of `why`, and its size: `make bench-ledger ROWS=10000000`.

The rows are generated in SQL. They are those of ten days, of twenty cohorts, three tiers and a thousand callers.
One answer in twelve was rejected. The first control is a report in SQL without hourly sums. The second control is a
report as it was before, which also reads the time to the first byte of every answer into Python. Both read the same
rows, and their sums must be equal.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import msgspec

from extproc.accounting import days, first_bytes, keeper, report
from extproc.accounting.connection import Connection
from extproc.accounting.first_bytes import Quantiles
from extproc.accounting.outcome import Cost, Ending, Outcome, Rejection
from extproc.accounting.postgres import PostgresLedger
from extproc.accounting.queries import NAMES, Window
from extproc.accounting.sources import Source
from extproc.accounting.store import Store, connect
from extproc.accounting.tables import COLUMNS
from extproc.accounting.why import why
from extproc.api.observation import Usage
from tests.postgres import Postgres, binaries

DAYS = 10
_DAY_S = 86400
# Rows of the measurement of writing, and of a batch.
_WRITTEN, _BATCH = 20_000, 500
# Rows that are generated in one transaction.
_GENERATED = 500_000
# The parts of a ledger that only small ledgers bear.
_MOST_SQLITE, _MOST_EXPORTED = 1_000_000, 100_000
_DECISION = (
    '{"version":1,"revision":"5d1c0a7e22b4","mode":"enforce","tier":"small","reason":"matched","cohort":"cohort-7",'
    '"counted_as":"cohort-7","runner_up":"cohort-12","similarity":0.4121,"floor":0.3,"margin":0.2,"chance":0.71,'
    '"background":0.04,"probability":0.93,"verdict":"accept","conversation":"kept","requested_model":"auto"}'
)
# Number of a row -> its values. `{i}` is the number, `{time}` its time.
_VALUES = {
    "time": "{time}",
    "api": "'chat'",
    "ending": "CASE WHEN {i} % 40 = 0 THEN 'failed' WHEN {i} % 25 = 0 THEN 'cancelled' ELSE 'accepted' END",
    "status": "CASE WHEN {i} % 40 = 0 THEN 503 ELSE 200 END",
    "attempts": "CASE WHEN {i} % 12 = 0 THEN 2 ELSE 1 END",
    "failed_attempts": "0",
    "reason": "CASE WHEN {i} % 5 = 0 THEN 'out_of_scope' ELSE 'matched' END",
    "judged": "{i} % 3 % 2",
    "cohort": "CASE WHEN {i} % 5 = 0 THEN 'out_of_scope' ELSE 'cohort-' || ({i} * 7919 % 20) END",
    "tier": "CASE {i} % 3 WHEN 0 THEN 'small' WHEN 1 THEN 'medium' ELSE 'large' END",
    "principal": "'0123456789abcdef-' || ({i} * 104729 % 1000)",
    "session": "'0123456789abcdef0123456789-' || ({i} / 4)",
    "revision": "'5d1c0a7e22b4'",
    "mode": "'enforce'",
    "duration_s": "1.5 + ({i} * 31 % 97) / 64.0",
    "first_byte_s": "0.125 + ({i} * 611953 % 4001) / 1024.0",
    "input": "200 + {i} % 1000",
    "output": "{i} % 300",
    "cached": "{i} % 100",
    "usage_from": "'envoy'",
    "cost": "({i} % 64) / 65536.0",
    "default_cost": "({i} % 512) / 65536.0",
    "request": "'6f1c0f5e-8a5e-4c6c-' || ({i} * 2654435761 % 9973) || '-' || {i}",
    "unjudged": "CASE WHEN {i} % 3 = 1 THEN NULL ELSE 'no_rule' END",
    "decision": f"'{_DECISION}'",
}
_REJECTED = (
    "INSERT INTO rejections (outcome, attempt, tier, reason, input, output, cached, cost, time) SELECT id, 1, "
    "'small', 'refusal', 200, 9, 0, 1 / 1024.0, time FROM outcomes WHERE attempts = 2 AND id > {after}"
)


def outcome(number: int) -> tuple[Outcome, Cost]:
    """An outcome as a router stores it now."""
    rejections = (Rejection(1, "small", "refusal", Usage(200, 9)),) if number % 12 == 0 else ()
    row = Outcome(
        time.time(), "chat", Ending.ACCEPTED, 200, 1 + len(rejections), "matched", True, f"cohort-{number % 20}",
        "small", rejections=rejections, usage=Usage(300, 40, 10), usage_from="envoy",
        request=f"6f1c0f5e-8a5e-4c6c-{number * 2654435761 % 9973}-{number}", principal=f"caller-{number % 1000}",
        session=f"0123456789abcdef0123456789-{number // 4}", revision="5d1c0a7e22b4", mode="enforce",
        decision=_DECISION, duration_s=1.5, first_byte_s=0.25,
    )  # fmt: skip
    return row, Cost(0.001, (0.001,) * len(rejections), 0.01)


def seconds(work: Callable[[], object]) -> float:
    """The time of one run."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def show(what: str, value: str, control: str = "") -> None:
    """Print a line of the table."""
    print(f"{what:<58}{value:>14}{control:>26}", flush=True)


def written_per_s(place: Path | str) -> float:
    """How many outcomes a second one router stores, in batches."""
    batches = [[outcome(i) for i in range(start, start + _BATCH)] for start in range(0, _WRITTEN, _BATCH)]
    store = Store(place, 90)
    store.open()
    began_s = time.perf_counter()
    for batch in batches:
        store.add(batch)
    used_s = time.perf_counter() - began_s
    store.close()
    return _WRITTEN / used_s


def insert(first: int, last: int, rows: int, now: float, numbers: str) -> str:
    """The statement that generates these rows. `numbers` is SQL for a table `n` of the numbers."""
    began = f"({now} - {DAYS * _DAY_S} + n.i * ({float(DAYS * _DAY_S)} / {rows}))"
    values = ", ".join(_VALUES.get(name, "NULL").replace("{time}", began).replace("{i}", "n.i") for name in COLUMNS)
    return f"INSERT INTO outcomes ({', '.join(COLUMNS)}) SELECT {values} FROM {numbers}"


def fill_postgres(ledger: PostgresLedger, rows: int, now: float) -> None:
    """Generate the rows of the last ten days."""
    for day in range(int(now // _DAY_S) - DAYS, int(now // _DAY_S) + 1):
        for table in ("outcomes", "rejections"):
            days._add_day(ledger, table, day)
    # Indexes are faster to build in the end.
    indexes = ledger.fetch(
        "SELECT indexname, indexdef FROM pg_indexes WHERE indexname ~ '^(outcomes|rejections)_[2o]'"
    )
    ledger.run(*(f"DROP INDEX {index['indexname']}" for index in indexes))
    for first in range(1, rows + 1, _GENERATED):
        last = min(first + _GENERATED - 1, rows)
        [row] = ledger.fetch("SELECT coalesce(pg_sequence_last_value('outcomes_id'), 0) AS id")
        since = now - DAYS * _DAY_S + (first - 1) * DAYS * _DAY_S / rows
        with ledger.transaction():
            ledger.run(insert(first, last, rows, now, f"generate_series({first}::bigint, {last}) n (i)"))
            ledger.run(_REJECTED.format(after=f"{row['id']} AND time >= {since - 1}"))
    ledger.run(*(index["indexdef"] for index in indexes), "ANALYZE outcomes", "ANALYZE rejections")


def fill_sqlite(path: Path, rows: int, now: float) -> None:
    """The same rows in a file."""
    store = Store(path, 90)
    ledger = store.open()
    numbers = (
        f"(WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) SELECT i FROM n) n"
    )
    ledger.write([(insert(1, rows, rows, now, numbers), ()), (_REJECTED.format(after=0), ())])
    store.close()


def as_before(ledger: Connection, source: Source, dimension: str) -> tuple[Quantiles | None, dict[str, Quantiles]]:
    """The times to the first byte as reports read them before: every one of them, in Python."""
    [window] = source.windows
    values: dict[str, list[float]] = {"": []}
    query = (
        f"SELECT {NAMES[dimension]} AS name, o.first_byte_s FROM outcomes o WHERE {window.of_outcomes()} "
        "AND o.ending IN ('accepted', 'degraded') AND o.first_byte_s IS NOT NULL"
    )
    for row in ledger.select(query):
        for name in ("", row["name"]):
            values.setdefault(name, []).append(row["first_byte_s"])
    cuts = {name: statistics.quantiles(times, n=20, method="inclusive") for name, times in values.items() if times}
    groups = {name: (cut[9], cut[18]) for name, cut in cuts.items()}
    return groups.pop("", None), groups


@contextlib.contextmanager
def control(before: bool) -> Iterator[None]:
    """Reports read rows alone, with the times to the first byte as before or in SQL."""
    rows_alone = lambda _, since: Source((Window(since=since),))  # noqa: E731
    quantiles = as_before if before else first_bytes.read_first_bytes
    with (
        mock.patch.object(report, "source_of", rows_alone),
        mock.patch.object(report, "read_first_bytes", quantiles),
    ):
        yield


def reports(place: Path | str, name: str, span_s: float, in_python: bool = True, from_rows: bool = True) -> bool:
    """Measure one report beside its controls. Return whether all have the same sums."""
    results: dict[str, report.CostReport] = {}
    timed: dict[str, float] = {}
    now = time.time()

    def read(which: str) -> None:
        with mock.patch("extproc.accounting.report.time.time", lambda: now):
            timed[which] = seconds(lambda: results.update({which: report.read_report(place, span_s)}))

    read("now")
    show(f"report of {name}", f"{timed['now']:.2f} s")
    if from_rows:
        with control(before=False):
            read("rows")
        show("", "", f"{timed['rows']:.2f} s without sums")
    if in_python:
        with control(before=True):
            read("before")
        show("", "", f"{timed['before']:.2f} s in Python")
    totals = [msgspec.structs.replace(each.total, first_byte_s=None) for each in results.values()]
    return all(total == totals[0] and total.cost > 0 for total in totals)


def size_of(postgres: Postgres, like: str, what: str) -> int:
    """Bytes of the tables whose names are like this."""
    query = f"SELECT coalesce(sum({what}(oid)), 0)::bigint FROM pg_class WHERE relkind = 'r' AND relname ~ '{like}'"
    [(size,)] = postgres.rows(query)
    return int(size)


def measure_postgres(rows: int) -> bool:
    """Print the part on Postgres."""
    folder = binaries()
    if folder is None:
        print("no Postgres on this machine: apt-get install postgresql")
        return False
    postgres = Postgres(folder)
    try:
        options = ("shared_buffers=1GB", "max_wal_size=1GB", "work_mem=64MB", "maintenance_work_mem=512MB")
        postgres.start(*(part for option in options for part in ("-c", option)), fsync=True)
        show("outcomes a router stores in a second", f"{written_per_s(postgres.url):,.0f}")
        postgres.do("TRUNCATE outcomes, rejections")
        ledger = PostgresLedger(postgres.url, "ledger", writing=True)
        now = time.time()
        show(
            f"rows of {DAYS} days",
            f"{rows:,}",
            f"{seconds(lambda: fill_postgres(ledger, rows, now)):.0f} s to generate",
        )
        ledger.close()
        same = reports(postgres.url, "an hour", 3600, from_rows=False)
        used_s = seconds(lambda: maintain(postgres.url))
        show("rows added to the hourly sums in a second", f"{rows / used_s:,.0f}")
        few = rows <= _MOST_SQLITE
        same &= reports(postgres.url, "a day", _DAY_S)
        same &= reports(postgres.url, f"all {DAYS} days", 30 * _DAY_S, in_python=few, from_rows=few)
        measure_why(postgres, rows)
        for what, like, kind in (
            ("rows", "^outcomes_", "pg_table_size"), ("indexes", "^outcomes_", "pg_indexes_size"),
            ("rejected answers", "^rejections_", "pg_total_relation_size"),
            ("hourly sums", "^rollup_", "pg_total_relation_size"),
        ):  # fmt: skip
            show(f"bytes for each outcome: {what}", f"{size_of(postgres, like, kind) / rows:,.0f}")
        measure_retention(postgres, rows)
        return same
    finally:
        postgres.remove()


def maintain(place: Path | str) -> None:
    """Two rounds of maintenance, as a router has them half a minute apart."""
    with mock.patch.object(keeper, "_INTERVAL_S", 0.0):
        thread = keeper.Keeper(place, 90)
        for _ in range(2):
            thread.work()


def measure_why(postgres: Postgres, rows: int) -> None:
    """Print the time of `why` for one request, beside a scan."""
    [(request,)] = postgres.rows(
        f"SELECT request FROM outcomes WHERE id = (SELECT min(id) FROM outcomes) + {rows // 3}"
    )
    by_index = statistics.median(seconds(lambda: why(postgres.url, request)) for _ in range(5))
    off = "%20".join(f"-c{name}%3Doff" for name in ("enable_indexscan", "enable_bitmapscan"))
    scanned = seconds(lambda: why(f"{postgres.url}?options={off}", request))
    show("why, by the request's id", f"{by_index * 1000:.0f} ms", f"{scanned:.2f} s without index")


def measure_retention(postgres: Postgres, rows: int) -> None:
    """Print the time to delete the oldest day, beside deleting rows."""
    [(oldest,)] = postgres.rows("SELECT min(time) FROM outcomes")
    query = f"DELETE FROM outcomes WHERE time < {oldest + _DAY_S * 1.5} AND time >= {oldest + _DAY_S}"
    deleted_s = seconds(lambda: postgres.do(query)) * 2
    ledger = PostgresLedger(postgres.url, "ledger", writing=True)
    first = int(oldest // _DAY_S) + 1
    used_s = seconds(lambda: days.drop_days(ledger, first * _DAY_S))
    ledger.close()
    show("delete a day", f"{used_s:.2f} s", f"{deleted_s:.1f} s row by row")


def measure_sqlite(rows: int, folder: Path) -> bool:
    """Print the part on SQLite."""
    path, now = folder / "ledger.sqlite", time.time()
    show("outcomes a router stores in a second", f"{written_per_s(folder / 'written.sqlite'):,.0f}")
    fill_sqlite(path, rows, now)
    show(f"rows of {DAYS} days", f"{rows:,}")
    used_s = seconds(lambda: maintain(path))
    show("rows added to the hourly sums in a second", f"{rows / used_s:,.0f}")
    same = reports(path, "a day", _DAY_S)
    same &= reports(path, f"all {DAYS} days", 30 * _DAY_S)
    with contextlib.closing(connect(path)) as ledger:
        [row] = ledger.fetch("SELECT request FROM outcomes WHERE id = ?", (rows // 3,))
    show("why, by the request's id", f"{seconds(lambda: why(path, row['request'])) * 1000:.0f} ms")
    show("bytes for each outcome", f"{path.stat().st_size / rows:,.0f}")
    return same


def main() -> int:
    """Print both parts. Return 1 if a report and its control differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows in Postgres (default: %(default)s)")
    rows = parser.parse_args().rows
    print("Postgres")
    same = measure_postgres(rows)
    print("\nSQLite")
    with tempfile.TemporaryDirectory() as folder:
        same &= measure_sqlite(min(rows, _MOST_SQLITE), Path(folder))
    if not same:
        print("\na report and its control have different sums")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
