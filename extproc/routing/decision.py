"""Match, signals and rules -> one `Decision`: which tier answers, and how.

`decide` is a sequence of steps. The cohort or a rule proposes a tier. Tier floors raise it, and a cap on upgrades
lowers it. The tiers of `only` confine it, and tiers that cannot serve the request are skipped. Each step takes a
`Choice` and returns one, so the reason is that of the last step which changed the tier. The ladder and shadow mode
follow. A request whose model may not be replaced passes only the steps that hold for every request.
"""

from collections.abc import Mapping, Sequence

import msgspec

from extproc.contract.words import Reason, Undecided
from extproc.routing.ability import Load, can_serve, first_able, load_of
from extproc.routing.background import class_ceiling
from extproc.routing.choice import Choice, cap_upgrade, confine, make_able, raise_to_floor
from extproc.routing.conditions import applies
from extproc.routing.guard import Guard, guard_foreign, guard_matched, guard_unmatched, guard_unread
from extproc.routing.index import Match
from extproc.routing.policy import Cohort, Policy, Rung
from extproc.routing.signals import Signals
from extproc.settings import Reasoning, Rule, Tier


class Decision(msgspec.Struct, frozen=True):
    """Which tier answers and how, with one reason."""

    tier: Tier
    reason: Reason
    rewrite: bool = True  # False: the client's bytes are sent on unchanged
    refused: bool = False  # no tier that may get the request can serve it; `tier` is the one that was proposed
    cohort: Cohort | None = None  # the nearest cohort, trusted or not
    match: Match | None = None
    rule: str | None = None
    reasoning: Reasoning | None = None  # None: not set by us
    reasoning_forced: bool = False  # the policy overrides the client's explicit choice
    max_output_tokens: int | None = None
    ladder: tuple[Rung, ...] = ()  # the rungs above `tier`, for failed or rejected attempts
    judged: bool = False  # the cohort's rules judge the answers of all rungs but the last
    proposed_tier: str | None = None  # in shadow mode: the tier that `enforce` would have used


class _Findings(msgspec.Struct, frozen=True):
    """The cohort and the rules that apply to one request, and what follows from them."""

    trust: Reason  # MATCHED, or the reason why the match does not count
    cohort: Cohort | None  # the nearest one
    settings: Cohort | None  # the nearest one, if the match is trusted
    rule: Rule | None  # the first one that applies
    guard: Guard
    cap: int | None  # the policy's cap on output tokens
    load: Load
    ceiling: int  # the highest rank of the ladder


def decide(
    policy: Policy,
    signals: Signals,
    match: Match | None,
    headers: Mapping[str, str],
    failure: Reason = Reason.NO_TEXT,
    spent: bool = False,
) -> Decision:
    """Choose a tier and the ladder above it.

    `match` is None if the text was not matched, and `failure` is then the reason. `headers` are the trusted
    headers that rules may name. `spent` means that the principal has used up its upgrades.
    """
    findings = _findings(policy, signals, match, headers, failure)
    proposed = _proposed(policy, findings)
    floored = raise_to_floor(proposed, findings.guard.floor)
    capped = cap_upgrade(policy, floored, findings.guard.floor) if spent else floored
    able = make_able(policy, capped, findings.guard, findings.load)
    decision = _laddered(policy, match, findings, able or capped)
    if able is None:
        decision = _refused(decision, decision.tier)
    return decision if policy.mode == "enforce" else _shadowed(policy, decision, findings.load)


def decide_named(
    policy: Policy,
    signals: Signals,
    match: Match | None,
    headers: Mapping[str, str],
    failure: Reason = Reason.NO_TEXT,
    spent: bool = False,
) -> Decision:
    """Choose the tier of a request whose model may not be replaced: its own, unless a floor or `only` forbids it.

    The model of a tier is then replaced by that of the new tier. Any other model keeps its name.
    """
    first = untouched(policy, Reason.PASSTHROUGH, signals.model)
    if policy.mode == "shadow":
        return first
    findings = _findings(policy, signals, match, headers, failure)
    named = Choice(policy.rank(first.tier.name), first.reason)
    floored = raise_to_floor(named, findings.guard.floor)
    capped = cap_upgrade(policy, floored, findings.guard.floor) if spent and floored != named else floored
    if capped == named and findings.guard.allows(first.tier.name):
        return first
    able = make_able(policy, capped, findings.guard, findings.load)
    moved = Decision(
        policy.tiers[able.rank] if able is not None else first.tier,
        able.reason if able is not None else Reason.RESIDENCY,
        rewrite=first.reason is Reason.PINNED,
        cohort=findings.cohort,
        match=match,
        rule=findings.rule.name if findings.rule is not None else None,
    )
    return moved if able is not None else _refused(moved, first.tier)


def decide_unread(policy: Policy, headers: Mapping[str, str], reason: Reason) -> Decision:
    """Choose the tier of a request whose body could not be read, or is of an API that the router does not know.

    It is the default tier, unless the headers set a floor or `only`.
    """
    first = untouched(policy, reason)
    if policy.mode == "shadow":
        return first
    guard = guard_unread(policy, headers) if reason is Reason.UNREADABLE else guard_foreign(policy, headers)
    choice = raise_to_floor(Choice(policy.rank(first.tier.name), reason), guard.floor)
    confined = confine(policy, choice, guard)
    if confined is None:
        return _refused(first, first.tier)
    return msgspec.structs.replace(first, tier=policy.tiers[confined.rank], reason=confined.reason)


def untouched(policy: Policy, reason: Reason, model: str | None = None) -> Decision:
    """Send a request on unchanged: to the tier that serves `model`, otherwise to the default tier."""
    for tier in policy.tiers:
        if tier.model == model and tier.takes_any:
            return Decision(tier, Reason.PINNED, rewrite=False)
    return Decision(policy.tier(policy.default_tier), reason, rewrite=False)


def trust(cohort: Cohort | None, match: Match | None, failure: Reason = Reason.NO_TEXT) -> Reason:
    """Return MATCHED if the match reaches its cohort's floor and margin, otherwise the reason for a fallback."""
    if cohort is None or match is None:
        return failure
    if match.similarity < cohort.floor:
        return Reason.OUT_OF_SCOPE
    if match.margin < cohort.margin:
        return Reason.AMBIGUOUS
    return Reason.MATCHED


def _findings(
    policy: Policy, signals: Signals, match: Match | None, headers: Mapping[str, str], failure: Reason
) -> _Findings:
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
    return _Findings(
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


def _proposed(policy: Policy, findings: _Findings) -> Choice:
    """The tier of the first rule that applies, of the trusted cohort, or the default tier, in this order.

    A background call starts at the cheapest tier.
    """
    rule, settings = findings.rule, findings.settings
    if rule is not None and rule.tier is not None:
        return Choice(policy.rank(rule.tier), Reason.RULE)
    if findings.trust is Reason.BACKGROUND:
        return Choice(0, Reason.BACKGROUND)
    return Choice(policy.rank(settings.tier if settings is not None else policy.default_tier), findings.trust)


def _laddered(policy: Policy, match: Match | None, findings: _Findings, choice: Choice) -> Decision:
    """The decision for the chosen tier, with the ladder above it."""
    settings, rule = findings.settings, findings.rule
    reasoning = settings.reasoning if settings is not None else None
    if rule is not None and rule.reasoning is not None:
        reasoning = rule.reasoning
    ladder = _ladder(policy, findings, choice.rank, reasoning)
    return Decision(
        tier=policy.tiers[choice.rank],
        reason=choice.reason,
        cohort=findings.cohort,
        match=match,
        rule=rule.name if rule is not None else None,
        reasoning=reasoning,
        reasoning_forced=policy.reasoning_choice == "router",
        max_output_tokens=findings.cap,
        ladder=ladder,
        judged=settings is not None and _is_judged(settings, ladder),
    )


def _refused(decision: Decision, proposed: Tier) -> Decision:
    """The decision to answer with an error. No tier gets the request."""
    return Decision(
        proposed,
        Reason.RESIDENCY,
        rewrite=False,
        refused=True,
        cohort=decision.cohort,
        match=decision.match,
        rule=decision.rule,
    )


def _shadowed(policy: Policy, decision: Decision, load: Load) -> Decision:
    """The decision of shadow mode: the default tier serves, and only the model's name is written."""
    default = policy.rank(policy.default_tier)
    able = first_able(policy.tiers, range(default, len(policy.tiers)), load)
    return Decision(
        tier=policy.tiers[default if able is None else able],
        reason=decision.reason,
        cohort=decision.cohort,
        match=decision.match,
        rule=decision.rule,
        reasoning_forced=decision.reasoning_forced,
        proposed_tier=decision.tier.name if not decision.refused else Undecided.NONE,
    )


def _possible_cohorts(policy: Policy, match: Match | None, trusted: Reason) -> tuple[Cohort, ...]:
    """The cohorts that the request may belong to: two if the match is ambiguous, none if it is out of scope."""
    if match is None or trusted is Reason.OUT_OF_SCOPE:
        return ()
    if trusted is Reason.AMBIGUOUS and match.runner_up is not None:
        return policy.cohorts[match.cohort], policy.cohorts[match.runner_up]
    return (policy.cohorts[match.cohort],)


def _ladder(policy: Policy, findings: _Findings, rank: int, reasoning: Reasoning | None) -> tuple[Rung, ...]:
    """The rungs above `rank` that can serve: those that the cohort names, otherwise the next tier for failover."""
    tiers, settings, load = policy.tiers, findings.settings, findings.load
    ranks = range(rank, findings.ceiling + 1)
    allowed = [r for r in ranks if findings.guard.allows(tiers[r].name) and tiers[r].takes_new]
    able = [r for r in allowed if can_serve(tiers, r, load, allowed[-1])]
    if settings is not None and settings.escalate is not None:
        named = [(policy.rank(spec.tier), spec) for spec in settings.escalate.rungs]
        rungs = [
            Rung(tiers[above], reasoning if spec.reasoning is None else spec.reasoning)
            for above, spec in named
            if above in able
        ]
        return tuple(rungs[: settings.escalate.max])
    return tuple(Rung(tiers[above], reasoning) for above in able if above > rank)[:1]


def _is_judged(settings: Cohort, ladder: Sequence[Rung]) -> bool:
    """Answers are judged only if a higher rung or a person could give a better one."""
    human = settings.escalate is not None and settings.escalate.human
    return bool(settings.accept) and (bool(ladder) or human)
