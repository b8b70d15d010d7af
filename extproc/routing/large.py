"""Works on large bodies in threads, so that the event loop goes on with other exchanges."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

# NumPy releases the GIL while it counts in a body. The decoder keeps it, for 6 ms a megabyte at most, but the event
# loop runs between two steps.
LARGE_BYTES = 256 * 1024
_THREADS = 2

P = ParamSpec("P")
R = TypeVar("R")


class LargeBodies:
    """A few threads for bytes that take long to read: many of them, or compressed ones that unpack to many."""

    def __init__(self, name: str) -> None:
        """`name` begins the names of the threads."""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=name)

    async def work(self, is_large: bool, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function that reads bytes, in a thread if they are large."""
        if not is_large:
            return function(*args, **kwargs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
