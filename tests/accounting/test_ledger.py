"""The ledger keeps what it can, loses what it must, and traffic never waits for either."""

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

import pytest

from extproc.accounting.ledger import _WAITING, Ledger, LogStreams
from extproc.accounting.outcome import Cost, Outcome, Rejection
from extproc.accounting.store import Store, connect
from extproc.api.observation import Usage

DAY_S = 86400.0


def outcome(at: float | None = None, **what: Any) -> Outcome:
    plain: dict[str, Any] = {
        "ending": "accepted",
        "status": 200,
        "attempts": 1,
        "reason": "matched",
        "tier": "small",
    }
    plain |= {"time": time.time() if at is None else at, "api": "chat"}
    return Outcome(**plain | what)


CLIMBED = outcome(
    1e9, attempts=2, tier="large", cohort="faq", judged=False, usage=Usage(10, 4, 3), usage_from="envoy",
    rejections=(Rejection(1, "small", "refusal", Usage(9, 2)),), principal="p", session="s", revision="r1",
    mode="enforce", duration_s=1.5, first_byte_s=0.5, request="5-5",
)  # fmt: skip
COST = Cost(0.5, (0.25,), 0.5)
FREE = Cost(None, (), None)


def rows(place: Path | str, table: str = "outcomes") -> list[dict[str, Any]]:
    with contextlib.closing(connect(place)) as ledger:
        return [dict(row) for row in ledger.select(f"SELECT * FROM {table} ORDER BY 1")]


def until(look: Callable[[], object]) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + 10
    while not look():
        assert time.monotonic() < deadline


class Told:
    """A ledger with a store, and what it said."""

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
    """Every fact in its column, and each rejected answer in a row of its own."""
    store = Store(tmp_path / "ledger.sqlite", 1e6)
    store.add([(CLIMBED, COST)])
    store.close()
    assert rows(tmp_path / "ledger.sqlite") == [
        {
            "id": 1, "time": 1e9, "api": "chat", "ending": "accepted", "status": 200, "attempts": 2,
            "failed_attempts": 0, "reason": "matched", "judged": 0, "cohort": "faq", "tier": "large",
            "principal": "p", "session": "s", "revision": "r1", "mode": "enforce", "duration_s": 1.5,
            "first_byte_s": 0.5, "input": 10, "output": 4, "cached": 3, "usage_from": "envoy", "cost": 0.5,
            "default_cost": 0.5, "request": "5-5",
        }
    ]  # fmt: skip
    assert rows(tmp_path / "ledger.sqlite", "rejections") == [
        {
            "outcome": 1, "attempt": 1, "tier": "small", "reason": "refusal", "input": 9, "output": 2,
            "cached": None, "cost": 0.25,
        }
    ]  # fmt: skip


def test_what_is_too_old_goes_with_all_that_hangs_on_it(tmp_path: Path) -> None:
    """When the ledger opens, and every hour after."""
    store = Store(tmp_path / "ledger.sqlite", 30)
    store.add([(CLIMBED, COST), (outcome(time.time() - 29 * DAY_S), FREE)])
    store.close()
    assert [row["id"] for row in rows(tmp_path / "ledger.sqlite")] == [2]
    assert rows(tmp_path / "ledger.sqlite", "rejections") == []


def test_several_processes_keep_one_file(tmp_path: Path) -> None:
    """Each through a connection of its own: none waits long, nothing is lost."""
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


def test_batches_are_told_and_kept(tmp_path: Path) -> None:
    """One that cannot be read is logged, and the next is read."""
    told = Told(Store(tmp_path / "ledger.sqlite", 30))
    for batch in (b"a b", b"broken", b"", b"c"):
        told.ledger.offer(batch)
    told.ledger.close()
    assert [o.cohort for o in told.ended] == ["a", "b", "c"]
    assert [row["cohort"] for row in rows(tmp_path / "ledger.sqlite")] == ["a", "b", "c"]
    assert told.lost == []


def test_a_long_batch_leaves_others_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop would else wait for the interpreter, 5 ms at a time, while a second of traffic is read."""
    paused: list[int] = []
    told = Told()
    monkeypatch.setattr("extproc.accounting.ledger.time.sleep", lambda _: paused.append(len(told.ended)))
    told.ledger.offer(b"faq " * 10)
    told.ledger.close()
    assert (paused, len(told.ended)) == ([4, 8], 10)


def test_without_a_file_outcomes_are_told_all_the_same() -> None:
    told = Told()
    told.ledger.offer(b"a b")
    told.ledger.close()
    assert [o.cohort for o in told.ended] == ["a", "b"]


class Failing:
    """A store that fails as it is told to."""

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


def test_a_store_that_fails_loses_outcomes_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """Until it works again; the metrics have them all."""
    full = OSError("database or disk is full")
    store = Failing(full, OSError(28, "No space left on device"), None, full)
    told = Told(store)
    with caplog.at_level(logging.WARNING, "extproc.accounting.ledger"):
        for _ in range(4):
            told.ledger.offer(b"a b")
        told.ledger.close()
    assert (len(told.ended), told.lost, store.kept) == (8, [2, 2, 2], 2)
    assert [record.getMessage() for record in caplog.records] == [
        "outcomes are lost to the ledger, traffic is not: database or disk is full",
        "the ledger keeps outcomes again",
        "outcomes are lost to the ledger, traffic is not: database or disk is full",
    ]


def test_a_file_that_another_holds_locked_is_given_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that never ends costs outcomes, and keeps nobody waiting but the ledger's own thread."""
    monkeypatch.setattr("extproc.accounting.store._LOCK_S", 0.05)
    path = tmp_path / "ledger.sqlite"
    told = Told(Store(path, 30))
    told.ledger.offer(b"a")
    until(lambda: told.ended)
    told.ledger.offer(b"a")
    until(lambda: len(told.ended) == 2)  # so the first is kept, and the second soon
    until(lambda: len(rows(path)) == 2)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    told.ledger.offer(b"b c")
    told.ledger.close()
    holder.rollback()
    holder.close()
    assert told.lost == [2]
    assert [row["cohort"] for row in rows(path)] == ["a", "a"]


def test_a_full_disk_loses_outcomes_and_nothing_else(small_disk: Path) -> None:
    """What was kept before stays, and outcomes are kept again as soon as there is room."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 64 * 1024)
    path = small_disk / "ledger.sqlite"
    told = Told(Store(path, 30))
    for i in range(50):
        told.ledger.offer(b"full " * 20)
        until(partial(lambda i: len(told.ended) == (i + 1) * 20, i))
    ballast.unlink()
    told.ledger.offer(b"room")
    told.ledger.close()
    kept = [row["cohort"] for row in rows(path)]
    assert 0 < sum(told.lost) < 1000
    assert kept == ["full"] * (1000 - sum(told.lost)) + ["room"]


def test_a_store_that_is_slow_fills_the_queue_and_no_more() -> None:
    """What finds no room is dropped and counted at once: `offer` never waits."""
    go = threading.Event()

    class Slow(Failing):
        def add(self, rows: Any) -> None:
            go.wait(10)

    told = Told(Slow())
    told.ledger.offer(b"taken")
    until(lambda: told.ended)  # the thread has it, and waits for the store
    for _ in range(_WAITING):
        told.ledger.offer(b"waits")
    told.ledger.offer(b"one too many")
    assert told.lost == [3]
    go.set()
    told.ledger.close()
    assert len(told.ended) == 1 + _WAITING


def test_a_folder_that_is_not_there_is_the_operators_mistake(tmp_path: Path) -> None:
    """Said before anything is served."""
    with pytest.raises(OSError, match=r"no folder .*nowhere to keep the ledger in: create it"):
        Store(tmp_path / "nowhere" / "ledger.sqlite", 30)


def test_a_ledger_of_another_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 9")
    other.close()
    with pytest.raises(OSError, match=r"another version of the ledger \(9\): move it away"):
        Store(path, 30).open()
    with pytest.raises(OSError, match="there is no ledger"):
        connect(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(OSError, match="is no ledger"):
        connect(tmp_path / "empty")


def test_a_stream_of_logs_ends_when_the_server_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Envoy never ends it: without that, a stop would wait for its whole grace."""
    monkeypatch.setattr("extproc.accounting.ledger._LAST_BATCH_S", 0.01)
    told = Told()

    async def play() -> bytes:
        streams = LogStreams(told.ledger)

        async def endless() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"
            await asyncio.Event().wait()

        taking = asyncio.create_task(streams.take(endless(), None))
        await asyncio.sleep(0)
        await streams.drain()
        return await asyncio.wait_for(taking, 5)

    assert asyncio.run(play()) == b""
    told.ledger.close()
    assert [o.cohort for o in told.ended] == ["a", "b"]


def test_what_is_too_old_is_forgotten_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement takes no longer than a store is waited for, and no outcome waits for it."""
    monkeypatch.setattr("extproc.accounting.store._FORGOTTEN", 2)
    store = Store(tmp_path / "ledger.sqlite", 30)
    store.add([(outcome(1e9), FREE)] * 3 + [(outcome(time.time()), FREE)])
    assert [row["id"] for row in rows(tmp_path / "ledger.sqlite")] == [3, 4]
    store.add([(outcome(time.time()), FREE)])
    assert [row["id"] for row in rows(tmp_path / "ledger.sqlite")] == [4, 5]
    store.close()
