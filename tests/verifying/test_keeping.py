"""Which answers are kept, and what a check of a kept answer finds."""

import asyncio
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from extproc.acceptance.requirements import Requirements
from extproc.acceptance.rules import compile_rules
from extproc.acceptance.verdict import Verdict
from extproc.api.observation import Observation, ToolCall, Usage
from extproc.contract.names import Namespace
from extproc.contract.records import CacheRecord
from extproc.contract.words import VerdictWord
from extproc.messages import Event, Opening
from extproc.routing.cache_store import MOST_ANSWER_CHARS, AnswerStore, Checks, KeptAnswer
from extproc.routing.index import Index
from extproc.routing.policy import Cohort, Policy
from extproc.routing.snapshot import Snapshot
from extproc.routing.store import MemoryStore
from extproc.settings import AnswerCache
from extproc.verifying.exchange import Verifier, VerifierExchange
from extproc.verifying.judging import RuleRunner
from extproc.verifying.keeping import AnswerKeeper, may_keep
from extproc.verifying.ruling import JudgedAttempt, rule_late

GOOD = Observation(
    text="The answer is 42.", finish="stop", n_choices=1, framing="json", complete=True, ended=True, model="m",
    usage=Usage(5, 3, 0),
)  # fmt: skip
ACCEPTED = Verdict(True)
COHORT = Cohort(
    "faq", "small", 0.1, 0.0, True, accept=compile_rules(["complete", "no_refusal"]), cache=AnswerCache()
)
RECORD = CacheRecord(key="k", exact="e")


@pytest.fixture
def snapshot() -> Snapshot:
    return Snapshot("r1", Policy((), "small", {"faq": COHORT}), cast(Index, None))


def test_an_accepted_whole_text_is_kept() -> None:
    assert may_keep(ACCEPTED, VerdictWord.ACCEPT, GOOD)


@pytest.mark.parametrize(
    "what",
    [
        {"complete": False}, {"finish": "length"}, {"finish": "tool_calls"}, {"finish": "content_filter"},
        {"tool_calls": (ToolCall("f", "{}"),)}, {"refusal": "No."}, {"n_choices": 2}, {"text": " "},
        {"reasoning_chars": 10}, {"mislabelled": True}, {"text": "x" * (MOST_ANSWER_CHARS + 1)},
        {"other_output": True}, {"text": "Fine \ufffd"},
        {"text": "Write to ann@example.com."}, {"text": "Order 4821337 is on its way."},
    ],
)  # fmt: skip
def test_no_other_answer_is_kept(what: dict[str, Any]) -> None:
    assert not may_keep(ACCEPTED, VerdictWord.ACCEPT, msgspec.structs.replace(GOOD, **what))


@pytest.mark.parametrize(
    ("verdict", "word"),
    [
        (Verdict(False, "refusal", "refusal"), VerdictWord.RECORDED),
        (Verdict(True, reason="unavailable", unavailable=("judge",)), VerdictWord.DEGRADED),
        (Verdict(True, unavailable=("judge",)), VerdictWord.ACCEPT),
        (Verdict(True), VerdictWord.ESCALATE),
    ],
)
def test_no_answer_is_kept_that_was_not_accepted_in_full(verdict: Verdict, word: VerdictWord) -> None:
    assert not may_keep(verdict, word, GOOD)


@pytest.mark.parametrize(("status", "is_kept"), [("200", True), ("201", False), ("206", False)])
def test_only_an_answer_with_status_200_is_kept(status: str, is_kept: bool, snapshot: Snapshot) -> None:
    """Any success is judged. A 206 says that the answer is a part of one."""
    store = AnswerStore(MemoryStore())
    metadata: dict[str, Any] = {
        Namespace.DECISION: {"cohort": "faq", "rungs": ["small"], "api": "chat"},
        Namespace.CACHE: RECORD.to_metadata(),
    }
    opening = Opening({}, "NONE", "BUFFERED", metadata, 1)
    message = {"message": {"content": "The answer is 42."}, "finish_reason": "stop"}
    body = msgspec.json.encode({"model": "m", "choices": [message]})

    async def scenario() -> KeptAnswer | None:
        exchange = VerifierExchange(Verifier(lambda: snapshot, answers=store), opening)
        headers = {":status": status, "content-type": "application/json"}
        await exchange.answer(Event("response_headers", headers=headers))
        await exchange.answer(Event("response_body", True, body))
        assert exchange.ruling is not None and exchange.ruling.word is VerdictWord.ACCEPT
        return (await store.look("k", snapshot.revision, "faq"))[0]

    assert (asyncio.run(scenario()) is not None) == is_kept


def kept(text: str) -> KeptAnswer:
    return KeptAnswer(text, "e", 0.0, "m", "small")


def check(earlier: str, fresh: Observation, snapshot: Snapshot) -> tuple[list[tuple[str, str]], Checks, str]:
    """Check an earlier answer against a fresh one: the counts, all checks, and the answer that is kept now."""
    store, counted = AnswerStore(MemoryStore(), lambda: 7.0), list[tuple[str, str]]()

    def embed(texts: Any) -> Any:
        """Texts that begin alike are alike."""
        return np.array([[1.0, 0.0] if text.startswith("Heat") else [0.0, 1.0] for text in texts], np.float32)

    async def scenario() -> None:
        keeper = AnswerKeeper(store, RuleRunner(embed), embed)
        keeper.checked = lambda cohort, result: counted.append((cohort, result))
        store.keep("k", kept(earlier), 60)
        ruling = rule_late(ACCEPTED, JudgedAttempt("faq", 1, "large"), Usage())
        record = msgspec.structs.replace(RECORD, checked=True)
        keeper.take(record, snapshot, COHORT, ruling, fresh, Requirements())
        await asyncio.gather(*keeper._tasks)

    asyncio.run(scenario())
    answer, checks = asyncio.run(store.look("k", snapshot.revision, "faq"))
    assert answer is not None
    return counted, checks, answer.text


@pytest.mark.parametrize(
    ("earlier", "fresh", "result"),
    [
        ("The answer is 42.", "So the answer is 42", "right"),
        ("The answer is 41.", "The answer is 42.", "wrong"),
        ("Heat flows from hot to cold, as everybody can feel at a stove.", "Heat moves to cold things.", "right"),
        ("Heat flows from hot to cold, as everybody can feel at a stove.", "Nothing of the kind is here.", "wrong"),
        ("I'm sorry, but I can't help with that request.", "Heat moves to cold things.", "wrong"),
    ],
)  # fmt: skip
def test_a_check_compares_the_kept_answer_and_replaces_it(
    earlier: str, fresh: str, result: str, snapshot: Snapshot
) -> None:
    counted, checks, now = check(earlier, msgspec.structs.replace(GOOD, text=fresh), snapshot)
    assert counted == [("faq", result)]
    assert checks == Checks(1, int(result == "wrong"))
    assert now == fresh


def test_the_cache_turns_itself_off_and_says_so_once(snapshot: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> Checks:
        store = AnswerStore(MemoryStore())
        keeper = AnswerKeeper(store, RuleRunner(), None)
        ruling = rule_late(ACCEPTED, JudgedAttempt("faq", 1, "large"), Usage())
        for _ in range(4):
            store.keep("k", kept("The answer is 1."), 60)
            keeper.take(
                msgspec.structs.replace(RECORD, checked=True), snapshot, COHORT, ruling, GOOD, Requirements()
            )
            await asyncio.gather(*keeper._tasks)
        return (await store.look("k", snapshot.revision, "faq"))[1]

    assert asyncio.run(scenario()) == Checks(4, 4)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1 and errors[0].startswith("the cache of `faq` is off: 2 of 2 checked hits were wrong")
