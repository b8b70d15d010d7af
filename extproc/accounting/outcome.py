"""What became of an exchange, and what it cost: `Outcome` and its price.

Tokens are what upstreams said of their answers, never an estimate: an answer that told none, or that was cut
before it could, has no usage, and whoever adds up says how many of those there were.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, Protocol

import msgspec

from extproc.api.observation import Usage
from extproc.contract.words import Reason
from extproc.settings import Tier


class Ending(StrEnum):
    """How an exchange ended."""

    ACCEPTED = "accepted"  # answered, and no rule rejected the answer; see `judged`
    DEGRADED = "degraded"  # answered with what a rule rejected
    HUMAN = "human"  # put aside for a person
    FAILED = "failed"  # an error, or an answer that was cut
    CANCELLED = "cancelled"  # the client left


# The client got an answer, good or not.
SERVED = (Ending.ACCEPTED, Ending.DEGRADED)


class Rejection(msgspec.Struct, frozen=True):
    """An answer that was paid for and that no client saw."""

    attempt: int
    tier: str | None
    reason: str
    usage: Usage | None = None


class Outcome(msgspec.Struct, frozen=True):
    """One exchange, as it ended. No text, no key: names, counts, times and hashes."""

    time: float  # when it began, seconds since 1970
    api: str
    ending: Ending
    status: int  # what the client got; 0: nothing
    attempts: int
    reason: str  # of the decision: a Reason; without one, an Undecided
    judged: bool = False  # a rule looked at the answer that was served
    cohort: str | None = None
    tier: str | None = None  # the last one asked
    rejections: tuple[Rejection, ...] = ()
    usage: Usage | None = None  # of the last attempt
    usage_from: Literal["envoy", "verifier"] | None = None
    request: str | None = None  # Envoy's x-request-id, by which its log, the client's and the upstream's are joined
    principal: str | None = None
    session: str | None = None
    revision: str | None = None
    mode: str | None = None
    duration_s: float | None = None
    first_byte_s: float | None = None  # until the client had the first byte of the answer

    @property
    def failed_attempts(self) -> int:
        """Attempts that brought no answer at all, before the last one."""
        return max(self.attempts - 1 - len(self.rejections), 0)

    @property
    def usage_due(self) -> bool:
        """Whether the last attempt may have been paid for: it began to answer, or the client left before it did."""
        return self.attempts > 0 and (self.status == 200 or self.ending in (Ending.CANCELLED, Ending.HUMAN))

    @property
    def served(self) -> bool:
        """Whether the client got an answer, good or not."""
        return self.ending in SERVED


class Cost(msgspec.Struct, frozen=True):
    """Of one outcome, in US dollars; None where the tokens are unknown or the tier is gone from the policy."""

    last: float | None  # of the last attempt
    rejected: tuple[float | None, ...]  # of each rejection
    # What the same tokens cost at the default tier; None too where nothing was served. A tier that the client
    # itself chose is its own measure: without us, it would have been asked as well.
    default: float | None


Priced = tuple[Outcome, Cost]


class Tariff(Protocol):
    """What prices are read from: a policy, compiled or not."""

    @property
    def tiers(self) -> Sequence[Tier]: ...
    @property
    def default_tier(self) -> str: ...


_CHOSEN_BY_CLIENT = (Reason.PINNED, Reason.PASSTHROUGH)


def cost_of(outcome: Outcome, tariff: Tariff) -> Cost:
    """Price an outcome by what the tiers cost now."""
    last = _price(outcome.usage, outcome.tier, tariff)
    default = None
    if outcome.served:
        chosen = outcome.reason in _CHOSEN_BY_CLIENT
        default = last if chosen else _price(outcome.usage, tariff.default_tier, tariff)
    return Cost(last, tuple(_price(r.usage, r.tier, tariff) for r in outcome.rejections), default)


def _price(usage: Usage | None, name: str | None, tariff: Tariff) -> float | None:
    price = next((tier.price for tier in tariff.tiers if tier.name == name), None)
    if price is None or usage is None or usage.input is None or usage.output is None:
        return None
    cached = min(usage.cached or 0, usage.input)
    cached_price = price.input if price.cached_input is None else price.cached_input
    fresh = (usage.input - cached) * price.input
    return (fresh + cached * cached_price + usage.output * price.output) / 1e6
