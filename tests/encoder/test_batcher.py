"""Sharing one slow encoder: batches, deadlines, a bounded queue, a cache, and an event loop that stays free."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from extproc.encoder import batcher as embedding
from extproc.encoder.batcher import Batcher
from extproc.encoder.protocols import DeadlineError, EncoderError

LONG_S = 30.0  # never reached: gates decide when things happen


class Gated:
    """An encoder that works only while its gate is open. "bad" makes it fail. A vector is its text's length."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.started = threading.Event()
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()

    def encode(self, texts):
        self.batches.append(list(texts))
        self.threads.add(threading.get_ident())
        self.started.set()
        assert self.gate.wait(LONG_S)
        if "bad" in texts:
            raise ZeroDivisionError(f"cannot encode {texts}")
        return np.array([[len(text), 0.0] for text in texts], dtype=np.float32)


@pytest.fixture
def gated() -> Gated:
    return Gated()


@pytest.fixture
def batcher(gated):
    batcher = Batcher(gated)
    yield batcher
    gated.gate.set()
    batcher.close()


async def waiting(
    batcher: Batcher, *texts: str, deadline_s: float = LONG_S, principal: str = ""
) -> list["asyncio.Task[Any]"]:
    """Return tasks that wait in the queue for the encoder."""
    tasks = [asyncio.create_task(batcher.embed(text, deadline_s, principal)) for text in texts]
    await asyncio.sleep(0)  # each task runs until it waits
    return tasks


async def busy(batcher: Batcher, gated: Gated) -> "asyncio.Task[Any]":
    """Keep the encoder busy with a first text until its gate opens."""
    (first,) = await waiting(batcher, "first")
    assert await asyncio.to_thread(gated.started.wait, LONG_S)
    return first


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, LONG_S))


def test_an_idle_encoder_starts_at_once_and_what_arrives_meanwhile_is_one_batch(gated, batcher):
    """No text waits for others, and each exchange gets the vector of its text."""

    async def scenario() -> None:
        first = await busy(batcher, gated)
        rest = await waiting(batcher, "to", "three", "fore")
        gated.gate.set()
        vectors = await asyncio.gather(first, *rest)
        assert [vector.tolist() for vector in vectors] == [[5, 0], [2, 0], [5, 0], [4, 0]]

    run(scenario())
    assert gated.batches == [["first"], ["to", "three", "fore"]]


def test_a_batch_is_bounded_and_oldest_first(gated, batcher):
    """A batch of more than eight would cost every exchange more than it saves."""
    texts = [f"text {i:02}" for i in range(20)]

    async def scenario() -> None:
        first = await busy(batcher, gated)
        rest = await waiting(batcher, *texts)
        gated.gate.set()
        await asyncio.gather(first, *rest)

    run(scenario())
    assert gated.batches == [["first"], texts[:8], texts[8:16], texts[16:]]


def test_the_event_loop_is_free_while_the_encoder_works(gated, batcher):
    """The loop itself opens the gate here, which a blocked loop could not do."""

    async def scenario() -> None:
        first = await busy(batcher, gated)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not first.done()
        gated.gate.set()
        await first

    run(scenario())
    assert len(gated.threads) == 1 and threading.get_ident() not in gated.threads


def test_a_deadline_ends_the_wait(gated, batcher):
    """When the encoder takes too long, the request continues without a vector."""

    async def scenario() -> None:
        with pytest.raises(DeadlineError):
            await batcher.embed("late", 0.001)
        gated.gate.set()

    run(scenario())


def test_nobody_waits_for_whom_has_gone(gated, batcher):
    """Texts whose deadline passed or whose client disconnected are not encoded."""

    async def scenario() -> None:
        first = await busy(batcher, gated)
        (expired,) = await waiting(batcher, "expired", deadline_s=0.001)
        cancelled, kept = await waiting(batcher, "cancelled", "kept")
        with pytest.raises(DeadlineError):
            await expired
        cancelled.cancel()
        gated.gate.set()
        await asyncio.gather(first, kept)

    run(scenario())
    assert gated.batches == [["first"], ["kept"]]


def test_a_full_queue_refuses_at_once(gated, batcher, monkeypatch):
    """Without a limit, every request would be late under overload. A refused one uses the default tier."""
    monkeypatch.setattr(embedding, "_MAX_QUEUE", 2)

    async def scenario() -> None:
        first = await busy(batcher, gated)
        queued = await waiting(batcher, "second", "third")
        with pytest.raises(DeadlineError, match="queue is full"):
            await batcher.embed("one too many", LONG_S)
        gated.gate.set()
        await asyncio.gather(first, *queued)
        await batcher.embed("there is room again", LONG_S)

    run(scenario())
    assert gated.batches == [["first"], ["second", "third"], ["there is room again"]]


def test_principals_take_turns_in_the_encoder(gated, batcher):
    """Many texts of one principal wait for each other, not the few texts of others for all of them."""
    flood = [f"flood {i:02}" for i in range(10)]

    async def scenario() -> None:
        first = await busy(batcher, gated)
        many = await waiting(batcher, *flood, principal="many")
        few = await waiting(batcher, "one", "two", principal="few")
        gated.gate.set()
        await asyncio.gather(first, *many, *few)

    run(scenario())
    assert gated.batches == [["first"], [flood[0], "one", flood[1], "two", flood[2], flood[3]], flood[4:]]


def test_a_full_queue_drops_a_text_of_the_principal_that_fills_it(gated, batcher, monkeypatch):
    """Its newest text makes room. A principal with no fewer texts than any other is refused itself."""
    monkeypatch.setattr(embedding, "_MAX_QUEUE", 3)

    async def scenario() -> None:
        first = await busy(batcher, gated)
        *kept, dropped = await waiting(batcher, "m1", "m2", "m3", principal="many")
        few = await waiting(batcher, "one", principal="few")
        with pytest.raises(DeadlineError, match="queue is full"):
            await dropped
        for principal in ("many", "few"):
            with pytest.raises(DeadlineError, match="queue is full"):
                await batcher.embed("one too many", LONG_S, principal)
        gated.gate.set()
        await asyncio.gather(first, *kept, *few)

    run(scenario())
    assert gated.batches == [["first"], ["m1", "one", "m2"]]


def test_a_failing_encoder_fails_one_batch_and_the_next_one_works(gated, batcher):
    """Every exchange in the batch gets an error that quotes no text, and the worker continues."""
    gated.gate.set()

    async def scenario() -> None:
        outcomes = await asyncio.gather(
            batcher.embed("bad", LONG_S), batcher.embed("good", LONG_S), return_exceptions=True
        )
        assert [(type(error), str(error)) for error in outcomes] == [(EncoderError, "ZeroDivisionError")] * 2
        assert (await batcher.embed("good", LONG_S)).tolist() == [4, 0]

    run(scenario())


def test_the_worker_outlives_a_failure_with_more_in_the_queue(gated, batcher, monkeypatch):
    """Texts that waited behind the failed batch are encoded."""
    monkeypatch.setattr(embedding, "_MAX_BATCH", 1)

    async def scenario() -> None:
        first, bad, good = await waiting(batcher, "first", "bad", "good")
        gated.gate.set()
        assert (await first).tolist() == [5, 0]
        with pytest.raises(EncoderError):
            await bad
        assert (await good).tolist() == [4, 0]

    run(scenario())


def test_a_text_seen_before_is_not_encoded_again(gated, batcher):
    """The same text has the same vector at no cost, even while the encoder is stuck."""

    async def scenario() -> None:
        gated.gate.set()
        vector = await batcher.embed("again", LONG_S)
        gated.gate.clear()
        assert await batcher.embed("again", LONG_S) is vector and not vector.flags.writeable

    run(scenario())
    assert gated.batches == [["again"]]


def test_the_cache_forgets_what_was_longest_unused(gated, batcher, monkeypatch):
    """The cache is bounded, and a hit counts as use."""
    monkeypatch.setattr(embedding, "_CACHED_VECTORS", 2)
    gated.gate.set()

    async def scenario() -> None:
        for text in ("one", "two", "one", "three", "one", "two"):
            await batcher.embed(text, LONG_S)

    run(scenario())
    assert gated.batches == [["one"], ["two"], ["three"], ["two"]]


def test_a_vector_that_came_too_late_is_kept_for_the_next_request(gated, batcher):
    """The vector is made in any case, so a retry with the same text finds it."""

    async def scenario() -> None:
        with pytest.raises(DeadlineError):
            await batcher.embed("slow", 0.001)
        gated.gate.set()
        await batcher.embed("other", LONG_S)  # behind it in the queue
        assert (await batcher.embed("slow", LONG_S)).tolist() == [4, 0]

    run(scenario())
    assert gated.batches == [["slow"], ["other"]]


def test_who_would_be_too_late_is_told_at_once_and_the_rest_are_served(gated, batcher):
    """Under overload, the encoder works for the exchanges that can still wait."""
    batcher._text_s = 1.0  # the last batch was slow
    gated.gate.set()

    async def scenario() -> None:
        texts = (("a", 1.5), ("b", 1.5), ("cc", LONG_S), ("dd", LONG_S))
        embeds = (batcher.embed(text, deadline_s) for text, deadline_s in texts)
        results: list[Any] = await asyncio.gather(*embeds, return_exceptions=True)
        assert [type(error) for error in results[:2]] == [DeadlineError, DeadlineError]
        assert [vector.tolist() for vector in results[2:]] == [[2, 0], [2, 0]]

    run(scenario())


def test_one_slow_batch_does_not_end_all_others(gated, batcher):
    """If all texts would be late at the speed of the last batch, the newest is tried all the same."""
    batcher._text_s = 1000.0
    gated.gate.set()

    async def scenario() -> None:
        old, new = await waiting(batcher, "old", "newer", deadline_s=LONG_S)
        assert (await new).tolist() == [5, 0]
        with pytest.raises(DeadlineError):
            await old

    run(scenario())
    assert gated.batches == [["newer"]]


def test_a_batch_leaves_time_for_a_slower_one_than_the_last(gated, batcher):
    """Two texts would take 16 of 20 seconds. The encoder may slow down, and both would have been for nothing."""
    batcher._text_s = 8.0
    gated.gate.set()

    async def scenario() -> None:
        await asyncio.gather(*await waiting(batcher, "one", "two", deadline_s=20.0))

    run(scenario())
    assert gated.batches == [["one"], ["two"]]


def test_a_long_text_is_no_measure_for_short_ones(gated, batcher):
    """At the speed of a text of 2,000 characters, all texts that wait but one would be refused."""
    gated.gate.set()

    async def scenario() -> None:
        await batcher.embed("x" * 2000, LONG_S)
        batcher._text_s = 30.0
        await asyncio.gather(*await waiting(batcher, "one", "two", deadline_s=20.0))

    run(scenario())
    assert gated.batches[1:] == [["one", "two"]]


def test_short_texts_are_no_measure_for_long_ones(gated, batcher):
    """Two long texts would take 25 of 20 seconds at the speed of a short one."""
    gated.gate.set()

    async def scenario() -> None:
        await batcher.embed("short", LONG_S)
        batcher._text_s = 0.4
        await asyncio.gather(*await waiting(batcher, "x" * 2000, "y" * 2000, deadline_s=20.0))

    run(scenario())
    assert [len(batch) for batch in gated.batches] == [1, 1, 1]


def test_a_batcher_serves_one_loop_after_another(gated, batcher):
    """A worker that ended with its event loop is started again."""
    gated.gate.set()
    for text in ("one", "two"):
        asyncio.run(batcher.embed(text, LONG_S))
    assert gated.batches == [["one"], ["two"]]


def test_the_real_encoder_through_a_batcher(encoder):
    """A vector from a shared batch is the same as without the batcher."""
    batcher = Batcher(encoder)
    texts = ["Where is my parcel?", "Translate this letter into French"]

    async def scenario() -> list[Any]:
        return await asyncio.gather(*(batcher.embed(text, LONG_S) for text in texts))

    vectors = asyncio.run(scenario())
    batcher.close()
    assert np.allclose(np.vstack(vectors), encoder.encode(texts), atol=1e-5)


def test_the_load_of_the_encoder_is_counted(gated, batcher):
    """Waiting texts, working time, and how many texts were cached, encoded or too late."""

    async def scenario() -> None:
        first = await busy(batcher, gated)
        (second,) = await waiting(batcher, "second")
        assert batcher.load.queue == 1
        gated.gate.set()
        await asyncio.gather(first, second)
        await batcher.embed("first", LONG_S)
        with pytest.raises(EncoderError):
            await batcher.embed("bad", LONG_S)
        load = batcher.load
        assert (load.queue, load.cached, load.encoded, load.late) == (0, 1, 2, 1)
        assert load.busy_s > 0

    run(scenario())
