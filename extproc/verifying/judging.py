"""Runs acceptance rules on an answer without blocking the event loop."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from extproc.acceptance.checks import OK
from extproc.acceptance.grounding import Embed
from extproc.acceptance.requirements import Requirements
from extproc.acceptance.rules import AcceptRule, External, Grounded, JsonSchema, ToolCalls
from extproc.acceptance.verdict import Verdict, is_unjudgeable, judge
from extproc.api.observation import Observation
from extproc.settings import Judge

# Most calls to judges at the same time. A call that finds no free thread before its time limit counts as not run.
_CALL_THREADS = 16
# Checks that may take milliseconds run in a thread.
_SLOW = (Grounded, JsonSchema, ToolCalls)

# Runs a rule that asks another model. It blocks, and returns None if the rule could not run.
CallOut = Callable[[External, Judge, Requirements, str, Embed | None], bool | None]


class RuleRunner:
    """Runs the rules of all verifier exchanges of a process."""

    def __init__(self, embed: Embed | None = None, call_out: CallOut | None = None) -> None:
        self._embed = embed
        self._call_out = call_out
        # A separate pool, so that a judge that does not answer blocks no other work.
        self._callers = ThreadPoolExecutor(_CALL_THREADS, thread_name_prefix="judge")

    def close(self) -> None:
        """Wait for the calls in progress, and end the threads."""
        self._callers.shutdown()

    async def run(
        self,
        rules: Sequence[AcceptRule],
        observation: Observation,
        request: Requirements,
        judges: Mapping[str, Judge],
        tier: str | None = None,
    ) -> Verdict:
        """Judge an answer by `tier` that has ended. Rules that call a model run only if all others accept."""
        if is_unjudgeable(observation):
            return judge(rules, observation)
        local = [rule for rule in rules if not isinstance(rule, External)]
        if any(isinstance(rule, _SLOW) for rule in local):
            verdict = await asyncio.to_thread(
                judge, local, observation, request=request, embed=self._embed, tier=tier
            )
        else:
            verdict = judge(local, observation, request=request, tier=tier)
        calling = [rule for rule in rules if isinstance(rule, External)]
        if not verdict.accept or not calling:
            return verdict
        external = await self._call_all(calling, judges, request, observation.text)
        called = judge(calling, observation, request=request, external=external)
        unavailable = verdict.unavailable + called.unavailable
        reason = verdict.reason if called.reason == OK else called.reason
        return msgspec.structs.replace(called, reason=reason, unavailable=unavailable)

    async def _call_all(
        self, rules: list[External], judges: Mapping[str, Judge], request: Requirements, answer: str
    ) -> dict[str, bool | None]:
        """Run all these rules at the same time."""
        call_out = self._call_out
        if call_out is None:
            return {}
        calls = (self._call(call_out, rule, judges[rule.by], request, answer) for rule in rules)
        results = await asyncio.gather(*calls)
        return dict(zip((rule.name for rule in rules), results, strict=True))

    async def _call(
        self, call_out: CallOut, rule: External, judge: Judge, request: Requirements, answer: str
    ) -> bool | None:
        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(self._callers, call_out, rule, judge, request, answer, self._embed)
        try:
            return await asyncio.wait_for(call, judge.timeout_ms / 1000)
        except TimeoutError:
            return None
