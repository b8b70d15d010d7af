"""The outcome of an exchange and its cost.

Token counts come from upstreams and are never estimated. An answer without token counts, for example because it was
cut, has no usage. Reports state how many of these answers there were.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, Protocol

import msgspec

from extproc.api.observation import Usage
from extproc.contract.statuses import has_answer
from extproc.contract.words import CACHE_HITS, Bound, Reason, VerdictWord
from extproc.settings import Tier


class Ending(StrEnum):
    """How an exchange ended."""

    ACCEPTED = "accepted"  # the client got an answer that no rule rejected; see `Outcome.judged`
    DEGRADED = "degraded"  # the client got an answer that a rule rejected, or that was not fully judged
    HUMAN = "human"  # the answer was queued for a person
    FAILED = "failed"  # an error, an answer that was cut, or a success without a body
    CANCELLED = "cancelled"  # the client left


class Unjudged(StrEnum):
    """Why no rule looked at the answer that was served."""

    NO_COHORT = "no_cohort"  # the request belongs to no cohort
    NO_RULE = "no_rule"  # no `accept`, or no tier and no person could give a better answer, or `mode: shadow`
    LAST_RUNG = Bound.LAST_RUNG.value  # a judged request whose answer came from the last rung
    UNKNOWN = "unknown"  # the router that wrote the row did not note it
    CACHED = "cached"  # an earlier answer was served, which a rule accepted
    LOST = "lost"  # a rule should have looked at it: the verifier was down, or the client left


# The endings with an answer for the client, good or not.
SERVED = (Ending.ACCEPTED, Ending.DEGRADED)


class Rejection(msgspec.Struct, frozen=True):
    """An answer that was paid for, but that no client received."""

    attempt: int
    tier: str | None
    reason: str
    usage: Usage | None = None


class TierError(msgspec.Struct, frozen=True):
    """An attempt that ended with an error."""

    tier: str
    status: int  # HTTP status of the upstream, 0 if it gave no answer


class LateVerdict(msgspec.Struct, frozen=True):
    """A verdict that Envoy completed at the end of an answer. The verifier has not counted it."""

    cohort: str
    attempt: int
    verdict: VerdictWord
    reason: str | None = None  # of a rejection, or why the answer was not fully judged


class Outcome(msgspec.Struct, frozen=True):
    """How one exchange ended: names, counts, times and hashes, without any text or key."""

    time: float  # of its start, seconds since 1970
    api: str
    ending: Ending
    status: int  # HTTP status that the client got, 0 if it got none
    attempts: int
    reason: str  # of the decision: a Reason, or an Undecided if there was no decision
    judged: bool = False  # a rule looked at the answer that was served
    unjudged: str | None = None  # why no rule looked at the answer: an Unjudged
    cohort: str | None = None  # or the word of NOT_A_COHORT that says why there is none
    tier: str | None = None  # of the last attempt
    rejections: tuple[Rejection, ...] = ()
    usage: Usage | None = None  # of the last attempt
    model: str | None = None  # that the upstream says it has answered with
    stream: bool = False  # the client asked for a stream
    usage_from: Literal["envoy", "verifier"] | None = None
    request: str | None = None  # x-request-id, which joins the logs of Envoy, the client and the upstream
    principal: str | None = None
    session: str | None = None
    conversation: str | None = None  # a Course: whether the conversation stayed at its tier, and why
    errors: tuple[TierError, ...] = ()  # of all attempts whose tier is known
    late: LateVerdict | None = None  # on the last attempt
    key_refused: str | None = None  # the tier whose upstream refused the tier's own key last
    chances: str | None = None  # JSON: tier -> chance that the router also asked it; None: there was no chance
    explored: str | None = None  # the id of that second request, if it was drawn: see `Explored`
    cache: str | None = None  # a CacheWord; None: the cohort has no cache
    reused: Usage | None = None  # tokens of the kept answer that was served. `tier` gave it, and nothing was paid
    app: str | None = None
    team: str | None = None  # of the app
    charge: str | None = None  # what the request has reserved in its budgets
    revision: str | None = None
    mode: str | None = None
    decision: str | None = None  # the whole record of the decision and of the last verdict, as JSON
    duration_s: float | None = None
    traceparent: str | None = None  # of Envoy's last span for the request
    first_byte_s: float | None = None  # until the client received the first byte of the answer

    @property
    def failed_attempts(self) -> int:
        """Number of attempts without any answer, before the last attempt."""
        return max(self.attempts - 1 - len(self.rejections), 0)

    @property
    def usage_due(self) -> bool:
        """Whether the last attempt may have been paid for: the answer began, or the client left before that."""
        return self.attempts > 0 and (has_answer(self.status) or self.ending in (Ending.CANCELLED, Ending.HUMAN))

    @property
    def is_hit(self) -> bool:
        """Whether a kept answer was served, without a tier."""
        return self.cache in CACHE_HITS and self.attempts == 0

    @property
    def served(self) -> bool:
        """Whether the client got an answer, good or not."""
        return self.ending in SERVED


class Explored(msgspec.Struct, frozen=True):
    """The answer of a second tier that the router asked outside the path of the client. It has no text."""

    id: str  # of the second request: `Outcome.explored` of the first one
    time: float  # of its start, seconds since 1970
    tier: str
    propensity: float  # the chance with which this tier was asked
    status: int  # HTTP status; 0: no answer
    accepted: bool | None  # by the rules of the cohort; None: there was nothing to judge
    reason: str | None = None  # why it was rejected, or why there is nothing to judge
    usage: Usage | None = None
    cost: float | None = None  # US dollars
    duration_s: float | None = None


class Cost(msgspec.Struct, frozen=True):
    """The cost of one outcome in US dollars. None: unknown tokens, or a tier that is not in the policy."""

    last: float | None  # of the last attempt
    rejected: tuple[float | None, ...]  # of each rejection
    # The cost of the same tokens at the default tier. None if no answer was served. If the client chose the tier,
    # this is the cost at that tier, because the tier would also have been asked without a router.
    default: float | None
    saved: float | None = None  # of a hit: the cost of its answer at the tier that gave it


Priced = tuple[Outcome, Cost]


def paid(outcome: Outcome, cost: Cost) -> float | None:
    """Return the cost of all answers to a request in US dollars. None: that of the last one is not known."""
    if cost.last is None and outcome.usage_due:
        return None
    return (cost.last or 0.0) + sum(price for price in cost.rejected if price is not None)


class Tariff(Protocol):
    """The source of prices: a policy, compiled or not."""

    @property
    def tiers(self) -> Sequence[Tier]: ...
    @property
    def default_tier(self) -> str: ...


_CHOSEN_BY_CLIENT = (Reason.PINNED, Reason.PASSTHROUGH)


def cost_of(outcome: Outcome, tariff: Tariff) -> Cost:
    """Return the cost of an outcome at the current prices of the tiers."""
    if outcome.is_hit:
        reused = outcome.reused
        saved = price_of(reused, outcome.tier, tariff)
        return Cost(0.0, (), price_of(reused, tariff.default_tier, tariff), saved)
    last = price_of(outcome.usage, outcome.tier, tariff)
    default = None
    if outcome.served:
        chosen = outcome.reason in _CHOSEN_BY_CLIENT
        default = last if chosen else price_of(outcome.usage, tariff.default_tier, tariff)
    return Cost(last, tuple(price_of(r.usage, r.tier, tariff) for r in outcome.rejections), default)


def price_of(usage: Usage | None, name: str | None, tariff: Tariff) -> float | None:
    """Return the cost of an answer of the tier with this name. None: unknown tokens or tier."""
    price = next((tier.price for tier in tariff.tiers if tier.name == name), None)
    if price is None or usage is None or usage.input is None or usage.output is None:
        return None
    cached = min(usage.cached or 0, usage.input)
    cached_price = price.input if price.cached_input is None else price.cached_input
    fresh = (usage.input - cached) * price.input
    return (fresh + cached * cached_price + usage.output * price.output) / 1e6
