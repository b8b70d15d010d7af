"""Fixtures of the tests of routing."""

from collections.abc import Iterator

import pytest

from tests.redis_server import Redis


@pytest.fixture
def redis() -> Iterator[Redis]:
    server = Redis()
    yield server
    server.stop()
