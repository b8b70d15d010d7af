"""The ledger stores outcomes, or drops and counts them. Traffic never waits for it."""

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.accounting.export import JoinCounts, as_traffic, export
from extproc.accounting.ledger import _QUEUED_BATCHES, Ledger, LogStreams
from extproc.accounting.outcome import Cost, Explored, Outcome, Rejection
from extproc.accounting.render import text_of
from extproc.accounting.report import CacheSums, ExploredSums, read_report
from extproc.accounting.signals import AnswerSignal
from extproc.accounting.store import Store, connect
from extproc.api.observation import Usage
from extproc.contract.words import Signal

DAY_S = 86400.0


def outcome(at: float | None = None, **what: Any) -> Outcome:
    plain = {"ending": "accepted", "status": 200, "attempts": 1, "reason": "matched", "tier": "small"}
    fields: dict[str, Any] = {"time": time.time() if at is None else at, "api": "chat"}
    return Outcome(**fields | plain | what)


CLIMBED = outcome(
    1e9, attempts=2, tier="large", cohort="faq", judged=False, usage=Usage(10, 4, 3), usage_from="envoy",
    rejections=(Rejection(1, "small", "refusal", Usage(9, 2)),), principal="p", session="s", revision="r1",
    mode="enforce", duration_s=1.5, first_byte_s=0.5, request="5-5", conversation="moved",
    unjudged="no_rule", decision='{"cohort":"faq"}',
    chances='{"large":0.1}', explored="explore-1", cache="miss", app="support", team="search",
)  # fmt: skip
COST = Cost(0.5, (0.25,), 0.5)
FREE = Cost(None, (), None)


def rows(place: Path | str, table: str = "outcomes") -> list[dict[str, Any]]:
    with contextlib.closing(connect(place)) as ledger:
        return [dict(row) for row in ledger.select(f"SELECT * FROM {table} ORDER BY 1")]


def until(look: Callable[[], object]) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline


class Recorded:
    """A ledger with a store, and the outcomes and losses that it reported."""

    def __init__(self, store: Any = None, cost: Cost = FREE) -> None:
        self.ended: list[Outcome] = []
        self.lost: list[int] = []
        self.ledger = Ledger(self.read, lambda _: cost, lambda o, _: self.ended.append(o), self.lost.append, store)

    @staticmethod
    def read(batch: bytes) -> list[Outcome]:
        if batch == b"broken":
            raise ValueError("not an access log")
        return [outcome(cohort=word) for word in batch.decode().split()]


def test_an_outcome_is_kept_whole(tmp_path: Path) -> None:
    """Every value has its column, and each rejected answer has its own row."""
    store = Store(tmp_path / "ledger.sqlite", 1e6)
    store.add([(CLIMBED, COST)])
    store.close()
    assert rows(tmp_path / "ledger.sqlite") == [
        {
            "id": 1, "time": 1e9, "api": "chat", "ending": "accepted", "status": 200, "attempts": 2,
            "failed_attempts": 0, "reason": "matched", "judged": 0, "cohort": "faq", "tier": "large",
            "principal": "p", "session": "s", "revision": "r1", "mode": "enforce", "duration_s": 1.5,
            "first_byte_s": 0.5, "input": 10, "output": 4, "cached": 3, "usage_from": "envoy", "cost": 0.5,
            "default_cost": 0.5, "request": "5-5", "conversation": "moved",
            "unjudged": "no_rule", "decision": '{"cohort":"faq"}',
            "chances": '{"large":0.1}', "explored": "explore-1", "cache": "miss", "saved": None,
            "app": "support", "team": "search",
        }
    ]  # fmt: skip
    assert rows(tmp_path / "ledger.sqlite", "rejections") == [
        {
            "outcome": 1, "attempt": 1, "tier": "small", "reason": "refusal", "input": 9, "output": 2,
            "cached": None, "cost": 0.25, "time": 1e9,
        }
    ]  # fmt: skip


def test_old_outcomes_are_deleted_with_their_rejections(tmp_path: Path) -> None:
    """This happens with the first batch, and every hour after it."""
    store = Store(tmp_path / "ledger.sqlite", 30)
    store.add([(CLIMBED, COST), (outcome(time.time() - 29 * DAY_S), FREE)])
    store.close()
    assert [row["id"] for row in rows(tmp_path / "ledger.sqlite")] == [2]
    assert rows(tmp_path / "ledger.sqlite", "rejections") == []


def test_several_processes_keep_one_file(tmp_path: Path) -> None:
    """Each process has its own connection. No process waits long, and nothing is lost."""
    path = tmp_path / "ledger.sqlite"

    def work() -> None:
        store = Store(path, 30)
        store.open()
        for _ in range(50):
            store.add([(outcome(), FREE)])
        store.close()

    Store(path, 30).open()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows(path)) == 150


def test_batches_are_reported_and_stored(tmp_path: Path) -> None:
    """A batch that cannot be read is logged, and the next one is read."""
    recorded = Recorded(Store(tmp_path / "ledger.sqlite", 30))
    for batch in (b"a b", b"broken", b"", b"c"):
        recorded.ledger.offer(batch)
    recorded.ledger.close()
    assert [o.cohort for o in recorded.ended] == ["a", "b", "c"]
    assert [row["cohort"] for row in rows(tmp_path / "ledger.sqlite")] == ["a", "b", "c"]
    assert recorded.lost == []


def test_a_long_batch_lets_other_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the event loop would wait for the interpreter, 5 ms at a time, while a batch is read."""
    paused: list[int] = []
    recorded = Recorded()
    monkeypatch.setattr("extproc.accounting.ledger.time.sleep", lambda _: paused.append(len(recorded.ended)))
    recorded.ledger.offer(b"faq " * 10)
    recorded.ledger.close()
    assert (paused, len(recorded.ended)) == ([4, 8], 10)


def test_outcomes_are_reported_without_a_store_too() -> None:
    recorded = Recorded()
    recorded.ledger.offer(b"a b")
    recorded.ledger.close()
    assert [o.cohort for o in recorded.ended] == ["a", "b"]


class Failing:
    """A store whose calls fail with the given errors, one for each call."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = list(failures)
        self.kept = 0

    def open(self) -> None:
        raise OSError("disk I/O error")

    def add(self, rows: Any) -> None:
        failure = self.failures.pop(0)
        if failure is not None:
            raise failure
        self.kept += len(rows)

    def close(self) -> None: ...


def test_a_failing_store_loses_outcomes_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged again after the store has worked. The metrics have all outcomes."""
    full = OSError("database or disk is full")
    store = Failing(full, OSError(28, "No space left on device"), None, full)
    recorded = Recorded(store)
    with caplog.at_level(logging.WARNING, "extproc.accounting.ledger"):
        for _ in range(4):
            recorded.ledger.offer(b"a b")
        recorded.ledger.close()
    assert (len(recorded.ended), recorded.lost, store.kept) == (8, [2, 2, 2], 2)
    assert [record.getMessage() for record in caplog.records] == [
        "dropping ledger outcomes (traffic is not affected): database or disk is full",
        "the ledger stores outcomes again",
        "dropping ledger outcomes (traffic is not affected): database or disk is full",
    ]


def test_a_file_that_stays_locked_costs_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the thread of the ledger waits for the other writer."""
    monkeypatch.setattr("extproc.accounting.sqlite.LOCK_S", 0.05)
    path = tmp_path / "ledger.sqlite"
    recorded = Recorded(Store(path, 30))
    recorded.ledger.offer(b"a")
    until(lambda: recorded.ended)
    recorded.ledger.offer(b"a")
    until(lambda: len(recorded.ended) == 2)  # so the first is kept, and the second soon
    until(lambda: len(rows(path)) == 2)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    recorded.ledger.offer(b"b c")
    recorded.ledger.close()
    holder.rollback()
    holder.close()
    assert recorded.lost == [2]
    assert [row["cohort"] for row in rows(path)] == ["a", "a"]


def test_a_full_disk_costs_outcomes_and_nothing_else(small_disk: Path) -> None:
    """Earlier rows stay, and outcomes are stored again as soon as there is room."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 736 * 1024)
    path = small_disk / "ledger.sqlite"
    recorded = Recorded(Store(path, 30))
    for i in range(50):
        recorded.ledger.offer(b"full " * 20)
        until(partial(lambda i: len(recorded.ended) == (i + 1) * 20, i))
    ballast.unlink()
    recorded.ledger.offer(b"room")
    recorded.ledger.close()
    kept = [row["cohort"] for row in rows(path)]
    assert 0 < sum(recorded.lost) < 1000
    assert kept == ["full"] * (1000 - sum(recorded.lost)) + ["room"]


def test_a_slow_store_fills_the_queue_and_nothing_else() -> None:
    """If the queue is full, `offer` drops and counts the batch immediately. It never waits."""
    go = threading.Event()

    class Slow(Failing):
        def add(self, rows: Any) -> None:
            go.wait(60)

    recorded = Recorded(Slow())
    recorded.ledger.offer(b"taken")
    until(lambda: recorded.ended)  # the thread has taken it and waits for the store
    for _ in range(_QUEUED_BATCHES):
        recorded.ledger.offer(b"waits")
    recorded.ledger.offer(b"one too many")
    assert recorded.lost == [3]
    go.set()
    recorded.ledger.close()
    assert len(recorded.ended) == 1 + _QUEUED_BATCHES


def test_a_missing_folder_is_a_mistake_of_the_operator(tmp_path: Path) -> None:
    """It is reported before anything is served."""
    (tmp_path / "notes").write_text("not a database, although it is long enough")
    for place in (tmp_path, tmp_path / "notes"):
        with pytest.raises(
            OSError, match=r"cannot write a ledger to .*: it is something else, so give another name$"
        ):
            Store(place, 90)
    with pytest.raises(OSError, match=r"cannot write a ledger to .*ledger.sqlite: create the folder .*nowhere$"):
        Store(tmp_path / "nowhere" / "ledger.sqlite", 30)
    with pytest.raises(
        OSError, match=r"the ledger .* is a folder, and a file is expected: add the name of the file$"
    ):
        read_report(tmp_path, 60)
    other = "a ledger is a file or a Postgres database, not mysql: write a path, or postgresql://HOST/DATABASE"
    for open_it in (lambda: Store("mysql://host/x", 30), lambda: read_report("mysql://host/x", 60)):
        with pytest.raises(OSError, match=f"^{other}$"):
            open_it()


def test_a_file_that_is_not_a_ledger_of_this_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 9")
    other.close()
    with pytest.raises(OSError, match="has ledger version 9, but version 5 is needed: move the file away"):
        Store(path, 30).open()
    with pytest.raises(OSError, match=r"no ledger at .*none: `extproc serve --ledger .*none` creates one"):
        connect(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(OSError, match="is not a ledger: give a file that `extproc serve --ledger` has written"):
        connect(tmp_path / "empty")
    (tmp_path / "text").write_text("{}" * 100)
    with pytest.raises(
        OSError, match=r"text is not a ledger: give a file that `extproc serve --ledger` has written"
    ):
        connect(tmp_path / "text")


SECOND = Explored("explore-1", 1e9, "large", 0.1, 200, False, "refusal", Usage(9, 2), 0.75, 1.25)


def test_the_answer_of_a_second_tier_is_kept_beside_its_request(tmp_path: Path) -> None:
    """It is joined by its id. The exchange that Envoy logged for it is no request of a client."""
    recorded = Recorded(store := Store(tmp_path / "ledger.sqlite", 1e6))
    store.add([(CLIMBED, COST), (outcome(1e9, request="explore-1", tier="large"), Cost(0.75, (), 0.75))])
    recorded.ledger.offer_explored(SECOND)
    recorded.ledger.close()
    [line] = map(msgspec.json.decode, export(tmp_path / "ledger.sqlite", time.time()))
    assert line["request"] == "5-5"
    assert line["chances"] == {"large": 0.1}
    assert line["explored"] == {
        "tier": "large", "propensity": 0.1, "status": 200, "reason": "refusal", "cost": 0.75, "duration_s": 1.25,
        "accepted": False, "tokens": {"input": 9, "output": 2, "cached": None},
    }  # fmt: skip
    report = read_report(tmp_path / "ledger.sqlite", time.time())
    assert (report.total.requests, report.total.cost) == (1, 0.75), "of the request and its rejected answer"
    assert report.explored == ExploredSums(requests=1, accepted=0, rejected=1, cost=0.75)


def test_second_answers_and_signals_that_are_too_old_are_deleted(tmp_path: Path) -> None:
    store, now = Store(tmp_path / "ledger.sqlite", 30), time.time()
    store.add_explored(SECOND)
    for days in (29, 31):
        store.add_signal(AnswerSignal(f"r-{days}", Signal.FEEDBACK, "a1", now - days * 86400, 1.0))
    store.add([(outcome(), FREE)])
    store.close()
    assert rows(tmp_path / "ledger.sqlite", "explorations") == []
    assert [row["request"] for row in rows(tmp_path / "ledger.sqlite", "signals")] == ["r-29"]


@pytest.mark.parametrize(
    ("chances", "second", "expected"),
    [
        ({"large": 0.1}, None, {"small": {"success": True}, "large": {"propensity": 0.1}}),
        ({"large": 0.1}, (True, 2.0), {"small": {"success": True}, "large": {"success": True, "propensity": 0.1}}),
        ({"large": 0.1}, (None, 2.0), {"small": {"success": True}, "large": {"propensity": 0.1}}),
        # The rules judged this answer on its way to the client, so it was certain to be recorded.
        ({"small": 0.1}, (False, 2.0), {"small": {"success": True}}),
        (None, None, {"small": {"success": True}}),
    ],
)
def test_exported_traffic_has_both_tiers_with_their_chances(
    chances: dict[str, float] | None, second: tuple[bool | None, float] | None, expected: dict[str, Any]
) -> None:
    """A chance alone says that the tier could have been drawn."""
    nothing = {"input": None, "output": None, "cached": None}
    answer = {"tier": "small", "accepted": True, "cost": None, "tokens": nothing}
    explored = None
    if second is not None:
        [tier] = chances or {}
        accepted, duration_s = second
        explored = {"tier": tier, "accepted": accepted, "tokens": nothing, "duration_s": duration_s}
    row = {
        "request": "5-5", "ending": "accepted", "session": None, "time": 0.0, "duration_s": 1.0,
        "answers": [answer], "chances": chances, "explored": explored,
    }  # fmt: skip
    [line] = as_traffic([msgspec.json.encode(row)], {"5-5": {"text": "Why?"}}, JoinCounts())
    outcomes = msgspec.json.decode(line)["outcomes"]
    for each in outcomes.values():
        each.pop("latency_s", None)
    assert outcomes == expected


@pytest.mark.parametrize(
    ("app", "request_row", "source"),
    [("shop", {}, "shop"), ("shop", {"source": "mobile"}, "mobile"), (None, {}, None)],
)
def test_the_app_that_sent_a_request_is_the_source_of_its_row(
    app: str | None, request_row: dict[str, str], source: str | None
) -> None:
    """A source that the kept request names stays. Without an app no source is known."""
    row: dict[str, Any] = {
        "request": "5-5", "ending": "accepted", "session": None, "time": 0.0, "duration_s": 1.0, "answers": [
            {"tier": None, "accepted": None, "cost": None, "tokens": {}}
        ], "chances": None, "explored": None, "app": app,
    }  # fmt: skip
    [line] = as_traffic([msgspec.json.encode(row)], {"5-5": {"text": "Why?"} | request_row}, JoinCounts())
    assert msgspec.json.decode(line).get("source") == source


def test_a_hit_of_the_cache_is_reported_and_is_no_evidence(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    store = Store(path, 1e6)
    hit = outcome(attempts=0, cohort="faq", cache="semantic", unjudged="cached", request="5-5", reused=Usage(9, 4))
    store.add([(hit, Cost(0.0, (), 0.5, 0.25)), (outcome(cohort="faq", cache="checked"), FREE)])
    store.close()
    report = read_report(path, DAY_S)
    assert report.cached == CacheSums(hits=1, semantic=1, saved=0.25)
    assert (report.total.cost, report.total.saving, report.total.unknown) == (0.0, 0.5, 1)
    assert "cache: 1 hits (50.0 % of the requests), 1 of them of other words; $0.2500 saved" in text_of(report)
    lines = [msgspec.json.decode(line) for line in export(path, DAY_S)]
    [line] = [line for line in lines if line["cache"] == "semantic"]
    assert line["answers"] == []
    [traffic] = as_traffic([msgspec.json.encode(line)], {"5-5": {"text": "Why?"}}, JoinCounts())
    assert msgspec.json.decode(traffic)["outcomes"] == {}


def test_a_ledger_of_the_version_before_gets_the_new_column(tmp_path: Path) -> None:
    """Its rows stay, and a reader may come before the first writer. Several workers may migrate it."""
    path = tmp_path / "ledger.sqlite"
    store = Store(path, 1e6)
    store.add([(CLIMBED, COST)])
    store.close()
    older = sqlite3.connect(path)
    for column in ("conversation", "unjudged", "decision", "chances", "explored", "cache", "saved", "app", "team"):
        older.execute(f"ALTER TABLE outcomes DROP COLUMN {column}")
    older.execute("ALTER TABLE rejections DROP COLUMN time")
    older.execute("DROP TABLE explorations")
    older.execute("DROP TABLE signals")
    older.execute("PRAGMA user_version = 2")
    older.commit()
    older.close()
    [line] = export(path, time.time())
    assert msgspec.json.decode(line)["conversation"] is None
    report = read_report(path, time.time())
    assert report.explored == ExploredSums() and report.total.signals.is_empty
    threads = [threading.Thread(target=Store(path, 1e6).open) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.add([(CLIMBED, COST)])
    store.close()
    assert [row["conversation"] for row in rows(path)] == [None, "moved"]
    assert [msgspec.json.decode(line)["conversation"] for line in export(path, time.time())] == [None, "moved"]


def test_a_stream_of_logs_ends_when_the_server_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Envoy never ends the stream. Without `drain`, a stop would take the whole grace time."""
    monkeypatch.setattr("extproc.accounting.ledger._LAST_BATCH_S", 0.01)
    recorded = Recorded()

    async def play() -> bytes:
        streams = LogStreams(recorded.ledger)

        async def endless() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"
            await asyncio.Event().wait()

        taking = asyncio.create_task(streams.take(endless(), None))
        await asyncio.sleep(0)
        await streams.drain()
        return await asyncio.wait_for(taking, 60)

    assert asyncio.run(play()) == b""
    recorded.ledger.close()
    assert [o.cohort for o in recorded.ended] == ["a", "b"]


def test_old_outcomes_are_deleted_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No statement takes longer than the timeout, and no outcome waits for the deletion."""
    monkeypatch.setattr("extproc.accounting.store._PRUNED_ROWS", 2)
    store = Store(tmp_path / "ledger.sqlite", 30)
    store.add([(outcome(1e9), FREE)] * 3 + [(outcome(time.time()), FREE)])
    assert [row["id"] for row in rows(tmp_path / "ledger.sqlite")] == [3, 4]
    store.add([(outcome(time.time()), FREE)])
    assert [row["id"] for row in rows(tmp_path / "ledger.sqlite")] == [4, 5]
    store.close()
