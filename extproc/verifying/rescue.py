"""The answer of an earlier rung instead of the last one's failure: weak, whole, and marked.

A rejected answer travels on in the request's own metadata, as everything does that one attempt leaves to the next:
nothing is stored here, and any process can give it back. Envoy asks only where an answer is kept and the client
would get a failure for which another rung would have been climbed.
"""

from typing import Any

from extproc.acceptance.verdict import Verdict
from extproc.contract.names import HeaderName, Namespace
from extproc.contract.records import AnswerRecord, DecisionRecord, VerdictRecord
from extproc.contract.words import VerdictWord
from extproc.messages import Event, Opening, Reply
from extproc.verifying.exchange import Ruling


class RescueExchange:
    """Our side of the one message that comes with a failure."""

    def __init__(self, opening: Opening) -> None:
        self._metadata = opening.metadata
        self._attempt = opening.attempt
        self.ruling: Ruling | None = None

    async def answer(self, event: Event) -> list[Reply]:
        """The answer that was kept, in place of a failure; what has a verdict is none, whatever its status."""
        fine = event.headers.get(":status") == "200" or HeaderName.VERDICT in event.headers
        kept = AnswerRecord.from_metadata(self._metadata.get(Namespace.ANSWER, {}))
        if event.kind != "response_headers" or fine or not kept.body:
            return [Reply(event.kind)]
        carried = self._metadata.get(Namespace.DECISION, {})
        decision, rejection = DecisionRecord.from_metadata(carried), VerdictRecord.from_metadata(carried)
        cohort, reason = decision.cohort or "", rejection.verdict_reason or ""
        self.ruling = Ruling(cohort, self._attempt, VerdictWord.RESCUED, Verdict(False, reason=reason))
        # An answer of ours passes none of the filters that write the contract's headers.
        headers = {
            "content-type": kept.type,
            HeaderName.VERDICT: VerdictWord.DEGRADED,
            HeaderName.VERDICT_REASON: reason,
            HeaderName.COHORT: cohort,
            HeaderName.REASON: decision.reason,
            HeaderName.TIER: kept.tier,
            HeaderName.ATTEMPTS: str(self._attempt),
            HeaderName.ESCALATIONS: str(rejection.escalations or 0),
        }
        metadata: dict[str, Any] = {Namespace.DECISION: VerdictRecord(verdict=VerdictWord.RESCUED).to_metadata()}
        return [Reply("response_headers", headers, kept.body.encode(), status=200, metadata=metadata)]
