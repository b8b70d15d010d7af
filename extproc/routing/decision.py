"""Match, signals and rules -> one `Decision`: which tier answers, and how.

`decide` is a sequence of steps. The cohort or a rule proposes a tier. Tier floors raise it, and a cap on upgrades
lowers it, as a budget does. The tiers of `only` confine it, and tiers that cannot serve the request are skipped. A
conversation may stay at the tier that answered it last: see `keeping`. Each step takes a `Choice` and returns one.
So the reason is that of the last step which changed the tier. The ladder and shadow mode follow. A request whose
model may not be replaced passes only the steps that hold for every request.
"""

from collections.abc import Mapping, Sequence

import msgspec

from extproc.contract.words import CacheWord, Course, Reason, Undecided
from extproc.routing.ability import Load, first_able
from extproc.routing.by_prompt import rank_by_prompt
from extproc.routing.choice import Choice, cap_budget, cap_upgrade, confine, make_able, raise_to_floor
from extproc.routing.conversations import NEW, Continuation
from extproc.routing.failover import next_rungs
from extproc.routing.findings import Findings, read_findings
from extproc.routing.guard import guard_foreign, guard_unread
from extproc.routing.index import Match
from extproc.routing.keeping import (
    Stripping,
    bound_choice,
    course_of,
    readable_rungs,
    stripping,
    stuck_choice,
)
from extproc.routing.ladder import ladder_above, servable_ranks
from extproc.routing.policy import Cohort, Policy, Rung
from extproc.routing.signals import Signals
from extproc.settings import Reasoning, Tier


class Decision(msgspec.Struct, frozen=True):
    """Which tier answers and how, with one reason."""

    tier: Tier
    reason: Reason
    rewrite: bool = True  # False: the client's bytes are sent on unchanged
    refused: bool = False  # no tier that may get the request can serve it; `tier` is the one that was proposed
    cohort: Cohort | None = None  # the nearest cohort, trusted or not
    unmatched: Reason | None = None  # why the match does not count. None: it counts, or there is no cohort
    match: Match | None = None
    rule: str | None = None
    reasoning: Reasoning | None = None  # None: not set by us
    reasoning_forced: bool = False  # the policy overrides the client's explicit choice
    max_output_tokens: int | None = None
    load: Load | None = None  # set if the answer is brief: a rung may then lower the cap of the client
    withheld: tuple[str, ...] = ()  # keys of the cohort that were not applied, because the match is a guess
    ladder: tuple[Rung, ...] = ()  # the attempts after `tier`, for failed or rejected ones
    # The attempt after a rejected answer of each one, as an index into `tier` and `ladder`. (): the next one.
    climbs: tuple[int, ...] = ()
    judged: bool = False  # the cohort's rules judge the answers of all rungs but the last
    proposed_tier: str | None = None  # in shadow mode: the tier that `enforce` would have used
    course: Course | None = None  # None: the request continues no conversation that is known
    strip: Stripping | None = None  # sealed items are removed for the tiers that cannot read them
    cache: CacheWord | None = None  # what the cache did; None: the cohort has none

    @property
    def counted_as(self) -> str:
        """The cohort that the request belongs to. Without one: the word of NOT_A_COHORT that says why."""
        if self.unmatched is not None:
            return self.unmatched
        return self.cohort.name if self.cohort is not None else self.reason

    def is_last(self, at: int) -> bool:
        """Whether no tier is asked after a rejected answer of this attempt, counted from 0."""
        attempts = 1 + len(self.ladder)
        return (self.climbs[at] if self.climbs else at + 1) >= attempts


def decide(
    policy: Policy,
    signals: Signals,
    match: Match | None,
    headers: Mapping[str, str],
    failure: Reason = Reason.NO_TEXT,
    spent: bool = False,
    continuation: Continuation = NEW,
    ceiling: int | None = None,
) -> Decision:
    """Choose a tier and the ladder of the attempts after it.

    `match` is None if the text was not matched, and `failure` is then the reason. `headers` are the trusted
    headers that rules may name. `spent`: the principal has used up its upgrades. `ceiling`: the highest rank that
    the budgets pay for. In shadow mode the conversation does not count: the default tier has answered all of it.
    """
    continuation = continuation if policy.mode == "enforce" else NEW
    findings = read_findings(policy, signals, match, headers, failure)
    guard = findings.guard
    bound = bound_choice(policy, proposed(policy, findings, match), continuation, guard)
    floored = raise_to_floor(bound, guard.floor)
    capped = cap_upgrade(policy, floored, guard.floor) if spent else floored
    paid = cap_budget(policy, capped, guard.floor, ceiling)
    able = make_able(policy, paid, guard, findings.load)
    if able is not None and ceiling is not None:  # no rejected answer leads above it
        findings = msgspec.structs.replace(findings, ceiling=min(findings.ceiling, max(ceiling, able.rank)))
    if able is None:
        decision = refused(_laddered(policy, match, findings, paid, continuation))
    else:
        servable = servable_ranks(policy, findings, range(findings.ceiling + 1))
        stuck = stuck_choice(policy, able, servable, signals.tokens, continuation)
        decision = _laddered(policy, match, findings, stuck, continuation)
    return decision if policy.mode == "enforce" else _shadowed(policy, decision, findings.load)


def decide_named(
    policy: Policy,
    signals: Signals,
    match: Match | None,
    headers: Mapping[str, str],
    failure: Reason = Reason.NO_TEXT,
    spent: bool = False,
    ceiling: int | None = None,
) -> Decision:
    """Choose the tier of a request whose model may not be replaced: its own, unless a floor or `only` forbids it.

    The model of a tier is then replaced by that of the new tier. Any other keeps its name, so no budget moves it.
    """
    first = untouched(policy, Reason.PASSTHROUGH, signals.model)
    if policy.mode == "shadow":
        return first
    findings = read_findings(policy, signals, match, headers, failure)
    named = Choice(policy.rank(first.tier.name), first.reason)
    floored = raise_to_floor(named, findings.guard.floor)
    capped = cap_upgrade(policy, floored, findings.guard.floor) if spent and floored != named else floored
    paid = cap_budget(policy, capped, findings.guard.floor, ceiling) if first.reason is Reason.PINNED else capped
    if paid == named and findings.guard.allows(first.tier.name):
        return first
    able = make_able(policy, paid, findings.guard, findings.load)
    moved = Decision(
        policy.tiers[able.rank] if able is not None else first.tier,
        able.reason if able is not None else Reason.RESIDENCY,
        rewrite=first.reason is Reason.PINNED,
        cohort=findings.cohort,
        unmatched=None if findings.trust is Reason.MATCHED else first.reason,
        match=match,
        rule=findings.rule_name,
    )
    return moved if able is not None else refused(moved)


def decide_unread(
    policy: Policy, headers: Mapping[str, str], reason: Reason, ceiling: int | None = None
) -> Decision:
    """Choose the tier of a request whose body could not be read, or is of an API that the router does not know.

    It is the default tier, unless the headers set a floor or `only`, or the budgets do not pay for it (`ceiling`).
    """
    first = untouched(policy, reason)
    if policy.mode == "shadow":
        return first
    guard = guard_unread(policy, headers) if reason is Reason.UNREADABLE else guard_foreign(policy, headers)
    choice = raise_to_floor(Choice(policy.rank(first.tier.name), reason), guard.floor)
    confined = confine(policy, cap_budget(policy, choice, guard.floor, ceiling), guard)
    if confined is None:
        return refused(first)
    return msgspec.structs.replace(first, tier=policy.tiers[confined.rank], reason=confined.reason)


def decide_kept(policy: Policy, headers: Mapping[str, str], maker: int | None) -> Decision:
    """Choose the tier of a request about a response that the tier of rank `maker` keeps. None: not known.

    It is the default tier then. A rule about headers may keep the request in some tiers, too.
    """
    rank = policy.rank(policy.default_tier) if maker is None else maker
    course = Course.LOST if maker is None else Course.KEPT_SEALED
    first = Decision(policy.tiers[rank], Reason.BOUND, rewrite=False, course=course)
    if policy.mode == "shadow":
        return first
    confined = confine(policy, Choice(rank, Reason.BOUND, course), guard_foreign(policy, headers))
    if confined is None:
        return refused(first)
    return Decision(policy.tiers[confined.rank], confined.reason, rewrite=False, course=confined.course)


def untouched(policy: Policy, reason: Reason, model: str | None = None) -> Decision:
    """Send a request on unchanged: to the tier that serves `model`, otherwise to the default tier."""
    for tier in policy.tiers:
        if tier.model == model and tier.takes_any:
            return Decision(tier, Reason.PINNED, rewrite=False)
    return Decision(policy.tier(policy.default_tier), reason, rewrite=False)


def proposed(policy: Policy, findings: Findings, match: Match | None) -> Choice:
    """Return the tier of the first rule that applies, otherwise the one that the prompt or the match proposes.

    A background call starts at the cheapest tier.
    """
    rule = findings.rule
    if rule is not None and rule.tier is not None:
        return Choice(policy.rank(rule.tier), Reason.RULE)
    if findings.trust is Reason.BACKGROUND:
        return Choice(0, Reason.BACKGROUND)
    rank = rank_by_prompt(policy, findings.settings, match)
    return Choice(findings.rank, findings.trust) if rank is None else Choice(rank, Reason.BY_PROMPT)


def _laddered(
    policy: Policy, match: Match | None, findings: Findings, choice: Choice, continuation: Continuation
) -> Decision:
    """The decision for the chosen tier, with its ladder."""
    settings, rule = findings.settings, findings.rule
    reasoning = findings.reasoning
    if rule is not None and rule.reasoning is not None:
        reasoning = rule.reasoning
    tier = policy.tiers[choice.rank]
    ladder = readable_rungs(policy, ladder_above(policy, findings, choice.rank, reasoning), tier, continuation)
    climbs = next_rungs(policy.tiers, tier, ladder) if any(rung.failover for rung in ladder) else ()
    return Decision(
        tier=tier,
        reason=choice.reason,
        cohort=findings.cohort,
        unmatched=None if findings.trust is Reason.MATCHED else findings.trust,
        match=match,
        rule=findings.rule_name,
        reasoning=reasoning,
        reasoning_forced=policy.reasoning_choice == "router",
        max_output_tokens=findings.cap,
        load=findings.load if findings.load.brief else None,
        withheld=findings.withheld,
        ladder=ladder,
        climbs=climbs,
        judged=settings is not None and _has_answer(findings.load, continuation) and _is_judged(settings, ladder),
        course=course_of(policy, choice, continuation),
        strip=stripping(policy, continuation),
    )


def refused(decision: Decision, reason: Reason = Reason.RESIDENCY) -> Decision:
    """Return the decision to answer with an error. No tier gets the request."""
    return Decision(
        decision.tier,
        reason,
        rewrite=False,
        refused=True,
        cohort=decision.cohort,
        unmatched=decision.unmatched,
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
        unmatched=decision.unmatched,
        match=decision.match,
        rule=decision.rule,
        reasoning_forced=decision.reasoning_forced,
        proposed_tier=decision.tier.name if not decision.refused else Undecided.NONE,
    )


def _has_answer(load: Load, continuation: Continuation) -> bool:
    """Whether rules can judge an answer. A job has no answer yet, and neither has a request for no token."""
    return not continuation.background and load.answer != 0


def _is_judged(settings: Cohort, ladder: Sequence[Rung]) -> bool:
    """Answers are judged only if a higher rung or a person could give a better one, or if they may be kept."""
    human = settings.escalate is not None and settings.escalate.human
    kept = settings.cache is not None
    return bool(settings.accept) and (any(not rung.failover for rung in ladder) or human or kept)
