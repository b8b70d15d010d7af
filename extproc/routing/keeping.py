"""The steps of a decision that keep a conversation at the tier which answered it last. Pure functions."""

from collections.abc import Sequence

import msgspec

from extproc.contract.words import Course, Reason
from extproc.routing.choice import Choice
from extproc.routing.conversations import Continuation
from extproc.routing.guard import Guard
from extproc.routing.policy import Policy, Rung
from extproc.routing.sticky import choose, seal_of
from extproc.settings import Tier


class Stripping(msgspec.Struct, frozen=True):
    """Which sealed items the tiers of one request cannot read."""

    seal: str | None  # of the tier that answered last
    foreign: int  # items that it cannot read, from the first on; other tiers read none

    def count(self, tier: Tier, items: int) -> int:
        """How many of these sealed items are removed for `tier`, from the first on."""
        return self.foreign if seal_of(tier) == self.seal else items


def bound_choice(policy: Policy, choice: Choice, continuation: Continuation, guard: Guard) -> Choice:
    """The tier that answered last, if only it can read the request, or if the request goes on with a tool loop.

    If no tier is known to have made the state, the tier of the model that the client named gets the request.
    If several tiers can read the request, those that the guard allows come first.
    """
    last = continuation.tier_of(policy.tiers, guard.allows)
    if last is None:
        last = continuation.tier_of(policy.tiers)
    if must_stay(policy, continuation):
        if last is None:
            wanted = continuation.requested
            named = [rank for rank, tier in enumerate(policy.tiers) if tier.takes_any and tier.model == wanted]
            lost = named[0] if named else policy.rank(policy.default_tier)
            return Choice(lost, Reason.BOUND, Course.LOST)
        proposed = policy.tiers[choice.rank]
        if choice.rank != last and _same_seal(policy, choice.rank, last) and guard.allows(proposed.name):
            return msgspec.structs.replace(choice, fixed=True)
        return Choice(last, Reason.BOUND, Course.KEPT_SEALED, fixed=True)
    if last is None or not continuation.in_loop:
        return choice
    reason = choice.reason if choice.rank == last else Reason.BOUND
    return Choice(last, reason, Course.KEPT_TOOL_LOOP, fixed=continuation.bound)


# A limit lowered the tier.
_CAPPED = (Reason.UPGRADE_RATE, Reason.BUDGET)


def stuck_choice(
    policy: Policy, choice: Choice, servable: Sequence[int], tokens: int, continuation: Continuation
) -> Choice:
    """The tier, raised to where the conversation was if its budget does not pay for a switch to a cheaper one.

    `servable` are the ranks that can serve the request.
    """
    history, budget = continuation.history, policy.sticky.switch_budget
    if history is None or budget is None or choice.course is not None or choice.reason in _CAPPED:
        return choice
    rank = choose(history, policy.tiers, choice.rank, servable, tokens, continuation.now_s, budget)
    return Choice(rank, Reason.BOUND, Course.KEPT_CACHE) if rank != choice.rank else choice


def course_of(policy: Policy, choice: Choice, continuation: Continuation) -> Course | None:
    """Whether the conversation stays. None: the request continues none that is known."""
    if choice.course is not None:
        return choice.course
    last = continuation.tier_of(policy.tiers)
    if last is None:
        return Course.LOST if continuation.bound else None
    if choice.rank == last:
        return Course.KEPT
    stripped = stripping(policy, continuation) is not None and not _same_seal(policy, choice.rank, last)
    return Course.MOVED_STRIPPED if stripped else Course.MOVED


def stripping(policy: Policy, continuation: Continuation) -> Stripping | None:
    """The sealed items that may be removed from the request for other tiers. None: nothing may be removed."""
    if not continuation.bound or continuation.fixed or policy.sticky.on_switch != "strip":
        return None
    last = continuation.tier_of(policy.tiers)
    return Stripping(seal_of(policy.tiers[last]) if last is not None else None, continuation.foreign)


def must_stay(policy: Policy, continuation: Continuation) -> bool:
    """Whether only one tier, or those with its seal, can read the request as it will be sent."""
    return continuation.bound and has_several_seals(policy) and stripping(policy, continuation) is None


def has_several_seals(policy: Policy) -> bool:
    """Whether there are tiers that cannot read each other's state."""
    return len({seal_of(tier) for tier in policy.tiers}) > 1


def readable_rungs(
    policy: Policy, rungs: Sequence[Rung], tier: Tier, continuation: Continuation
) -> tuple[Rung, ...]:
    """The rungs above `tier` that may be asked after it: they can read the request, and no job starts twice."""
    if continuation.background:
        return ()
    if not continuation.bound or (stripping(policy, continuation) is not None and not continuation.in_loop):
        return tuple(rungs)
    last = continuation.tier_of(policy.tiers)
    seals = {seal_of(tier)} if last is None else {seal_of(tier), seal_of(policy.tiers[last])}
    return tuple(rung for rung in rungs if seal_of(rung.tier) in seals)


def _same_seal(policy: Policy, rank: int, other: int) -> bool:
    return seal_of(policy.tiers[rank]) == seal_of(policy.tiers[other])
