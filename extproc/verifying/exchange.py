"""The verifier's side of an exchange: one attempt's answer, judged before the client sees it.

Envoy opens one stream for each attempt that the decision wants judged. The decision's metadata names the cohort and
the rungs, and carries the facts that the rules need. So any verifier can judge any answer, and shares nothing with
the router.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from extproc.acceptance.grounding import Embed
from extproc.acceptance.rules import NoRefusal
from extproc.acceptance.verdict import Verdict, is_only_end_open, judge_early, may_be_certain, without_ending
from extproc.api.answer import AnswerReader
from extproc.api.content_encoding import encoding_of
from extproc.api.observation import Observation, Usage
from extproc.contract.names import Namespace
from extproc.contract.records import CacheRecord, LedgerRecord
from extproc.contract.words import Bound, VerdictWord
from extproc.messages import Event, Opening, Reply
from extproc.routing.cache_store import AnswerStore
from extproc.routing.large import LARGE_BYTES, LargeBodies
from extproc.routing.limits import Bounds, RateLimit, principal_header, principal_of
from extproc.routing.policy import Cohort
from extproc.routing.snapshot import Snapshot
from extproc.settings import SHARE, Human
from extproc.verifying.carried import JudgedDecision, read_requirements
from extproc.verifying.hold import Hold, State
from extproc.verifying.judging import CallOut, RuleRunner
from extproc.verifying.keeping import AnswerKeeper
from extproc.verifying.rescue import kept_answer
from extproc.verifying.ruling import JudgedAttempt, Ladder, Ruling, final_usage, rule, rule_early, rule_late

# A stream that is judged early is released after this much answer. A refusal shows before that.
_EARLY_CHARS = 200

# Queues a case for people and returns its id. It blocks, and never raises.
Enqueue = Callable[[Human, dict[str, Any], str, str], str]


class Verifier:
    """The state that all verifier exchanges of a process share."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        embed: Embed | None = None,
        call_out: CallOut | None = None,
        enqueue: Enqueue | None = None,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
        rates: RateLimit | None = None,
        answers: AnswerStore | None = None,
    ) -> None:
        """`rates` limits the escalations of each principal over all processes. Without it, each counts alone.

        Accepted answers are kept in `answers`. Without it, none is kept.
        """
        self.clock = clock
        self.snapshot = snapshot
        self.rules = RuleRunner(embed, call_out)
        self.keeper = AnswerKeeper(answers, self.rules, embed) if answers is not None else None
        self.enqueue = enqueue
        self.bounds = Bounds(workers, rates)
        self.large = LargeBodies("large-answer")


class VerifierExchange:
    """The verifier's side of one ext_proc stream: one attempt at an upstream."""

    def __init__(self, verifier: Verifier, opening: Opening) -> None:
        decision = JudgedDecision.from_metadata(opening.metadata.get(Namespace.DECISION, {}))
        self._verifier = verifier
        self._snapshot = verifier.snapshot().of_app(decision.app).arm(decision.revision)
        self._opening = opening
        self._api = decision.api
        # A reload may have removed the cohort. Then the answer passes without a verdict.
        self._cohort = self._snapshot.policy.cohorts.get(decision.cohort)
        # `no_refusal` is certain at the first words. It waits for more of them: a broken answer can still escalate.
        rules = self._cohort.accept if self._cohort is not None else ()
        self._opening_chars = _EARLY_CHARS if any(isinstance(rule, NoRefusal) for rule in rules) else 0
        self._facts = read_requirements(opening.metadata.get(Namespace.REQUIREMENTS, {}))
        self._attempt = JudgedAttempt(decision.cohort, opening.attempt, opening.tier)
        self._ladder = self._ladder_of(decision)
        self._cache = CacheRecord.from_metadata(opening.metadata.get(Namespace.CACHE, {}))
        strip = decision.api if decision.logprobs_added else None
        self._hold = Hold(opening.response_body_mode, opening.body_before_reply, strip)
        self._reader: AnswerReader | None = None  # None: the answer is not judged
        self._content_type, self._compressed = "", False
        self._began_s = 0.0  # when the hold began
        self._counts_itself = opening.counts_tokens  # Envoy counts the tokens of plain answers only
        self._reads_ending = opening.reads_endings and self._facts.choices == 1
        self.ruling: Ruling | None = None
        # The last verdict is given and the answer goes on. When we end our side of the stream, Envoy sends the
        # rest, with the messages that have no reply.
        self.over = False
        self._certain_at: tuple[Any, ...] | None = None  # what was read beyond text when any text became acceptable
        self._passed_certain = False  # the last verdict of the verifier came after the release
        self._looked_chars = -1  # of text, when the verdict was last looked for after the release

    async def answer(self, event: Event) -> list[Reply]:
        """Answer one message. The messages of a held answer are answered when the hold ends."""
        if not event.kind.startswith("response_"):
            return [] if self._hold.state is State.DROPPING else [Reply(event.kind)]
        if self._passed_certain and event.body and not event.end:
            self.over = True  # Envoy passes on a message without a reply if it has bytes
            return []
        if event.kind == "response_headers" and self._hold.state is State.START:
            self._begin(event)
            if not event.end:
                return self._hold.take(event)
        cohort, reader, last = self._cohort, self._reader, self._hold.is_last(event)
        is_large = self._compressed or len(event.body) >= LARGE_BYTES
        replies = await self._verifier.large.work(is_large, self._take, event, last)
        if cohort is None or reader is None:
            return replies
        if self._hold.state is State.HOLDING and not replies:
            ruling = await self._rule(cohort, reader, last)
            return [] if ruling is None else await self._end_hold(ruling, reader, last)
        if self._hold.state is State.PASSING and self.ruling is None and not self._passed_certain:
            ruling = await self._rule_late(cohort, reader) if last else self._rule_certain(cohort, reader)
            if ruling is not None:
                self.ruling = ruling if ruling.final else None
                replies[-1] = msgspec.structs.replace(replies[-1], metadata=ruling.metadata)
        return replies

    def _take(self, event: Event, last: bool) -> list[Reply]:
        replies = self._hold.take(event)
        if self._reader is not None and event.kind == "response_body":
            self._reader.feed(event.body)
        if self._reader is not None and last:
            self._reader.finish()
        return replies

    def _begin(self, headers: Event) -> None:
        """Judge only a success. Any other status is an error of the upstream, which Envoy may retry.

        A 204 is a success without the answer that the API promises, so no client can read it.
        """
        status = headers.headers.get(":status", "")
        if not status.startswith("2") or self._cohort is None:
            self._hold.skip(headers)
            return
        if status != "200":  # a kept answer is served with this status
            self._cache = CacheRecord(key="", exact="")
        self._content_type = headers.headers.get("content-type", "")
        encoding = headers.headers.get("content-encoding")
        self._reader = AnswerReader(self._api, self._content_type, encoding)
        self._compressed = bool(encoding_of(encoding))
        self._counts_itself &= not self._compressed
        # No tier is asked after the last one. Its answer is judged only to be kept, and no client waits for that.
        only_kept = self._cohort.cache is not None and self._ladder.ends_at(self._attempt.number)
        self._hold.begin(headers, hold_stream=self._cohort.stream != "record" and not only_kept)
        self._began_s = self._verifier.clock()

    async def _rule(self, cohort: Cohort, reader: AnswerReader, last: bool) -> Ruling | None:
        """Rule on the held answer, or return None to wait for more of it."""
        full = self._hold.full
        if cohort.stream == "buffer" and not last and not full:
            return None
        # Only a piece ends the hold. A stream that sends nothing may be dead, and Envoy can still ask another tier.
        late = self._verifier.clock() - self._began_s >= self._snapshot.timeouts.early_s
        released = full or late or reader.text_chars >= _EARLY_CHARS
        if not (last or released) and reader.beyond_text == self._certain_at:
            return None  # since then, there was only more text
        observation, tier = reader.observation(), self._attempt.tier
        if last or reader.done:  # the upstream may not have closed the stream
            return await self._rule_in_time(cohort, await self._judge(cohort, observation), observation)
        verdict = judge_early(cohort.accept, observation, request=self._facts, tier=tier)
        if verdict.decided and not verdict.accept:
            return await self._rule_in_time(cohort, verdict, observation)
        decided = verdict.decided and reader.text_chars >= self._opening_chars
        if not (released or decided):
            if verdict.decided or is_only_end_open(cohort.accept, observation, request=self._facts, tier=tier):
                self._certain_at = reader.beyond_text
            return None
        self._verifier.bounds.judged(self._snapshot.name_of(cohort.name), _share(cohort))
        final = decided and not full and self._needs_no_more(cohort)
        open_end = not decided and not full and self._is_certain_but_for_its_end(cohort, observation)
        return rule_early(self._attempt, verdict, full, late and not decided, final, open_end)

    def _needs_no_more(self, cohort: Cohort) -> bool:
        """Whether nothing reads the rest of an answer that all rules accept: no cache and no count of tokens."""
        kept = cohort.cache is not None and self._cache.key
        return self._hold.can_let_go and self._counts_itself and not kept

    def _is_certain_but_for_its_end(self, cohort: Cohort, observation: Observation) -> bool:
        """Whether only `complete` is not certain yet, and Envoy reads how the answer ends.

        Some servers write a finish reason into every chunk. Envoy reads the first one, perhaps before we leave.
        """
        one_stream = observation.framing == "sse" and observation.n_choices <= 1 and observation.finish is None
        if not (one_stream and self._reads_ending and self._needs_no_more(cohort)):
            return False
        return is_only_end_open(cohort.accept, observation, request=self._facts, tier=self._attempt.tier)

    async def _rule_in_time(self, cohort: Cohort, verdict: Verdict, observation: Observation) -> Ruling:
        self._verifier.bounds.judged(self._snapshot.name_of(cohort.name), _share(cohort))
        usage = final_usage(observation)
        ruling = rule(verdict, self._attempt, self._ladder, lambda: None, usage)
        if ruling.word is not VerdictWord.ESCALATE:
            return ruling
        bound = await self._take_escalation()
        return ruling if bound is None else rule(verdict, self._attempt, self._ladder, lambda: bound, usage)

    async def _rule_late(self, cohort: Cohort, reader: AnswerReader) -> Ruling:
        observation = reader.observation()
        ruling = rule_late(await self._judge(cohort, observation), self._attempt, final_usage(observation))
        self._keep(ruling, observation)
        return ruling

    def _rule_certain(self, cohort: Cohort, reader: AnswerReader) -> Ruling | None:
        """Rule on a growing answer that was released, if every rule is satisfied for any continuation."""
        tier = self._attempt.tier
        rules = without_ending(cohort.accept) if self._reads_ending else cohort.accept
        if not (may_be_certain(rules, tier) and self._needs_no_more(cohort)):
            return None
        # A look costs as much as the answer is long, so there is none for every piece of a long one.
        if reader.text_chars < max(self._opening_chars, self._looked_chars * 9 // 8 + 1):
            return None
        self._looked_chars = reader.text_chars
        observation = reader.observation()
        verdict = judge_early(cohort.accept, observation, request=self._facts, tier=tier)
        certain = verdict.decided and verdict.accept
        if not certain and not self._is_certain_but_for_its_end(cohort, observation):
            return None
        self._passed_certain = True
        open_end = rule_early(self._attempt, verdict, open_end=True)
        return rule_late(verdict, self._attempt, Usage()) if certain else open_end

    def _keep(self, ruling: Ruling, observation: Observation) -> None:
        """Give a whole answer that was accepted to the cache, if the router wants it kept."""
        if self._verifier.keeper is not None and self._cohort is not None and self._cache.key:
            self._verifier.keeper.take(self._cache, self._snapshot, self._cohort, ruling, observation, self._facts)

    async def _judge(self, cohort: Cohort, observation: Observation) -> Verdict:
        rules, judges = self._verifier.rules, self._snapshot.judges
        return await rules.run(cohort.accept, observation, self._facts, judges, self._attempt.tier)

    async def _end_hold(self, ruling: Ruling, reader: AnswerReader, last: bool) -> list[Reply]:
        """Put the ruling on the first message that is released, or send the client another answer.

        After the last ruling on an answer that goes on, only the first message gets a reply.
        """
        self.ruling = ruling if ruling.final else None
        if ruling.final:
            self._keep(ruling, reader.observation())
        if ruling.word is VerdictWord.HUMAN:
            return [await self._queue(ruling, reader)]
        metadata, large = ruling.metadata, self._verifier.large
        if ruling.word is VerdictWord.ESCALATE:
            content, tier = await large.work(self._compressed, self._hold.content), self._attempt.tier
            metadata |= kept_answer(ruling.verdict, reader.observation(), content, self._content_type, tier)
        first, *rest = await large.work(self._compressed, self._hold.release)
        if (ruling.final or ruling.open) and not last and self._hold.can_let_go and self._hold.has_bytes:
            self.over, rest = True, []
        return [msgspec.structs.replace(first, headers=ruling.headers, metadata=metadata), *rest]

    async def _queue(self, ruling: Ruling, reader: AnswerReader) -> Reply:
        """Queue the case for review, and return the reply to the client."""
        human, enqueue = self._snapshot.human, self._verifier.enqueue
        assert human is not None and enqueue is not None
        facts = {"cohort": ruling.cohort, "reason": ruling.verdict.reason, "attempt": ruling.attempt}
        facts |= {"revision": self._snapshot.revision}
        case = await asyncio.to_thread(enqueue, human, facts, self._facts.context, reader.observation().text)
        error = {"message": human.message, "type": "human_review", "case": case}
        return Reply(
            self._hold.drop(),
            headers=ruling.headers | {"content-type": "application/json"},
            body=msgspec.json.encode({"error": error}),
            metadata=ruling.metadata,
            status=human.status,
        )

    def _ladder_of(self, decision: JudgedDecision) -> Ladder:
        escalate = self._cohort.escalate if self._cohort is not None else None
        climbs = tuple(decision.climbs or ())
        ladder = Ladder(decision.rungs, decision.skipped, decision.repeats, decision.escalations, climbs=climbs)
        if escalate is None:
            return ladder
        review = self._snapshot.human is not None and self._verifier.enqueue is not None
        return msgspec.structs.replace(ladder, skip=escalate.skip, human=escalate.human, review=review)

    async def _take_escalation(self) -> Bound | None:
        """Take one escalation from the limits, or return the limit that forbids it."""
        limits, now_s = self._snapshot.escalations, time.monotonic()
        # The router read the client's headers. Those of this attempt may hold the key of the tier.
        principal = LedgerRecord.from_metadata(self._opening.metadata.get(Namespace.LEDGER, {})).principal
        if principal is None:
            principal = principal_of(principal_header(self._opening.headers, limits.principal))
        name = self._snapshot.name_of(self._attempt.cohort)
        return await self._verifier.bounds.take(name, principal, limits.per_minute, limits.burst, now_s)


def _share(cohort: Cohort) -> float:
    return cohort.escalate.share if cohort.escalate is not None else SHARE
