"""The steps that every tier passes after it was proposed: floors, the cap on upgrades, `only`, and ability.

Each step takes a `Choice` and returns one, so the reason is that of the last step which changed the tier.
"""

import msgspec

from extproc.contract.words import Course, Reason
from extproc.routing.ability import Load, first_able
from extproc.routing.guard import Guard
from extproc.routing.policy import Policy


class Choice(msgspec.Struct, frozen=True):
    """The tier after one step, by its rank, and the reason for it."""

    rank: int
    reason: Reason
    course: Course | None = None  # why a conversation stays, if it does
    fixed: bool = False  # only floors and `only` may change it


def raise_to_floor(choice: Choice, floor: int) -> Choice:
    """Return the tier, raised to the floor."""
    return Choice(floor, Reason.TIER_FLOOR) if floor > choice.rank else choice


def cap_upgrade(policy: Policy, choice: Choice, floor: int) -> Choice:
    """Return the tier, lowered to the default tier. A floor above it holds, unless the policy puts cost first."""
    cap = policy.rank(policy.default_tier)
    if policy.upgrades is None or not policy.upgrades.lower_floors:
        cap = max(cap, floor)
    kept = choice.fixed or choice.course is not None
    return Choice(cap, Reason.UPGRADE_RATE) if cap < choice.rank and not kept else choice


def cap_budget(policy: Policy, choice: Choice, floor: int, ceiling: int | None) -> Choice:
    """Return the tier, lowered to the highest one that its budgets pay for. None: they pay for every tier.

    A floor above it holds. So does state that only one tier can read.
    """
    if ceiling is None or choice.fixed or choice.rank <= (cap := max(ceiling, floor)):
        return choice
    return Choice(cap, Reason.BUDGET)


def confine(policy: Policy, choice: Choice, guard: Guard) -> Choice | None:
    """Return the tier, or the nearest one that the guard allows, the higher one of two. None if it allows none."""
    if guard.allows(policy.tiers[choice.rank].name):
        return choice
    ranks = _allowed_ranks(policy, choice, guard)
    return Choice(ranks[0], Reason.RESIDENCY) if ranks else None


def make_able(policy: Policy, choice: Choice, guard: Guard, load: Load) -> Choice | None:
    """Return the tier, or the next one that can serve: upward, or the nearest one that the guard allows.

    None if the guard allows none that can.
    """
    confined = confine(policy, choice, guard)
    if confined is None or confined.fixed:
        return confined
    ranks = range(choice.rank, len(policy.tiers)) if guard.only is None else _allowed_ranks(policy, choice, guard)
    rank = first_able(policy.tiers, ranks, load)
    if rank is None and guard.only is not None:
        return None
    if rank is None:
        rank = _nearest_in_service(policy, choice.rank)
    return confined if rank == confined.rank else Choice(rank, Reason.CAPABILITY)


def _nearest_in_service(policy: Policy, rank: int) -> int:
    """The first tier from `rank` up that takes requests, or the highest one below.

    Checks ensure that a tier for each floor takes requests.
    """
    taking = [i for i, tier in enumerate(policy.tiers) if tier.takes_new]
    return next((i for i in taking if i >= rank), taking[-1] if taking else rank)


def _allowed_ranks(policy: Policy, choice: Choice, guard: Guard) -> list[int]:
    """The ranks that the guard allows, the nearest to the choice first, and the higher one of two before."""
    floor = min(guard.floor, choice.rank)  # a cap on upgrades may have lowered the choice
    tiers = enumerate(policy.tiers)
    ranks = [rank for rank, tier in tiers if rank >= floor and guard.allows(tier.name) and tier.takes_new]
    return sorted(ranks, key=lambda rank: (abs(rank - choice.rank), -rank))
