"""Keeps accepted answers for the cache, and checks a share of its hits against new answers.

Only an answer that every rule accepted is kept: complete, of one text, with no call of a tool, no refusal and no
reasoning. Nothing waits for the store, and no check delays an answer.
"""

import asyncio
import base64
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from extproc.acceptance.agreement import same_answer
from extproc.acceptance.grounding import Embed
from extproc.acceptance.requirements import Requirements
from extproc.acceptance.rules import Gain, Logprob, Score
from extproc.acceptance.verdict import Verdict
from extproc.api.observation import Observation, Usage
from extproc.contract.records import CacheRecord
from extproc.contract.words import VerdictWord
from extproc.routing.cache_store import MOST_ANSWER_CHARS, AnswerStore, KeptAnswer
from extproc.routing.personal import has_identifier
from extproc.routing.policy import Cohort
from extproc.routing.snapshot import Snapshot
from extproc.verifying.judging import RuleRunner
from extproc.verifying.ruling import Ruling

# The least similarity of two answers to one question. A model words its answers differently each time, so a higher
# one would count right hits as wrong.
_AGREES = 0.6
_TASKS = 256


class AnswerKeeper:
    """Takes the answers of a process that were judged."""

    def __init__(self, store: AnswerStore, rules: RuleRunner, embed: Embed | None) -> None:
        self._store, self._rules, self._embed = store, rules, embed
        # Counts a check: the cohort, and "right", "wrong" or "unknown".
        self.checked: Callable[[str, str], None] = lambda cohort, result: None
        self._tasks: set[asyncio.Task[None]] = set()

    def take(
        self,
        record: CacheRecord,
        snapshot: Snapshot,
        cohort: Cohort,
        ruling: Ruling,
        observation: Observation,
        request: Requirements,
    ) -> None:
        """Keep the answer if it may be served again. A check of a kept answer goes on in the background."""
        if cohort.cache is None or not record.key or not may_keep(ruling.verdict, ruling.word, observation):
            return
        if record.checked and len(self._tasks) < _TASKS:
            check = self._check(record, snapshot, cohort, ruling, observation, request)
            self._start(check)
            return
        self._keep(record, cohort, ruling, observation)

    def _keep(self, record: CacheRecord, cohort: Cohort, ruling: Ruling, observation: Observation) -> None:
        assert cohort.cache is not None
        usage = observation.usage or Usage()
        answer = KeptAnswer(
            text=observation.text,
            exact=record.exact,
            made=self._store.clock(),
            model=observation.model or "",
            tier=ruling.tier or "",
            input=usage.input,
            output=usage.output,
            cached=usage.cached,
            vector=base64.b64decode(record.vector) if record.vector is not None else b"",
        )
        self._store.keep(record.key, answer, cohort.cache.ttl_s)

    async def _check(
        self,
        record: CacheRecord,
        snapshot: Snapshot,
        cohort: Cohort,
        ruling: Ruling,
        observation: Observation,
        request: Requirements,
    ) -> None:
        """Compare the kept answer with the new one, count the result, and keep the new one."""
        name = snapshot.name_of(cohort.name)
        kept, _ = await self._store.look(record.key, snapshot.revision, name)
        if kept is not None:
            right = await self._is_right(kept, snapshot, cohort, observation, request)
            self.checked(name, {True: "right", False: "wrong", None: "unknown"}[right])
            if right is not None:
                await self._store.check(snapshot.revision, name, not right)
        self._keep(record, cohort, ruling, observation)

    async def _is_right(
        self, kept: KeptAnswer, snapshot: Snapshot, cohort: Cohort, fresh: Observation, request: Requirements
    ) -> bool | None:
        """Whether the kept answer passes the rules for this request, and agrees with the new one. None: unknown."""
        again = msgspec.structs.replace(fresh, text=kept.text, logprobs=())
        # Log-probabilities are not kept.
        local = [rule for rule in cohort.accept if not isinstance(rule, Logprob | Score | Gain)]
        verdict = await self._rules.run(local, again, request, snapshot.judges, kept.tier)
        if not verdict.accept:
            return False
        return await asyncio.to_thread(same_answer, kept.text, fresh.text, _AGREES, self._embed)

    def _start(self, check: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(check)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def may_keep(verdict: Verdict, word: VerdictWord, observation: Observation) -> bool:
    """Return whether this answer may be served again."""
    accepted = word is VerdictWord.ACCEPT and verdict.accept and not verdict.unavailable
    whole = observation.complete and observation.finish == "stop" and observation.n_choices == 1
    text = observation.text
    other = bool(observation.tool_calls or observation.other_output or observation.refusal)
    lost = bool(observation.reasoning_chars or observation.mislabelled or "\ufffd" in text)
    return bool(
        accepted and whole and not other and not lost and text.strip() and len(text) <= MOST_ANSWER_CHARS
    ) and not has_identifier(text)
