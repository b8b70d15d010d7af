"""The order of the attempts after the first one: the rungs, and the tiers that `failover` of a tier names.

A rung is asked after a failed attempt or after a rejected answer. A failover tier is asked only after a failed
attempt, so it may be of the same strength or cheaper. The lists of failover tiers are not followed.
"""

from collections.abc import Collection, Sequence

from extproc.routing.policy import Rung
from extproc.settings import Tier


def with_failover(first: Rung, rungs: Sequence[Rung], tiers: Sequence[Tier], able: Collection[str]) -> list[Rung]:
    """Return the rungs with the failover tiers behind the tier that names them. Each of these is asked once.

    `able` are the names of the tiers that may serve. A rung that is named as a failover tier keeps its reasoning.
    """
    by_name = {tier.name: tier for tier in tiers}
    ladder: list[Rung] = []
    waiting = list(rungs)
    asked = {first.tier.name}
    step: Rung | None = first
    while step is not None:
        for name in step.tier.failover or ():
            early = next((rung for rung in waiting if rung.tier.name == name), None)
            if name in asked or name not in able:
                continue
            asked.add(name)
            if early is not None:
                waiting.remove(early)
            ladder.append(early or Rung(by_name[name], step.reasoning, failover=True))
        step = waiting.pop(0) if waiting else None
        if step is not None:
            ladder.append(step)
            asked.add(step.tier.name)
    return ladder


def next_rungs(tiers: Sequence[Tier], first: Tier, ladder: Sequence[Rung]) -> tuple[int, ...]:
    """Return where a rejected answer of each attempt leads, as indexes into first tier and ladder.

    The number of attempts means that it leads nowhere.
    A rejected answer never leads to a failover tier, and from one of these only to a higher tier.
    """
    attempts = (Rung(first, None), *ladder)
    names = [tier.name for tier in tiers]
    ranks = [names.index(attempt.tier.name) for attempt in attempts]
    return tuple(
        next(
            (
                above
                for above in range(at + 1, len(attempts))
                if not attempts[above].failover and (ranks[above] > ranks[at] or not attempt.failover)
            ),
            len(attempts),
        )
        for at, attempt in enumerate(attempts)
    )
