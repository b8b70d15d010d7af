"""One Postgres server for all tests of the ledger."""

import os
from collections.abc import Iterator

import pytest

from tests.postgres import Postgres, binaries


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
    server.do("DROP TABLE IF EXISTS rejections, outcomes, explorations")
    return server
