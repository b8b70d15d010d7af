"""A large ledger: hourly sums, and in a real Postgres partitions by day and rows that appear out of order."""

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import msgspec
import psycopg
import pytest

from extproc.accounting import days, rollups
from extproc.accounting import keeper as keeper_module
from extproc.accounting.export import export
from extproc.accounting.keeper import Keeper
from extproc.accounting.outcome import Cost, Ending, Explored, Outcome, Rejection
from extproc.accounting.postgres import PostgresLedger
from extproc.accounting.queries import SUMS, By
from extproc.accounting.report import CohortLine, CostReport, read_report
from extproc.accounting.rollout import ALL, Comparison, RolloutReader
from extproc.accounting.sequential import Counts
from extproc.accounting.spent import read_spent
from extproc.accounting.sqlite import SqliteLedger
from extproc.accounting.store import Store, connect
from extproc.accounting.why import why
from extproc.api.observation import Usage
from extproc.routing.budget import month_of, month_start, specs_of
from extproc.settings import App, UsdBudget
from tests.accounting.test_ledger_postgres import VERSION_2, until
from tests.postgres import Postgres

DAY_S = days.DAY_S
BY: tuple[By, ...] = ("cohort", "tier", "principal", "app", "team")


def traffic(count: int, seed: int, hours: float = 30) -> list[tuple[Outcome, Cost]]:
    """Outcomes of all kinds from the last hours. Dollars are multiples of 1/1024, so that sums are exact."""
    draw, now = random.Random(seed), time.time()

    def dollars() -> float | None:
        return draw.choice([None, *(i / 1024 for i in range(1, 60))])

    def priced(number: int) -> tuple[Outcome, Cost]:
        rejections = tuple(
            Rejection(i + 1, draw.choice(["small", "large", None]), draw.choice(["refusal", "empty"]), Usage(9, i))
            for i in range(draw.choice([0, 0, 0, 1, 2]))
        )
        outcome = Outcome(
            time=now - draw.uniform(1, hours * 3600), api="chat", ending=draw.choice(list(Ending)),
            status=draw.choice([200, 200, 503]), attempts=len(rejections) + draw.choice([0, 1, 2]),
            reason=draw.choice(["matched", "matched", "rule", "out_of_scope", "fail_open"]),
            judged=draw.random() < 0.5, unjudged=draw.choice([None, "no_rule"]),
            cohort=draw.choice(["faq", "code", "maths", None]), tier=draw.choice(["small", "large"]),
            rejections=rejections, usage=draw.choice([None, Usage(draw.randrange(900), 7, 3)]),
            request=f"request-{seed}-{number}", principal=draw.choice(["p", "q", None]),
            first_byte_s=draw.choice([None, draw.lognormvariate(-1, 1)]),
            cache=draw.choice([None, "miss", "hit", "semantic"]), app=draw.choice([None, "support", "code"]),
            team=draw.choice([None, "care"]), decision=draw.choice([None, '{"stream":true}', '{"stream":false}']),
        )  # fmt: skip
        saved = dollars() if outcome.is_hit else None
        return outcome, Cost(dollars(), tuple(dollars() for _ in rejections), dollars(), saved)

    return [priced(number) for number in range(count)]


def add(place: Path | str, rows: list[tuple[Outcome, Cost]]) -> None:
    store = Store(place, 90)
    store.add(rows)
    store.close()


def maintain(place: Path | str, keep_days: float = 90, rounds: int = 2) -> None:
    """Rounds of maintenance. An outcome is in the sums after the second one."""
    with mock.patch.object(keeper_module, "_INTERVAL_S", 0.0):
        keeper = Keeper(place, keep_days)
        for _ in range(rounds):
            until(lambda: not keeping(place))
            keeper.work()


def keeping(place: Path | str) -> bool:
    """Whether the connection of an earlier round still has the lock: Postgres closes it in its own time."""
    if isinstance(place, Path):
        return False
    with psycopg.connect(place, autocommit=True) as connection:
        return bool(connection.execute("SELECT FROM pg_locks WHERE locktype = 'advisory'").fetchall())


def tables(postgres: Postgres, like: str) -> list[str]:
    query = f"SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relname LIKE '{like}' ORDER BY 1"
    return [name for (name,) in postgres.rows(query)]


def without_times(report: CostReport) -> tuple[CohortLine, list[CohortLine], list[str], object, object]:
    """A report without its place, and without the times that a histogram rounds."""
    lines = [msgspec.structs.replace(line, first_byte_s=None) for line in (report.total, *report.groups)]
    return lines[0], lines[1:], report.verdicts, report.explored, report.cached


def first_bytes(report: CostReport) -> Iterator[float]:
    for line in (report.total, *report.groups):
        yield from line.first_byte_s or ()


def rolled(place: Path | str) -> int:
    """How many requests the hourly sums have."""
    with contextlib.closing(connect(place)) as ledger:
        query = "SELECT CAST(coalesce(sum(requests), 0) AS BIGINT) AS requests FROM rollup_outcomes"
        [row] = ledger.fetch(f"{query} WHERE dimension = 'all'")
    return int(row["requests"])


@pytest.fixture(params=["file", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """An empty ledger of each kind."""
    if request.param == "file":
        return tmp_path / "maintained.sqlite"
    url: str = request.getfixturevalue("postgres").url
    return url


def assert_same_reports(file: Path, place: Path | str, hours: float) -> None:
    """Every sum is equal. The times to the first byte are 1 % off at most."""
    now = time.time()
    for by in BY:
        with mock.patch("extproc.accounting.report.time.time", lambda: now):  # both reports begin at the same time
            exact, summed = (read_report(each, hours * 3600, by) for each in (file, place))
        assert without_times(summed) == without_times(exact)
        if by == "principal" and hours > 1:
            assert [line.first_byte_s for line in summed.groups] == [None] * len(summed.groups)
            exact.groups = []
        assert list(first_bytes(summed)) == pytest.approx(list(first_bytes(exact)), rel=0.0101)


def test_reports_from_hourly_sums_equal_those_from_rows(place: Path | str, tmp_path: Path) -> None:
    """While nothing is added up, when all of it is, and with late and new outcomes on top of the sums."""
    file = tmp_path / "ledger.sqlite"
    early, late, now = traffic(1500, 1), traffic(500, 2), time.time()
    for each in (file, place):
        add(each, early)
        Store(each, 90).add_explored(Explored("request-1-7", now - 60, "large", 0.1, 200, True))
    for by in BY:
        with mock.patch("extproc.accounting.report.time.time", lambda: now):
            exact, rows = (read_report(each, 100 * 3600, by) for each in (file, place))
        assert (rows.total, rows.groups) == (exact.total, exact.groups)
    maintain(place)
    assert rolled(place) == 1499
    for hours in (0.5, 5, 24, 100):
        assert_same_reports(file, place, hours)
    for each in (file, place):
        add(each, late)
    assert_same_reports(file, place, 24)
    maintain(place)
    assert rolled(place) == 1999
    assert_same_reports(file, place, 24)
    maintain(place)
    assert rolled(place) == 1999


def test_sums_are_added_in_pieces_while_routers_write(
    place: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every outcome counts once: several routers write, and several maintain the ledger at the same time."""
    for kind in (PostgresLedger, SqliteLedger):
        monkeypatch.setattr(kind, "chunk", 37)
    file, batches = tmp_path / "ledger.sqlite", [traffic(100, seed) for seed in range(12)]
    Store(place, 90).open().close()
    done = threading.Event()

    def write(mine: list[list[tuple[Outcome, Cost]]]) -> None:
        for batch in mine:
            add(place, batch)

    def keep() -> None:
        while not done.is_set():
            maintain(place, rounds=1)

    writers = [threading.Thread(target=write, args=(batches[i::4],)) for i in range(4)]
    keepers = [threading.Thread(target=keep) for _ in range(2)]
    for thread in (*writers, *keepers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in keepers:
        thread.join()
    for batch in batches:
        add(file, batch)
    assert_same_reports(file, place, 24)
    maintain(place)
    assert rolled(place) == 1200
    assert_same_reports(file, place, 24)


def test_a_report_of_deleted_rows_reads_their_sums(postgres: Postgres) -> None:
    """Callers are forgotten with the rows, and other sums stay."""
    old = [(msgspec.structs.replace(row, time=row.time - 3 * DAY_S), cost) for row, cost in traffic(200, 3, 1)]
    add(postgres.url, old)
    maintain(postgres.url)
    before = read_report(postgres.url, 5 * DAY_S)
    postgres.do("DELETE FROM outcomes; DELETE FROM rejections")
    maintain(postgres.url, keep_days=1)
    after = read_report(postgres.url, 5 * DAY_S)
    assert without_times(after) == without_times(before)
    assert read_report(postgres.url, 5 * DAY_S, "principal").groups == []


def test_a_budget_counts_the_deleted_rows_of_its_month(place: Path | str) -> None:
    """After a restart, too. Only the sums of callers are forgotten."""
    now_s = month_start(time.time()) - 1
    add(place, [(msgspec.structs.replace(row, time=now_s - DAY_S), cost) for row, cost in traffic(200, 8)])
    store = Store(place, 90)
    store.add_explored(Explored("second", now_s, "large", 0.5, 200, True, cost=0.25))
    store.close()
    app = App(hosts=("a",), labels={"team": "care"})
    own, of_team = (msgspec.structs.replace(app, budget=UsdBudget(5, "small", per)) for per in ("all", "team"))
    shared = [*specs_of(UsdBudget(9, "small"), "support", own), *specs_of(None, "support", of_team)]
    each = specs_of(UsdBudget(9, "small", "principal"))
    before = read_spent(place, [*shared, *each], now_s)
    assert len(before) == 6 and min(before.values()) > 0
    maintain(place)
    assert read_spent(place, [*shared, *each], now_s) == before
    with contextlib.closing(connect(place, writing=True)) as ledger:
        ledger.run("DELETE FROM outcomes", "DELETE FROM rejections")
    maintain(place, keep_days=1)
    assert read_spent(place, [*shared, *each], now_s) == {
        spec.key("", month_of(now_s)): before[spec.key("", month_of(now_s))] for spec in shared
    }


def test_old_days_are_dropped_and_new_ones_are_made_ahead(postgres: Postgres) -> None:
    """An outcome of a day without a partition is kept, too."""
    add(postgres.url, traffic(50, 4, 1))
    today = int(time.time() // DAY_S)
    names = [f"outcomes_{days.day_name(day)}" for day in range(today - 1, today + 3)]
    assert tables(postgres, "outcomes%") == sorted(["outcomes", *names, "outcomes_other"])
    [(in_days,)] = postgres.rows("SELECT count(*) FROM outcomes WHERE tableoid::regclass::text LIKE 'outcomes_2%'")
    assert in_days == 50
    assert postgres.rows("SELECT count(*) FROM outcomes_other") == [(0,)]
    with_connection = PostgresLedger(postgres.url, "ledger", writing=True)
    days.add_days(with_connection, (today + 10) * DAY_S)
    days.drop_days(with_connection, (today + 9) * DAY_S)
    with_connection.close()
    later = [f"outcomes_{days.day_name(day)}" for day in range(today + 9, today + 13)]
    assert tables(postgres, "outcomes%") == sorted(["outcomes", *later, "outcomes_other"])
    assert tables(postgres, "rejections_2%") == [name.replace("outcomes", "rejections") for name in later]
    add(postgres.url, traffic(5, 5, 1))
    assert read_report(postgres.url, DAY_S).total.requests == 5


def test_an_older_ledger_is_converted_while_routers_write(postgres: Postgres) -> None:
    """Its rows become a partition, without a copy. Ids go on, and a request is found by an index."""
    postgres.do("DROP ROLE IF EXISTS reader; CREATE ROLE reader")
    postgres.do(VERSION_2 + "GRANT SELECT ON outcomes TO reader")
    writer = Store(postgres.url, 90)
    writer.add(traffic(10, 6, 1))
    before = without_times(read_report(postgres.url, 3 * DAY_S))
    lines = list(export(postgres.url, 3 * DAY_S))
    # Until there is an index of request ids, only the last day is searched, by the index of times.
    assert "request   request-7, " in why(postgres.url, "request-7")
    postgres.do(f"UPDATE outcomes SET time = time - 1.5 * {DAY_S} WHERE request = 'request-8'")
    with pytest.raises(OSError, match="has no request request-8 in the last 24 hours"):
        why(postgres.url, "request-8")
    postgres.do(f"UPDATE outcomes SET time = time + 1.5 * {DAY_S} WHERE request = 'request-8'")
    maintain(postgres.url)
    [converted] = tables(postgres, "outcomes_before%")
    assert without_times(read_report(postgres.url, 3 * DAY_S)) == before
    assert list(export(postgres.url, 3 * DAY_S)) == lines
    writer.add(traffic(10, 7, 1))  # on the same connection
    writer.close()
    assert read_report(postgres.url, 3 * DAY_S).total.requests == 320
    assert postgres.rows("SELECT max(id), count(DISTINCT id) FROM outcomes") == [(320, 320)]
    assert postgres.rows(f"SELECT count(*) FROM {converted}") == [(320,)], "until its last day"
    assert "request   request-7, " in why(postgres.url, "request-7")
    queries = [
        "SELECT * FROM outcomes WHERE request = 'request-7' AND time >= 0 ORDER BY time DESC LIMIT 5",
        "SELECT * FROM rejections WHERE outcome = 7 ORDER BY attempt",
        "SELECT kind FROM signals WHERE request = 'request-7' AND principal = 'p' ORDER BY kind",
    ]
    with psycopg.connect(postgres.url, options="-cenable_seqscan=off") as planner:
        plans = [line for query in queries for (line,) in planner.execute(f"EXPLAIN {query}").fetchall()]
    assert not [line for line in plans if "Seq Scan" in line]
    assert postgres.rows("SELECT has_table_privilege('reader', 'outcomes', 'SELECT')") == [(True,)]
    maintain(postgres.url, keep_days=1e-6, rounds=1)  # its outcomes are deleted row by row
    Store(postgres.url, 1e-6).add([])
    assert read_report(postgres.url, 3000).total.requests == 0
    assert postgres.rows("SELECT count(*) FROM outcomes") == [(0,)]
    postgres.do("DROP TABLE outcomes; DROP ROLE reader")


def test_a_conversion_that_was_stopped_never_refuses_outcomes(postgres: Postgres) -> None:
    """Its limit is moved before the limit's day comes."""
    postgres.do(VERSION_2)
    add(postgres.url, [])
    soon = int(time.time() // DAY_S) + 1
    postgres.do(f"ALTER TABLE outcomes ADD CONSTRAINT outcomes_before_{days.day_name(soon)} CHECK (time < 9e9)")
    maintain(postgres.url, rounds=1)
    [converted] = tables(postgres, "outcomes_before%")
    assert converted == f"outcomes_before_{days.day_name(soon + 6)}"


def test_a_conversion_waits_for_a_report(postgres: Postgres) -> None:
    """The sums are kept all the same, and writers are locked out for half a second at most."""
    postgres.do(VERSION_2)
    add(postgres.url, traffic(10, 9, 1))
    with psycopg.connect(postgres.url) as reader:
        reader.execute("SELECT count(*) FROM outcomes")
        for _ in range(2):
            with pytest.raises(OSError, match="lock timeout"):
                maintain(postgres.url, rounds=1)
        add(postgres.url, traffic(10, 10, 1))
    assert rolled(postgres.url) == 310
    assert tables(postgres, "outcomes_before%") == []
    maintain(postgres.url)
    assert len(tables(postgres, "outcomes_before%")) == 1
    assert rolled(postgres.url) == read_report(postgres.url, 3 * DAY_S).total.requests == 320


def test_a_new_dimension_gets_the_hours_before_it(postgres: Postgres) -> None:
    """No outcome had a name in it, and the lines add up to the total."""
    add(postgres.url, traffic(100, 8))
    maintain(postgres.url)
    total = without_times(read_report(postgres.url, 4 * DAY_S))[0]
    ledger = PostgresLedger(postgres.url, "ledger", writing=True)
    for each in SUMS:
        ledger.run(f"DELETE FROM {each.table} WHERE dimension = 'tier'", *rollups.backfill(each))
    ledger.close()
    report = read_report(postgres.url, 4 * DAY_S, "tier")
    assert without_times(report)[0] == total
    assert [line.name for line in report.groups] == ["-"]


def test_a_candidate_misses_no_row_that_appears_late(postgres: Postgres) -> None:
    """One router has taken an id and has not finished when another one's row, with a higher id, is there."""
    candidate = "candidate-0123456789ab"
    rows = [
        (Outcome(time.time(), "chat", Ending.ACCEPTED, 200, 1, "matched", revision=revision), Cost(None, (), None))
        for revision in (candidate, "r1")
    ]
    add(postgres.url, rows)
    reader = RolloutReader(postgres.url, Comparison(candidate, 0.02, ()))
    assert reader.read().groups[ALL].counts == Counts(1, 1, 1, 1)
    with psycopg.connect(postgres.url) as slow:
        slow.execute(
            "INSERT INTO outcomes (time, api, ending, status, attempts, failed_attempts, reason, judged, revision) "
            f"VALUES ({time.time()}, 'chat', 'accepted', 200, 1, 0, 'matched', 0, '{candidate}')"
        )
        add(postgres.url, rows)
        assert reader.read().groups[ALL].counts == Counts(1, 1, 1, 1), "the row before is not there yet"
    assert reader.read().groups[ALL].counts == Counts(3, 3, 2, 2)
    assert RolloutReader(postgres.url, Comparison(candidate, 0.02, ())).read().groups[ALL].counts == Counts(
        3, 3, 2, 2
    )


def test_maintenance_that_fails_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again, and the next failure after a success is logged again."""
    monkeypatch.setattr(keeper_module, "_INTERVAL_S", 0.001)
    results = iter([OSError("disk I/O error"), OSError("disk I/O error"), None, OSError("database is locked")])
    keeper = Keeper(tmp_path / "ledger.sqlite", 90)

    def work() -> None:
        result = next(results, None)
        if result is None:
            worked.append(1)
        else:
            raise result

    worked: list[int] = []
    monkeypatch.setattr(keeper, "work", work)
    keeper.start()
    until(lambda: len(worked) > 2)
    keeper.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the ledger cannot be maintained now (outcomes are stored): disk I/O error",
        "the ledger cannot be maintained now (outcomes are stored): database is locked",
    ]


def test_a_file_is_maintained_beside_its_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread adds up what the router writes, and stops when it is told to."""
    monkeypatch.setattr(keeper_module, "_INTERVAL_S", 0.01)
    file = tmp_path / "ledger.sqlite"
    keeper = Keeper(file, 90)
    keeper.start()
    for seed in range(5):
        add(file, traffic(20, seed))
    until(lambda: rolled(file) == 100)
    keeper.close()
    assert not keeper._thread.is_alive()
    add(file, traffic(20, 5))
    assert read_report(file, 4 * DAY_S).total.requests == 120


def test_what_is_spent_is_read_from_hourly_sums(place: Path | str) -> None:
    """The same sums as from rows, also of outcomes that are newer than the sums, and of second requests."""
    now_s, app = time.time(), App(budget=UsdBudget(5, "small", "principal"))
    specs = (
        *specs_of(UsdBudget(9, "small"), "support", App(budget=UsdBudget(5, "small"))),
        *specs_of(UsdBudget(9, "small", "principal"), "code", app),
        *specs_of(None, "code", App(budget=UsdBudget(5, "small", "team"), labels={"team": "care"})),
    )
    hours = min(30.0, (now_s - month_start(now_s)) / 3600)
    first, newer = traffic(300, seed=5, hours=hours), traffic(40, seed=6, hours=hours)
    [(second, cost), *newer] = newer
    add(place, [*first, (msgspec.structs.replace(second, request="second"), cost)])
    with contextlib.closing(connect(place, writing=True)) as ledger:
        columns = "id, time, tier, propensity, status"
        ledger.write([(f"INSERT INTO explorations ({columns}) VALUES ('second', {now_s}, 'small', 1.0, 200)", ())])
    rounded = 1000  # nanodollars: every sum of a group is rounded to a whole one
    from_rows = read_spent(place, specs, now_s)
    month = month_of(now_s)
    kinds = ("all", "app/support", "all/principal:", "all/principal:p", "app/code/principal:q", "team/care")
    assert {f"{month}:{kind}" for kind in kinds} <= from_rows.keys()
    maintain(place)
    assert rolled(place) == len(first)
    assert read_spent(place, specs, now_s) == pytest.approx(from_rows, abs=rounded)

    add(place, newer)
    spent = read_spent(place, specs, now_s)
    with mock.patch.object(SqliteLedger, "rolled_id", return_value=None):  # as for a ledger without sums
        assert spent == pytest.approx(read_spent(place, specs, now_s), abs=rounded)
    assert spent[f"{month}:all"] > from_rows[f"{month}:all"]

    with contextlib.closing(connect(place, writing=True)) as ledger:
        ledger.write([(f"DELETE FROM {table}", ()) for table in ("rejections", "outcomes")])
    [whole, support] = (read_spent(place, [spec], now_s).values() for spec in specs[:2])
    assert 0 < sum(support) < sum(whole) < from_rows[f"{month}:all"] + rounded
