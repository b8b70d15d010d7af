"""Texts -> unit vectors: a micro-batcher that shares one encoder between exchanges."""

import asyncio
import hashlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

from extproc.encoder.protocols import DeadlineError, Encoder, EncoderError, Vectors

# Larger batches cost more latency than they save, because on a CPU the work grows with the batch. How long a larger
# one takes is also known less well.
_MAX_BATCH = 8
# A batch may take this many times the time that the last one leads to expect. A vector that is late by a little has
# cost as much as one in time.
_CAUTION = 1.5
# The time of a text grows with its characters, from about that of these on, and up to what a model reads.
_LEAST_CHARS, _MOST_CHARS = 64, 2048
# A longer queue could not meet any sensible deadline, so further texts are refused immediately.
_MAX_QUEUE = 256
# Texts of one principal in a batch while others wait. So a text waits for few texts of a principal that sends many.
_MAX_SHARE = 4
# 1,024 vectors of 2,432 floats are 10 MB.
_CACHED_VECTORS = 1024


class RememberingEncoder:
    """Encodes each text only once, so that a reload encodes only new texts and leaves the model to the traffic.

    Use it for utterances, which are configuration. It keeps texts, so it must not see requests.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._before: dict[str, Vectors] = {}
        self._vectors: dict[str, Vectors] = {}

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d]. The vectors of this call and the one before are kept.

        A configuration and its candidate are two calls.
        """
        known = self._before | self._vectors
        fresh = [text for text in dict.fromkeys(texts) if text not in known]
        rows = self.encoder.encode(fresh) if fresh else ()
        vectors = known | dict(zip(fresh, rows, strict=True))
        self._before, self._vectors = self._vectors, {text: vectors[text] for text in texts}
        return np.stack([vectors[text] for text in texts])


class EncoderLoad(msgspec.Struct):
    """How busy an encoder is, and has been since the start."""

    queue: int = 0  # texts that wait
    busy_s: float = 0.0  # time in which it worked
    cached: int = 0  # texts whose vector was in the cache
    encoded: int = 0  # texts that were encoded in time
    late: int = 0  # texts without a vector: too late, refused or failed


class _Waiting(msgspec.Struct, eq=False):
    text: str
    key: bytes
    principal: str
    expires: float  # time.monotonic()
    vector: "asyncio.Future[Vectors]"


class Batcher:
    """Shares one encoder between exchanges: batches waiting texts, keeps the event loop free, caches vectors.

    An idle encoder starts immediately. Texts that arrive while it works form the next batch. The principals take
    turns in it, and a full queue drops a text of the principal that has the most texts there.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._waiting: deque[_Waiting] = deque()
        self._cache: OrderedDict[bytes, Vectors] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._worker: asyncio.Task[None] | None = None
        self._text_s = 0.0  # seconds per text, in the last batch
        self._chars = 0.0  # mean size of its texts; 0: not known
        self._load = EncoderLoad()

    @property
    def load(self) -> EncoderLoad:
        """The load until now."""
        self._load.queue = len(self._waiting)
        return self._load

    async def embed(self, text: str, deadline_s: float, principal: str = "") -> Vectors:
        """Return float32[d] for `text` within `deadline_s`. Raises DeadlineError or EncoderError."""
        # The cache keeps hashes, never the text.
        key = hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            self._load.cached += 1
            return cached
        try:
            vector = await self._encoded(text, key, deadline_s, principal)
        except BaseException:  # a client that left is late, too
            self._load.late += 1
            raise
        self._load.encoded += 1
        return vector

    async def _encoded(self, text: str, key: bytes, deadline_s: float, principal: str) -> Vectors:
        if len(self._waiting) >= _MAX_QUEUE:
            self._make_room(principal)
        vector: asyncio.Future[Vectors] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(text, key, principal, time.monotonic() + deadline_s, vector))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await asyncio.wait_for(vector, deadline_s)
        except DeadlineError:  # the queue had no room, or the text would have been too late
            raise
        except TimeoutError as error:
            raise DeadlineError(f"the encoder made no vector within {deadline_s * 1000:.0f} ms") from error

    async def _work(self) -> None:
        """Encode batches until nothing waits."""
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            began = time.monotonic()
            try:
                vectors = await loop.run_in_executor(
                    self._pool, self._encoder.encode, [entry.text for entry in batch]
                )
            except Exception as error:  # a model may raise anything, which must not end the worker
                for entry in batch:
                    if not entry.vector.done():
                        entry.vector.set_exception(EncoderError(str(type(error).__name__)))
                continue
            finally:
                self._load.busy_s += time.monotonic() - began
            self._text_s, self._chars = (time.monotonic() - began) / len(batch), _mean_size(batch)
            for entry, row in zip(batch, vectors, strict=True):
                vector = row.copy()  # a row would keep its whole batch in memory
                vector.flags.writeable = False  # every exchange with this text gets the same array
                self._remember(entry.key, vector)
                if not entry.vector.done():
                    entry.vector.set_result(vector)

    def _next_batch(self) -> list[_Waiting]:
        """Take texts that an exchange still waits for and whose vectors will be ready in time, oldest first.

        Under overload, texts that would be too late fail immediately. Otherwise every batch would be for exchanges
        that have just given up, and no exchange would get a vector in time.
        """
        now = time.monotonic()
        live = [entry for entry in self._waiting if not entry.vector.done() and entry.expires > now]
        turns = _in_turns(live)
        patience = sorted((entry.expires - now for entry in turns), reverse=True)[:_MAX_BATCH]
        # The largest batch whose texts can all wait for it, at the speed of the last batch. One long text must not
        # be the measure for short ones: all of them would be refused.
        longer = _mean_size(turns) / self._chars if self._chars and turns else 1.0
        text_s = _CAUTION * self._text_s * longer
        count = max((n for n, left in enumerate(patience, 1) if left > n * text_s), default=1)
        ready = now + count * text_s
        # If all would be late, try the newest: after one slow batch, the encoder may be fast again.
        batch = [entry for entry in turns if entry.expires > ready][:count] or live[-1:]
        self._waiting.clear()
        for entry in live:
            if entry in batch:
                continue
            if entry.expires > ready:
                self._waiting.append(entry)
            else:
                entry.vector.set_exception(DeadlineError("the encoder is too busy to make this vector in time"))
        return batch

    def _make_room(self, principal: str) -> None:
        """Drop the newest text of the principal that has the most texts in the full queue.

        Raises DeadlineError if no principal has more texts there than this one would have.
        """
        self._waiting = deque(entry for entry in self._waiting if not entry.vector.done())
        counts = Counter(entry.principal for entry in self._waiting)
        if len(self._waiting) < _MAX_QUEUE:
            return
        largest, count = counts.most_common(1)[0]
        full = DeadlineError(f"the encoder's queue is full: it has {_MAX_QUEUE} texts")
        if count <= counts[principal] + 1:
            raise full
        newest = next(entry for entry in reversed(self._waiting) if entry.principal == largest)
        self._waiting.remove(newest)
        newest.vector.set_exception(full)

    def _remember(self, key: bytes, vector: Vectors) -> None:
        self._cache[key] = vector
        if len(self._cache) > _CACHED_VECTORS:
            self._cache.popitem(last=False)

    def close(self) -> None:
        """Stop the encoder's thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _mean_size(entries: Sequence[_Waiting]) -> float:
    """Return the mean size of these texts, in characters."""
    return sum(min(_LEAST_CHARS + len(entry.text), _MOST_CHARS) for entry in entries) / len(entries)


def _in_turns(live: Sequence[_Waiting]) -> list[_Waiting]:
    """Order texts so that the principals take turns. If there are several, each has at most _MAX_SHARE texts."""
    places: Counter[str] = Counter()
    turns: list[list[_Waiting]] = [[] for _ in live]
    for entry in live:
        turns[places[entry.principal]].append(entry)
        places[entry.principal] += 1
    return [entry for turn in (turns if len(places) == 1 else turns[:_MAX_SHARE]) for entry in turn]
