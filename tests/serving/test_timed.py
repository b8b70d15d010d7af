"""A wait for the next message of a stream has a limit, and no message is lost to it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from extproc.serving.timed import timed


class Line:
    """Messages that a test sends, one after the other."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.waiting = 0  # reads that have not ended

    async def messages(self) -> AsyncIterator[str]:
        while True:
            self.waiting += 1
            try:
                message = await self.queue.get()
            finally:
                self.waiting -= 1
            if message is None:
                return
            if isinstance(message, Exception):
                raise message
            yield message


def test_a_late_message_is_marked_and_then_arrives() -> None:
    async def run() -> list[str | None]:
        line, seen, limits = Line(), list[str | None](), iter([None, 0.0, 0.0, None, None, 60.0])
        line.queue.put_nowait("first")
        async with contextlib.aclosing(timed(line.messages(), lambda: next(limits))) as events:
            async for message in events:
                seen.append(message)
                if seen[-2:] == [None, None]:
                    line.queue.put_nowait("second")
                if message == "second":
                    line.queue.put_nowait("third")
                if message == "third":
                    line.queue.put_nowait(None)
        return seen

    assert asyncio.run(run()) == ["first", None, None, "second", "third"]


def test_an_error_of_the_stream_is_raised() -> None:
    async def run() -> None:
        line = Line()
        line.queue.put_nowait(OSError("gone"))
        async for _ in timed(line.messages(), lambda: 60.0):
            pass

    with pytest.raises(OSError, match="gone"):
        asyncio.run(run())


def test_a_reader_that_leaves_leaves_no_read_behind() -> None:
    async def run() -> int:
        line = Line()
        async with contextlib.aclosing(timed(line.messages(), lambda: 0.0)) as events:
            assert await anext(events) is None
            assert line.waiting == 1
        await asyncio.sleep(0)
        return line.waiting

    assert asyncio.run(run()) == 0
