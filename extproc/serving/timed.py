"""Messages of a stream, with a mark where the next one is late."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

T = TypeVar("T")


async def timed(messages: AsyncIterator[T], limit_s: Callable[[], float | None]) -> AsyncGenerator[T | None]:
    """Yield the messages, and None each time that `limit_s` seconds pass before the next one.

    `limit_s` is called before each wait. If it returns None, the wait has no limit. Close this iterator at the end.
    """
    while True:
        limit = limit_s()
        if limit is None:  # nothing to pay for without a limit
            try:
                message = await anext(messages)
            except StopAsyncIteration:
                return
            yield message
            continue
        coming = asyncio.ensure_future(_next(messages))
        try:
            while not (await asyncio.wait({coming}, timeout=limit))[0]:
                yield None
                limit = limit_s()
        finally:
            coming.cancel()  # changes nothing if it is done
        received = coming.result()
        if not received:
            return
        yield received[0]


async def _next(messages: AsyncIterator[T]) -> list[T]:
    """Return the next message in a list, or an empty list at the end."""
    try:
        return [await anext(messages)]
    except StopAsyncIteration:
        return []
