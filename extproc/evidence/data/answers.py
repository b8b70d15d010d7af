"""What tiers really answered -> what the client would have got, and at what cost.

`Upstreams.serve` follows the ladder of a decision through the recorded answers, with the verifier's own `judge`
and its bound on a cohort's escalations. Rules that ask another model cannot run here and say so.
"""

from collections.abc import Mapping, Sequence

import msgspec

from extproc.acceptance.grounding import Embed
from extproc.acceptance.requirements import read_requirements
from extproc.acceptance.verdict import judge
from extproc.api.answer import AnswerReader
from extproc.api.observation import Observation, Usage
from extproc.evidence.data.setting import SUFFIXES, setting_name
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import Known, RecordedOutcome
from extproc.routing.exchange import Routed
from extproc.routing.limits import Bounds
from extproc.settings import SHARE, Tier

# The principals of recorded requests are not known: only the bound on the cohort's share holds.
_NO_RATE = 1e9


class ReplayedAnswer(msgspec.Struct, frozen=True):
    """What one tier answered one row."""

    quality: float | None
    cost: float  # US dollars
    latency_s: float | None
    observation: Observation | None  # as the verifier sees it; None when only its worth was recorded
    tokens_out: int | None = None  # as recorded; never an estimate


class Prices:
    """Tiers' recorded answers with what they cost; counts how many of the token counts are estimates."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.recorded = self.estimated = self.input_only = 0  # answers, by where their counts come from

    def all_answered(self, tiers: Sequence[Tier], routed: Routed, known: Known) -> dict[str, ReplayedAnswer]:
        """What was recorded of these tiers, by `setting_name`; an outcome may go by its tier's model instead."""
        found = {}
        for tier in tiers:
            for suffix in SUFFIXES:
                outcome = known.outcomes.get(tier.name + suffix) or known.outcomes.get(tier.model + suffix)
                if outcome is not None:
                    found[tier.name + suffix] = self._answered(tier, outcome, routed)
        return found

    def _answered(self, tier: Tier, outcome: RecordedOutcome, routed: Routed) -> ReplayedAnswer:
        answer = _observed(outcome, routed)
        usage = (answer.usage if answer is not None else None) or Usage()
        read = outcome.tokens_in if outcome.tokens_in is not None else usage.input
        wrote = outcome.tokens_out if outcome.tokens_out is not None else usage.output
        if wrote is None and answer is None:
            self.input_only += 1
        elif read is None or wrote is None:
            self.estimated += 1
        else:
            self.recorded += 1
        if read is None:
            read = self._tokens.count(_said(routed))
        if wrote is None:
            wrote = self._tokens.count(answer.text) if answer is not None else 0
        cost = (read * tier.price.input + wrote * tier.price.output) / 1e6
        counted = outcome.tokens_out if outcome.tokens_out is not None else usage.output
        return ReplayedAnswer(outcome.worth, cost, outcome.latency_s, answer, counted)


def _said(routed: Routed) -> str:
    turns = routed.request.turns if routed.request is not None else ()
    return "\n".join(text for turn in turns for text in turn.texts)


def _observed(outcome: RecordedOutcome, routed: Routed) -> Observation | None:
    if response := bytes(outcome.response):
        reader = AnswerReader(routed.request.api if routed.request is not None else "chat")
        text = response.startswith(b'"')  # what came over the wire, kept as text: a stream
        reader.feed(msgspec.json.decode(response, type=str).encode() if text else response)
        reader.finish()
        return reader.observation()
    if outcome.answer is None:
        return None
    return Observation(text=outcome.answer, finish=outcome.finish, n_choices=1, complete=True, ended=True)


class Served(msgspec.Struct, frozen=True):
    """What a row would have got, as far as answers were recorded."""

    path: tuple[str, ...]  # what answered, by `setting_name`, in order; the last one's answer was served
    rejections: tuple[str, ...] = ()  # why each answer before it was rejected
    quality: float | None = None  # of the answer served
    first_quality: float | None = None  # of the first answer
    cost: float = 0.0  # US dollars, rejected answers included
    latency_s: float | None = 0.0
    judged: int = 0  # answers that the accept rules saw
    unavailable: tuple[str, ...] = ()  # rules that could not run offline
    bound: str | None = None  # what kept a rejected answer from climbing
    person: bool = False  # put aside for a person instead


class Upstreams:
    """The recorded answers as if they were given now; one for each configuration that is tried."""

    def __init__(self, embed: Embed | None = None) -> None:
        self._embed = embed
        self._bounds = Bounds()

    def serve(self, routed: Routed, answers: Mapping[str, ReplayedAnswer]) -> Served | None:
        """Follow the decision's ladder; None when an answer that it needs was not recorded."""
        decision = routed.decision
        above = decision.ladder if decision.judged else ()
        asked = [(decision.tier, decision.reasoning), *((rung.tier, rung.reasoning) for rung in above)]
        served = Served(path=())
        for at, (tier, reasoning) in enumerate(asked):
            name = setting_name(tier.name, reasoning)
            name = name if name in answers else tier.name  # recorded once, whatever the reasoning
            answer = answers.get(name)
            if answer is None:
                return None
            last = at == len(asked) - 1
            served = _with_answer(served, name, answer)
            if not decision.judged or answer.observation is None or (last and not _ends_with_person(routed)):
                return served
            served, climbs = self._judged(served, routed, tier, answer.observation, last)
            if not climbs:
                return served
        return served

    def _judged(
        self, served: Served, routed: Routed, tier: Tier, answer: Observation, last: bool
    ) -> tuple[Served, bool]:
        """Judge one answer as the verifier does; True when the next tier is asked."""
        cohort, request = routed.decision.cohort, routed.request
        assert cohort is not None and request is not None, "judged decisions have both"
        # How the answer was framed was not recorded: it is not held to it.
        facts = msgspec.structs.replace(read_requirements(request, cohort.accept), stream=None)
        verdict = judge(cohort.accept, answer, request=facts, embed=self._embed, tier=tier.name)
        unavailable = served.unavailable + verdict.unavailable
        served = msgspec.structs.replace(served, judged=served.judged + 1, unavailable=unavailable)
        share = cohort.escalate.share if cohort.escalate is not None else SHARE
        self._bounds.judged(cohort.name, share)
        if verdict.accept:
            return served, False
        if last:
            return msgspec.structs.replace(served, person=True, quality=None), False
        bound = self._bounds.allow(cohort.name, "anyone", _NO_RATE, int(_NO_RATE), 0.0)
        if bound is not None:
            return msgspec.structs.replace(served, bound=bound), False
        return msgspec.structs.replace(served, rejections=(*served.rejections, verdict.reason)), True


def _with_answer(served: Served, name: str, answer: ReplayedAnswer) -> Served:
    late = None
    if served.latency_s is not None and answer.latency_s is not None:
        late = served.latency_s + answer.latency_s
    return msgspec.structs.replace(
        served,
        path=(*served.path, name),
        quality=answer.quality,
        first_quality=served.first_quality if served.path else answer.quality,
        cost=served.cost + answer.cost,
        latency_s=late,
    )


def _ends_with_person(routed: Routed) -> bool:
    cohort = routed.decision.cohort
    return cohort is not None and cohort.escalate is not None and cohort.escalate.human
