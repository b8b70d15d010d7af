"""A small store for facts that are needed between requests: values by key, with an expiry.

The store of one process is bounded and forgets the entry that was used least recently. A lost entry costs no
request: its reader continues as if the entry had never been there.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

# An entry has about 300 bytes.
_ENTRIES = 100_000
# What Python needs for an entry beside its key and its value.
_ENTRY_BYTES = 300


class StateStore(Protocol):
    """Values by key. No method raises, and none waits long."""

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the value of each key. None: there is none, it has expired, or the store cannot be reached."""

    def set(self, values: Mapping[str, bytes], expires_s: float) -> None:
        """Keep these values for `expires_s` seconds. Does not wait for the store."""


class MemoryStore:
    """The store of one process."""

    def __init__(
        self,
        entries: int = _ENTRIES,
        clock: Callable[[], float] = time.monotonic,
        most_bytes: float = math.inf,
    ) -> None:
        self._most, self._most_bytes = entries, most_bytes
        self._clock = clock
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self.size = 0  # bytes of all entries, about

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the value of each key, or None."""
        return [self._get(key) for key in keys]

    def _get(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, until = entry
        if until < self._clock():
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return value

    def set(self, values: Mapping[str, bytes], expires_s: float) -> None:
        """Keep these values."""
        until = self._clock() + expires_s
        for key, value in values.items():
            self._forget(key)
            self._entries[key] = value, until
            self.size += _size(key, value)
        while len(self._entries) > self._most or self.size > self._most_bytes:
            self._forget(next(iter(self._entries)))

    def add(self, key: str, expires_s: float) -> None:
        """Add one to a count."""
        self.set({key: b"%d" % (int(self._get(key) or b"0") + 1)}, expires_s)

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size -= _size(key, entry[0])


def _size(key: str, value: bytes) -> int:
    return len(key) + len(value) + _ENTRY_BYTES
