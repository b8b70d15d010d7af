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
from extproc.routing.trust import DOUBT, weigh
from extproc.settings import Reasoning, Rule

# Keys of an intent that apply only where a floor says that a match counts.
_CAP, _REASONING = "max_output_tokens", "reasoning"


class Findings(msgspec.Struct, frozen=True):
    """The cohort and the rules that apply to one request, and what follows from them."""

    trust: Reason  # MATCHED, or the reason why the match does not count
    rank: int  # of the tier that the match proposes
    cohort: Cohort | None  # the nearest one
    settings: Cohort | None  # the nearest one, if the match is trusted
    reasoning: Reasoning | None  # of the settings
    rule: Rule | None  # the first one that applies
    guard: Guard
    cap: int | None  # the policy's cap on output tokens
    withheld: tuple[str, ...]  # the keys of the settings that do not apply, because the match is a guess
    load: Load
    ceiling: int  # the highest rank of the ladder

    @property
    def rule_name(self) -> str | None:
        """The name of the rule that applies."""
        return self.rule.name if self.rule is not None else None


def read_findings(
    policy: Policy, signals: Signals, match: Match | None, headers: Mapping[str, str], failure: Reason
) -> Findings:
    """Return what is found. `match` is None if the text was not matched, and `failure` is then the reason."""
    cohort = policy.cohorts[match.cohort] if match is not None else None
    weighed = weigh(policy, match, failure)
    settings = cohort if weighed.reason is Reason.MATCHED else None
    withheld = _withheld(settings)
    cohorts = _possible_cohorts(policy, match, weighed.reason)
    guard = (
        guard_matched(policy, cohorts, signals, headers)
        if match is not None or signals.no_task
        else guard_unmatched(policy, signals, headers)
    )
    if match is not None and match.joined is not None:
        guard = guard.both(read_findings(policy, signals, match.joined, headers, failure).guard)
    cap = _cap(settings, signals) if _CAP not in withheld else None
    return Findings(
        trust=weighed.reason,
        rank=weighed.rank,
        cohort=cohort,
        settings=settings,
        reasoning=settings.reasoning if settings is not None and _REASONING not in withheld else None,
        rule=next((rule for rule in policy.rules if applies(rule.when, cohorts, signals, headers)), None),
        guard=guard,
        cap=cap,
        withheld=withheld,
        load=load_of(signals, cap, policy.tiers),
        ceiling=class_ceiling(policy, signals.model)
        if weighed.reason is Reason.BACKGROUND
        else len(policy.tiers) - 1,
    )


def _cap(settings: Cohort | None, signals: Signals) -> int | None:
    """The cohort's cap on output tokens. It is meant for answers, and would cut the calls of a tool loop."""
    return settings.max_output_tokens if settings is not None and not signals.tool_loop else None


def _withheld(settings: Cohort | None) -> tuple[str, ...]:
    """The settings that would harm a request of another cohort. They apply only with a floor."""
    if settings is None or settings.has_floor:
        return ()
    cap = (_CAP,) if settings.max_output_tokens is not None else ()
    return (*cap, _REASONING) if settings.reasoning is False else cap


def _possible_cohorts(policy: Policy, match: Match | None, trusted: Reason) -> tuple[Cohort, ...]:
    """The cohorts that the request may belong to: two if the match is ambiguous, none if it is out of scope.

    With chances, the second one counts only if it is likely.
    """
    if match is None or trusted is Reason.OUT_OF_SCOPE:
        return ()
    likely = match.chance is None or match.runner_up_chance > DOUBT
    if trusted in (Reason.AMBIGUOUS, Reason.ABSTAINED) and match.runner_up is not None and likely:
        return policy.cohorts[match.cohort], policy.cohorts[match.runner_up]
    return (policy.cohorts[match.cohort],)
