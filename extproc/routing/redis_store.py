"""The store of conversations that all router processes share: Redis or Valkey.

While it is gone, the memory of this process is the store. It also has the writes that are on their way.
"""

import asyncio
from collections.abc import Mapping, Sequence

from extproc.routing.redis_link import KEY_PREFIX, RedisLink
from extproc.routing.store import MemoryStore

_WAIT_S = 0.05
# Writes on their way at one time. Above it, Redis is too slow, and values stay in this process.
_WRITES = 256


class RedisStore:
    """Values in Redis, and a copy in the memory of this process. For one event loop."""

    def __init__(self, link: RedisLink, memory: MemoryStore | None = None) -> None:
        """`memory` has the copy. Without it, the copy is of a usual size."""
        self._link = link
        self._memory = memory if memory is not None else MemoryStore()
        self._writing: dict[str, int] = {}  # keys of writes on their way, and how many

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the value of each key, or None."""
        own = await self._memory.get(keys)
        if not self._link.reachable:
            return own
        shared: list[bytes | None] | None = await self._link.ask(
            self._link.client.mget([KEY_PREFIX + key for key in keys]), _WAIT_S
        )
        if shared is None:
            return own
        pairs = zip(keys, own, shared, strict=True)
        return [mine if key in self._writing else theirs for key, mine, theirs in pairs]

    def set(self, values: Mapping[str, bytes], expires_s: float) -> None:
        """Keep these values. The write to Redis goes on in the background."""
        self._memory.set(values, expires_s)
        if self._link.reachable and len(self._link.tasks) < _WRITES:
            for key in values:
                self._writing[key] = self._writing.get(key, 0) + 1
            self._link.start(self._write(dict(values), int(expires_s)))

    def add(self, key: str, expires_s: float) -> None:
        """Add one to a count, here and in Redis."""
        self._memory.add(key, expires_s)
        if self._link.reachable and len(self._link.tasks) < _WRITES:
            self._writing[key] = self._writing.get(key, 0) + 1
            self._link.start(self._write({key: None}, int(expires_s)))

    async def _write(self, values: dict[str, bytes | None], expires_s: int) -> None:
        """Write values. One that is None is a count, which grows by one."""
        try:
            async with asyncio.timeout(_WAIT_S), self._link.client.pipeline(transaction=False) as pipeline:
                for key, value in values.items():
                    if value is None:
                        pipeline.incr(KEY_PREFIX + key)
                        pipeline.expire(KEY_PREFIX + key, expires_s)
                    else:
                        pipeline.set(KEY_PREFIX + key, value, ex=expires_s)
                await pipeline.execute()
        except self._link.errors as error:
            self._link.stop(error)
        finally:
            for key in values:
                self._writing[key] -= 1
                if not self._writing[key]:
                    del self._writing[key]
