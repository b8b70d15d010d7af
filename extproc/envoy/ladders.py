"""The ladders that Envoys before 1.40 need as clusters, and those that they cannot serve."""

from collections.abc import Iterator, Sequence
from itertools import combinations

from extproc.config.load import Config
from extproc.config.schema import Intent
from extproc.routing.failover import next_rungs, with_failover
from extproc.routing.policy import Rung
from extproc.settings import Tier

# A ladder's name is the names of its clusters with this between them. The names of tiers cannot contain a "+".
SEPARATOR = "+"


def all_ladders(config: Config) -> dict[str, tuple[Tier, ...]]:
    """Return every ladder of two or more tiers that a request may get, by name.

    A request's ladder leaves out rungs that cannot serve it, so all subsets of the rungs are possible.
    """
    tiers = config.policy.tiers
    index_of = {tier.name: i for i, tier in enumerate(tiers)}
    ladders: list[tuple[Tier, ...]] = []
    for at, first in enumerate(tiers):
        ladders += [(first, above) for above in tiers[at + 1 :]]  # of a cohort without rungs
        for up in (intent.escalate for intent in config.every_intent if intent.escalate is not None):
            rungs = [index_of[rung.tier] for rung in up.rungs if index_of[rung.tier] >= at]
            for able in _subsets(set(rungs)):
                ladders.append((first, *[tiers[i] for i in rungs if i in able][: up.max]))
        ladders.append((first,))
    failing = [tuple(r.tier for r in rungs) for ladder in ladders for rungs in _failing(ladder, tiers)]
    ladders = [ladder for ladder in (*ladders, *failing) if len(ladder) > 1]
    return {SEPARATOR.join(tier.cluster_name for tier in ladder): ladder for ladder in ladders}


def _failing(ladder: Sequence[Tier], tiers: Sequence[Tier]) -> Iterator[tuple[Rung, ...]]:
    """Yield the ladder with every set of failover tiers that may serve a request."""
    first, *rungs = (Rung(tier, None) for tier in ladder)
    names = {name for tier in ladder for name in tier.failover or ()}
    for able in _subsets({i for i, tier in enumerate(tiers) if tier.name in names}):
        yield (first, *with_failover(first, rungs, tiers, [tiers[i].name for i in able]))


def _subsets(indexes: set[int]) -> Iterator[set[int]]:
    """Yield every subset that is not empty."""
    return (set(subset) for size in range(len(indexes)) for subset in combinations(indexes, size + 1))


def refused_failovers(config: Config, cascade: str) -> Iterator[tuple[str, str]]:
    """Yield (path, what is wrong) for each `failover` of the policy that this cascade cannot serve."""
    for i, tier in enumerate(config.policy.tiers):
        at = f".tiers[{i}].failover"
        if tier.failover is None or cascade == "priority-group":
            continue
        if cascade == "none":
            remedy = "remove it, or render for 1.37 or newer"
            yield at, f"`failover` needs further attempts, which `--version 1.36` does not make: {remedy}"
        elif (intent := _leaping(tier, config)) is not None:
            why = f"rejected answers of intent {intent.intent} have to pass over the tiers in it"
            yield at, f"`failover` needs Envoy 1.40 here, because {why}: remove it, or render for 1.40"


def _leaping(tier: Tier, config: Config) -> Intent | None:
    """An intent whose rejected answers would have to leap over the failover tiers of this tier."""
    tiers = config.policy.tiers
    names = [tier.name for tier in tiers]
    for intent in config.every_intent:
        if not intent.accept:
            continue
        for at in range(names.index(intent.tier), len(tiers)):
            specs = intent.escalate.rungs if intent.escalate is not None else ()
            rungs = [tiers[names.index(spec.tier)] for spec in specs if names.index(spec.tier) > at]
            rungs = rungs or [*tiers[at + 1 : at + 2]]
            for first, *ladder in _failing((tiers[at], *rungs), tiers):
                leads = next_rungs(tiers, first.tier, ladder)
                asking = [first.tier, *(rung.tier for rung in ladder)]
                leaps = [asking[i] for i, to in enumerate(leads) if to not in (i + 1, len(leads))]
                if tier in leaps:
                    return intent
    return None
