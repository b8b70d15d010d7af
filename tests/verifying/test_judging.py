"""How rules run: slow ones in a thread, calls at the same time and last, each with its time limit."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from extproc.acceptance.requirements import Requirements
from extproc.acceptance.rules import External, compile_rules
from extproc.acceptance.verdict import Verdict
from extproc.api.answer import AnswerReader
from extproc.api.observation import Observation
from extproc.settings import Judge
from extproc.verifying.judging import CallOut, RuleRunner

JUDGES = {"a": Judge("http://127.0.0.1:9", "judge-1"), "b": Judge("127.0.0.1:9", "judge-2")}


def answer(text: str) -> Observation:
    reader = AnswerReader("chat", "application/json")
    reader.feed(b'{"choices":[{"message":{"content":"%s"},"finish_reason":"stop"}]}' % text.encode())
    reader.finish()
    return reader.observation()


def run(call_out: CallOut | None, *rules: Any, text: str = "Fine.", judges: Any = JUDGES) -> Verdict:
    runner = RuleRunner(call_out=call_out)
    try:
        compiled = compile_rules(list(rules))
        return asyncio.run(runner.run(compiled, answer(text), Requirements(context="Hello?"), judges))
    finally:
        runner.close()


def test_a_rejection_by_the_other_rules_saves_the_calls() -> None:
    calls: list[str] = []

    def call_out(rule: External, *_: Any) -> bool:
        calls.append(rule.by)
        return True

    rejected = run(call_out, {"judge": {"by": "a"}}, {"min_chars": 100})
    assert (rejected.rule, calls) == ("min_chars", [])
    assert run(call_out, {"judge": {"by": "a"}}, "complete").accept
    assert calls == ["a"]


@pytest.mark.parametrize(("opinion", "accept"), [(True, True), (False, False)])
def test_a_judge_decides(opinion: bool, accept: bool) -> None:
    assert run(lambda *_: opinion, {"judge": {"by": "a"}}).accept is accept


def test_calls_run_at_the_same_time() -> None:
    """Each call waits until the other one has begun."""
    both = threading.Barrier(2, timeout=20)

    def call_out(*_: Any) -> bool:
        both.wait()
        return True

    slow = {name: Judge("http://127.0.0.1:9", "judge-1", timeout_ms=20_000) for name in JUDGES}
    verdict = run(call_out, {"judge": {"by": "a"}}, {"agree": {"by": "b"}}, judges=slow)
    assert verdict == Verdict(True)


def test_a_judge_that_is_too_slow_has_not_run() -> None:
    """By default, the rule then counts as passed, and the verdict names it."""
    late = threading.Event()

    async def judged() -> Verdict:
        runner = RuleRunner(call_out=lambda *_: late.wait(20))
        judges = {"a": Judge("http://127.0.0.1:9", "judge-1", timeout_ms=1)}
        rules = compile_rules([{"judge": {"by": "a"}}])
        try:
            return await runner.run(rules, answer("Fine."), Requirements(), judges)
        finally:
            late.set()
            runner.close()

    assert asyncio.run(judged()) == Verdict(True, reason="unavailable", unavailable=("judge",))


def test_without_a_way_to_call_no_judge_has_run() -> None:
    """The verdict names all rules that could not run."""
    verdict = run(None, {"judge": {"by": "a"}}, {"logprob": -1}, text="{}")
    assert verdict == Verdict(True, reason="unavailable", unavailable=("logprob", "judge"))


def test_a_rule_that_could_not_run_is_seen_behind_a_judge_that_says_yes() -> None:
    verdict = run(lambda *_: True, {"judge": {"by": "a"}}, {"logprob": -1}, text="{}")
    assert verdict == Verdict(True, reason="unavailable", unavailable=("logprob",))


def test_slow_rules_run_outside_the_event_loop() -> None:
    """`grounded` embeds texts, which takes milliseconds."""
    threads: list[threading.Thread] = []

    def embed(texts: list[str]) -> Any:
        threads.append(threading.current_thread())
        return np.eye(len(texts), 4, dtype=np.float32)

    runner = RuleRunner(embed)
    request = Requirements(context="The parcel is in Berlin.")
    asyncio.run(runner.run(compile_rules([{"grounded": 0.1}]), answer("In Berlin."), request, {}))
    runner.close()
    assert threads and threading.main_thread() not in threads
