"""The connection to the Redis or Valkey that all router processes share, and whether it can be reached.

Traffic never waits long for it. After a failure there are no calls until a ping in the background has succeeded.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)

_PING_EVERY_S, _PING_S = 1.0, 1.0
KEY_PREFIX = "extproc:"
# A request waits this long for a limit at most. The store answers in less than a millisecond.
_WITHIN_S = 0.01
# Calls that may take too long one after the other before the store counts as gone.
_SLOW_CALLS = 3

T = TypeVar("T")


class RedisLink:
    """One connection pool. For one event loop."""

    def __init__(self, url: str, failed: Callable[[], None]) -> None:
        """`failed` counts each failure. Raises ValueError for a wrong URL, and ImportError without the package."""
        import redis.asyncio  # only if the policy names a URL: pip install 'envoy-semantic-router[redis]'
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self.errors: tuple[type[Exception], ...] = (redis.RedisError, OSError, TimeoutError)
        self.client: Any = redis.asyncio.Redis.from_url(
            url, socket_timeout=_PING_S, socket_connect_timeout=_PING_S, retry=Retry(NoBackoff(), 0)
        )
        self.reachable = True
        self.returned: list[Callable[[], None]] = []  # called when the store is there again
        self._failed = failed
        self._slow = 0
        self.within_s = _WITHIN_S
        self.tasks: set[asyncio.Task[Any]] = set()

    async def ask(
        self, call: Coroutine[Any, Any, T], within_s: float, late: Callable[[T], None] | None = None
    ) -> T | None:
        """Return the answer of the store, or None if it gives none within this time.

        The call goes on after that time, and `late` gets its answer.
        """
        if not self.reachable:
            call.close()
            return None
        asked = asyncio.create_task(call)
        try:
            async with asyncio.timeout(within_s):
                answer = await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._wait(asked, late)
            raise
        except TimeoutError as error:
            self._wait(asked, late)
            self._slow += 1
            if self._slow >= _SLOW_CALLS:
                self.stop(error)
            else:
                self._failed()
            return None
        except self.errors as error:
            self.stop(error)
            return None
        self._slow = 0
        return answer

    def _wait(self, asked: "asyncio.Task[T]", late: Callable[[T], None] | None) -> None:
        """Let the call go on in the background. The client itself stops it after a second."""

        def finish(asked: "asyncio.Task[T]") -> None:
            self.tasks.discard(asked)
            if not asked.cancelled() and asked.exception() is None and late is not None:
                late(asked.result())

        self.tasks.add(asked)
        asked.add_done_callback(finish)

    def stop(self, error: Exception) -> None:
        """Count a failure. Call the store again after a ping has succeeded."""
        self._failed()
        if self.reachable:
            self.reachable = False
            # Without the URL, which may have a password.
            log.error(
                "`state` cannot be reached (%s): conversations, limits and budgets are those of one process",
                type(error).__name__,
            )
            self.start(self._ping())

    async def _ping(self) -> None:
        while not self.reachable:
            await asyncio.sleep(_PING_EVERY_S)
            try:
                async with asyncio.timeout(_PING_S):
                    await self.client.ping()
            except self.errors:
                continue
            self.reachable, self._slow = True, 0
            log.warning("`state` can be reached again")
            for call in self.returned:
                call()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run this in the background."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
