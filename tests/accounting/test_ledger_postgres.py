"""A ledger in a real Postgres is what it is in a file; and its server, slow or gone, is nobody's trouble."""

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
from extproc.accounting.outcome import Cost, Ending, Outcome, Rejection
from extproc.accounting.report import read_report
from extproc.accounting.store import Store, connect, name_of
from extproc.api.observation import Usage
from extproc.demo.processes import end, free_ports

FREE = Cost(None, (), None)


class Postgres:
    """A server on a port of its own. It refuses to be run by root; another user does it then."""

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
        """Run it, and return when it answers."""
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
        """Gone at once, its workers with it."""
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
        assert "CI" not in os.environ, "nothing is skipped there"
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
    """Some of every kind, one with two rejections, one that is too old to be kept."""
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


def test_postgres_tells_what_a_file_tells(postgres: Postgres, tmp_path: Path) -> None:
    """The same rows, the same report by whatever is asked for, the same export; the old ones gone from both."""
    places: tuple[Path | str, ...] = (tmp_path / "ledger.sqlite", postgres.url)
    found = outcomes()
    for place in places:
        store = Store(place, 30)
        store.add(found[:2])
        store.add(found[2:])
        store.close()
        Store(place, 30).add([])  # opened anew, it is there; and prunes
    kept = [[dict(r) for r in connect(place).select("SELECT * FROM outcomes ORDER BY id")] for place in places]
    assert [row["time"] for row in kept[0]] == [outcome.time for outcome, _ in found[:3]]
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


def test_several_routers_make_and_fill_one_ledger(postgres: Postgres) -> None:
    """Whoever comes second finds the tables that the first has made."""

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


class Kept:
    """A ledger in Postgres, and what it said."""

    def __init__(self, url: str) -> None:
        self.ended = 0
        self.lost: list[int] = []
        made = Outcome(time.time(), "chat", Ending.ACCEPTED, 200, 1, "matched")
        self.ledger = Ledger(lambda _: [made], lambda _: FREE, self._tell, self.lost.append, Store(url, 30))

    def _tell(self, *_: Any) -> None:
        self.ended += 1


def test_a_server_that_dies_costs_what_came_meanwhile(postgres: Postgres) -> None:
    """It is counted; and the ledger goes on where the server comes back, with nobody's help."""
    kept = Kept(postgres.url)
    kept.ledger.offer(b"before")
    until(lambda: kept.ended == 1)
    until(lambda: len(list(connect(postgres.url).select("SELECT id FROM outcomes"))) == 1)
    postgres.kill()
    kept.ledger.offer(b"meanwhile")
    until(lambda: kept.lost == [1])
    postgres.start()
    kept.ledger.offer(b"after")
    kept.ledger.close()
    assert (kept.ended, kept.lost) == (3, [1])
    assert read_report(postgres.url, 3600).total.requests == 2


def test_a_server_that_hangs_keeps_nobody_waiting(postgres: Postgres) -> None:
    """A lock that is never released: the statement is given up on, and what comes next is kept."""
    kept = Kept(postgres.url)
    kept.ledger.offer(b"before")
    until(lambda: kept.ended == 1)
    with psycopg.connect(postgres.url) as holder:
        until(lambda: holder.execute("SELECT count(*) FROM outcomes").fetchone() == (1,))
        holder.execute("LOCK TABLE outcomes")
        kept.ledger.offer(b"meanwhile")
        until(lambda: kept.lost == [1])
    kept.ledger.offer(b"after")
    kept.ledger.close()
    assert read_report(postgres.url, 3600).total.requests == 2


def test_a_table_of_somebody_else_is_left_alone(postgres: Postgres) -> None:
    """The message says where the ledger could live instead, and that place works."""
    with pytest.raises(OSError, match="there is no ledger in postgresql://127"):
        connect(postgres.url)
    postgres.do("CREATE TABLE outcomes (theirs TEXT); CREATE SCHEMA IF NOT EXISTS ours")
    with pytest.raises(OSError, match="give the ledger a schema of its own, by") as told:
        Store(postgres.url, 30).open()
    assert "secret" not in str(told.value)
    elsewhere = f"{postgres.url}?options=-csearch_path%3Dours"
    Store(elsewhere, 30).add(outcomes())
    assert read_report(elsewhere, 3600).total.requests == 3


def test_the_driver_that_is_missing_is_named_before_anything_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(OSError, match=r"pip install 'envoy-semantic-router\[postgres\]'"):
        Store("postgresql://127.0.0.1/none", 30)
