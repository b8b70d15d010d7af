"""Match, signals and rules -> one `Decision`: which tier answers, and how.

`decide` is a sequence of steps. The cohort or a rule proposes a tier. Tier floors raise it, a cap on upgrades
lowers it, and tiers that cannot serve the request are skipped upward. A conversation may stay at the tier that
answered it last: see `keeping`. Each step takes a `RankChoice` and returns one, so the reason is that of the
last step which changed the tier. The ladder and shadow mode follow.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from extproc.contract.words import Course, Reason
from extproc.routing.conversations import NEW, Continuation
from extproc.routing.index import Match
from extproc.routing.keeping import (
    RankChoice,
    Stripping,
    bound_choice,
    course_of,
    readable_rungs,
    stripping,
    stuck_choice,
)
from extproc.routing.policy import Cohort, Policy, Rung
from extproc.routing.signals import Signals
from extproc.settings import Conditions, Reasoning, Rule, Tier


class Decision(msgspec.Struct, frozen=True):
    """Which tier answers and how, with one reason."""

    tier: Tier
    reason: Reason
    rewrite: bool = True  # False: the client's bytes are sent on unchanged
    cohort: Cohort | None = None  # the nearest cohort, trusted or not
    match: Match | None = None
    rule: str | None = None
    reasoning: Reasoning | None = None  # None: not set by us
    reasoning_forced: bool = False  # the policy overrides the client's explicit choice
    max_output_tokens: int | None = None
    ladder: tuple[Rung, ...] = ()  # the rungs above `tier`, for failed or rejected attempts
    judged: bool = False  # the cohort's rules judge the answers of all rungs but the last
    proposed_tier: str | None = None  # in shadow mode: the tier that `enforce` would have used
    course: Course | None = None  # None: the request continues no conversation that is known
    strip: Stripping | None = None  # sealed items are removed for the tiers that cannot read them


class _Findings(msgspec.Struct, frozen=True):
    """The cohort and the rules that apply to one request."""

    trust: Reason  # MATCHED, or the reason why the match does not count
    cohort: Cohort | None  # the nearest one
    settings: Cohort | None  # the nearest one, if the match is trusted
    rule: Rule | None  # the first one that applies
    floor: int  # the lowest allowed rank


def untouched(policy: Policy, reason: Reason, model: str | None = None) -> Decision:
    """Send a request on unchanged: to the tier that serves `model`, otherwise to the default tier."""
    for tier in policy.tiers:
        if tier.model == model and tier.takes_any:
            return Decision(tier, Reason.PINNED, rewrite=False)
    return Decision(policy.tier(policy.default_tier), reason, rewrite=False)


def decide(
    policy: Policy,
    signals: Signals,
    match: Match | None,
    headers: Mapping[str, str],
    failure: Reason = Reason.NO_TEXT,
    spent: bool = False,
    continuation: Continuation = NEW,
) -> Decision:
    """Choose a tier and the ladder above it.

    `match` is None if the text could not be matched, and `failure` is then the reason. `headers` are the trusted
    headers that rules may name. `spent` means that the principal has used up its upgrades. In shadow mode the
    conversation does not count, because the default tier has answered all of it.
    """
    continuation = continuation if policy.mode == "enforce" else NEW
    findings = _findings(policy, signals, match, headers, failure)
    proposed = _proposed(policy, findings)
    bound = bound_choice(policy, proposed, continuation)
    floored = _floored(bound, findings.floor)
    capped = _capped(policy, floored, findings.floor) if spent else floored
    able = _able(policy, capped, signals)
    servable = [rank for rank, tier in enumerate(policy.tiers) if _can_serve(policy.tiers, tier, signals)]
    stuck = stuck_choice(policy, able, servable, signals.tokens, continuation)
    decision = _laddered(policy, signals, match, findings, stuck, continuation)
    return decision if policy.mode == "enforce" else _shadowed(policy, decision, signals)


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
    cohorts = _possible_cohorts(policy, match, trusted)
    rules = [rule for rule in policy.rules if _applies(rule.when, cohorts, signals, headers)]
    return _Findings(
        trust=trusted,
        cohort=cohort,
        settings=cohort if trusted is Reason.MATCHED else None,
        rule=rules[0] if rules else None,
        floor=_floor(policy, cohorts, rules),
    )


def _proposed(policy: Policy, findings: _Findings) -> RankChoice:
    """The tier of the first rule that applies, of the trusted cohort, or the default tier, in this order."""
    rule, settings = findings.rule, findings.settings
    if rule is not None and rule.tier is not None:
        return RankChoice(policy.rank(rule.tier), Reason.RULE)
    return RankChoice(policy.rank(settings.tier if settings is not None else policy.default_tier), findings.trust)


def _floored(choice: RankChoice, floor: int) -> RankChoice:
    """The tier, raised to the floor."""
    return RankChoice(floor, Reason.TIER_FLOOR) if floor > choice.rank else choice


def _capped(policy: Policy, choice: RankChoice, floor: int) -> RankChoice:
    """The tier, lowered to the default tier. A floor above it holds, unless the policy puts cost first."""
    cap = policy.rank(policy.default_tier)
    if policy.upgrades is None or not policy.upgrades.lower_floors:
        cap = max(cap, floor)
    kept = choice.fixed or choice.course is not None
    return RankChoice(cap, Reason.UPGRADE_RATE) if cap < choice.rank and not kept else choice


def _able(policy: Policy, choice: RankChoice, signals: Signals) -> RankChoice:
    """The tier, raised to one that can serve the request."""
    if choice.fixed:
        return choice
    rank = _first_able(policy.tiers, choice.rank, signals)
    return RankChoice(rank, Reason.CAPABILITY) if rank > choice.rank else choice


def _laddered(
    policy: Policy,
    signals: Signals,
    match: Match | None,
    findings: _Findings,
    choice: RankChoice,
    continuation: Continuation,
) -> Decision:
    """The decision for the chosen tier, with the ladder above it."""
    settings, rule = findings.settings, findings.rule
    reasoning = settings.reasoning if settings is not None else None
    if rule is not None and rule.reasoning is not None:
        reasoning = rule.reasoning
    tier = policy.tiers[choice.rank]
    ladder = readable_rungs(policy, _ladder(policy, settings, choice.rank, reasoning, signals), tier, continuation)
    return Decision(
        tier=tier,
        reason=choice.reason,
        cohort=findings.cohort,
        match=match,
        rule=rule.name if rule is not None else None,
        reasoning=reasoning,
        reasoning_forced=policy.reasoning_choice == "router",
        max_output_tokens=settings.max_output_tokens if settings is not None else None,
        ladder=ladder,
        judged=settings is not None and not continuation.background and _is_judged(settings, ladder),
        course=course_of(policy, choice, continuation),
        strip=stripping(policy, continuation),
    )


def _shadowed(policy: Policy, decision: Decision, signals: Signals) -> Decision:
    """The decision of shadow mode: the default tier serves, and only the model's name is written."""
    default = policy.rank(policy.default_tier)
    return Decision(
        tier=policy.tiers[_first_able(policy.tiers, default, signals)],
        reason=decision.reason,
        cohort=decision.cohort,
        match=decision.match,
        rule=decision.rule,
        reasoning_forced=decision.reasoning_forced,
        proposed_tier=decision.tier.name,
    )


def _possible_cohorts(policy: Policy, match: Match | None, trusted: Reason) -> tuple[Cohort, ...]:
    """The cohorts that the request may belong to: two if the match is ambiguous, none if it is out of scope."""
    if match is None or trusted is Reason.OUT_OF_SCOPE:
        return ()
    if trusted is Reason.AMBIGUOUS and match.runner_up is not None:
        return policy.cohorts[match.cohort], policy.cohorts[match.runner_up]
    return (policy.cohorts[match.cohort],)


def _floor(policy: Policy, cohorts: Sequence[Cohort], rules: Sequence[Rule]) -> int:
    """The rank of the highest tier floor. Later rules count too, so that no rule can lower a floor."""
    floors = [cohort.tier_floor for cohort in cohorts] + [rule.tier_floor for rule in rules]
    return max((policy.rank(name) for name in floors if name is not None), default=0)


def _applies(when: Conditions, cohorts: Sequence[Cohort], signals: Signals, headers: Mapping[str, str]) -> bool:
    checks = (
        when.intents is None or any(cohort.name in when.intents for cohort in cohorts),
        when.risk is None or any(cohort.risk == when.risk for cohort in cohorts),
        when.tokens_over is None or signals.tokens > when.tokens_over,
        when.tokens_under is None or signals.tokens < when.tokens_under,
        when.turns_over is None or signals.turns > when.turns_over,
        when.tools is None or ("tools" in signals.needs) == when.tools,
        when.images is None or ("vision" in signals.needs) == when.images,
        when.strict_output is None or signals.strict_output == when.strict_output,
        when.headers is None or _headers_match(when.headers, headers),
    )
    return all(checks)


def _headers_match(patterns: Mapping[str, str], headers: Mapping[str, str]) -> bool:
    """Whether every header matches its pattern. An absent header counts as empty."""
    return all(fnmatchcase(headers.get(name, ""), pattern) for name, pattern in patterns.items())


def _ladder(
    policy: Policy, settings: Cohort | None, rank: int, reasoning: Reasoning | None, signals: Signals
) -> tuple[Rung, ...]:
    """The rungs above `rank` that can serve: those that the cohort names, otherwise the next tier for failover."""
    if settings is not None and settings.escalate is not None:
        named = [(policy.rank(spec.tier), spec) for spec in settings.escalate.rungs]
        rungs = [
            Rung(policy.tiers[above], reasoning if spec.reasoning is None else spec.reasoning)
            for above, spec in named
            if above >= rank and _can_serve(policy.tiers, policy.tiers[above], signals)
        ]
        return tuple(rungs[: settings.escalate.max])
    next_tier = next((tier for tier in policy.tiers[rank + 1 :] if _can_serve(policy.tiers, tier, signals)), None)
    return (Rung(next_tier, reasoning),) if next_tier is not None else ()


def _is_judged(settings: Cohort, ladder: Sequence[Rung]) -> bool:
    """Answers are judged only if a higher rung or a person could give a better one."""
    human = settings.escalate is not None and settings.escalate.human
    return bool(settings.accept) and (bool(ladder) or human)


def _first_able(tiers: Sequence[Tier], rank: int, signals: Signals) -> int:
    """The rank of the first tier from `rank` up that can serve the request.

    If none can by our estimate of the request's size, the capable tier with the largest context gets it. That
    upstream then reports the error to the client.
    """
    for above, tier in enumerate(tiers[rank:], start=rank):
        if _can_serve(tiers, tier, signals):
            return above
    taking = [i for i, tier in enumerate(tiers) if tier.takes_new]
    higher = [i for i in taking if i >= rank]
    capable = [i for i in higher if tiers[i].speaks(signals.api) and _is_capable(tiers, tiers[i], signals.needs)]
    # If every tier from `rank` up is out of service, the highest one below serves. Checks ensure a tier for floors.
    return max(capable, key=lambda i: tiers[i].context, default=(higher or taking[::-1] or [rank])[0])


def _can_serve(tiers: Sequence[Tier], tier: Tier, signals: Signals) -> bool:
    able = tier.takes_new and tier.speaks(signals.api) and signals.tokens <= tier.context
    return able and _is_capable(tiers, tier, signals.needs)


def _is_capable(tiers: Sequence[Tier], tier: Tier, needs: frozenset[str]) -> bool:
    """Whether the tier has a capability for every need. The last tier also serves each need that no tier has."""
    tiers = [other for other in tiers if other.takes_new] or tiers
    lacking = tier.lacks(needs)
    if not lacking or tier is not tiers[-1]:
        return not lacking
    return all(other.lacks(lacking) == lacking for other in tiers)
