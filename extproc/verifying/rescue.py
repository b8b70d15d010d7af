"""The answer of an earlier rung instead of the last one's failure: weak, whole, and marked.

A rejected answer travels on in the request's own metadata, as everything does that one attempt leaves to the next:
nothing is stored here, and any process can give it back. Envoy asks only where an answer is kept and the client
would get a failure for which another rung would have been climbed.
"""

from extproc.acceptance.verdict import Verdict
from extproc.contract import ANSWER, METADATA, REASON_HEADER, VERDICT_HEADER
from extproc.messages import Event, Opening, Reply
from extproc.verifying.exchange import Ruling


class RescueExchange:
    """Our side of the one message that comes with a failure."""

    def __init__(self, opening: Opening) -> None:
        self._decision = opening.metadata.get(METADATA, {})
        self._kept = opening.metadata.get(ANSWER, {})
        self._attempt = opening.attempt
        self.ruling: Ruling | None = None

    async def answer(self, event: Event) -> list[Reply]:
        """The answer that was kept, in place of a failure; what has a verdict is none, whatever its status."""
        fine = event.headers.get(":status") == "200" or VERDICT_HEADER in event.headers
        if event.kind != "response_headers" or fine or "body" not in self._kept:
            return [Reply(event.kind)]
        said = self._decision
        reason = str(said.get("verdict_reason"))
        self.ruling = Ruling(str(said.get("cohort")), self._attempt, "rescued", Verdict(False, reason=reason))
        # An answer of ours passes none of the filters that write the contract's headers.
        headers = {
            "content-type": self._kept["type"],
            VERDICT_HEADER: "degraded",
            REASON_HEADER: reason,
            "x-router-cohort": str(said.get("cohort")),
            "x-router-reason": str(said.get("reason")),
            "x-router-tier": self._kept["tier"],
            "x-router-attempts": str(self._attempt),
            "x-router-escalations": str(int(said.get("escalations", 0))),
        }
        body = self._kept["body"].encode()
        return [Reply("response_headers", headers, body, status=200, metadata={METADATA: {"verdict": "rescued"}})]
