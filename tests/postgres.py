"""A real Postgres server, for tests and benchmarks."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from extproc.demo.processes import end, free_ports


def binaries() -> Path | None:
    """The folder of the server's programs. None: there is no Postgres on this machine."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), *map(Path, os.get_exec_path())]
    return next((place for place in places if (place / "initdb").exists()), None)


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

    def start(self, *more: str, fsync: bool = False) -> None:
        """Start the server, and return when it answers. Tests need no `fsync`, so that they are fast.

        Autovacuum locks a table for a moment, at any time. Then a round of maintenance adds up nothing new.
        """
        options = ["-D", "data", "-p", str(self._port), "-h", "127.0.0.1", "-k", str(self._folder), *more]
        options += ["-c", "autovacuum=off"]
        options += [] if fsync else ["-F"]
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*self._as, self._server, *options], cwd=self._folder, stderr=log)
        _wait_for(self._answers)

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

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(query).fetchall()


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    folder = binaries()
    if folder is None:
        assert "CI" not in os.environ, "CI must run these tests"
        pytest.skip("there is no Postgres on this machine: apt-get install postgresql")
    postgres = Postgres(folder)
    try:
        postgres.start()
        yield postgres
    finally:
        postgres.remove()


@pytest.fixture
def postgres(server: Postgres) -> Postgres:
    """The server, without a ledger."""
    server.do("DROP SCHEMA public CASCADE; CREATE SCHEMA public; DROP SCHEMA IF EXISTS ours CASCADE")
    return server


def _wait_for(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.02)
