"""The count of wrong hits: when the cache of a cohort turns itself off, and what is known of the rest."""

import asyncio
import random

import msgspec
import pytest

from extproc.routing.cache_store import AnswerStore, Checks, KeptAnswer
from extproc.routing.store import MemoryStore

ANSWER = KeptAnswer("Yes.", "e", 100.0, "m", "small", 3, 1, 0, b"\x01\x02")


@pytest.mark.parametrize(
    ("checks", "wrong", "off"),
    [(0, 0, False), (1, 1, False), (2, 2, True), (10, 1, False), (50, 2, False), (50, 6, True), (1000, 20, False)],
)
def test_a_cache_is_off_when_chance_cannot_explain_the_wrong_hits(checks: int, wrong: int, off: bool) -> None:
    assert Checks(checks, wrong).off is off


def test_the_bound_is_stated_for_any_number_of_checks() -> None:
    bounds = [Checks(n, 0).most for n in (0, 10, 100, 1000, 10_000)]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] == 1.0 and bounds[-1] < 0.001
    assert Checks(100, 3).most > 0.03
    assert str(Checks()) == "no hit was checked yet"
    assert str(Checks(100, 3)).startswith("3 of 100 checked hits were wrong, so at most ")


def test_a_cohort_with_few_wrong_hits_is_hardly_ever_turned_off() -> None:
    """At the limit of 2 %, in at most 5 % of the runs, after any number of looks."""
    draw, turned_off = random.Random(1), 0
    for _ in range(200):
        wrong = 0
        for n in range(1, 301):
            wrong += draw.random() < 0.02
            if Checks(n, wrong).off:
                turned_off += 1
                break
    assert turned_off <= 0.05 * 200


def test_answers_and_checks_are_kept() -> None:
    async def scenario() -> None:
        store = AnswerStore(MemoryStore())
        assert await store.look("k", "r", "faq") == (None, Checks())
        store.keep("k", ANSWER, 60)
        assert await store.check("r", "faq", True) == Checks(1, 1)
        assert await store.look("k", "r", "faq") == (ANSWER, Checks(1, 1))
        assert await store.look("k", "other revision", "faq") == (ANSWER, Checks())
        assert store.checks["r", "faq"] == Checks(1, 1)

    asyncio.run(scenario())


def test_a_damaged_answer_is_none() -> None:
    memory = MemoryStore()
    memory.set({"answer:k": b"damaged", "answers:r:faq:checks": b"x"}, 60)
    assert asyncio.run(AnswerStore(memory).look("k", "r", "faq")) == (None, Checks())


def test_the_memory_of_a_process_is_bounded_in_bytes() -> None:
    memory = MemoryStore(most_bytes=50_000)
    for i in range(200):
        memory.set({f"k{i}": b"x" * 1000}, 60)
        memory.set({f"k{i}": b"y" * 900}, 60)
    assert memory.size <= 50_000 and len(memory._entries) < 50
    assert memory.size == sum(len(k) + len(v) + 300 for k, (v, _) in memory._entries.items())
    assert asyncio.run(memory.get(["k199", "k0"])) == [b"y" * 900, None]
    memory.add("count", 60)
    memory.add("count", 60)
    assert asyncio.run(memory.get(["count"])) == [b"2"]


def test_an_entry_has_nothing_of_the_request() -> None:
    assert {field.name for field in msgspec.structs.fields(KeptAnswer)} == {
        "text", "exact", "made", "model", "tier", "input", "output", "cached", "vector",
    }  # fmt: skip
