"""The rungs above the tier of the first attempt."""

from collections.abc import Sequence

from extproc.routing.ability import can_serve
from extproc.routing.failover import with_failover
from extproc.routing.findings import Findings
from extproc.routing.policy import Policy, Rung
from extproc.settings import Reasoning


def ladder_above(policy: Policy, findings: Findings, rank: int, reasoning: Reasoning | None) -> tuple[Rung, ...]:
    """The attempts after the first one, at tiers that can serve: rungs, and the failover tiers of each."""
    rungs = _rungs(policy, findings, rank, reasoning)
    first, settings = Rung(policy.tiers[rank], reasoning), findings.settings
    if settings is None or (settings.escalate is None and not settings.accept):
        # The next tier up is for failed attempts alone, and `failover` takes its place.
        if first.tier.failover is None:
            return rungs
        rungs = ()
    if all(rung.tier.failover is None for rung in (first, *rungs)):
        return rungs
    lowest = min(findings.guard.floor, rank)  # a cap on upgrades may have lowered the choice
    able = servable_ranks(policy, findings, range(lowest, findings.ceiling + 1))
    return tuple(with_failover(first, rungs, policy.tiers, [policy.tiers[i].name for i in able]))


def _rungs(policy: Policy, findings: Findings, rank: int, reasoning: Reasoning | None) -> tuple[Rung, ...]:
    """The rungs above `rank` that can serve: those that the cohort names, otherwise the next tier up."""
    tiers, settings = policy.tiers, findings.settings
    able = servable_ranks(policy, findings, range(rank, findings.ceiling + 1))
    if settings is not None and settings.escalate is not None:
        named = [(policy.rank(spec.tier), spec) for spec in settings.escalate.rungs]
        rungs = [
            Rung(tiers[above], reasoning if spec.reasoning is None else spec.reasoning)
            for above, spec in named
            if above in able
        ]
        return tuple(rungs[: settings.escalate.max])
    return tuple(Rung(tiers[above], reasoning) for above in able if above > rank)[:1]


def servable_ranks(policy: Policy, findings: Findings, ranks: Sequence[int]) -> list[int]:
    """The ranks, without the tiers that may not get the request or cannot serve it."""
    tiers = policy.tiers
    allowed = [rank for rank in ranks if findings.guard.allows(tiers[rank].name) and tiers[rank].takes_new]
    return [rank for rank in allowed if can_serve(tiers, rank, findings.load, allowed[-1])]
