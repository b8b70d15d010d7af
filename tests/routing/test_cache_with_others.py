"""The cache beside budgets, apps and signals, and second requests beside a used-up budget."""

import asyncio
from typing import Any

import msgspec
import pytest

from extproc.acceptance.rules import compile_rules
from extproc.contract.records import CacheRecord
from extproc.contract.words import CacheWord, Reason, Signal
from extproc.routing.answer_cache import AnswerCache
from extproc.routing.asks import Asks
from extproc.routing.budget import nano, specs_of
from extproc.routing.cache_store import AnswerStore, KeptAnswer
from extproc.routing.conversations import Conversations
from extproc.routing.exploration import Lottery
from extproc.routing.limits import Rates
from extproc.routing.paying import Budgets
from extproc.routing.routed import Routed
from extproc.routing.router import Router
from extproc.routing.snapshot import AUTHORITY, AppRoute, Snapshot
from extproc.routing.store import MemoryStore
from extproc.settings import AnswerCache as CacheSettings
from extproc.settings import Upgrades, UsdBudget
from tests.routing.test_exchange import WordEmbedder, snapshot  # noqa: F401  # a fixture

ASK = "Send the last invoice again"
ALICE = {":path": "/v1/chat/completions", "authorization": "Bearer alice"}
BOB = ALICE | {"authorization": "Bearer bob"}
SUPPORT, SALES = ALICE | {AUTHORITY: "support.example"}, ALICE | {AUTHORITY: "sales.example"}


class Gateway:
    """A router with a cache for billing, two apps and a budget of the policy."""

    def __init__(
        self,
        snapshot: Snapshot,  # noqa: F811
        words: Any,
        budget: UsdBudget | None = None,
        verify: float = 0,
        upgrades: Upgrades | None = None,
    ) -> None:
        cohorts = dict(snapshot.policy.cohorts)
        cohorts["billing"] = msgspec.structs.replace(
            cohorts["billing"], tier="large", reasoning=None, accept=compile_rules(["complete"]),
            cache=CacheSettings(verify=verify),
        )  # fmt: skip
        policy = msgspec.structs.replace(snapshot.policy, cohorts=cohorts, upgrades=upgrades)
        if upgrades is not None:
            policy = msgspec.structs.replace(policy, default_tier="small")
        own = msgspec.structs.replace(snapshot, policy=policy, budgets=specs_of(budget))
        apps = tuple(
            AppRoute(name, msgspec.structs.replace(own, app=name), (f"{name}.example",))
            for name in ("support", "sales")
        )
        store = MemoryStore()
        self.answers, self.asks, self.budgets = AnswerStore(MemoryStore()), Asks(store), Budgets()
        self.router = Router(
            msgspec.structs.replace(own, apps=apps), WordEmbedder(words), Rates(1), Conversations(store),
            self.budgets, AnswerCache(self.answers),
        )  # fmt: skip

    def route(self, headers: dict[str, str] = ALICE, *texts: str) -> Routed:
        messages = [
            {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts or (ASK,))
        ]
        body = msgspec.json.encode({"model": "auto", "max_tokens": 100, "messages": messages})
        return asyncio.run(self.router.route(body, headers))

    def fill(self, headers: dict[str, str] = ALICE) -> None:
        look = self.route(headers).cached
        assert look is not None and look.record is not None and look.word is CacheWord.MISS
        self.keep(look.record, "qwen3-32b", "large")

    def keep(self, record: CacheRecord, model: str, tier: str) -> None:
        answer = KeptAnswer("Done.", record.exact, self.answers.clock(), model, tier)
        self.answers.keep(record.key, answer, 60)

    def spend_all(self) -> None:
        for spec in self.router.snapshot.budgets:
            month = next(iter(self.budgets.spending.totals)).partition(":")[0]
            self.budgets.spending.add([spec.key("", month)], spec.limit)


def test_a_hit_is_served_when_the_budget_is_used_up_and_costs_nothing(snapshot, words):  # noqa: F811
    gateway = Gateway(snapshot, words, UsdBudget(1.0, "refuse"))
    gateway.fill()
    gateway.spend_all()
    spent = dict(gateway.budgets.spending.totals)
    hit = gateway.route()
    assert (hit.refusal, hit.decision.cache, hit.payment.charge) == (None, CacheWord.HIT, None)
    refused = gateway.route(ALICE, "Send the first invoice again")
    assert (refused.decision.reason, refused.cached, refused.decision.cache) == (Reason.BUDGET, None, None)
    assert refused.refusal is not None and refused.refusal.status == 429
    assert dict(gateway.budgets.spending.totals) == spent


def test_an_answer_of_the_tier_of_a_budget_is_kept_for_this_tier_alone(snapshot, words):  # noqa: F811
    gateway = Gateway(snapshot, words, UsdBudget(1.0, "small"))
    before = gateway.route().cached
    gateway.spend_all()
    lowered = gateway.route()
    assert (lowered.decision.tier.name, lowered.decision.reason) == ("small", Reason.BUDGET)
    assert (lowered.record.cache, lowered.record.budget) == (CacheWord.MISS, "all")
    assert lowered.payment.charge is not None and lowered.payment.charge.amount < nano(1.0)
    assert before is not None and before.record is not None and lowered.cached is not None
    record = lowered.cached.record
    assert record is not None and before.record.key != record.key

    gateway.keep(record, "qwen3-4b", "small")
    spent = dict(gateway.budgets.spending.totals)
    hit = gateway.route()
    assert hit.kept is not None
    assert (hit.decision.cache, hit.kept.tier, hit.payment.charge) == (CacheWord.HIT, "small", None)
    assert dict(gateway.budgets.spending.totals) == spent  # what was reserved for the small tier is given back
    for spec in gateway.router.snapshot.budgets:
        month = next(iter(spent)).partition(":")[0]
        gateway.budgets.spending.add([spec.key("", month)], -spec.limit)
    assert gateway.route().decision.cache is CacheWord.MISS  # the large tier answers again


@pytest.mark.parametrize("over", ["refuse", "small"])
def test_a_hit_that_no_tier_can_check_is_served(snapshot, words, over):  # noqa: F811
    gateway = Gateway(snapshot, words, UsdBudget(1.0, over), verify=1)
    gateway.fill()
    assert gateway.route().decision.cache is CacheWord.CHECKED
    gateway.spend_all()
    hit = gateway.route()
    assert hit.kept is not None
    assert (hit.refusal, hit.decision.cache, hit.kept.tier) == (None, CacheWord.HIT, "large")
    assert (hit.decision.tier.name, hit.decision.reason) == ("large", Reason.MATCHED)


def test_a_hit_takes_no_upgrade_and_needs_none(snapshot, words):  # noqa: F811
    """One upgrade in a minute. The default tier is `small`, and the cohort's is `large`."""
    gateway = Gateway(snapshot, words, upgrades=Upgrades(per_minute=1, burst=1))
    gateway.fill(BOB)
    for _ in range(3):
        assert gateway.route(BOB).decision.cache is CacheWord.HIT  # Bob's upgrade is taken by `fill`
    other = gateway.route(BOB, "Send the first invoice again")
    assert (other.decision.tier.name, other.decision.reason) == ("small", Reason.UPGRADE_RATE)
    assert (gateway.route().decision.cache, gateway.route().decision.reason) == (
        CacheWord.MISS,
        Reason.UPGRADE_RATE,
    )


def test_a_used_up_budget_pays_for_no_second_answer(snapshot, words):  # noqa: F811
    gateway = Gateway(snapshot, words, UsdBudget(1.0, "small"))
    gateway.router.lottery = Lottery(1.0, lambda: True)
    explored = gateway.route(ALICE, "Send the first invoice again").exploration
    assert explored is not None and explored.second is not None
    gateway.spend_all()
    lowered = gateway.route(ALICE, "Send the second invoice again")
    assert (lowered.decision.tier.name, lowered.exploration) == ("small", None)


def test_an_app_gets_no_answer_of_another_app(snapshot, words):  # noqa: F811
    gateway = Gateway(snapshot, words)
    gateway.fill(SUPPORT)
    words_of = {app: gateway.route(headers).decision.cache for app, headers in (("sales", SALES), ("none", ALICE))}
    assert words_of == {"sales": CacheWord.MISS, "none": CacheWord.MISS}
    hit = gateway.route(SUPPORT)
    assert (hit.decision.cache, hit.record.app) == (CacheWord.HIT, "support")


def test_a_principal_gets_no_answer_of_another_one_in_its_app(snapshot, words):  # noqa: F811
    """The key is that of the client. The same key in another app is another principal."""
    gateway = Gateway(snapshot, words)
    gateway.fill(SUPPORT)
    bob = BOB | {AUTHORITY: "support.example"}
    assert gateway.route(bob).decision.cache is CacheWord.MISS
    gateway.fill(bob)
    gateway.fill(SALES)
    for headers in (SUPPORT, bob, SALES):
        assert gateway.route(headers).decision.cache is CacheWord.HIT


def test_wrong_hits_of_an_app_turn_off_its_cache_alone(snapshot, words):  # noqa: F811
    gateway = Gateway(snapshot, words)
    for headers in (SUPPORT, SALES):
        gateway.fill(headers)
    for _ in range(3):
        asyncio.run(gateway.answers.check(snapshot.revision, "support/billing", True))
    words_of = [gateway.route(headers).decision.cache for headers in (SUPPORT, SALES)]
    assert words_of == [CacheWord.OFF, CacheWord.HIT]


def test_a_client_that_asks_again_after_a_hit_is_a_signal(snapshot, words):  # noqa: F811
    """It says that the kept answer was not good. The tier is the one that gave it."""
    gateway = Gateway(snapshot, words)
    gateway.fill()
    headers = {name: ALICE | {"x-request-id": name} for name in ("first", "second")}

    async def follow(routed: Routed, name: str) -> Any:
        return await gateway.asks.follow(routed, headers[name])

    hit = gateway.route(headers["first"])
    assert hit.decision.cache is CacheWord.HIT
    assert asyncio.run(follow(hit, "first")) is None
    again = asyncio.run(follow(gateway.route(headers["second"], ASK, "Done.", ASK), "second"))
    assert (again.kind, again.request, again.tier) == (Signal.RE_ASKED, "first", "large")


def test_an_app_that_is_closed_gets_no_kept_response(snapshot, words):  # noqa: F811
    closed = msgspec.structs.replace(snapshot, app="support", off="closed")
    apps = (AppRoute("support", closed, ("support.example",)),)
    router = Router(msgspec.structs.replace(snapshot, apps=apps), WordEmbedder(words))
    headers = {AUTHORITY: "support.example", ":path": "/v1/responses/resp_1"}
    routed = asyncio.run(router.route_kept(headers))
    assert routed.refusal is not None and (routed.refusal.status, routed.decision.reason) == (503, Reason.APP_OFF)
    assert asyncio.run(router.route_kept(headers | {AUTHORITY: "other.example"})).refusal is None
