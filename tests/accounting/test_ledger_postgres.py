"""A ledger in a real Postgres equals one in a file. A slow or stopped server never affects traffic."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from extproc.accounting.export import export
from extproc.accounting.feedback import AnsweredRequest, find_answer
from extproc.accounting.ledger import Ledger
from extproc.accounting.outcome import Cost, Ending, Explored, Outcome, Rejection
from extproc.accounting.report import SignalSums, read_report
from extproc.accounting.rollout import Comparison, RolloutReader, add_signals
from extproc.accounting.signals import AnswerSignal
from extproc.accounting.store import Store, connect, name_of
from extproc.api.observation import Usage
from extproc.contract.words import Signal
from extproc.evidence.measure.drift import read_drift
from tests.postgres import Postgres

FREE = Cost(None, (), None)


def until(look: Callable[[], object], within_s: float = 30) -> None:
    """Wait for another thread or process."""
    deadline = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def outcomes() -> list[tuple[Outcome, Cost]]:
    """Outcomes of several kinds: one has two rejections, and one is too old to be kept."""
    now = time.time()
    climbed = Outcome(
        now - 60, "chat", Ending.ACCEPTED, 200, 3, "matched", False, "faq", "frontier", usage=Usage(10, 4, 3),
        rejections=(Rejection(1, "small", "refusal", Usage(9, 2)), Rejection(2, "large", "empty")),
        usage_from="envoy", principal="p", session="s", revision="r1", mode="enforce", duration_s=1.5,
        first_byte_s=0.5,
    )  # fmt: skip
    plain = Outcome(
        now - 50,
        "chat",
        Ending.ACCEPTED,
        200,
        1,
        "matched",
        True,
        "faq",
        "small",
        usage=Usage(7, 1),
        first_byte_s=0.25,
    )
    failed = Outcome(now - 40, "messages", Ending.FAILED, 503, 2, "fail_open")
    old = Outcome(now - 40 * 86400, "chat", Ending.ACCEPTED, 200, 1, "matched")
    return [(climbed, Cost(0.5, (0.25, None), 0.75)), (plain, Cost(0.125, (), 0.25)), (failed, FREE), (old, FREE)]


def test_postgres_and_a_file_hold_the_same(postgres: Postgres, tmp_path: Path) -> None:
    """The same rows, reports and export. Both have deleted the old outcome."""
    places: tuple[Path | str, ...] = (tmp_path / "ledger.sqlite", postgres.url)
    written = outcomes()
    for place in places:
        store = Store(place, 30)
        store.add(written[:2])
        store.add(written[2:])
        store.close()
        Store(place, 30).add([])  # opens the existing ledger, and deletes old rows
    kept = [[dict(r) for r in connect(place).select("SELECT * FROM outcomes ORDER BY id")] for place in places]
    assert [row["time"] for row in kept[0]] == [outcome.time for outcome, _ in written[:3]]
    assert kept[0] == kept[1]
    for by in ("cohort", "tier", "principal"):
        file, tables = (read_report(place, 3600, by) for place in places)  # type: ignore[arg-type]
        assert (file.total, file.groups) == (tables.total, tables.groups)
        assert (file.total.requests, file.total.escalated, file.total.cost) == (3, 1, 0.875)
    file_lines, table_lines = ([msgspec.json.decode(line) for line in export(p, 3600)] for p in places)
    assert file_lines == table_lines
    assert [len(line["answers"]) for line in table_lines] == [3, 1, 1]


def test_signals_are_read_alike_from_postgres_and_a_file(postgres: Postgres, tmp_path: Path) -> None:
    """By the report, by the comparison of a candidate and by drift. A later rating replaces the first."""
    read: list[object] = []
    decision = '{"cohort":"faq","margin":0.1,"similarity":0.5,"stream":true}'
    for place in (tmp_path / "ledger.sqlite", postgres.url):
        store = Store(place, 30)
        arms = [
            Outcome(
                time.time(), "chat", Ending.CANCELLED if i == 5 else Ending.ACCEPTED, 200, 1, "matched",
                cohort="faq", tier="small", principal="p", request=f"r-{i}",
                revision="candidate-1" if i % 2 else "v1", decision=decision,
            )
            for i in range(1, 6)
        ]  # fmt: skip
        store.add([(outcome, Cost(0.1, (), 0.1)) for outcome in arms])
        for score in (1.0, 0.25):
            store.add_signal(AnswerSignal("r-1", Signal.FEEDBACK, "p", 1.0, score, "billing"))
        store.add_signal(AnswerSignal("r-2", Signal.RE_ASKED, "p", 1.0))
        store.add_signal(AnswerSignal("r-3", Signal.RE_ASKED, "other", 1.0))
        store.close()
        comparison = RolloutReader(place, Comparison("candidate-1", 0.02, ("faq",))).read()
        add_signals(place, comparison)
        group = comparison.groups["faq"]
        read.append(
            (
                read_report(place, 3600).total.signals,
                [(arm.requests, arm.re_asked) for arm in (group.candidate, group.serving)],
                find_answer(place, "r-1"),
                read_drift(place).rows,
            )
        )
    sums = SignalSums(re_asked=1, abandoned=1, rated=1, rating=0.25, labelled=1)
    assert read == [(sums, [(3, 0), (2, 1)], AnsweredRequest("p", "faq", "small"), (0, 2))] * 2


def test_the_commands_take_a_url_and_print_no_password(postgres: Postgres) -> None:
    Store(postgres.url, 30).add(outcomes())
    command = [sys.executable, "-m", "extproc", "report", "--ledger", postgres.url, "--since", "1h"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(name_of(postgres.url)) and "faq" in done.stdout
    assert "secret" not in done.stdout and "@" not in done.stdout


def test_several_routers_create_and_fill_one_ledger(postgres: Postgres) -> None:
    """The first router creates the tables, and the others find them."""

    def work() -> None:
        store = Store(postgres.url, 30)
        for _ in range(5):
            store.add(outcomes()[:2])
        store.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = read_report(postgres.url, 3600).total
    assert (total.requests, total.escalated, total.attempts) == (40, 20, 80)


class Recorded:
    """A ledger in Postgres, and the outcomes and losses that it reported."""

    def __init__(self, url: str) -> None:
        self.ended = 0
        self.lost: list[int] = []
        made = Outcome(time.time(), "chat", Ending.ACCEPTED, 200, 1, "matched")
        self.ledger = Ledger(lambda _: [made], lambda _: FREE, self._report, self.lost.append, Store(url, 30))

    def _report(self, *_: Any) -> None:
        self.ended += 1


def test_a_stopped_server_costs_only_the_outcomes_of_that_time(postgres: Postgres) -> None:
    """They are counted, and the ledger continues by itself when the server is back."""
    recorded = Recorded(postgres.url)
    recorded.ledger.offer(b"before")
    until(lambda: recorded.ended == 1)
    until(lambda: len(list(connect(postgres.url).select("SELECT id FROM outcomes"))) == 1)
    postgres.kill()
    recorded.ledger.offer(b"meanwhile")
    until(lambda: recorded.lost == [1])
    postgres.start()
    recorded.ledger.offer(b"after")
    recorded.ledger.close()
    assert (recorded.ended, recorded.lost) == (3, [1])
    assert read_report(postgres.url, 3600).total.requests == 2


def test_a_statement_that_hangs_is_given_up(postgres: Postgres) -> None:
    """It waits for a lock that is never released. The next outcomes are stored."""
    recorded = Recorded(postgres.url)
    recorded.ledger.offer(b"before")
    until(lambda: recorded.ended == 1)
    with psycopg.connect(postgres.url) as holder:
        until(lambda: holder.execute("SELECT count(*) FROM outcomes").fetchone() == (1,))
        holder.execute("LOCK TABLE outcomes")
        recorded.ledger.offer(b"meanwhile")
        until(lambda: recorded.lost == [1])
    recorded.ledger.offer(b"after")
    recorded.ledger.close()
    assert read_report(postgres.url, 3600).total.requests == 2


def test_a_table_of_another_program_is_left_alone(postgres: Postgres) -> None:
    """The error suggests another schema for the ledger, and that schema works."""
    with pytest.raises(OSError, match=r"no ledger in postgresql://127.*: `extproc serve --ledger` creates one"):
        connect(postgres.url)
    postgres.do("CREATE TABLE outcomes (theirs TEXT); CREATE SCHEMA IF NOT EXISTS ours")
    with pytest.raises(OSError, match="use another schema for the ledger, with") as refused:
        Store(postgres.url, 30).open()
    assert "secret" not in str(refused.value)
    elsewhere = f"{postgres.url}?options=-csearch_path%3Dours"
    Store(elsewhere, 30).add(outcomes())
    assert read_report(elsewhere, 3600).total.requests == 3


# The tables as version 2 made them.
VERSION_2 = """
CREATE TABLE outcomes (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, time DOUBLE PRECISION NOT NULL, api TEXT NOT NULL,
  ending TEXT NOT NULL, status INTEGER NOT NULL, attempts INTEGER NOT NULL, failed_attempts INTEGER NOT NULL,
  reason TEXT NOT NULL, judged INTEGER NOT NULL, cohort TEXT, tier TEXT, principal TEXT, session TEXT,
  revision TEXT, mode TEXT, duration_s DOUBLE PRECISION, first_byte_s DOUBLE PRECISION, input INTEGER,
  output INTEGER, cached INTEGER, usage_from TEXT, cost DOUBLE PRECISION, default_cost DOUBLE PRECISION,
  request TEXT
);
CREATE INDEX outcomes_time ON outcomes (time);
CREATE TABLE rejections (
  outcome BIGINT NOT NULL REFERENCES outcomes (id) ON DELETE CASCADE, attempt INTEGER NOT NULL, tier TEXT,
  reason TEXT NOT NULL, input INTEGER, output INTEGER, cached INTEGER, cost DOUBLE PRECISION
);
CREATE INDEX rejections_outcome ON rejections (outcome);
COMMENT ON TABLE outcomes IS 'extproc ledger 2';
INSERT INTO outcomes (time, api, ending, status, attempts, failed_attempts, reason, judged, cohort, tier, cost,
  default_cost, first_byte_s, request)
SELECT extract(epoch FROM now()) - 10 * i, 'chat', 'accepted', 200, 1 + i % 2, 0, 'matched', 1, 'faq', 'small',
  0.25, 0.5, i / 64.0, 'request-' || i FROM generate_series(1, 300) i;
INSERT INTO rejections SELECT id, 1, 'small', 'refusal', 9, 2, NULL, 0.125 FROM outcomes WHERE attempts = 2;
"""


def test_a_ledger_of_an_older_version_is_brought_up_to_date(postgres: Postgres) -> None:
    """Its rows stay. A reader may come first, and several routers may migrate it."""
    postgres.do(VERSION_2)
    assert read_report(postgres.url, 7200).total.requests == 300
    threads = [threading.Thread(target=Store(postgres.url, 1e6).open) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Store(postgres.url, 1e6).add(outcomes()[:3])
    Store(postgres.url, 1e6).add_explored(Explored("explore-1", time.time(), "large", 0.1, 200, True))
    report = read_report(postgres.url, 7200)
    assert (report.total.requests, report.total.escalated, report.explored.accepted) == (303, 151, 1)
    assert {msgspec.json.decode(line)["conversation"] for line in export(postgres.url, 7200)} == {None}


def test_a_missing_driver_is_reported_before_anything_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(OSError, match=r"pip install 'envoy-semantic-router\[postgres\]'"):
        Store("postgresql://127.0.0.1/none", 30)
