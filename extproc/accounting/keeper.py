"""Maintains a ledger in a separate thread: hourly sums, and in Postgres partitions by day.

Every router has this thread, and one of them at a time does the work. If it fails, reports read more rows, and
outcomes are stored all the same.
"""

import logging
import threading
import time
from pathlib import Path

from extproc.accounting import days, rollups
from extproc.accounting.connection import Connection
from extproc.accounting.postgres import PostgresLedger
from extproc.accounting.queries import SUMS
from extproc.accounting.store import connect

log = logging.getLogger(__name__)

# How often there is work, and how often a router looks whether another one has done it.
_INTERVAL_S = 30.0
_STOP_S = 2.0
# Between two pieces of work, so that writers of a file get their turn.
_PAUSE_S = 0.01


class Keeper:
    """The thread."""

    def __init__(self, place: Path | str, keep_days: float) -> None:
        self._place, self._keep_s = place, keep_days * 86400
        self._stopping = threading.Event()
        self._ledger: Connection | None = None
        self._failing = False  # and already logged
        self._forgot_at = 0.0
        self._has_dimensions = False  # all of them, in all hours
        self._thread = threading.Thread(target=self._run, name="ledger-keeper", daemon=True)

    def start(self) -> None:
        """Start to work, in half a minute."""
        self._thread.start()

    def close(self) -> None:
        """Stop. A statement that runs is cancelled, and the next router repeats it."""
        self._stopping.set()
        if (ledger := self._ledger) is not None:
            ledger.cancel()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        while not self._stopping.wait(_INTERVAL_S):
            try:
                self.work()
                self._failing = False
            except OSError as error:
                if not self._failing and not self._stopping.is_set():
                    log.warning("the ledger cannot be maintained now (outcomes are stored): %s", error)
                self._failing = True

    def work(self) -> None:
        """Do all work that there is, unless another router does it. Raises OSError."""
        self._ledger = ledger = connect(self._place, writing=True)
        try:
            failure = None
            if isinstance(ledger, PostgresLedger):
                if not ledger.keeps():
                    return
                ledger.run("SET statement_timeout = 0", days.SHORT_LOCKS)
            if not _is_due(ledger):
                return
            if isinstance(ledger, PostgresLedger):
                failure = self._keep_days(ledger)
            self._forget(ledger)
            self._roll_up(ledger)
            if failure is not None:
                raise failure
        finally:
            self._ledger = None
            ledger.close()

    def _keep_days(self, ledger: PostgresLedger) -> OSError | None:
        """Return why an older ledger could not be converted. Its hourly sums can be kept all the same."""
        now, failure = time.time(), None
        if not days.is_partitioned(ledger):
            try:
                days.convert(ledger, now)
            except OSError as error:
                failure = error
        if days.is_partitioned(ledger):
            days.add_days(ledger, now)
            days.drop_days(ledger, now - self._keep_s)
        return failure

    def _forget(self, ledger: Connection) -> None:
        """Delete old sums, every hour."""
        now = time.time()
        if now - self._forgot_at > 3600:
            oldest = now - rollups.KEPT_DAYS * 86400
            ledger.run(*(rollups.forget(each, oldest, now - self._keep_s) for each in SUMS))
            self._forgot_at = now

    def _roll_up(self, ledger: Connection) -> None:
        """Add up what was settled in the last round: since then, second answers have come for their outcomes."""
        if not self._has_dimensions:
            ledger.run(*(statement for each in SUMS for statement in rollups.backfill(each)))
            self._has_dimensions = True
        while _add_chunk(ledger) and not self._stopping.wait(_PAUSE_S):
            pass
        settled = ledger.settled_id()
        if settled is not None:
            ledger.run(f"UPDATE rollup_state SET settled = {settled}")


def _add_chunk(ledger: Connection) -> bool:
    """Add some outcomes to the sums, in one transaction with the id that says so. Return whether there are more."""
    with ledger.transaction():
        ledger.run("UPDATE rollup_state SET time = time")  # no other router may do the same now
        [state] = ledger.fetch("SELECT rolled, settled FROM rollup_state")
        rolled, settled = state["rolled"], state["settled"]
        last = min(rolled + ledger.chunk, settled)
        if rolled < last:
            ledger.run(*rollups.additions(rolled, last, ledger.lateral))
            ledger.run(f"UPDATE rollup_state SET rolled = {last}")
    return bool(last < settled)


def _is_due(ledger: Connection) -> bool:
    """Whether no router has done the work a moment ago. If so, note that this one does."""
    now = time.time()
    [state] = ledger.fetch("SELECT time FROM rollup_state")
    if abs(now - state["time"]) < _INTERVAL_S / 2:
        return False
    ledger.run(f"UPDATE rollup_state SET time = {now!r}")
    return True
