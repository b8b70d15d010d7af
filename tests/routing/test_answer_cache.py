"""The cache for one request: the requests that ask it, the answers that they get, and the checked hits."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from extproc.acceptance.rules import compile_rules
from extproc.api.request import parse_request
from extproc.contract.records import CacheRecord
from extproc.contract.words import CacheWord, Reason
from extproc.encoder.features import WORD_COLUMNS
from extproc.routing.answer_cache import AnswerCache, CacheLook
from extproc.routing.cache_store import AnswerStore, KeptAnswer
from extproc.routing.decision import Decision
from extproc.routing.index import Index
from extproc.routing.policy import Cohort, Policy
from extproc.routing.signals import read_signals
from extproc.routing.snapshot import AppRoute, Rollout, Snapshot
from extproc.routing.store import MemoryStore
from extproc.settings import AnswerCache as Settings
from extproc.settings import Candidate, Price, Tier

PATH, ALICE = "/v1/chat/completions", {"authorization": "Bearer alice"}
SMALL = Tier("small", "small-1", "http://small", 8000, Price(input=1, output=2))
COHORT = Cohort("faq", "small", 0.1, 0.0, True, accept=compile_rules(["complete"]), cache=Settings(verify=0))
ASK, SAME, OTHER = "How do I enable the VPN?", "What are the steps to turn on the VPN?", "How do I disable the VPN?"


def vector(*values: float) -> Any:
    return np.array([*values, *[0.0] * WORD_COLUMNS], np.float32)


class Cache:
    """A cache, and the requests that look into it."""

    def __init__(self, cohort: Cohort = COHORT, draw: float = 0.5) -> None:
        self.store = AnswerStore(MemoryStore(), lambda: 1000.0)
        self.cache = AnswerCache(self.store, lambda: draw)
        self.snapshot = Snapshot("r1", Policy((SMALL,), "small", {"faq": cohort}), cast(Index, None))
        self.decision = Decision(SMALL, Reason.MATCHED, cohort=cohort, judged=True)

    def look(
        self, ask: str = ASK, headers: Mapping[str, str] = ALICE, at: Any = None, **more: Any
    ) -> CacheLook | None:
        body = {"model": "auto", "messages": [{"role": "user", "content": ask}]} | more
        request = parse_request(PATH, msgspec.json.encode(body))
        assert request is not None
        signals = read_signals(request, 512)
        asks = vector(1.0, 0.0) if at is None else at
        return asyncio.run(self.cache.look(self.snapshot, self.decision, request, signals, asks, headers))

    def keep(self, ask: str = ASK, headers: Mapping[str, str] = ALICE, made: float = 990.0) -> CacheRecord:
        look = self.look(ask, headers)
        assert look is not None and look.record is not None, look
        record = look.record
        kept = KeptAnswer("Yes.", record.exact, made, "small-1", "small", vector=b"\x7f\x00")
        self.store.keep(record.key, kept, 60)
        return record

    def word(self, *args: Any, **more: Any) -> CacheWord | None:
        look = self.look(*args, **more)
        return look.word if look is not None else None


def test_the_same_words_hit_and_the_same_question_in_other_words_does() -> None:
    cache = Cache()
    assert cache.word() is CacheWord.MISS
    cache.keep()
    hit = cache.look(f"  {ASK} ")
    assert hit is not None and (hit.word, hit.age_s, hit.record) == (CacheWord.HIT, 10, None)
    assert cache.word(SAME) is CacheWord.SEMANTIC
    assert cache.word(OTHER) is CacheWord.MISS


def test_spaces_within_an_ask_count() -> None:
    """Code with another indentation is other code, and two spaces in quotes are not one."""
    cache = Cache()
    for ask, other in (
        ("Explain:\nfor a in b:\n    c()\n    d()", "Explain:\nfor a in b:\n    c()\nd()"),
        ("How long is 'a  b'?", "How long is 'a b'?"),
        ("What does rm *.log do?", "What does rm * .log do?"),
    ):
        cache.keep(ask)
        assert (cache.word(f" {ask}\n"), cache.word(other)) == (CacheWord.HIT, CacheWord.MISS)


def test_the_caches_of_a_candidate_are_listed_with_its_own_checks() -> None:
    cache = Cache()
    candidate = msgspec.structs.replace(cache.snapshot, revision="candidate-r2")
    rollout = Rollout(Candidate("next", percent=5), "next", snapshot=candidate)
    both = msgspec.structs.replace(cache.snapshot, rollout=rollout)
    for _ in range(3):
        asyncio.run(cache.store.check("candidate-r2", "faq", True))
    caches = cache.cache.checks_of(both)
    assert {name: checks.wrong for name, checks in caches.items()} == {"faq": 0, "faq (candidate)": 3}


def test_other_words_need_a_floor_and_embeddings_that_agree() -> None:
    cache = Cache()
    cache.keep()
    assert cache.word(SAME, at=vector(0.0, 1.0)) is CacheWord.MISS
    assert cache.word(SAME, at=vector(1.0, 0.0, 0.0)) is CacheWord.MISS  # of another encoder
    guess = Cache(msgspec.structs.replace(COHORT, calibrated=False))
    guess.keep()
    assert guess.word(SAME) is CacheWord.MISS
    assert guess.word() is CacheWord.HIT


def test_only_the_principal_that_got_an_answer_gets_it_again() -> None:
    cache = Cache()
    cache.keep()
    assert cache.word(ASK, {"authorization": "Bearer bob"}) is CacheWord.MISS
    assert cache.word(ASK, {}) is CacheWord.ANONYMOUS
    shared = Cache(msgspec.structs.replace(COHORT, cache=Settings(scope="shared", verify=0)))
    shared.keep()
    assert shared.word(ASK, {}) is CacheWord.HIT


@pytest.mark.parametrize(
    ("control", "word", "keeps"),
    [
        ("no-store", CacheWord.CLIENT, False), ("no-cache", CacheWord.CLIENT, True),
        ("max-age=9", CacheWord.MISS, True), ("max-age=10", CacheWord.HIT, False),
        ("private", CacheWord.HIT, False),
    ],
)  # fmt: skip
def test_the_client_can_refuse_a_kept_answer(control: str, word: CacheWord, keeps: bool) -> None:
    cache = Cache()
    cache.keep()
    look = cache.look(ASK, ALICE | {"cache-control": control})
    assert look is not None and look.word is word and (look.record is not None) is keeps


def test_headers_that_change_an_answer_are_part_of_its_name() -> None:
    cache = Cache()
    cache.keep()
    assert cache.word(ASK, ALICE | {"anthropic-beta": "x"}) is CacheWord.MISS
    assert cache.word(ASK, ALICE | {"user-agent": "x"}) is CacheWord.HIT


@pytest.mark.parametrize(
    "change",
    [
        {"unmatched": Reason.OUT_OF_SCOPE},
        {"rewrite": False}, {"refused": True}, {"judged": False}, {"cohort": None},
    ],
)  # fmt: skip
def test_these_decisions_do_not_ask_the_cache(change: dict[str, Any]) -> None:
    cache = Cache()
    cache.keep()
    cache.decision = msgspec.structs.replace(cache.decision, **change)
    assert cache.word() is None


@pytest.mark.parametrize("change", [{"tier": "model"}, {"revision": "r2"}, {"cap": 5}])
def test_another_model_revision_or_cap_is_another_name(change: dict[str, Any]) -> None:
    cache = Cache()
    cache.keep()
    if "tier" in change:
        tier = msgspec.structs.replace(SMALL, model="small-2")
        cache.decision = msgspec.structs.replace(cache.decision, tier=tier)
    if "revision" in change:
        cache.snapshot = msgspec.structs.replace(cache.snapshot, revision="r2")
    if "cap" in change:
        cache.decision = msgspec.structs.replace(cache.decision, max_output_tokens=5)
    assert cache.word() is CacheWord.MISS


def test_a_share_of_the_hits_is_checked_and_an_old_answer_is_none() -> None:
    often = Cache(msgspec.structs.replace(COHORT, cache=Settings(verify=0.6)))
    often.keep()
    look = often.look()
    assert look is not None and (look.word, look.answer) == (CacheWord.CHECKED, None)
    assert look.record is not None and look.record.checked is True
    old = Cache(msgspec.structs.replace(COHORT, cache=Settings(ttl="5s", verify=0)))
    old.keep()
    assert old.word() is CacheWord.MISS


def test_a_cache_with_wrong_hits_is_off_for_its_cohort_and_revision() -> None:
    cache = Cache()
    cache.keep()
    for _ in range(3):
        asyncio.run(cache.store.check("r1", "faq", True))
    look = cache.look()
    assert look == CacheLook(CacheWord.OFF)
    assert cache.cache.checks_of(cache.snapshot)["faq"].off
    cache.snapshot = msgspec.structs.replace(cache.snapshot, revision="r2")
    assert cache.word() is CacheWord.MISS


def test_each_app_counts_its_own_checks() -> None:
    """Their cohorts may have one name and other answers. An app without own intents is listed when it is used."""
    cache = Cache()
    policy, answers = cache.snapshot, {"support": "/support", "sales": ""}
    apps = tuple(
        AppRoute(name, msgspec.structs.replace(policy, app=name), folder=folder) for name, folder in answers.items()
    )
    both = msgspec.structs.replace(policy, apps=apps)
    assert [*cache.cache.checks_of(both)] == ["faq", "support/faq"]
    for _ in range(3):
        asyncio.run(cache.store.check("r1", "support/faq", True))
    words = {}
    for app in apps:
        cache.snapshot = app.snapshot
        words[app.name] = cache.word()
    assert words == {"support": CacheWord.OFF, "sales": CacheWord.MISS}
    assert {name: checks.off for name, checks in cache.cache.checks_of(both).items()} == {
        "faq": False, "support/faq": True, "sales/faq": False,
    }  # fmt: skip
