"""What we do about a match: the rules, and the one decision they give."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from extproc.acceptance.rules import AcceptRule
from extproc.contract.words import Reason
from extproc.routing.index import Index, Match
from extproc.routing.signals import Signals
from extproc.settings import (
    Chosen,
    Conditions,
    EncoderConfig,
    Escalate,
    Escalations,
    Evidence,
    Human,
    Judge,
    Reasoning,
    Rule,
    StreamHold,
    Tier,
    Upgrades,
)


class Cohort(msgspec.Struct, frozen=True):
    """The compiled intent: what a request that lands in it gets."""

    name: str
    tier: str
    floor: float  # least similarity at which a match is trusted
    margin: float  # least margin, likewise
    calibrated: bool  # the floor rests on evidence, and on evidence about these very centroids
    reasoning: Reasoning | None = None
    max_output_tokens: int | None = None
    tier_floor: str | None = None
    risk: Literal["low", "high"] = "low"
    accept: tuple[AcceptRule, ...] = ()  # what an answer is judged by before the client sees it
    escalate: Escalate | None = None
    stream: StreamHold = "early"
    evidence: Evidence | None = None  # also when it is stale
    chosen: Chosen | None = None  # what its tier and settings were chosen on

    def probability(self, match: Match) -> float | None:
        """The chance that the match is right; None without evidence."""
        if self.evidence is None or not self.calibrated:
            return None
        return self.evidence.probability.of(match.similarity, match.margin)


class Policy(msgspec.Struct, frozen=True):
    """The compiled policy: tiers cheapest first, cohorts by name, rules in order."""

    tiers: tuple[Tier, ...]
    default_tier: str
    cohorts: Mapping[str, Cohort]
    rules: tuple[Rule, ...] = ()
    retarget: tuple[str, ...] = ("auto",)
    mode: Literal["enforce", "shadow"] = "enforce"
    reasoning_choice: Literal["client", "router"] = "client"
    upgrades: Upgrades | None = None

    def tier(self, name: str) -> Tier:
        """The tier called `name`."""
        return self.tiers[self.rank(name)]

    @property
    def escalation_shares(self) -> dict[str, float]:
        """Of each cohort whose answers may climb, the share that may."""
        return {name: cohort.escalate.share for name, cohort in self.cohorts.items() if cohort.escalate is not None}

    def rank(self, name: str) -> int:
        """How far up the ladder the tier called `name` stands, from 0."""
        return next(i for i, tier in enumerate(self.tiers) if tier.name == name)


class Snapshot(msgspec.Struct, frozen=True):
    """One revision of the configuration, compiled: everything a request needs. Never changed, only replaced."""

    revision: str
    policy: Policy
    index: Index
    encoder: EncoderConfig = EncoderConfig()
    escalations: Escalations = Escalations()
    judges: Mapping[str, Judge] = {}
    human: Human | None = None
    centroids: str = ""  # the hash of all that made the index


class Rung(msgspec.Struct, frozen=True):
    """One step of a request's own ladder."""

    tier: Tier
    reasoning: Reasoning | None


class Decision(msgspec.Struct, frozen=True):
    """Which tier answers and how, with the one reason."""

    tier: Tier
    reason: Reason
    rewrite: bool = True  # False: the client's bytes go on as they are
    cohort: Cohort | None = None  # where the request landed, trusted or not
    match: Match | None = None
    rule: str | None = None
    reasoning: Reasoning | None = None  # None: left as the client or the model has it
    reasoning_forced: bool = False  # the policy overrides the client's explicit choice
    max_output_tokens: int | None = None
    ladder: tuple[Rung, ...] = ()  # above `tier`: where a failed or rejected attempt goes
    judged: bool = False  # answers below the last rung are judged by the cohort's rules
    proposed_tier: str | None = None  # in shadow mode: where enforcing would have sent it


def untouched(policy: Policy, reason: Reason, model: str | None = None) -> Decision:
    """Send a request on as it is: to the tier whose own `model` it names, else to the default tier."""
    for tier in policy.tiers:
        if tier.model == model:
            return Decision(tier, Reason.PINNED, rewrite=False)
    return Decision(policy.tier(policy.default_tier), reason, rewrite=False)


def may_retarget(policy: Policy, model: str) -> bool:
    """Whether the policy lets us replace this requested model."""
    return any(fnmatchcase(model, pattern) for pattern in policy.retarget)


def routable_model(patterns: Sequence[str]) -> str:
    """A model name that these `retarget` patterns let us replace, for a request that is made from a text."""
    return next((p for p in patterns if not set(p) & set("*?[")), patterns[0].strip("*?") or "auto")


def decide(
    policy: Policy,
    signals: Signals,
    match: Match | None,
    headers: Mapping[str, str],
    failure: Reason = Reason.NO_TEXT,
    spent: bool = False,
) -> Decision:
    """Choose a tier. The cohort proposes, the first rule that applies disposes, floors and capabilities lift.

    A floor holds whichever rule came first: of all that apply the highest counts.

    `match` is None when the text could not be matched, and `failure` says why. `headers` are the trusted ones
    that rules name. An ambiguous match is not trusted, but the tier floors of both its cohorts hold.
    `spent`: the principal has had its upgrades, and is held to the default tier as far as `policy.upgrades` says.
    """
    cohort = policy.cohorts[match.cohort] if match is not None else None
    reason = trust(cohort, match, failure)
    settings = cohort if reason is Reason.MATCHED else None
    landed = _landed(policy, match, reason)
    name = settings.tier if settings is not None else policy.default_tier
    reasoning = settings.reasoning if settings is not None else None

    applying = [r for r in policy.rules if _applies(r.when, landed, signals, headers)]
    rule = applying[0] if applying else None
    if rule is not None and rule.tier is not None:
        name, reason = rule.tier, Reason.RULE
    if rule is not None and rule.reasoning is not None:
        reasoning = rule.reasoning

    rank = policy.rank(name)
    # Of all that apply: nothing lowers a floor, but a bound on upgrades that says so.
    floors = [c.tier_floor for c in landed] + [r.tier_floor for r in applying]
    floor = max((policy.rank(f) for f in floors if f is not None), default=0)
    if floor > rank:
        rank, reason = floor, Reason.TIER_FLOOR
    if spent and (held := _held(policy, floor)) < rank:
        rank, reason = held, Reason.UPGRADE_RATE
    able = _first_able(policy.tiers, rank, signals)
    if able > rank:
        rank, reason = able, Reason.CAPABILITY

    ladder = _ladder(policy, settings, rank, reasoning, signals)
    decision = Decision(
        tier=policy.tiers[rank],
        reason=reason,
        cohort=cohort,
        match=match,
        rule=rule.name if rule is not None else None,
        reasoning=reasoning,
        reasoning_forced=policy.reasoning_choice == "router",
        max_output_tokens=settings.max_output_tokens if settings is not None else None,
        ladder=ladder,
        judged=settings is not None and _is_judged(settings, ladder),
    )
    return decision if policy.mode == "enforce" else _shadowed(policy, decision, signals)


def trust(cohort: Cohort | None, match: Match | None, failure: Reason = Reason.NO_TEXT) -> Reason:
    """MATCHED when the match lies above its cohort's floors, else the reason for the default tier."""
    if cohort is None or match is None:
        return failure
    if match.similarity < cohort.floor:
        return Reason.OUT_OF_SCOPE
    if match.margin < cohort.margin:
        return Reason.AMBIGUOUS
    return Reason.MATCHED


def _held(policy: Policy, floor: int) -> int:
    """The highest rung for a principal that has had its upgrades."""
    default = policy.rank(policy.default_tier)
    return default if policy.upgrades is not None and policy.upgrades.lower_floors else max(default, floor)


def _landed(policy: Policy, match: Match | None, reason: Reason) -> list[Cohort]:
    """The cohorts that the request is in, or may be in: none when it is out of scope."""
    if match is None or reason is Reason.OUT_OF_SCOPE:
        return []
    names = [match.cohort]
    if reason is Reason.AMBIGUOUS and match.runner_up is not None:
        names.append(match.runner_up)
    return [policy.cohorts[name] for name in names]


def _applies(when: Conditions, landed: Sequence[Cohort], signals: Signals, headers: Mapping[str, str]) -> bool:
    checks = (
        when.intents is None or any(c.name in when.intents for c in landed),
        when.risk is None or any(c.risk == when.risk for c in landed),
        when.tokens_over is None or signals.tokens > when.tokens_over,
        when.tokens_under is None or signals.tokens < when.tokens_under,
        when.turns_over is None or signals.turns > when.turns_over,
        when.tools is None or ("tools" in signals.needs) == when.tools,
        when.images is None or ("vision" in signals.needs) == when.images,
        when.strict_output is None or signals.strict_output == when.strict_output,
        all(fnmatchcase(headers.get(name, ""), pattern) for name, pattern in (when.headers or {}).items()),
    )
    return all(checks)


def _first_able(tiers: Sequence[Tier], rank: int, signals: Signals) -> int:
    """The first rung from `rank` up that can serve the request."""
    for above, tier in enumerate(tiers[rank:], start=rank):
        if _can_serve(tier, signals):
            return above
    # None can, by our estimate of its size: the one that comes nearest shall say so.
    capable = [i for i in range(rank, len(tiers)) if signals.needs <= tiers[i].capabilities]
    return max(capable, key=lambda i: tiers[i].context, default=rank)


def _is_judged(settings: Cohort, ladder: Sequence[Rung]) -> bool:
    """Judging is for answers that something above could better."""
    human = settings.escalate is not None and settings.escalate.human
    return bool(settings.accept) and (bool(ladder) or human)


def _ladder(
    policy: Policy, settings: Cohort | None, rank: int, reasoning: Reasoning | None, signals: Signals
) -> tuple[Rung, ...]:
    """The rungs above `rank`: those the cohort names that can serve, else the next tier up, for failover."""
    if settings is not None and settings.escalate is not None:
        named = [(policy.rank(rung.tier), rung) for rung in settings.escalate.rungs]
        rungs = [
            Rung(policy.tiers[at], reasoning if rung.reasoning is None else rung.reasoning)
            for at, rung in named
            if at >= rank and _can_serve(policy.tiers[at], signals)
        ]
        return tuple(rungs[: settings.escalate.max])
    above = next((t for t in policy.tiers[rank + 1 :] if _can_serve(t, signals)), None)
    return (Rung(above, reasoning),) if above is not None else ()


def _can_serve(tier: Tier, signals: Signals) -> bool:
    return signals.tokens <= tier.context and signals.needs <= tier.capabilities


def _shadowed(policy: Policy, decision: Decision, signals: Signals) -> Decision:
    """The default tier serves with nothing but its model name written; the decision is only recorded."""
    default = policy.rank(policy.default_tier)
    return msgspec.structs.replace(
        decision,
        tier=policy.tiers[_first_able(policy.tiers, default, signals)],
        reasoning=None,
        max_output_tokens=None,
        ladder=(),
        judged=False,
        proposed_tier=decision.tier.name,
    )
