"""The answers that are kept, and the count of wrong ones, in the memory of this process or in Redis.

A name in the store is a hash that is keyed by the principal. So no client reaches the answer of another one, and a
question cannot be tested against a name without that key. The answer itself is text.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from extproc.routing.store import StateStore

log = logging.getLogger(__name__)

# Above this share of wrong hits, the cache of a cohort turns itself off.
MOST_WRONG = 0.02
# The probability that the cache of a cohort with a smaller share ever turns itself off.
_ERROR = 0.05
_LEAST_WRONG = 2  # a single one may be an answer that changed
# A longer answer is not kept: about 15,000 tokens.
MOST_ANSWER_CHARS = 64 * 1024
_COUNTS_KEPT_S = 30 * 86_400.0


class CountingStore(StateStore, Protocol):
    """A store that also counts."""

    def add(self, key: str, expires_s: float) -> None:
        """Add one to a count. Does not wait for the store."""


class KeptAnswer(msgspec.Struct, frozen=True):
    """An accepted answer: its text, and where it came from. It has nothing of the request."""

    text: str
    exact: str  # hash of the ask as it was written
    made: float  # seconds since 1970
    model: str
    tier: str
    input: int | None = None
    output: int | None = None
    cached: int | None = None
    vector: bytes = b""  # of the ask: int8, of unit length times 127; empty: no other wording of it gets the answer


class Checks(msgspec.Struct, frozen=True):
    """How many hits of a cohort were checked, and how many of them were wrong."""

    checks: int = 0
    wrong: int = 0

    @property
    def off(self) -> bool:
        """Whether more than MOST_WRONG of the hits are wrong, and chance cannot explain the checks.

        The mixture martingale of the Bernoulli distribution with the prior Beta(1/2, 1/2) has reached 1/error
        (Robbins 1970). So the checks may be looked at after each of them.
        """
        right = self.checks - self.wrong
        if self.wrong < _LEAST_WRONG or self.wrong / self.checks <= MOST_WRONG:
            return False
        return _log_mixture(self.wrong, right) - _log_share(MOST_WRONG, self.wrong, right) >= -math.log(_ERROR)

    @property
    def most(self) -> float:
        """The upper bound of the share of wrong hits. It holds after every check, with a probability of 95 %."""
        if not self.checks:
            return 1.0
        right = self.checks - self.wrong
        limit = _log_mixture(self.wrong, right) + math.log(_ERROR)
        low, high = self.wrong / self.checks, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if _log_share(middle, self.wrong, right) > limit else (low, middle)
        return high

    def __str__(self) -> str:
        if not self.checks:
            return "no hit was checked yet"
        return (
            f"{self.wrong:,} of {self.checks:,} checked hits were wrong, so at most {100 * self.most:.1f} % are "
            "(95 %)"
        )


def _log_mixture(wrong: int, right: int) -> float:
    """The logarithm of the likelihood under the mixture."""
    lgamma = math.lgamma
    return lgamma(wrong + 0.5) + lgamma(right + 0.5) - lgamma(wrong + right + 1) - math.log(math.pi)


def _log_share(share: float, wrong: int, right: int) -> float:
    """The logarithm of the likelihood if this share of all hits is wrong."""
    share = min(max(share, 1e-15), 1 - 1e-15)
    return wrong * math.log(share) + right * math.log1p(-share)


_encode, _decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(KeptAnswer).decode


class AnswerStore:
    """Keeps accepted answers by key, and counts the checks of each cohort."""

    def __init__(self, store: CountingStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self.clock = clock
        self.checks: dict[tuple[str, str], Checks] = {}  # by revision and cohort, as last seen

    async def look(self, key: str, revision: str, cohort: str) -> tuple[KeptAnswer | None, Checks]:
        """Return the answer under `key`, if there is one, and the checks of its cohort."""
        names = _count_names(revision, cohort)
        entry, checks, wrong = await self._store.get([f"answer:{key}", *names])
        seen = self._saw(revision, cohort, _checks(checks, wrong))
        try:
            return (_decode(entry) if entry is not None else None), seen
        except msgspec.DecodeError:  # another release wrote it
            return None, seen

    def keep(self, key: str, answer: KeptAnswer, expires_s: float) -> None:
        """Keep an answer. Does not wait for the store."""
        self._store.set({f"answer:{key}": _encode(answer)}, expires_s)

    async def check(self, revision: str, cohort: str, is_wrong: bool) -> Checks:
        """Count one check of a hit, and return all of them."""
        checks, wrong = _count_names(revision, cohort)
        self._store.add(checks, _COUNTS_KEPT_S)
        if is_wrong:
            self._store.add(wrong, _COUNTS_KEPT_S)
        return self._saw(revision, cohort, _checks(*await self._store.get([checks, wrong])))

    def _saw(self, revision: str, cohort: str, seen: Checks) -> Checks:
        """Remember the checks, and log once that a cache is off. Another process may have found that."""
        before = self.checks.get((revision, cohort), Checks())
        self.checks[revision, cohort] = seen
        if seen.off and not before.off:
            log.error(
                "the cache of `%s` is off: %s, and at most %.0f %% may be. An edit of the YAML turns it on again",
                cohort, seen, 100 * MOST_WRONG,
            )  # fmt: skip
        return seen


def _count_names(revision: str, cohort: str) -> tuple[str, str]:
    return f"answers:{revision}:{cohort}:checks", f"answers:{revision}:{cohort}:wrong"


def _checks(checks: bytes | None, wrong: bytes | None) -> Checks:
    """Read both counts. One of them may have expired, or may be on its way to the store."""
    counts = [int(value) if value is not None and value.isdigit() else 0 for value in (checks, wrong)]
    return Checks(max(counts), counts[1])
