"""The compiled policy: its tiers, the cohort that each intent becomes, and its rules."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

import msgspec

from extproc.acceptance.rules import AcceptRule, Gain
from extproc.routing.index import Match
from extproc.routing.sticky import Sticky
from extproc.settings import (
    AnswerCache,
    ByPrompt,
    Chosen,
    Escalate,
    Evidence,
    Reasoning,
    Rule,
    StreamHold,
    Tier,
    Upgrades,
)

_WILDCARDS = frozenset("*?[")


class Cohort(msgspec.Struct, frozen=True):
    """The compiled intent: the settings of the requests that match it."""

    name: str
    tier: str
    floor: float  # least similarity at which a match is trusted
    margin: float  # least margin at which a match is trusted
    calibrated: bool  # the floor was fitted on evidence about the current centroids
    reasoning: Reasoning | None = None
    max_output_tokens: int | None = None
    tier_floor: str | None = None
    only: tuple[str, ...] | None = None  # the tiers that may get its requests
    risk: Literal["low", "high"] = "low"
    accept: tuple[AcceptRule, ...] = ()  # rules that judge an answer before the client sees it
    escalate: Escalate | None = None
    stream: StreamHold = "early"
    cache: AnswerCache | None = None  # None: no answer is served again
    evidence: Evidence | None = None  # kept when it is stale, too
    chosen: Chosen | None = None  # the data that its tier and settings were chosen on
    abstains: bool = False  # no floor keeps the risk, so no match counts
    operator_floor: bool = False  # a person wrote the floor, without evidence
    by_prompt: ByPrompt | None = None  # the choice between two tiers by the prompt, kept when it is stale, too
    prompt_stale: bool = False  # the predictions that it needs are absent or stale

    @property
    def asks_prompt(self) -> bool:
        """Whether the prompt chooses between two tiers. A match that may be a guess has the tier of the cohort."""
        return self.by_prompt is not None and not self.prompt_stale and self.has_floor

    @property
    def judges_gain(self) -> bool:
        """Whether a rule predicts the gain of the costlier tier again, with the answer of the cheaper one."""
        return any(isinstance(rule, Gain) for rule in self.accept)

    @property
    def has_floor(self) -> bool:
        """Whether the floor says by itself that a match counts: it is calibrated, or a person wrote it."""
        return self.calibrated or self.operator_floor

    @property
    def shares_margin(self) -> bool:
        """Whether its margin is that of a pool, so that its own rows do not show which of its matches are right."""
        return self.calibrated and self.evidence is not None and self.evidence.pool is not None

    def needed_tier(self, policy: "Policy") -> str:
        """Return the tier that its requests need: its own, or its floor if that is costlier."""
        return max(self.tier, self.tier_floor or self.tier, key=policy.rank)

    @property
    def unproven(self) -> bool:
        """Whether its matches count although no floor keeps the risk, because the operator wants that."""
        return self.evidence is not None and self.evidence.abstains and not self.abstains

    @property
    def figure(self) -> str:
        """The share of its matches that are wrong, as text. Empty without evidence."""
        return self.evidence.figure if self.evidence is not None else ""

    def probability(self, match: Match) -> float | None:
        """Return the probability that the match is right, or None without valid evidence."""
        if self.evidence is None or not self.calibrated:
            return None
        return self.evidence.probability.of(match.similarity, match.margin)


class Policy(msgspec.Struct, frozen=True, dict=True):
    """Tiers from the cheapest up, cohorts by name, and rules in order."""

    tiers: tuple[Tier, ...]
    default_tier: str
    cohorts: Mapping[str, Cohort]
    rules: tuple[Rule, ...] = ()
    retarget: tuple[str, ...] = ("auto",)
    mode: Literal["enforce", "shadow"] = "enforce"
    reasoning_choice: Literal["client", "router"] = "client"
    upgrades: Upgrades | None = None
    max_body_bytes: int = 32 * 2**20  # the largest body that a client may send
    sticky: Sticky = Sticky()
    only: tuple[str, ...] | None = None  # the tiers that may get any request; None: all

    def tier(self, name: str) -> Tier:
        """Return the tier with this name."""
        return self.tiers[self.rank(name)]

    @property
    def private_models(self) -> frozenset[str]:
        """The model names that only this policy knows. A pattern may match names that an upstream knows, too."""
        names = {name for name in self.retarget if not _is_pattern(name)}
        return frozenset(names - {tier.model for tier in self.tiers})

    @property
    def escalation_shares(self) -> dict[str, float]:
        """The largest share of answers that may escalate, for each cohort that allows escalation."""
        return {name: cohort.escalate.share for name, cohort in self.cohorts.items() if cohort.escalate is not None}

    def rank(self, name: str) -> int:
        """Return the position of a tier in `tiers`, from 0."""
        return self._ranks[name]

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return {tier.name: rank for rank, tier in enumerate(self.tiers)}


class Rung(msgspec.Struct, frozen=True):
    """One step of a request's ladder: a tier, and the reasoning to ask for there."""

    tier: Tier
    reasoning: Reasoning | None
    failover: bool = False  # asked only after a failed attempt, never after a rejected answer


def may_retarget(policy: Policy, model: str) -> bool:
    """Return whether the policy allows replacing this requested model."""
    return any(fnmatchcase(model, pattern) for pattern in policy.retarget)


def is_named(policy: Policy, model: str | None) -> bool:
    """Return whether the request keeps the model that it names, or names none."""
    return model is None or not may_retarget(policy, model)


def routable_model(patterns: Sequence[str]) -> str:
    """Return a model name that the `retarget` patterns allow replacing, for a request built from a plain text."""
    return next((p for p in patterns if not _is_pattern(p)), patterns[0].strip("*?") or "auto")


def _is_pattern(name: str) -> bool:
    return not _WILDCARDS.isdisjoint(name)
