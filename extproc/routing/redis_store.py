"""The store that all router processes share: Redis or Valkey.

Traffic never waits long for it. A call has `_WAIT_S`. After a failure there are no calls until a ping in the
background has succeeded. In that time the memory of this process is the store. It also has the writes that are on
their way.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from extproc.routing.store import MemoryStore

log = logging.getLogger(__name__)

_WAIT_S = 0.05
_PING_EVERY_S, _PING_S = 1.0, 1.0
# Writes on their way at one time. Above it, Redis is too slow, and values stay in this process.
_WRITES = 256
_PREFIX = "extproc:"


class RedisStore:
    """Values in Redis, and a copy in the memory of this process. For one event loop."""

    def __init__(self, url: str, failed: Callable[[], None], memory: MemoryStore | None = None) -> None:
        """`failed` counts each failure. Raises ValueError for a wrong URL, and ImportError without the package."""
        import redis.asyncio  # only if the policy names a URL: pip install 'envoy-semantic-router[redis]'
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError, TimeoutError)
        self._redis: Any = redis.asyncio.Redis.from_url(
            url, socket_timeout=_PING_S, socket_connect_timeout=_PING_S, retry=Retry(NoBackoff(), 0)
        )
        self._memory = memory if memory is not None else MemoryStore()
        self._failed = failed
        self._reachable = True
        self._writing: dict[str, int] = {}  # keys of writes on their way, and how many
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the value of each key, or None."""
        own = await self._memory.get(keys)
        if not self._reachable:
            return own
        try:
            async with asyncio.timeout(_WAIT_S):
                shared: list[bytes | None] = await self._redis.mget([_PREFIX + key for key in keys])
        except self._errors as error:
            self._stop(error)
            return own
        pairs = zip(keys, own, shared, strict=True)
        return [mine if key in self._writing else theirs for key, mine, theirs in pairs]

    def set(self, values: Mapping[str, bytes], expires_s: float) -> None:
        """Keep these values. The write to Redis goes on in the background."""
        self._memory.set(values, expires_s)
        if self._reachable and len(self._tasks) < _WRITES:
            for key in values:
                self._writing[key] = self._writing.get(key, 0) + 1
            self._start(self._write(dict(values), int(expires_s)))

    def add(self, key: str, expires_s: float) -> None:
        """Add one to a count, here and in Redis."""
        self._memory.add(key, expires_s)
        if self._reachable and len(self._tasks) < _WRITES:
            self._writing[key] = self._writing.get(key, 0) + 1
            self._start(self._write({key: None}, int(expires_s)))

    async def _write(self, values: dict[str, bytes | None], expires_s: int) -> None:
        """Write values. One that is None is a count, which grows by one."""
        try:
            async with asyncio.timeout(_WAIT_S), self._redis.pipeline(transaction=False) as pipeline:
                for key, value in values.items():
                    if value is None:
                        pipeline.incr(_PREFIX + key)
                        pipeline.expire(_PREFIX + key, expires_s)
                    else:
                        pipeline.set(_PREFIX + key, value, ex=expires_s)
                await pipeline.execute()
        except self._errors as error:
            self._stop(error)
        finally:
            for key in values:
                self._writing[key] -= 1
                if not self._writing[key]:
                    del self._writing[key]

    def _stop(self, error: Exception) -> None:
        """Count a failure. Call Redis again after a ping has succeeded."""
        self._failed()
        if self._reachable:
            self._reachable = False
            # Without the URL, which may have a password.
            log.error(
                "`state` cannot be reached (%s): conversations are known to one process", type(error).__name__
            )
            self._start(self._ping())

    async def _ping(self) -> None:
        while not self._reachable:
            await asyncio.sleep(_PING_EVERY_S)
            try:
                async with asyncio.timeout(_PING_S):
                    await self._redis.ping()
            except self._errors:
                continue
            self._reachable = True
            log.warning("`state` can be reached again")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
