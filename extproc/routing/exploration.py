"""The draw of requests that a second tier answers, too, outside the path of the client.

A request has a chance for each tier whose answer to it would otherwise stay unknown. The chance depends only on
what was known before the draw, so the recorded answers can stand for those that were not drawn.
"""

import random
import secrets
from collections.abc import Callable, Mapping

import msgspec

from extproc.api.needs import HOSTED
from extproc.api.request import Request
from extproc.contract.words import Reason
from extproc.routing.conversations import SESSION_HEADERS
from extproc.routing.decision import Decision, untouched
from extproc.routing.findings import Findings, read_findings
from extproc.routing.ladder import servable_ranks
from extproc.routing.policy import Cohort, Policy, is_named
from extproc.routing.signals import Signals
from extproc.routing.snapshot import Snapshot
from extproc.settings import Tier

# Longer bodies are not explored. Their second answers would cost the most, and would have to be kept until then.
_MOST_BYTES = 256 * 1024
_ID = "explore-"


class SecondRequest(msgspec.Struct, frozen=True):
    """A second request: the same ask, for another tier."""

    id: str  # its x-request-id, which no client can guess
    tier: Tier
    chance: float
    cohort: Cohort  # its rules judge the answer
    headers: dict[str, str]  # that rules read, without those that identify the client


class Exploration(msgspec.Struct, frozen=True):
    """The chance of each tier, and the tier that was drawn, if one was."""

    chances: dict[str, float]
    second: SecondRequest | None = None


class Lottery:
    """Draws a share of the requests."""

    def __init__(self, share: float, has_room: Callable[[], bool], rng: random.Random | None = None) -> None:
        """Without room, a request has no chance at all."""
        self._share = share
        self._has_room = has_room
        self._rng = rng or random.SystemRandom()

    def draw(
        self,
        snapshot: Snapshot,
        decision: Decision,
        request: Request,
        signals: Signals,
        headers: Mapping[str, str],
    ) -> Exploration | None:
        """Draw a tier for a request that was decided about, or none. None: the request has no chance."""
        if decision.match is None or decision.refused or not decision.rewrite:
            return None
        if is_named(snapshot.policy, request.model):  # a rule moved it from the tier that the client chose
            return None
        if not _is_harmless(request) or not self._has_room():
            return None
        policy = snapshot.policy
        findings = read_findings(policy, signals, decision.match, headers, Reason.NO_TEXT)
        cohort = findings.settings
        if cohort is None or not cohort.accept:
            return None
        tiers = _unknown_tiers(policy, findings, decision)
        if not tiers:
            return None
        chance = self._share / len(tiers)
        chances = {tier.name: chance for tier in tiers}
        if self._rng.random() >= self._share:
            return Exploration(chances)
        tier = tiers[self._rng.randrange(len(tiers))]
        second = SecondRequest(_ID + secrets.token_hex(16), tier, chance, cohort, _rule_headers(snapshot, headers))
        return Exploration(chances, second)


def _is_harmless(request: Request) -> bool:
    """Whether a second answer has no effect but its cost, and any tier can read the request."""
    state = request.state
    hosted = any(need.startswith(HOSTED) for need in request.needs)
    return not (hosted or state.background or state.kept or state.bound) and len(request.body) <= _MOST_BYTES


def _unknown_tiers(policy: Policy, findings: Findings, decision: Decision) -> list[Tier]:
    """The tiers that may get the request, except the one whose answer is judged in the path of the client."""
    able = servable_ranks(policy, findings, range(findings.guard.floor, findings.ceiling + 1))
    tiers = [policy.tiers[rank] for rank in able]
    judged = decision.tier.name if decision.judged else None
    return [tier for tier in tiers if tier.name != judged and _is_reached_by_model(policy, tier)]


def _is_reached_by_model(policy: Policy, tier: Tier) -> bool:
    """Whether a request that names the model of this tier goes to it."""
    return is_named(policy, tier.model) and untouched(policy, Reason.PASSTHROUGH, tier.model).tier is tier


def _rule_headers(snapshot: Snapshot, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that rules read. The key of a client and its conversation stay out of the second request."""
    names = {name for rule in snapshot.policy.rules for name in rule.when.headers or ()}
    private = {*snapshot.key_headers, *snapshot.escalations.principal, *SESSION_HEADERS}
    return {name: headers[name] for name in sorted(names - private) if name in headers}
