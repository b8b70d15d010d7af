"""The ledger counts and stores the outcomes in Envoy's access log, outside the path of requests.

Envoy sends batches of outcomes by gRPC when their exchanges are over. The event loop only puts the bytes on a
bounded queue. One thread decodes the outcomes, prices, counts and stores them. If the store is full, locked or
unavailable, outcomes are dropped and counted. This never affects traffic.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from extproc.accounting.outcome import Cost, Explored, Outcome, Priced
from extproc.accounting.signals import AnswerSignal

log = logging.getLogger(__name__)

# How many batches may wait for the store. Each holds at most a second or 1 MiB (see extproc/envoy/access_log.py).
_QUEUED_BATCHES = 64
# How long a stop waits for room in the queue, and then for the queued batches. A store gives up sooner.
_ROOM_S, _LAST_S = 2.0, 4.0
# A computing thread keeps the interpreter from the event loop for 5 ms at a time. So this thread pauses after a few
# outcomes, which take less than a millisecond.
_IN_A_TURN, _PAUSE_S = 4, 0.0005
# Longer than the second between two batches of an Envoy.
_LAST_BATCH_S = 1.5


class OutcomeSink(Protocol):
    """A place for outcomes. Every failure is an OSError."""

    def open(self) -> object: ...
    def add(self, rows: Sequence[Priced]) -> None: ...
    def add_explored(self, explored: Explored) -> None: ...
    def add_signal(self, signal: AnswerSignal) -> None: ...
    def close(self) -> None: ...


class Ledger:
    """Takes batches without waiting, and passes their outcomes to the metrics and the store."""

    def __init__(
        self,
        read: Callable[[bytes], Iterable[Outcome]],
        price: Callable[[Outcome], Cost],
        report: Callable[[Outcome, Cost], None],
        lost: Callable[[int], None],
        store: OutcomeSink | None = None,
    ) -> None:
        """Start the thread. It calls `report` for each outcome, and `lost` with the number of dropped outcomes."""
        self._read, self._price, self._report, self._lost, self._store = read, price, report, lost, store
        self._batches: queue.Queue[bytes | Explored | AnswerSignal | None] = queue.Queue(_QUEUED_BATCHES)
        self._dropping = False  # and already logged
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def offer(self, batch: bytes) -> None:
        """Queue an encoded batch. Drop it if the queue is full."""
        try:
            self._batches.put_nowait(batch)
        except queue.Full:
            self._drop(sum(1 for _ in self._read(batch)), "the store is too slow")

    def offer_explored(self, explored: Explored) -> None:
        """Queue the answer of a second tier. Drop it if the queue is full."""
        try:
            self._batches.put_nowait(explored)
        except queue.Full:
            self._drop(1, "the store is too slow")

    def offer_signal(self, signal: AnswerSignal) -> bool:
        """Queue a signal. False: there is no store, or the queue is full."""
        if self._store is None:
            return False
        try:
            self._batches.put_nowait(signal)
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        """Store the queued batches, and stop the thread. Waits a few seconds at most."""
        with contextlib.suppress(queue.Full):
            self._batches.put(None, timeout=_ROOM_S)
        self._thread.join(_LAST_S)

    def _run(self) -> None:
        if self._store is not None:
            # Another process may be creating the ledger. Then the first batch opens it.
            with contextlib.suppress(OSError):
                self._store.open()
        while (batch := self._batches.get()) is not None:
            if isinstance(batch, Explored):
                self._add_explored(batch)
                continue
            if isinstance(batch, AnswerSignal):
                self._add_signal(batch)
                continue
            try:
                rows = [self._priced(outcome) for outcome in _in_turns(self._read(batch))]
            except ValueError:
                log.exception("dropping a batch of Envoy's access log, because it cannot be read")
                continue
            if self._store is not None and rows:
                self._add(self._store, rows)
        if self._store is not None:
            self._store.close()

    def _priced(self, outcome: Outcome) -> Priced:
        cost = self._price(outcome)
        self._report(outcome, cost)
        return outcome, cost

    def _add_explored(self, explored: Explored) -> None:
        if self._store is not None:
            self._store_all(partial(self._store.add_explored, explored), 1)

    def _add_signal(self, signal: AnswerSignal) -> None:
        if self._store is not None:
            self._store_all(partial(self._store.add_signal, signal), 0)

    def _add(self, store: OutcomeSink, rows: list[Priced]) -> None:
        self._store_all(partial(store.add, rows), len(rows))

    def _store_all(self, add: Callable[[], None], count: int) -> None:
        try:
            add()
        except OSError as error:
            self._drop(count, str(error))
            return
        if self._dropping:
            self._dropping = False
            log.warning("the ledger stores outcomes again")

    def _drop(self, count: int, why: str) -> None:
        """Count dropped outcomes. Log the first time, and again after the store has worked."""
        self._lost(count)
        if not self._dropping:
            self._dropping = True
            log.error("dropping ledger outcomes (traffic is not affected): %s", why)


_Item = TypeVar("_Item")


def _in_turns(items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield the same items, with a pause for the other threads after every few."""
    for i, item in enumerate(items, start=1):
        yield item
        if i % _IN_A_TURN == 0:
            time.sleep(_PAUSE_S)


class LogStreams:
    """The access log service. Each worker thread of Envoy keeps one stream open and sends its batches on it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._open = 0
        self._over = asyncio.Event()

    async def take(self, batches: AsyncIterator[bytes], _context: Any) -> bytes:
        """Take batches until the stream ends or `drain` is over. The reply is empty, and Envoy does not need it."""
        self._open += 1
        taking = asyncio.create_task(self._take_all(batches))
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait((taking, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open -= 1
            taking.cancel()
            over.cancel()
        return b""

    async def _take_all(self, batches: AsyncIterator[bytes]) -> None:
        async for batch in batches:
            self._ledger.offer(batch)

    @property
    def connected(self) -> bool:
        """Whether an Envoy is connected."""
        return self._open > 0

    async def drain(self) -> None:
        """Wait for the last batch of a connected Envoy, then end the streams, because Envoy never ends them."""
        if self.connected:
            await asyncio.sleep(_LAST_BATCH_S)
        self._over.set()
