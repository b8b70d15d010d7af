"""Texts -> unit vectors: the micro-batcher that shares an encoder between exchanges."""

import asyncio
import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

from extproc.encoder.protocols import DeadlineError, Encoder, EncoderError, Vectors

# More texts a batch cost more latency than they save: on a CPU, work grows with the batch.
_MAX_BATCH = 16
# Waiting texts beyond this could not meet any sensible deadline; they are refused at once.
_MAX_QUEUE = 256
# 1,024 vectors of 2,432 floats are 10 MB.
_CACHED_VECTORS = 1024


class RememberingEncoder:
    """Encodes each text once: a reload costs what it changed, and leaves the model to the traffic.

    For utterances, which are configuration; the text of requests is never kept.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[str, Vectors] = {}

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], and forget what is not among `texts`."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        vectors = self._encoder.encode(fresh) if fresh else ()
        known = self._known | dict(zip(fresh, vectors, strict=True))
        self._known = {text: known[text] for text in texts}
        return np.stack([known[text] for text in texts])


class _Waiting(msgspec.Struct, eq=False):
    text: str
    key: bytes
    expires: float  # time.monotonic()
    vector: "asyncio.Future[Vectors]"


class Batcher:
    """Shares one encoder between exchanges: batches what waits, keeps the event loop free, remembers vectors.

    An idle encoder starts at once; while it works, arrivals gather into the next batch.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._waiting: deque[_Waiting] = deque()
        self._cache: OrderedDict[bytes, Vectors] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._worker: asyncio.Task[None] | None = None
        self._text_s = 0.0  # that the last batch took for each of its texts

    async def embed(self, text: str, deadline_s: float) -> Vectors:
        """Return float32[d] for `text` within `deadline_s`. Raises DeadlineError or EncoderError."""
        # The cache holds hashes, never the text.
        key = hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            return cached
        if len(self._waiting) >= _MAX_QUEUE:
            raise DeadlineError("the encoder's queue is full")
        vector: asyncio.Future[Vectors] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(text, key, time.monotonic() + deadline_s, vector))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await asyncio.wait_for(vector, deadline_s)
        except TimeoutError as error:
            raise DeadlineError(f"no vector within {deadline_s * 1000:.0f} ms") from error

    async def _work(self) -> None:
        """Encode batches until nothing waits."""
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            began = time.monotonic()
            try:
                vectors = await loop.run_in_executor(
                    self._pool, self._encoder.encode, [entry.text for entry in batch]
                )
            except Exception as error:  # whatever a model raises is one failed batch, not a dead worker
                for entry in batch:
                    if not entry.vector.done():
                        entry.vector.set_exception(EncoderError(str(type(error).__name__)))
                continue
            self._text_s = (time.monotonic() - began) / len(batch)
            for entry, row in zip(batch, vectors, strict=True):
                self._remember(entry.key, row.copy())  # not the whole batch it is a row of
                if not entry.vector.done():
                    entry.vector.set_result(row)

    def _next_batch(self) -> list[_Waiting]:
        """The oldest texts that someone still waits for and whose vectors will come in time.

        Under more load than the encoder can take, who would be too late is told so at once: otherwise every batch
        would be for those who have just given up, and nobody would be served.
        """
        now = time.monotonic()
        live = [entry for entry in self._waiting if not entry.vector.done() and entry.expires > now]
        patience = sorted((entry.expires - now for entry in live), reverse=True)[:_MAX_BATCH]
        # As many as have the patience for a batch of that size, by what the last one took for each.
        count = max((n for n, left in enumerate(patience, 1) if left > n * self._text_s), default=1)
        ready = now + count * self._text_s
        # If all would be late, the newest is tried: a single slow batch is not to end all others.
        batch = [entry for entry in live if entry.expires > ready][:count] or live[-1:]
        self._waiting.clear()
        for entry in live:
            if entry in batch:
                continue
            if entry.expires > ready:
                self._waiting.append(entry)
            else:
                entry.vector.set_exception(DeadlineError("the encoder has too much to do"))
        return batch

    def _remember(self, key: bytes, vector: Vectors) -> None:
        self._cache[key] = vector
        if len(self._cache) > _CACHED_VECTORS:
            self._cache.popitem(last=False)

    def close(self) -> None:
        """Let the encoder's thread end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
