"""The records of one decision, as metadata, logs and spans show it. They hold no text of the request."""

from collections.abc import Mapping
from typing import Any

import msgspec

from extproc.acceptance.requirements import read_requirements
from extproc.api.request import Request
from extproc.contract.names import CONTRACT, Namespace
from extproc.contract.records import (
    ATTEMPTS_OF_A_REPEAT,
    AttemptRecord,
    BodyPatch,
    CacheRecord,
    CascadeRecord,
    ConversationRecord,
    DecisionRecord,
    JudgedRecord,
    LedgerRecord,
    RequirementsRecord,
    RungsRecord,
    ladder_of,
)
from extproc.contract.words import LOCAL, JudgeMode, VerdictWord
from extproc.routing.budget import Charge, Payment
from extproc.routing.cache_store import KeptAnswer
from extproc.routing.conversations import Identity
from extproc.routing.decision import Decision
from extproc.routing.exploration import Exploration
from extproc.routing.index import Match
from extproc.routing.keeping import has_several_seals
from extproc.routing.limits import principal_header, principal_of
from extproc.routing.mutation import Mutation
from extproc.routing.policy import Cohort
from extproc.routing.signals import Signals
from extproc.routing.snapshot import Snapshot


def decision_record(
    decision: Decision,
    mutation: Mutation,
    snapshot: Snapshot,
    signals: Signals | None,
    candidate: Decision | None = None,
    kept: KeptAnswer | None = None,
    payment: Payment = Payment(),  # noqa: B008  # it cannot change
) -> DecisionRecord:
    """Describe the decision for metadata, access log and span.

    `candidate` is the decision beside it, if any. `kept` is the kept answer, if it is served.
    """
    cohort, match, ask = decision.cohort, decision.match, signals.ask if signals is not None else None
    probability = cohort.probability(match) if cohort is not None and match is not None else None
    evidence = cohort.evidence if cohort is not None and probability is not None else None
    floors = cohort if cohort is not None and match is not None else None
    return DecisionRecord(
        cluster=mutation.cluster,
        tier=decision.tier.name,
        reason=decision.reason,
        reasoning=mutation.reasoning,
        revision=snapshot.revision,
        mode=snapshot.policy.mode,
        cohort=cohort.name if cohort is not None else None,
        counted_as=decision.counted_as,
        runner_up=match.runner_up if match is not None else None,
        similarity=round(match.similarity, 4) if match is not None else None,
        margin=round(match.margin, 4) if match is not None else None,
        floor=round(floors.floor, 4) if floors is not None else None,
        least_margin=round(floors.margin, 4) if floors is not None and floors.margin > 0 else None,
        chance=round(match.chance, 4) if match is not None and match.chance is not None else None,
        background=round(match.background, 4) if match is not None and match.chance is not None else None,
        gain=round(match.gain, 4) if match is not None and match.gain is not None else None,
        least_gain=_least_gain(cohort, match),
        calibrated=cohort.calibrated if cohort is not None else None,
        probability=round(probability, 4) if probability is not None else None,
        evidence=evidence.stamp if evidence is not None else None,
        ask=ask.source if ask is not None else None,
        ask_chars=ask.chars if ask is not None else None,
        ask_cut=ask.cut if ask is not None else None,
        tokens=signals.tokens if signals is not None else None,
        stream=signals.stream or None if signals is not None else None,
        rule=decision.rule,
        proposed_tier=decision.proposed_tier,
        withheld=",".join(decision.withheld) or None,
        conversation=decision.course,
        candidate_tier=(candidate.proposed_tier or candidate.tier.name) if candidate is not None else None,
        candidate_cohort=candidate.counted_as if candidate is not None else None,
        cache=decision.cache,
        cache_tier=kept.tier if kept is not None else None,
        app=snapshot.app,
        team=snapshot.team,
        budget=payment.budget,
        reserved_microusd=payment.charge.amount // 1000 if payment.charge is not None else None,
        limits=LOCAL if payment.local else None,
    )


def _least_gain(cohort: Cohort | None, match: Match | None) -> float | None:
    if cohort is None or cohort.by_prompt is None or match is None or match.gain is None:
        return None
    return round(cohort.by_prompt.least, 4)


def asker_record(
    snapshot: Snapshot,
    identity: Identity | None,
    headers: Mapping[str, str],
    exploration: Exploration | None = None,
    kept: KeptAnswer | None = None,
    charge: Charge | None = None,
) -> LedgerRecord:
    """Identify the principal and the conversation, as hashes.

    The second request is in the record if one was drawn, and the kept answer if one is served.
    """
    header = principal_header(headers, snapshot.escalations.principal)
    return LedgerRecord(
        principal=principal_of(header),
        session=identity.session if identity is not None else None,
        charge=charge.to_text() if charge is not None else None,
        chances=msgspec.json.encode(exploration.chances).decode() if exploration is not None else None,
        explored=exploration.second.id if exploration is not None and exploration.second is not None else None,
        hit=_hit_record(kept) if kept is not None else None,
    )


def _hit_record(kept: KeptAnswer) -> AttemptRecord:
    """The tier that gave the answer that is served again, and the tokens that it counted."""
    return AttemptRecord(
        verdict=VerdictWord.ACCEPT, tier=kept.tier, input=kept.input, output=kept.output, cached=kept.cached
    )


def conversation_record(
    snapshot: Snapshot,
    identity: Identity | None,
    mutation: Mutation,
    request: Request | None,
    headers: Mapping[str, str],
) -> ConversationRecord | None:
    """Return the keys that Envoy sends back. None: only one tier can answer, and no id is needed."""
    kept = request is not None and request.state.kept and has_several_seals(snapshot.policy)
    if identity is None or (len(mutation.clusters) < 2 and not kept):
        return None
    principal = principal_of(principal_header(headers, snapshot.escalations.principal))
    return ConversationRecord(principal=principal, conversation=identity.key, kept=kept or None)


def envoy_metadata(
    record: DecisionRecord,
    decision: Decision,
    mutation: Mutation,
    request: Request | None,
    asker: LedgerRecord,
    conversation: ConversationRecord | None = None,
    cache: CacheRecord | None = None,
) -> dict[str, Any]:
    """Build the metadata that Envoy keeps for the exchange: namespace -> values."""
    metadata: dict[str, Any] = {
        Namespace.LADDER: ladder_of(mutation.clusters, _repeats(decision)),
        Namespace.LEDGER: asker.to_metadata(),
    }
    if conversation is not None:
        metadata[Namespace.CONVERSATION] = conversation.to_metadata()
    if cache is not None:
        metadata[Namespace.CACHE] = cache.to_metadata()
    if mutation.rungs:
        metadata[Namespace.RUNGS] = _rungs_record(mutation).to_metadata()
    decision_values, judge = record.to_metadata(), None
    if decision.judged and request is not None and decision.cohort is not None:
        judge = _judge_modes(decision, decision.cohort, request)
        judged = _judged_record(decision, decision.cohort, mutation, request)
        decision_values |= judged.to_metadata()
        metadata[Namespace.REQUIREMENTS] = _requirements_record(decision, decision.cohort, request).to_metadata()
    retries = _retries(decision)
    if request is not None and request.state.background:
        retries = 0  # a failed attempt may have started the job
    cascade = CascadeRecord(contract=CONTRACT, max_retries=retries, escalations=0, judge=judge)
    metadata[Namespace.DECISION] = decision_values | cascade.to_metadata()
    return metadata


def _repeats(decision: Decision) -> list[int]:
    """The repeated attempts of each rung but the last, which Envoy repeats by itself."""
    tiers = [decision.tier, *(rung.tier for rung in decision.ladder)]
    return [tier.same_retries for tier in tiers[:-1]]


def _retries(decision: Decision) -> int:
    """The most attempts after the first one. Envoy by itself repeats those at the last tier."""
    last = decision.ladder[-1].tier if decision.ladder else decision.tier
    return len(decision.ladder) + ATTEMPTS_OF_A_REPEAT * sum(_repeats(decision)) + last.same_retries


def _rungs_record(mutation: Mutation) -> RungsRecord:
    return RungsRecord(
        attempts=[
            [BodyPatch(at=patch.at, length=patch.length, text=patch.text.decode()) for patch in patches]
            for patches in mutation.rungs
        ]
    )


def _judge_modes(decision: Decision, cohort: Cohort, request: Request) -> dict[str, str]:
    """How Envoy sends each tier's answers to the verifier.

    The last rung is judged only if a person is above it, or if its answer may be kept.
    """
    tiers = [decision.tier.name, *(rung.tier.name for rung in decision.ladder)]
    if cohort.cache is None and (cohort.escalate is None or not cohort.escalate.human):
        tiers = [name for at, name in enumerate(tiers) if not decision.is_last(at)]
    return dict.fromkeys(tiers, JudgeMode.STREAM if request.stream else JudgeMode.BODY)


def _judged_record(decision: Decision, cohort: Cohort, mutation: Mutation, request: Request) -> JudgedRecord:
    return JudgedRecord(
        cohort=cohort.name,
        rungs=list(mutation.clusters),
        api=request.api,
        escalations=0,
        logprobs_added=mutation.logprobs_added,
        repeats=any(_repeats(decision)),
        climbs=[*decision.climbs] or None,
    )


def _requirements_record(decision: Decision, cohort: Cohort, request: Request) -> RequirementsRecord:
    columns = decision.match.columns if decision.match is not None else ()
    requirements = read_requirements(request, cohort.accept, columns)
    return RequirementsRecord(facts=msgspec.json.encode(requirements).decode())
