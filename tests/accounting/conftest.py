"""One Postgres server for all tests of the ledger."""

from tests.postgres import postgres, server

__all__ = ["postgres", "server"]
