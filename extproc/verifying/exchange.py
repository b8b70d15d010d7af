"""The verifier's side of an exchange: one attempt's answer, judged before the client sees it.

Envoy opens one such stream for each attempt that the decision wants judged. What the judgement needs came with
the request: the decision's metadata names the cohort and the rungs, and carries the facts that the rules look
at. So any verifier can judge any answer; nothing is shared with the router.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec

from extproc.acceptance.grounding import Embed
from extproc.acceptance.requirements import Requirements
from extproc.acceptance.rules import External, Grounded, JsonSchema, ToolCalls
from extproc.acceptance.verdict import Verdict, judge, judge_early
from extproc.api.answer import AnswerReader
from extproc.api.observation import Usage
from extproc.api.request import Api
from extproc.api.strip import StreamStripper, without_logprobs
from extproc.contract.names import HeaderName, Namespace
from extproc.contract.records import (
    AnswerRecord,
    AttemptRecord,
    JudgedRecord,
    LedgerRecord,
    RequirementsRecord,
    VerdictRecord,
    ladder_of,
)
from extproc.contract.words import Bound, VerdictWord
from extproc.messages import Event, Kind, Opening, Reply
from extproc.routing.limits import Bounds, principal_of
from extproc.routing.policy import Cohort, Snapshot
from extproc.settings import SHARE, Human, Judge

# Of a stream judged early: this much answer is read before it is let go undecided. A refusal shows by then.
_HOLD_CHARS = 200
# No stream is held beyond this, whatever its cohort wants: Envoy's buffers and ours are not a store.
_HOLD_BYTES = 4 * 1024 * 1024
# Of a rejected answer that is kept in case every rung above fails: about 15,000 tokens, which Envoy has to hold.
_KEPT_BYTES = 64 * 1024
# Calls to judges at once; what finds no caller in time has not run.
_CALLERS = 16
# Checks that may take milliseconds: they run off the event loop.
_SLOW = (Grounded, JsonSchema, ToolCalls)

_decode_facts = msgspec.json.Decoder(Requirements).decode


class Ruling(msgspec.Struct, frozen=True):
    """What became of one attempt's answer."""

    cohort: str
    attempt: int
    word: VerdictWord
    verdict: Verdict
    bound: Bound | None = None  # what kept a rejected answer from escalating


# Runs a rule that asks another model; blocks, and says None where it could not run.
CallOut = Callable[[External, Judge, Requirements, str, Embed | None], bool | None]
# Puts a case on the queue for people and returns its id; blocks, and never fails.
Enqueue = Callable[[Human, dict[str, Any], str, str], str]


class Verifier:
    """What all verifier exchanges of a process share."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        embed: Embed | None = None,
        call_out: CallOut | None = None,
        enqueue: Enqueue | None = None,
        workers: int = 1,
    ) -> None:
        self.snapshot = snapshot
        self.embed = embed
        self.call_out = call_out
        self.enqueue = enqueue
        self.bounds = Bounds(workers)
        # Of their own: a judge that hangs must not stop anything else that needs a thread.
        self.callers = ThreadPoolExecutor(_CALLERS, thread_name_prefix="judge")


class VerifierExchange:
    """The verifier's side of one ext_proc stream: one attempt upstream."""

    def __init__(self, verifier: Verifier, opening: Opening) -> None:
        self._verifier = verifier
        self._snapshot = verifier.snapshot()
        self._opening = opening
        self._decision = _Judged.from_metadata(opening.metadata.get(Namespace.DECISION, {}))
        self._attempt = opening.attempt
        self._rungs = self._decision.rungs
        self._skipped = self._decision.skipped
        self._facts = _read_facts(opening.metadata.get(Namespace.REQUIREMENTS, {}))
        # A reload may have taken the cohort away meanwhile: then nothing is held against the answer.
        self._cohort = self._snapshot.policy.cohorts.get(self._decision.cohort)
        self._api = self._decision.api
        self._stripper = StreamStripper(self._api) if self._decision.logprobs_added else None
        self._full_duplex = opening.response_body_mode == "FULL_DUPLEX_STREAMED"
        self._streamed = self._full_duplex or opening.response_body_mode == "STREAMED"
        # Else the body waits for our reply to the headers, as we should for the body.
        self._may_hold = self._full_duplex or (self._streamed and opening.body_before_reply)
        self._reader: AnswerReader | None = None
        self._content_type = ""
        self._held: list[Event] = []
        self._held_bytes = 0
        self._owed: list[bytes] = []  # of a STREAMED body: what to reply to messages that end inside a frame
        self._headers_held = False
        self._usage: Usage | None = None  # once the answer is all here and told it
        self.ruling: Ruling | None = None

    async def answer(self, event: Event) -> list[Reply]:
        """Answer one message; a stream that is held is answered when it is let go."""
        if self.ruling is not None and self.ruling.word is VerdictWord.HUMAN:
            return []  # the client has its answer; this was on its way already
        if event.kind == "response_headers":
            return await self._headers(event)
        if event.kind not in ("response_body", "response_trailers"):
            return [Reply(event.kind)]
        if self._streamed:
            return await self._stream(event)
        if self._reader is None or self._cohort is None or event.kind == "response_trailers":
            return [Reply(event.kind)]
        self._reader.feed(event.body)
        self._reader.finish()
        headers, metadata = self._rule(self._cohort, await self._judge(self._cohort, self._reader))
        if self._is_for_a_person(self._cohort):
            return [await self._put_aside("response_body", self._reader, headers, metadata)]
        body = without_logprobs(self._api, event.body) if self._stripper is not None else None
        metadata |= self._keep(self._reader, lambda: event.body if body is None else body)
        # A shorter body and the old length would not fit together; Envoy then frames it by chunks.
        remove = ("content-length",) if body is not None else ()
        return [Reply("response_body", headers=headers, remove=remove, body=body, metadata=metadata)]

    async def _headers(self, event: Event) -> list[Reply]:
        """Only a 200 is an answer to judge; anything else is the upstream's own error, and Envoy's to retry."""
        if event.headers.get(":status") != "200" or self._cohort is None:
            return [Reply("response_headers")]
        self._content_type = event.headers.get("content-type", "")
        self._reader = AnswerReader(self._api, self._content_type, event.headers.get("content-encoding"))
        if event.end:  # a 200 without a body: nothing more will come
            self._reader.finish()
            return await self._conclude(self._cohort, self._reader)
        if self._may_hold and self._cohort.stream != "record":
            self._headers_held = True
            return []
        return [Reply("response_headers")]

    # --- streams ----------------------------------------------------------------------------------------

    async def _stream(self, event: Event) -> list[Reply]:
        if self._reader is None or self._cohort is None:
            return self._echo(event)
        if event.kind == "response_body":
            self._reader.feed(event.body)
        over = event.end or event.kind == "response_trailers"
        if over:
            self._reader.finish()
        if not self._headers_held:
            replies = self._echo(event)
            if over and self.ruling is None:
                said = await self._record(self._cohort, self._reader)
                replies[-1] = msgspec.structs.replace(replies[-1], metadata=said)
            return replies
        self._held.append(event)
        self._held_bytes += len(event.body)
        if over:
            return await self._conclude(self._cohort, self._reader)
        full = self._held_bytes > _HOLD_BYTES
        if self._cohort.stream == "buffer" and not full:
            return []
        observation = self._reader.observation()
        if observation.complete:  # all of it is here, whether or not the upstream has closed
            return await self._conclude(self._cohort, self._reader)
        verdict = judge_early(self._cohort.accept, observation, request=self._facts, tier=self._opening.tier)
        if verdict.decided and not verdict.accept:
            return await self._let_go(self._cohort, self._reader, verdict)
        if full or verdict.decided or self._reader.text_chars >= _HOLD_CHARS:
            return self._release(VerdictWord.DEGRADED if full else VerdictWord.ACCEPT)
        return []

    async def _conclude(self, cohort: Cohort, reader: AnswerReader) -> list[Reply]:
        """End the hold on an answer that is all here."""
        return await self._let_go(cohort, reader, await self._judge(cohort, reader))

    async def _let_go(self, cohort: Cohort, reader: AnswerReader, verdict: Verdict) -> list[Reply]:
        """End the hold with a verdict on it."""
        headers, metadata = self._rule(cohort, verdict)
        if self._is_for_a_person(cohort):
            return [await self._put_aside("response_headers", reader, headers, metadata)]
        metadata |= self._keep(reader, self._stripped)
        rest = self._flush()
        return [Reply("response_headers", headers=headers, metadata=metadata), *rest]

    def _release(self, word: VerdictWord) -> list[Reply]:
        """End the hold with the rest of the answer still to come: the verdict is recorded at its end."""
        self._verifier.bounds.judged(self._decision.cohort, self._share)
        headers: dict[str, str] = {HeaderName.VERDICT: word}
        metadata: dict[str, Any] = {Namespace.DECISION: VerdictRecord(verdict=word).to_metadata()}
        return [Reply("response_headers", headers=headers, metadata=metadata), *self._flush()]

    def _flush(self) -> list[Reply]:
        self._headers_held = False
        held, self._held = self._held, []
        return [reply for event in held for reply in self._echo(event)]

    def _echo(self, event: Event) -> list[Reply]:
        """What came, as it came, but for log-probabilities that only we asked for."""
        if not self._full_duplex:
            return self._passed(event)
        if event.kind == "response_trailers":
            rest = self._stripper.feed(b"", end=True) if self._stripper is not None else b""
            last = [Reply("response_body", body=rest, streamed=True)] if rest else []
            return [*last, Reply("response_trailers")]
        body = event.body if self._stripper is None else self._stripper.feed(event.body, event.end)
        return [Reply("response_body", body=body, streamed=True, end=event.end)]

    def _passed(self, event: Event) -> list[Reply]:
        """One reply a message of a STREAMED body: Envoy keeps each until then, and passes it on if we are lost.

        One that ends inside a frame waits for the frame's end: what we gave of it and what Envoy then passes on
        would not fit together.
        """
        if self._stripper is None:
            return [Reply(event.kind)]
        over = event.end or event.kind == "response_trailers"
        if event.kind == "response_body":
            self._owed.append(b"")
        if self._owed:
            self._owed[-1] += self._stripper.feed(event.body, over)
        if self._stripper.inside_frame and not over:
            return []
        owed, self._owed = self._owed, []
        replies = [Reply("response_body", body=body) for body in owed]
        return [*replies, Reply(event.kind)] if event.kind == "response_trailers" else replies

    async def _record(self, cohort: Cohort, reader: AnswerReader) -> dict[str, Any]:
        """The client has the answer already: what is wrong with it is only written down."""
        verdict = await self._judge(cohort, reader)
        word = VerdictWord.ACCEPT if verdict.accept else VerdictWord.RECORDED
        self.ruling = Ruling(cohort.name, self._attempt, word, verdict)
        record = VerdictRecord(verdict=word, verdict_reason=None if verdict.accept else verdict.reason)
        return {Namespace.DECISION: record.to_metadata(), Namespace.LEDGER: self._entry(word, verdict)}

    # --- verdicts ---------------------------------------------------------------------------------------

    async def _judge(self, cohort: Cohort, reader: AnswerReader) -> Verdict:
        observation, embed, facts = reader.observation(), self._verifier.embed, self._facts
        tier = self._opening.tier
        self._usage = observation.usage if observation.complete else None
        own = [rule for rule in cohort.accept if not isinstance(rule, External)]
        if any(isinstance(rule, _SLOW) for rule in own):
            verdict = await asyncio.to_thread(judge, own, observation, request=facts, embed=embed, tier=tier)
        else:
            verdict = judge(own, observation, request=facts, tier=tier)
        asking = [rule for rule in cohort.accept if isinstance(rule, External)]
        if not verdict.accept or not asking:
            return verdict  # what is rejected already is not worth a call
        external = await self._call_out(asking, observation.text)
        asked = judge(asking, observation, request=facts, external=external)
        return msgspec.structs.replace(asked, unavailable=verdict.unavailable + asked.unavailable)

    async def _call_out(self, rules: list[External], answer: str) -> dict[str, bool | None]:
        """Ask whoever the rules name, all at once."""
        ask = self._verifier.call_out
        if ask is None:
            return {}
        results = await asyncio.gather(*(self._one_call(ask, rule, answer) for rule in rules))
        return dict(zip((rule.name for rule in rules), results, strict=True))

    async def _one_call(self, ask: CallOut, rule: External, answer: str) -> bool | None:
        judge, verifier = self._snapshot.judges[rule.by], self._verifier
        work = partial(ask, rule, judge, self._facts, answer, verifier.embed)
        call = asyncio.get_running_loop().run_in_executor(verifier.callers, work)
        try:
            return await asyncio.wait_for(call, judge.timeout_ms / 1000)
        except TimeoutError:
            return None

    # --- people -----------------------------------------------------------------------------------------

    def _is_for_a_person(self, cohort: Cohort) -> bool:
        """Rejected, no model left to ask, and the cohort ends with a person."""
        return (
            self.ruling is not None
            and self.ruling.bound is Bound.LAST_RUNG
            and cohort.escalate is not None
            and cohort.escalate.human
            and self._snapshot.human is not None
            and self._verifier.enqueue is not None
        )

    async def _put_aside(
        self, kind: Kind, reader: AnswerReader, headers: dict[str, str], metadata: dict[str, Any]
    ) -> Reply:
        human, ruling, put = self._snapshot.human, self.ruling, self._verifier.enqueue
        assert human is not None and ruling is not None and put is not None
        facts = {"cohort": ruling.cohort, "reason": ruling.verdict.reason, "attempt": ruling.attempt}
        facts |= {"revision": self._snapshot.revision}
        case = await asyncio.to_thread(put, human, facts, self._facts.context, reader.observation().text)
        self.ruling = msgspec.structs.replace(ruling, word=VerdictWord.HUMAN)
        metadata[Namespace.DECISION] |= VerdictRecord(verdict=VerdictWord.HUMAN).to_metadata()
        metadata[Namespace.LEDGER] = self._entry(VerdictWord.HUMAN, ruling.verdict)
        error = {"message": human.message, "type": "human_review", "case": case}
        return Reply(
            kind,
            headers=headers | {"content-type": "application/json", HeaderName.VERDICT: VerdictWord.HUMAN},
            body=msgspec.json.encode({"error": error}),
            metadata=metadata,
            status=human.status,
        )

    def _rule(self, cohort: Cohort, verdict: Verdict) -> tuple[dict[str, str], dict[str, Any]]:
        """Turn a verdict into headers and metadata: climb if it is rejected and nothing forbids it."""
        self._verifier.bounds.judged(cohort.name, self._share)
        word, bound, rung = VerdictWord.ACCEPT, None, self._next_rung(cohort, verdict)
        if not verdict.accept:
            bound = self._bound(cohort, rung)
            word = VerdictWord.ESCALATE if bound is None else VerdictWord.DEGRADED
        self.ruling = Ruling(cohort.name, self._attempt, word, verdict, bound)
        headers: dict[str, str] = {HeaderName.VERDICT: word}
        if not verdict.accept:
            headers[HeaderName.VERDICT_REASON] = verdict.reason
        metadata: dict[str, Any] = {}
        escalations = skipped = None
        if word is VerdictWord.ESCALATE:
            escalations = self._decision.escalations + 1
            if rung > self._attempt + self._skipped:  # Envoy counts attempts: the ladder moves instead
                skipped = rung - self._attempt
                metadata[Namespace.LADDER] = ladder_of(self._rungs[skipped:])
        record = VerdictRecord(
            verdict=word,
            verdict_reason=None if verdict.accept else verdict.reason,
            escalations=escalations,
            skipped=skipped,
            bound=bound,
        )
        metadata[Namespace.DECISION] = record.to_metadata()
        metadata[Namespace.LEDGER] = self._entry(word, verdict)
        return headers, metadata

    def _entry(self, word: VerdictWord, verdict: Verdict) -> dict[str, Any]:
        """What the ledger is to know of this attempt; without counts where the answer told none, or not yet."""
        usage = self._usage or Usage()
        attempt = AttemptRecord(
            verdict=word,
            tier=self._opening.tier,
            reason=None if verdict.accept else verdict.reason,
            input=usage.input,
            output=usage.output,
            cached=usage.cached,
        )
        return LedgerRecord(attempts={self._attempt: attempt}).to_metadata()

    def _stripped(self) -> bytes:
        """What is held of a stream, as a client would get it."""
        held = b"".join(event.body for event in self._held)
        return held if self._stripper is None else StreamStripper(self._api).feed(held, True)

    def _keep(self, reader: AnswerReader, body: Callable[[], bytes]) -> dict[str, Any]:
        """The metadata that keeps an answer from which to climb, if a client could use it: whole, and not empty."""
        ruling = self.ruling
        if ruling is None or ruling.word is not VerdictWord.ESCALATE or ruling.verdict.rule is None:
            return {}
        observation, said = reader.observation(), body()
        if len(said) > _KEPT_BYTES or not observation.complete:
            return {}
        if not (observation.text or observation.tool_calls):
            return {}
        try:
            text = said.decode()
        except UnicodeDecodeError:  # metadata can carry text only
            return {}
        answer = AnswerRecord(body=text, type=self._content_type, tier=self._opening.tier or "")
        return {Namespace.ANSWER: answer.to_metadata()}

    @property
    def _share(self) -> float:
        escalate = self._cohort.escalate if self._cohort is not None else None
        return escalate.share if escalate is not None else SHARE

    def _next_rung(self, cohort: Cohort, verdict: Verdict) -> int:
        """Where a rejected answer goes, as a place in the ladder; past its end, no model is left to ask."""
        rung, up = self._attempt + self._skipped, cohort.escalate
        # A person at the ladder's end is a rung above the last model.
        jumps = up is not None and verdict.rule in up.skip and rung + 1 < len(self._rungs) + up.human
        return rung + jumps

    def _bound(self, cohort: Cohort, rung: int) -> Bound | None:
        """What forbids a climb to `rung`: the end of the ladder, the cohort's share, or the principal's rate."""
        if rung >= len(self._rungs):
            return Bound.LAST_RUNG
        limits, h = self._snapshot.escalations, self._opening.headers
        return self._verifier.bounds.allow(
            cohort.name,
            principal_of(next((h[n] for n in limits.principal if n in h), None)),
            limits.per_minute,
            limits.burst,
            time.monotonic(),
        )


class _Judged(JudgedRecord, frozen=True, kw_only=True):
    """The decision as the verifier reads it: of an API that it can read, or of no cohort."""

    api: Api


def _read_facts(carried: dict[str, Any]) -> Requirements:
    try:
        return _decode_facts(RequirementsRecord.from_metadata(carried).facts)
    except msgspec.DecodeError:
        return Requirements()
