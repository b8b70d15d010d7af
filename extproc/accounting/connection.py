"""The connection to a ledger of either kind, and its errors."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from extproc.accounting.inserts import Statement

# Timeout for another writer's lock, for a connection and for each statement. Batches queue during that time.
LOCK_S = 2.0

Row = Mapping[str, Any]


class Connection(Protocol):
    """An open ledger, for one thread at a time. Every failure is an OSError, with a remedy if there is one."""

    last: str  # SQL for the id of the last inserted outcome
    lateral: str  # the word for a join that sees the row before it, if there is one
    chunk: int  # how many outcomes one transaction adds to the hourly sums

    def write(self, statements: Sequence[Statement]) -> None:
        """Execute all statements, or none of them."""

    def select(self, query: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        """Yield the rows of a query, without loading them all."""

    def fetch(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query that has few of them, such as sums."""

    def run(self, *statements: str) -> None:
        """Execute statements without values, each in its own transaction if none is open."""

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """All statements in the block take effect, or none of them."""

    def has_column(self, name: str) -> bool:
        """Return whether `outcomes` has this column. A ledger of an older version may lack it."""

    def finds_requests(self) -> bool:
        """Return whether an index finds a request by its id. A ledger of an older version may lack it."""

    def snapshot(self) -> contextlib.AbstractContextManager[None]:
        """Every query in the block sees the ledger at the same time."""

    def settled_id(self) -> int | None:
        """Return an id up to which no outcome can be added any more. None: it is not known now, ask again."""

    def rolled_id(self) -> int | None:
        """Return the id up to which hourly sums have every outcome. None: an older ledger has no hourly sums."""

    @property
    def pruned(self) -> Mapping[str, str]:
        """The tables of outcomes that are deleted row by row when they are old, and those of their rejections."""

    def cancel(self) -> None:
        """Cancel the running statement, from another thread. Never fails."""

    def close(self) -> None:
        """Close the connection. Never fails."""


@contextlib.contextmanager
def as_os_error(kind: type[Exception]) -> Iterator[None]:
    """Raise errors of `kind` as OSError."""
    try:
        yield
    except kind as error:
        raise OSError(str(error).strip()) from error
