"""A small store for facts that are needed between requests: values by key, with an expiry.

The store of one process is bounded and forgets the entry that was used least recently. A lost entry costs no
request: its reader continues as if the entry had never been there.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

# An entry has about 300 bytes.
_ENTRIES = 100_000


class StateStore(Protocol):
    """Values by key. No method raises, and none waits long."""

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the value of each key. None: there is none, it has expired, or the store cannot be reached."""

    def set(self, values: Mapping[str, bytes], expires_s: float) -> None:
        """Keep these values for `expires_s` seconds. Does not wait for the store."""


class MemoryStore:
    """The store of one process."""

    def __init__(self, entries: int = _ENTRIES, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = entries
        self._clock = clock
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the value of each key, or None."""
        return [self._get(key) for key in keys]

    def _get(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, until = entry
        if until < self._clock():
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return value

    def set(self, values: Mapping[str, bytes], expires_s: float) -> None:
        """Keep these values."""
        until = self._clock() + expires_s
        for key, value in values.items():
            self._entries[key] = value, until
            self._entries.move_to_end(key)
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)
