"""The recorded answers of tiers -> the answer that the client would have received, and its cost.

`Upstreams.serve` follows the ladder of a decision through the recorded answers. It uses the verifier's `judge` and
the verifier's bound on the escalations of a cohort. A rule that asks another model cannot run offline and is
reported as unavailable.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec

from extproc.acceptance.grounding import Embed
from extproc.acceptance.requirements import read_requirements
from extproc.acceptance.verdict import judge
from extproc.api.answer import AnswerReader
from extproc.api.observation import Observation, Usage
from extproc.evidence.data.decided import Decided
from extproc.evidence.data.setting import SUFFIXES, setting_name
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import RecordedOutcome
from extproc.routing.limits import Bounds
from extproc.settings import SHARE, Tier

# The principals of recorded requests are unknown, so only the bound on the cohort's share applies.
_NO_RATE = 1e9


class ReplayedAnswer(msgspec.Struct, frozen=True):
    """The answer of one setting to one row."""

    quality: float | None
    cost: float  # US dollars
    latency_s: float | None
    observation: Observation | None  # the answer as the verifier sees it; None: only its quality was recorded
    tokens_out: int | None = None  # as recorded; never an estimate
    propensity: float | None = None  # the chance that it was recorded; None: it was not by chance
    impossible: int | None = None  # a recorded token count above the tier's context, which counts as the context


class Prices:
    """Prices recorded answers, and counts how many of their token counts are estimates."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.recorded = self.estimated = self.input_only = 0  # answers, by the source of their counts

    def recorded_answers(
        self, tiers: Sequence[Tier], routed: Decided, outcomes: Mapping[str, RecordedOutcome]
    ) -> dict[str, ReplayedAnswer]:
        """Return the recorded answers of these tiers by `setting_name`.

        An outcome may name the tier or its model.
        """
        answers = {}
        for tier in tiers:
            for suffix in SUFFIXES:
                outcome = recorded_under(outcomes, tier, suffix)
                if outcome is not None:
                    answers[tier.name + suffix] = self._answered(tier, outcome, routed)
        return answers

    def _answered(self, tier: Tier, outcome: RecordedOutcome, routed: Decided) -> ReplayedAnswer:
        answer = observed(outcome, routed)
        usage = (answer.usage if answer is not None else None) or Usage()
        tokens_in = outcome.tokens_in if outcome.tokens_in is not None else usage.input
        recorded_out = outcome.tokens_out if outcome.tokens_out is not None else usage.output
        if recorded_out is None and answer is None:
            self.input_only += 1
        elif tokens_in is None or recorded_out is None:
            self.estimated += 1
        else:
            self.recorded += 1
        if tokens_in is None:
            tokens_in = self._tokens.count(_request_text(routed))
        tokens_out = recorded_out
        if tokens_out is None:
            tokens_out = self._tokens.count(answer.text) if answer is not None else 0
        impossible = max(tokens_in, tokens_out) if max(tokens_in, tokens_out) > tier.context else None
        tokens_in, tokens_out = min(tokens_in, tier.context), min(tokens_out, tier.context)
        if recorded_out is not None:
            recorded_out = tokens_out
        cost = (tokens_in * tier.price.input + tokens_out * tier.price.output) / 1e6
        return ReplayedAnswer(
            outcome.worth, cost, outcome.latency_s, answer, recorded_out, outcome.propensity, impossible
        )


def recorded_under(outcomes: Mapping[str, RecordedOutcome], tier: Tier, suffix: str) -> RecordedOutcome | None:
    """Return the answer of a setting. None: it was not recorded, or only its chance."""
    outcome = outcomes.get(tier.name + suffix) or outcomes.get(tier.model + suffix)
    return outcome if outcome is not None and not outcome.is_chance else None


def _request_text(routed: Decided) -> str:
    turns = routed.request.turns if routed.request is not None else ()
    return "\n".join(text for turn in turns for text in turn.texts)


def observed(outcome: RecordedOutcome, routed: Decided) -> Observation | None:
    """Return the answer as the verifier sees it. None: its text was not recorded."""
    if response := bytes(outcome.response):
        reader = AnswerReader(routed.request.api if routed.request is not None else "chat")
        is_stream = response.startswith(b'"')  # a stream is recorded as the text of its events
        reader.feed(msgspec.json.decode(response, type=str).encode() if is_stream else response)
        reader.finish()
        return reader.observation()
    if outcome.answer is None:
        return None
    return Observation(text=outcome.answer, finish=outcome.finish, n_choices=1, complete=True, ended=True)


class Served(msgspec.Struct, frozen=True):
    """The answer that a row would have received."""

    path: tuple[str, ...]  # the settings that answered, in order (`setting_name`); the last one served
    rejections: tuple[str, ...] = ()  # the reasons that the answers before the last one were rejected
    quality: float | None = None  # of the served answer
    first_quality: float | None = None  # of the first answer
    cost: float = 0.0  # US dollars, rejected answers included
    latency_s: float | None = 0.0
    judged: int = 0  # answers that the accept rules judged
    unavailable: tuple[str, ...] = ()  # rules that could not run offline
    bound: str | None = None  # the bound that kept a rejected answer from escalating
    person: bool = False  # the row was queued for a person instead
    propensity: float | None = None  # the chance that the answers of the path were recorded


class Upstreams:
    """Serves recorded answers as if they were given now.

    Each configuration needs its own instance, because the bounds on escalations have state.
    """

    def __init__(self, embed: Embed | None = None) -> None:
        self._embed = embed
        self._bounds = Bounds()

    def serve(self, routed: Decided, answers: Mapping[str, ReplayedAnswer]) -> Served | None:
        """Follow the ladder of the decision. None: an answer that it needs was not recorded."""
        decision = routed.decision
        above = [rung for rung in decision.ladder if not rung.failover] if decision.judged else ()
        settings = [(decision.tier, decision.reasoning), *((rung.tier, rung.reasoning) for rung in above)]
        served = Served(path=())
        for at, (tier, reasoning) in enumerate(settings):
            name = setting_name(tier.name, reasoning)
            name = name if name in answers else tier.name  # recorded without its reasoning
            answer = answers.get(name)
            if answer is None:
                return None
            last = at == len(settings) - 1
            served = _with_answer(served, name, answer)
            if not decision.judged or answer.observation is None or (last and not _ends_with_person(routed)):
                return served
            served, escalates = self._judged(served, routed, tier, answer.observation, last)
            if not escalates:
                return served
        return served

    def _judged(
        self, served: Served, routed: Decided, tier: Tier, answer: Observation, last: bool
    ) -> tuple[Served, bool]:
        """Judge one answer as the verifier does. True: the answer escalates."""
        cohort, request = routed.decision.cohort, routed.request
        assert cohort is not None and request is not None, "judged decisions have both"
        # Whether the answer was streamed was not recorded, so the verdict must not depend on it.
        columns = routed.decision.match.columns if routed.decision.match is not None else ()
        requirements = msgspec.structs.replace(read_requirements(request, cohort.accept, columns), stream=None)
        verdict = judge(cohort.accept, answer, request=requirements, embed=self._embed, tier=tier.name)
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
    latency_s = None
    if served.latency_s is not None and answer.latency_s is not None:
        latency_s = served.latency_s + answer.latency_s
    chances = [chance for chance in (served.propensity, answer.propensity) if chance is not None]
    return msgspec.structs.replace(
        served,
        path=(*served.path, name),
        propensity=math.prod(chances) if chances else None,
        quality=answer.quality,
        first_quality=served.first_quality if served.path else answer.quality,
        cost=served.cost + answer.cost,
        latency_s=latency_s,
    )


def _ends_with_person(routed: Decided) -> bool:
    cohort = routed.decision.cohort
    return cohort is not None and cohort.escalate is not None and cohort.escalate.human
