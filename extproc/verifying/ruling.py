"""Rules on one attempt's answer: verdict, ladder and limits -> `Ruling`. No I/O and no clock."""

from collections.abc import Callable
from typing import Any

import msgspec

from extproc.acceptance.checks import OK
from extproc.acceptance.verdict import Verdict, released
from extproc.api.observation import Observation, Usage
from extproc.contract.names import HeaderName, Namespace
from extproc.contract.records import AttemptRecord, LedgerRecord, VerdictRecord, ladder_of
from extproc.contract.words import Bound, VerdictWord


class Ladder(msgspec.Struct, frozen=True):
    """The ladder of one request, and how far its attempts have come."""

    clusters: list[str] = []  # one for each rung; the first attempt's is first
    skipped: int = 0  # rungs that earlier verdicts skipped, less the attempts that repeated a rung
    repeats: bool = False  # attempts may be repeated at one rung
    escalations: int = 0  # made so far
    skip: tuple[str, ...] = ()  # a rejection by these rules skips one rung
    climbs: tuple[int, ...] = ()  # where a rejected answer of each rung leads; (): to the next one
    human: bool = False  # a person is the last rung
    review: bool = False  # cases can be queued for that person

    def ends_at(self, number: int) -> bool:
        """Whether no other tier and no person is asked after the attempt of this number."""
        return not self.human and _above(self, number + self.skipped - 1) >= len(self.clusters)


class JudgedAttempt(msgspec.Struct, frozen=True):
    """The attempt whose answer is judged."""

    cohort: str
    number: int = 1  # from 1
    tier: str | None = None  # None: not known


class Ruling(msgspec.Struct, frozen=True):
    """The decision about one attempt's answer, and its effects on headers and metadata."""

    cohort: str
    attempt: int
    word: VerdictWord
    verdict: Verdict
    bound: Bound | None = None  # the limit that stopped a rejected answer from escalating
    final: bool = True  # False: the answer was released before its end, and another ruling follows
    open: bool = False  # Envoy gives the other one when the answer ends
    tier: str | None = None
    usage: Usage = Usage()
    rung: int | None = None  # the next rung, as an index into the ladder; None: no escalation
    escalations: int | None = None  # of the request, if this ruling raises it
    skipped: int | None = None  # rungs skipped so far, if this ruling raises it
    ladder: list[str] | None = None  # clusters of the attempts from now on, if this ruling changes them

    @property
    def headers(self) -> dict[str, str]:
        """The response headers for Envoy and the client."""
        headers: dict[str, str] = {HeaderName.VERDICT: self.word}
        if self._reason is not None:
            headers[HeaderName.VERDICT_REASON] = self._reason
        return headers

    @property
    def metadata(self) -> dict[str, Any]:
        """The content of each metadata namespace that this ruling changes."""
        metadata: dict[str, Any] = {Namespace.DECISION: self.decision.to_metadata()}
        if self.ladder is not None:
            metadata[Namespace.LADDER] = ladder_of(self.ladder)
        if self.final:
            metadata[Namespace.LEDGER] = self.ledger.to_metadata()
        elif self.open:
            metadata[Namespace.LEDGER] = LedgerRecord(open=f"{self.attempt} {self.tier or ''}").to_metadata()
        return metadata

    @property
    def decision(self) -> VerdictRecord:
        """The changes to the decision."""
        return VerdictRecord(
            verdict=self.word,
            verdict_reason=self._reason,
            escalations=self.escalations,
            skipped=self.skipped,
            bound=self.bound,
        )

    @property
    def ledger(self) -> LedgerRecord:
        """The ledger's entry for this attempt."""
        attempt = AttemptRecord(
            verdict=self.word,
            tier=self.tier,
            reason=self._reason,
            input=self.usage.input,
            output=self.usage.output,
            cached=self.usage.cached,
        )
        return LedgerRecord(attempts={self.attempt: attempt})

    @property
    def _reason(self) -> str | None:
        """Why the answer was rejected, or accepted unread."""
        return None if self.verdict.reason == OK else self.verdict.reason


def rule(
    verdict: Verdict,
    attempt: JudgedAttempt,
    ladder: Ladder,
    allow: Callable[[], Bound | None],
    usage: Usage,
) -> Ruling:
    """Rule on an answer that the client has not received.

    `allow` takes one escalation from the limits, or returns the limit that forbids it. It is called only if the
    answer is rejected and there is a rung to ask.
    """
    ruling = Ruling(attempt.cohort, attempt.number, VerdictWord.ACCEPT, verdict, tier=attempt.tier, usage=usage)
    if verdict.accept:
        return msgspec.structs.replace(ruling, word=_accepted(verdict))
    rung = _next_rung(attempt, ladder, verdict.rule)
    bound = Bound.LAST_RUNG if rung >= len(ladder.clusters) else allow()
    if bound is not None:
        queued = bound is Bound.LAST_RUNG and ladder.human and ladder.review
        word = VerdictWord.HUMAN if queued else VerdictWord.DEGRADED
        return msgspec.structs.replace(ruling, word=word, bound=bound)
    ruling = msgspec.structs.replace(
        ruling, word=VerdictWord.ESCALATE, rung=rung, escalations=ladder.escalations + 1
    )
    if rung == attempt.number + ladder.skipped and not ladder.repeats:
        return ruling
    # Envoy sends attempt n to the nth cluster. To skip a rung, the clusters move down by one. After a repeated
    # attempt they move up by one.
    skipped = rung - attempt.number
    clusters = [ladder.clusters[0]] * -skipped + ladder.clusters[max(skipped, 0) :]
    return msgspec.structs.replace(ruling, skipped=skipped, ladder=clusters)


def rule_early(
    attempt: JudgedAttempt,
    verdict: Verdict,
    full: bool = False,
    late: bool = False,
    final: bool = False,
    open_end: bool = False,
) -> Ruling:
    """Rule on a stream that is released before its end.

    `full`: it is too long to be held until it is judged. `late`: its first words did not come in time. `final`: the
    rest of it is not read. `open_end`: Envoy reads how it ends.
    """
    verdict = released(verdict, late)
    word = VerdictWord.DEGRADED if full else _accepted(verdict)
    return Ruling(attempt.cohort, attempt.number, word, verdict, final=final, open=open_end, tier=attempt.tier)


def rule_late(verdict: Verdict, attempt: JudgedAttempt, usage: Usage) -> Ruling:
    """Rule on an answer that the client has received."""
    word = _accepted(verdict) if verdict.accept else VerdictWord.RECORDED
    return Ruling(attempt.cohort, attempt.number, word, verdict, tier=attempt.tier, usage=usage)


def final_usage(observation: Observation) -> Usage:
    """Return the token counts of a complete answer. An incomplete answer's counts may change until its end."""
    return (observation.usage if observation.complete else None) or Usage()


def _accepted(verdict: Verdict) -> VerdictWord:
    return VerdictWord.ACCEPT if verdict.reason == OK else VerdictWord.DEGRADED


def _next_rung(attempt: JudgedAttempt, ladder: Ladder, rule_name: str | None) -> int:
    """Return the next rung as an index into the ladder. At the ladder's length or above, there is none."""
    rung = _above(ladder, attempt.number + ladder.skipped - 1)
    # A person as the last rung is above the last cluster.
    skipping = rule_name in ladder.skip and _above(ladder, rung) < len(ladder.clusters) + ladder.human
    return _above(ladder, rung) if skipping else rung


def _above(ladder: Ladder, rung: int) -> int:
    """Return the rung that a rejected answer of this one leads to, or at least the ladder's length."""
    return ladder.climbs[rung] if 0 <= rung < len(ladder.climbs) else rung + 1
