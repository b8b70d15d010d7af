"""The guard of a request: the lowest tier and the set of tiers that hold for it, for any model that it names.

A cohort's floor holds if the request belongs to the cohort. A cohort's set (`only`) holds unless the request is
known not to belong to it. So a request that could not be matched stays in the sets of all cohorts.
"""

from collections.abc import Mapping, Sequence

import msgspec

from extproc.routing.conditions import applies, may_apply, reads_only_headers
from extproc.routing.policy import Cohort, Policy
from extproc.routing.signals import Signals
from extproc.settings import Rule


class Guard(msgspec.Struct, frozen=True):
    """The limits that no model name, rule or failure can change."""

    floor: int  # the lowest rank
    only: frozenset[str] | None  # the names of the allowed tiers; None: all tiers

    def allows(self, name: str) -> bool:
        """Return whether the tier with this name is in the set."""
        return self.only is None or name in self.only

    def both(self, other: "Guard") -> "Guard":
        """Return the guard of a request for which both hold."""
        sets = [only for only in (self.only, other.only) if only is not None]
        return Guard(max(self.floor, other.floor), frozenset.intersection(*sets) if sets else None)


def guard_matched(policy: Policy, cohorts: Sequence[Cohort], signals: Signals, headers: Mapping[str, str]) -> Guard:
    """Return the guard of a request whose possible cohorts are known: none if it is out of scope."""
    rules = [rule for rule in policy.rules if applies(rule.when, cohorts, signals, headers)]
    return Guard(_floor(policy, cohorts, rules), _only(cohorts, rules, policy.only))


def guard_unmatched(policy: Policy, signals: Signals, headers: Mapping[str, str]) -> Guard:
    """Return the guard of a request that was read but not matched: it may belong to any cohort."""
    rules = [rule for rule in policy.rules if applies(rule.when, (), signals, headers)]
    possible = [rule for rule in policy.rules if may_apply(rule.when, signals, headers)]
    return Guard(_floor(policy, (), rules), _only([*policy.cohorts.values()], possible, policy.only))


def guard_unread(policy: Policy, headers: Mapping[str, str]) -> Guard:
    """Return the guard of a request whose body could not be read."""
    possible = [rule for rule in policy.rules if may_apply(rule.when, None, headers)]
    rules = [rule for rule in possible if reads_only_headers(rule.when)]
    return Guard(_floor(policy, (), rules), _only([*policy.cohorts.values()], possible, policy.only))


def guard_foreign(policy: Policy, headers: Mapping[str, str]) -> Guard:
    """Return the guard of a request to an API that the router does not know. Floors are for answers of models."""
    rules = [rule for rule in policy.rules if reads_only_headers(rule.when) and may_apply(rule.when, None, headers)]
    return Guard(0, _only((), rules, policy.only))


def needs_match(policy: Policy, rank: int) -> bool:
    """Return whether the match of a request could move it from the tier of this rank."""
    cohorts = policy.cohorts.values()
    rules = [rule for rule in policy.rules if rule.when.intents is not None or rule.when.risk is not None]
    return _only([*cohorts], rules) is not None or _floor(policy, [*cohorts], rules) > rank


def _floor(policy: Policy, cohorts: Sequence[Cohort], rules: Sequence[Rule]) -> int:
    """The rank of the highest tier floor. Later rules count too, so that no rule can lower a floor."""
    floors = [cohort.tier_floor for cohort in cohorts] + [rule.tier_floor for rule in rules]
    return max((policy.rank(name) for name in floors if name is not None), default=0)


def _only(
    cohorts: Sequence[Cohort], rules: Sequence[Rule], of_policy: tuple[str, ...] | None = None
) -> frozenset[str] | None:
    """The tiers that are in every set."""
    sets = [of_policy] + [cohort.only for cohort in cohorts] + [rule.only for rule in rules]
    confining = [frozenset(names) for names in sets if names is not None]
    return frozenset.intersection(*confining) if confining else None
