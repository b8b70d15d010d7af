"""Keeps a rejected answer, and serves it if every higher rung fails.

The answer is kept in the request's metadata, so nothing is stored here and any process can serve it. Envoy opens
this stream only if an answer is kept and the client would receive a failure that escalation was meant to prevent.
"""

from typing import Any

from extproc.acceptance.verdict import Verdict
from extproc.api.observation import Observation
from extproc.contract.names import HeaderName, Namespace
from extproc.contract.records import AnswerRecord, AttemptsRecord, DecisionRecord, VerdictRecord
from extproc.contract.words import VerdictWord
from extproc.messages import Event, Opening, Reply
from extproc.verifying.ruling import Ruling

# Limit of an answer that is kept: about 15,000 tokens. Envoy holds it in memory.
_MAX_KEPT_BYTES = 64 * 1024


def kept_answer(
    verdict: Verdict, observation: Observation, content: bytes | None, content_type: str, tier: str | None
) -> dict[str, Any]:
    """Return the metadata that keeps a rejected answer: empty unless a client could use the answer.

    A client can use an answer that is readable, complete and not empty. It also has to be within the limit.
    """
    if verdict.rule is None or not observation.complete or content is None or len(content) > _MAX_KEPT_BYTES:
        return {}
    if not (observation.text or observation.tool_calls or observation.other_output):
        return {}
    try:
        text = content.decode()
    except UnicodeDecodeError:  # metadata carries only text
        return {}
    return {Namespace.ANSWER: AnswerRecord(body=text, type=content_type, tier=tier or "").to_metadata()}


class RescueExchange:
    """The reply to the one message of a stream that Envoy opens for a failed response."""

    def __init__(self, opening: Opening) -> None:
        self._metadata = opening.metadata
        self._attempt = opening.attempt
        self.ruling: Ruling | None = None

    async def answer(self, event: Event) -> list[Reply]:
        """Replace a failure by the kept answer. A success passes, and so does any response with a verdict."""
        served = event.headers.get(":status", "").startswith("2") or HeaderName.VERDICT in event.headers
        kept = AnswerRecord.from_metadata(self._metadata.get(Namespace.ANSWER, {}))
        if event.kind != "response_headers" or served or not kept.body:
            return [Reply(event.kind)]
        carried = self._metadata.get(Namespace.DECISION, {})
        decision, rejection = DecisionRecord.from_metadata(carried), VerdictRecord.from_metadata(carried)
        attempts = AttemptsRecord.from_metadata(self._metadata.get(Namespace.ATTEMPT, {}))
        cohort, reason = decision.cohort or "", rejection.verdict_reason or ""
        self.ruling = Ruling(cohort, self._attempt, VerdictWord.RESCUED, Verdict(False, reason=reason))
        # An immediate response does not pass the filters that write the contract's headers.
        headers = {
            "content-type": kept.type,
            HeaderName.VERDICT: VerdictWord.DEGRADED,
            HeaderName.VERDICT_REASON: reason,
            HeaderName.COHORT: cohort,
            HeaderName.REASON: decision.reason,
            HeaderName.TIER: kept.tier,
            HeaderName.ATTEMPTS: str(attempts.made or self._attempt),
            HeaderName.ESCALATIONS: str(rejection.escalations or 0),
        }
        metadata: dict[str, Any] = {Namespace.DECISION: VerdictRecord(verdict=VerdictWord.RESCUED).to_metadata()}
        return [Reply("response_headers", headers, kept.body.encode(), status=200, metadata=metadata)]
