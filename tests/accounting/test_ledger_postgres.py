"""A ledger in a real Postgres equals one in a file. A slow or stopped server never affects traffic."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from extproc.accounting.export import export
from extproc.accounting.ledger import Ledger
from extproc.accounting.outcome import Cost, Ending, Explored, Outcome, Rejection
from extproc.accounting.report import read_report
from extproc.accounting.store import Store, connect, name_of
from extproc.api.observation import Usage
from extproc.demo.processes import end, free_ports

FREE = Cost(None, (), None)


class Postgres:
    """A server on its own port. Postgres refuses to run as root, so then it runs as another user."""

    def __init__(self, binaries: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ledger-"))
        self._as: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        (self._port,) = free_ports(1)
        self._server = str(binaries / "postgres")
        self.url = f"postgresql://router:secret@127.0.0.1:{self._port}/postgres"
        made = [str(binaries / "initdb"), "-D", "data", "-U", "router", "-A", "trust", "--no-sync"]
        subprocess.run([*self._as, *made], cwd=self._folder, stdout=subprocess.DEVNULL, check=True)

    def start(self) -> None:
        """Start the server, and return when it answers."""
        options = ["-D", "data", "-p", str(self._port), "-h", "127.0.0.1", "-k", str(self._folder), "-F"]
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*self._as, self._server, *options], cwd=self._folder, stderr=log)
        until(self._answers, 60)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """End the server and its processes immediately."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    def remove(self) -> None:
        end(self.process)
        shutil.rmtree(self._folder)

    def do(self, command: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(command)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), *map(Path, os.get_exec_path())]
    binaries = next((place for place in places if (place / "initdb").exists()), None)
    if binaries is None:
        assert "CI" not in os.environ, "CI must run these tests"
        pytest.skip("there is no Postgres on this machine: apt-get install postgresql")
    postgres = Postgres(binaries)
    try:
        postgres.start()
        yield postgres
    finally:
        postgres.remove()


@pytest.fixture
def postgres(server: Postgres) -> Postgres:
    """The server, without a ledger."""
    server.do("DROP TABLE IF EXISTS rejections, outcomes")
    return server


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


def test_a_ledger_of_the_version_before_gets_the_new_column(postgres: Postgres) -> None:
    """Its rows stay. A reader may come first, and several routers may migrate it."""
    Store(postgres.url, 1e6).add(outcomes())
    postgres.do(
        "ALTER TABLE outcomes DROP COLUMN conversation, DROP COLUMN unjudged, DROP COLUMN decision, "
        "DROP COLUMN chances, DROP COLUMN explored, DROP COLUMN app, DROP COLUMN team; "
        "DROP TABLE explorations; COMMENT ON TABLE outcomes IS 'extproc ledger 2'"
    )
    assert read_report(postgres.url, 3600).total.requests == 3
    threads = [threading.Thread(target=Store(postgres.url, 1e6).open) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Store(postgres.url, 1e6).add(outcomes())
    Store(postgres.url, 1e6).add_explored(Explored("explore-1", time.time(), "large", 0.1, 200, True))
    report = read_report(postgres.url, 3600)
    assert (report.total.requests, report.explored.accepted) == (6, 1)
    assert {msgspec.json.decode(line)["conversation"] for line in export(postgres.url, time.time())} == {None}


def test_a_missing_driver_is_reported_before_anything_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(OSError, match=r"pip install 'envoy-semantic-router\[postgres\]'"):
        Store("postgresql://127.0.0.1/none", 30)
