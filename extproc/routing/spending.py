"""The sums of budgets: reserved before a request is sent, and corrected when its cost is known.

A sum only needs one number, because an amount is a part of it as soon as it is reserved. Nothing expires: the
amount of a request whose end is never reported stays, and the next month has other sums.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from extproc.routing.budget import Claim

# Sums that are kept at one time: one for each budget, and one for each principal. The least recently used goes.
_SUMS = 100_000


class Reserved(msgspec.Struct, frozen=True):
    """The result of a reservation."""

    full: tuple[int, ...] = ()  # the claims without room, as indexes. If there is one, nothing is reserved
    local: bool = False  # the shared store could not be asked, so only this process was


def without_room(claims: Sequence[Claim], sums: Sequence[int], amount: int) -> tuple[int, ...]:
    """The claims, as indexes, whose sums have no room for the amount. `sums` are in the order of the claims."""
    pairs = zip(claims, sums, strict=True)
    return tuple(i for i, (claim, total) in enumerate(pairs) if total + amount > claim.limit)


class Spending(Protocol):
    """The sums of all budgets. No method raises, and none waits long."""

    async def reserve(self, claims: Sequence[Claim], amount: int) -> Reserved:
        """Add the amount to every sum, if all of them then stay within their limits."""

    def add(self, keys: Sequence[str], amount: int) -> None:
        """Add an amount, which may be below zero, to every sum. Does not wait."""

    def raise_to(self, totals: Mapping[str, int]) -> None:
        """Raise each sum to at least this amount. Does not wait."""

    @property
    def totals(self) -> Mapping[str, int]:
        """The sums, as this process knows them."""


class MemorySpending:
    """The sums of one process."""

    def __init__(self, most: int = _SUMS) -> None:
        self._most = most
        self._totals: OrderedDict[str, int] = OrderedDict()

    async def reserve(self, claims: Sequence[Claim], amount: int) -> Reserved:
        """Add the amount to every sum, if there is room for it."""
        full = without_room(claims, [self._of(claim.key) for claim in claims], amount)
        if not full:
            self.add([claim.key for claim in claims], amount)
        return Reserved(full)

    def add(self, keys: Sequence[str], amount: int) -> None:
        """Add an amount to every sum."""
        for key in keys:
            self.put(key, max(0, self._of(key) + amount))

    def raise_to(self, totals: Mapping[str, int]) -> None:
        """Raise each sum to at least this amount."""
        for key, total in totals.items():
            self.put(key, max(total, self._of(key)))

    def put(self, key: str, total: int) -> None:
        """Set a sum."""
        self._totals[key] = total
        self._totals.move_to_end(key)
        if len(self._totals) > self._most:
            self._totals.popitem(last=False)

    def _of(self, key: str) -> int:
        return self._totals.get(key, 0)

    @property
    def totals(self) -> Mapping[str, int]:
        """The sums."""
        return self._totals
