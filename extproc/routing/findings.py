"""The findings about one request before a tier is chosen: its cohort, the rules, and its guard."""

from collections.abc import Mapping

import msgspec

from extproc.contract.words import Reason
from extproc.routing.ability import Load, load_of
from extproc.routing.background import class_ceiling
from extproc.routing.conditions import applies
from extproc.routing.guard import Guard, guard_matched, guard_unmatched
from extproc.routing.index import Match
from extproc.routing.policy import Cohort, Policy
from extproc.routing.signals import Signals
from extproc.settings import Rule


class Findings(msgspec.Struct, frozen=True):
    """The cohort and the rules that apply to one request, and what follows from them."""

    trust: Reason  # MATCHED, or the reason why the match does not count
    cohort: Cohort | None  # the nearest one
    settings: Cohort | None  # the nearest one, if the match is trusted
    rule: Rule | None  # the first one that applies
    guard: Guard
    cap: int | None  # the policy's cap on output tokens
    load: Load
    ceiling: int  # the highest rank of the ladder


def trust(cohort: Cohort | None, match: Match | None, failure: Reason = Reason.NO_TEXT) -> Reason:
    """Return MATCHED if the match reaches its cohort's floor and margin, otherwise the reason for a fallback."""
    if cohort is None or match is None:
        return failure
    if match.similarity < cohort.floor:
        return Reason.OUT_OF_SCOPE
    if match.margin < cohort.margin:
        return Reason.AMBIGUOUS
    return Reason.MATCHED


def read_findings(
    policy: Policy, signals: Signals, match: Match | None, headers: Mapping[str, str], failure: Reason
) -> Findings:
    """Return what is found. `match` is None if the text was not matched, and `failure` is then the reason."""
    cohort = policy.cohorts[match.cohort] if match is not None else None
    trusted = trust(cohort, match, failure)
    settings = cohort if trusted is Reason.MATCHED else None
    cohorts = _possible_cohorts(policy, match, trusted)
    guard = (
        guard_matched(policy, cohorts, signals, headers)
        if match is not None
        else guard_unmatched(policy, signals, headers)
    )
    cap = _cap(settings, signals)
    return Findings(
        trust=trusted,
        cohort=cohort,
        settings=settings,
        rule=next((rule for rule in policy.rules if applies(rule.when, cohorts, signals, headers)), None),
        guard=guard,
        cap=cap,
        load=load_of(signals, cap, policy.tiers),
        ceiling=class_ceiling(policy, signals.model) if trusted is Reason.BACKGROUND else len(policy.tiers) - 1,
    )


def _cap(settings: Cohort | None, signals: Signals) -> int | None:
    """The cohort's cap on output tokens. It is meant for answers, and would cut the calls of a tool loop."""
    return settings.max_output_tokens if settings is not None and not signals.tool_loop else None


def _possible_cohorts(policy: Policy, match: Match | None, trusted: Reason) -> tuple[Cohort, ...]:
    """The cohorts that the request may belong to: two if the match is ambiguous, none if it is out of scope."""
    if match is None or trusted is Reason.OUT_OF_SCOPE:
        return ()
    if trusted is Reason.AMBIGUOUS and match.runner_up is not None:
        return policy.cohorts[match.cohort], policy.cohorts[match.runner_up]
    return (policy.cohorts[match.cohort],)
