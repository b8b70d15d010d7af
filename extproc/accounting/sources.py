"""The places of a report's sums: the rows of a ledger, and the hourly sums of whole hours."""

import math
from collections.abc import Iterator

import msgspec

from extproc.accounting.connection import Connection, Row
from extproc.accounting.queries import Sum, Window, for_ledger
from extproc.accounting.rollups import rolled_query

_HOUR_S = 3600


class Source(msgspec.Struct, frozen=True):
    """The rows that count, and the first hour whose sums count. None: no hour's."""

    windows: tuple[Window, ...]
    first_hour: int | None = None

    @property
    def since(self) -> float:
        """The time from which on outcomes count."""
        return self.windows[0].since or 0.0

    def read(self, ledger: Connection, each: Sum, dimension: str) -> Iterator[Row]:
        """Yield `name`, `word` and numbers. The same name and word may come several times."""
        has_apps = ledger.has_column("app")
        for window in self.windows:
            yield from ledger.fetch(for_ledger(each.query(dimension, window), has_apps))
        if self.first_hour is not None:
            yield from ledger.fetch(rolled_query(each, dimension, self.first_hour))


def source_of(ledger: Connection, since: float) -> Source:
    """Return the source for all outcomes that began since then.

    The part of an hour at the beginning is read from rows, and so are outcomes that are newer than the sums. A time
    without a whole hour is read from rows alone.
    """
    rolled = ledger.rolled_id()
    if rolled is None:
        return Source((Window(since=since),))
    first_hour = math.ceil(since / _HOUR_S)
    [last] = ledger.fetch("SELECT max(hour) AS hour FROM rollup_outcomes")
    if last["hour"] is None or last["hour"] <= first_hour:
        return Source((Window(since=since, by_day=True),))
    begin = first_hour * _HOUR_S
    part = Window(since=since, before=begin, by_day=True)
    newer = Window(since=begin, after_id=rolled, by_day=True)
    return Source((part, newer), first_hour)
