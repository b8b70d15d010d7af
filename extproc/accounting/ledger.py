"""The ledger: outcomes from Envoy's access log, counted and kept, off the path of every request.

Batches come by gRPC when their exchanges are over. The event loop does no more than put their bytes on a queue of
bounded length; one thread reads, prices, counts and stores them. Where the store is full, locked or gone, batches
are dropped and counted, and traffic never learns of it.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from extproc.accounting.outcome import Cost, Outcome, Priced

log = logging.getLogger(__name__)

# Batches of at most a second or 1 MiB each (see extproc/envoy/access_log.py): what a store may lag behind.
_WAITING = 64
# What a stop allows the queue, and then the batches in it: a store gives up on each wait of its own sooner.
_ROOM_S, _LAST_S = 2.0, 4.0
# A thread that computes keeps the interpreter from the event loop for 5 ms at a time: after so many outcomes, less
# than a millisecond of work, ours lets go of it.
_IN_A_TURN, _PAUSE_S = 4, 0.0005
# Envoy sends what it has every second.
_LAST_BATCH_S = 1.5


class Store(Protocol):
    """Where outcomes are kept; whatever fails is an OSError."""

    def open(self) -> object: ...
    def add(self, rows: Sequence[Priced]) -> None: ...
    def close(self) -> None: ...


class Ledger:
    """Takes batches, never waits, and hands what is in them to the metrics and the store."""

    def __init__(
        self,
        read: Callable[[bytes], Iterable[Outcome]],
        price: Callable[[Outcome], Cost],
        tell: Callable[[Outcome, Cost], None],
        lost: Callable[[int], None],
        store: Store | None = None,
    ) -> None:
        """`tell` is called for every outcome, `lost` with how many could not be kept; both in our thread."""
        self._read, self._price, self._tell, self._lost, self._store = read, price, tell, lost, store
        self._batches: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def offer(self, batch: bytes) -> None:
        """Take a batch as it came, or drop it if too many wait already."""
        try:
            self._batches.put_nowait(batch)
        except queue.Full:
            self._drop(sum(1 for _ in self._read(batch)), "the store is too slow")

    def close(self) -> None:
        """Keep what waits, for as long as that is quick."""
        with contextlib.suppress(queue.Full):
            self._batches.put(None, timeout=_ROOM_S)
        self._thread.join(_LAST_S)

    def _run(self) -> None:
        if self._store is not None:
            # Several processes may make it at once: whoever comes too late opens it with its first batch.
            with contextlib.suppress(OSError):
                self._store.open()
        while (batch := self._batches.get()) is not None:
            try:
                rows = [self._told(outcome) for outcome in _in_turns(self._read(batch))]
            except ValueError:
                log.exception("a batch of the access log could not be read")
                continue
            if self._store is not None and rows:
                self._keep(self._store, rows)
        if self._store is not None:
            self._store.close()

    def _told(self, outcome: Outcome) -> Priced:
        cost = self._price(outcome)
        self._tell(outcome, cost)
        return outcome, cost

    def _keep(self, store: Store, rows: list[Priced]) -> None:
        try:
            store.add(rows)
        except OSError as error:
            self._drop(len(rows), str(error))
            return
        if self._complained:
            self._complained = False
            log.warning("the ledger keeps outcomes again")

    def _drop(self, count: int, why: str) -> None:
        """Count what is lost, and say so once until it is mended."""
        self._lost(count)
        if not self._complained:
            self._complained = True
            log.error("outcomes are lost to the ledger, traffic is not: %s", why)


_Item = TypeVar("_Item")


def _in_turns(items: Iterable[_Item]) -> Iterator[_Item]:
    """The same items, with a pause for the other threads now and then."""
    for i, item in enumerate(items, start=1):
        yield item
        if i % _IN_A_TURN == 0:
            time.sleep(_PAUSE_S)


class LogStreams:
    """The access log service: every Envoy worker keeps one stream open and sends its batches on it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._open = 0
        self._over = asyncio.Event()

    async def take(self, batches: AsyncIterator[bytes], _context: Any) -> bytes:
        """Take what comes until the stream ends or `drain` has; Envoy never waits for the (empty) answer."""
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
        """Whether an Envoy is there."""
        return self._open > 0

    async def drain(self) -> None:
        """Let the last batch of an Envoy that is still there come, and end: such a stream never does by itself."""
        if self.connected:
            await asyncio.sleep(_LAST_BATCH_S)
        self._over.set()
