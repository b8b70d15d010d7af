"""Encodes the texts of traffic in batches, and decides about rows as the router does when it serves."""

import asyncio
import copy
import time
from collections.abc import Iterator, Sequence

import numpy as np

from extproc.acceptance.grounding import Embed
from extproc.encoder.features import FeatureEncoder
from extproc.encoder.protocols import Encoder, Vectors
from extproc.encoder.vector_file import storing
from extproc.evidence.data.traffic import Row
from extproc.evidence.data.vector_store import StoredVectors, VectorStore
from extproc.evidence.progress import Progress
from extproc.routing.limits import Rates
from extproc.routing.policy import routable_model
from extproc.routing.routed import Routed
from extproc.routing.router import Router
from extproc.routing.snapshot import Snapshot

# Rows routed concurrently. Their texts are encoded together.
_CONCURRENT_ROWS = 512
# Vectors kept in memory. One of 2,816 floats takes 11 KB, so these are 46 MB.
_MOST_RECENT = 4096


class Memory:
    """Encodes texts in batches, and remembers the latest vectors. Several configurations can share one."""

    def __init__(
        self,
        encoder: Encoder,
        sentences: Embed | None = None,
        progress: bool = False,
        store: VectorStore | None = None,
    ) -> None:
        """`sentences` embeds for the rule `grounded`, which cannot run without it.

        `store` has the vectors of sentences of this encoder. Without it, a text that is needed again after many
        others is encoded again.
        """
        self._plain = encoder
        self._encoder = _stored(encoder, store) if store is not None else encoder
        self.sentences = sentences
        self._progress = Progress() if progress else None
        self._recent: dict[str, Vectors] = {}
        self._utterances: dict[str, Vectors] = {}
        self._waiting: list[tuple[str, asyncio.Future[Vectors]]] = []

    async def embed(self, text: str, deadline_s: float, principal: str = "") -> Vectors:
        """Return float32[d]. The deadline is ignored: no client waits."""
        del deadline_s
        if (vector := self._remembered(text)) is not None:
            return vector
        loop = asyncio.get_running_loop()
        if not self._waiting:  # texts that arrive in this turn of the loop are encoded together
            loop.call_soon(self._encode_waiting)
        self._waiting.append((text, loop.create_future()))
        return await self._waiting[-1][1]

    def _encode_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            vectors = self.encode([text for text, _ in waiting])
        except Exception as error:  # the tasks wait for a vector, and without one for ever
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), vector in zip(waiting, vectors, strict=True):
            if not future.done():  # Ctrl-C cancels the tasks that wait
                future.set_result(vector)

    def _remembered(self, text: str) -> Vectors | None:
        return self._utterances[text] if text in self._utterances else self._recent.get(text)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length."""
        if not len(texts):
            return self._encoder.encode(texts)
        rows: Vectors | None = None
        for start in range(0, len(texts), _CONCURRENT_ROWS):
            part = self._encode_part(texts[start : start + _CONCURRENT_ROWS])
            rows = np.empty((len(texts), part.shape[1]), dtype=part.dtype) if rows is None else rows
            rows[start : start + len(part)] = part
        assert rows is not None
        return rows

    def _encode_part(self, texts: Sequence[str]) -> Vectors:
        remembered = {text: vector for text in texts if (vector := self._remembered(text)) is not None}
        if new := [text for text in dict.fromkeys(texts) if text not in remembered]:
            fresh = dict(zip(new, self._encoder.encode(new), strict=True))
            self._recent |= fresh
            remembered |= fresh
            for text in list(self._recent)[: max(0, len(self._recent) - _MOST_RECENT)]:
                del self._recent[text]
        return np.stack([remembered[text] for text in texts])

    def encode_utterances(self, texts: Sequence[str]) -> None:
        """Remember the vectors of texts that the configuration has: from the file of vectors, if there is one."""
        self._utterances |= dict(zip(texts, storing(self._plain).encode(texts), strict=True))

    def fresh(self) -> "Memory":
        """The same encoder with an empty memory, for texts that are not needed again."""
        memory = Memory(self._plain, self.sentences)
        memory._progress = self._progress
        return memory

    def show_progress(self, done: int, total: int, began: float, what: str = "rows") -> None:
        """Show progress on stderr, if asked to. `began` is a time of the monotonic clock."""
        if self._progress is not None:
            self._progress.show(done, total, began, what)


def _stored(encoder: Encoder, store: VectorStore) -> Encoder:
    """Return the encoder with a store. An encoder of features stores only the vectors of sentences.

    Its hashed words are five times as large, and cost little to count again.
    """
    if not isinstance(encoder, FeatureEncoder):
        return StoredVectors(encoder, store)
    with_store = copy.copy(encoder)
    with_store.sentences = StoredVectors(encoder.sentences, store)
    return with_store


def route_each(
    snapshot: Snapshot, memory: Memory, rows: Sequence[Row], rates: Rates | None = None, what: str = "rows routed"
) -> Iterator[tuple[Row, Routed]]:
    """Yield every row with the router's decision about it.

    Principals were not recorded: by default no rate limits them.
    """
    router = Router(snapshot, memory, rates)
    model = routable_model(snapshot.policy.retarget)

    async def route(chunk: Sequence[Row]) -> list[Routed]:
        requests = [row.request(model) for row in chunk]
        return await asyncio.gather(*(router.route(body, headers) for body, headers in requests))

    began = time.monotonic()
    with asyncio.Runner() as runner:
        for start in range(0, len(rows), _CONCURRENT_ROWS):
            memory.show_progress(start, len(rows), began, what)
            chunk = list(rows[start : start + _CONCURRENT_ROWS])
            yield from zip(chunk, runner.run(route(chunk)), strict=True)
    memory.show_progress(len(rows), len(rows), began, what)


def route_all(
    snapshot: Snapshot,
    memory: Memory,
    rows: Sequence[Row],
    rates: Rates | None = None,
    what: str = "rows routed",
) -> list[Routed]:
    """The router's decision about every row."""
    return [routed for _, routed in route_each(snapshot, memory, rows, rates, what)]
