"""An event loop in a thread, for servers that run beside synchronous code."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_LONGEST_S = 10.0


class LoopThread:
    """The loop runs from `start` to `stop`."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and return its result. Raises TimeoutError after ten seconds."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_LONGEST_S)

    def stop(self) -> None:
        """End the thread. The loop stays open, because connections that clients left may still refer to it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
