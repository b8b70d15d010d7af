"""Budgets: their effect on a request, the reserved amount, and the real cost."""

import asyncio
import calendar
import time
from typing import Any

import msgspec
import pytest

from extproc.contract.words import Reason
from extproc.routing.budget import Charge, Outputs, month_of, nano, seconds_left, shares, specs_of
from extproc.routing.paying import Budgets
from extproc.routing.router import Router
from extproc.routing.snapshot import Snapshot
from extproc.routing.spending import MemorySpending
from extproc.settings import App, Rule, UsdBudget
from extproc.settings.policy import Conditions
from tests.routing.test_exchange import WordEmbedder, snapshot  # noqa: F401  # a fixture

CHAT = "/v1/chat/completions"
NOVEMBER = 1_795_953_600.0  # 2026-11-29 16:00 UTC


def routed(router: Router, model: str = "auto", key: str = "a", body: bytes | None = None) -> Any:
    """Route one request about billing, whose answer has at most 1,000 tokens."""
    asked = {
        "model": model,
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": "why is my invoice wrong"}],
    }
    raw = msgspec.json.encode(asked) if body is None else body
    return asyncio.run(router.route(raw, {":path": CHAT, "authorization": key}))


def router_of(snapshot: Snapshot, words: Any, budget: UsdBudget, **policy: Any) -> Router:  # noqa: F811
    """A router whose billing requests go to the large tier."""
    cohorts = dict(snapshot.policy.cohorts)
    cohorts["billing"] = msgspec.structs.replace(cohorts["billing"], tier="large", reasoning=None)
    changed = msgspec.structs.replace(snapshot.policy, cohorts=cohorts, **policy)
    changed_snapshot = msgspec.structs.replace(snapshot, policy=changed, budgets=specs_of(budget))
    budgets = Budgets(MemorySpending(), lambda: NOVEMBER)
    return Router(changed_snapshot, WordEmbedder(words), budgets=budgets)


def amount_of(router: Router, **request: Any) -> int:
    """Return the amount that one request reserves at the large tier."""
    charge = routed(router, **request).payment.charge
    assert charge is not None
    router.budgets.spending.add(charge.keys, -charge.amount)  # type: ignore[union-attr]
    return int(charge.amount)


def said(router: Router, times: int, **request: Any) -> list[tuple[str, str, int]]:
    """Return tier, reason and status of each request. 200: it was sent on."""
    answers = [routed(router, **request) for _ in range(times)]
    return [
        (r.decision.tier.name, r.decision.reason.value, r.refusal.status if r.refusal is not None else 200)
        for r in answers
    ]


LARGE, SMALL, REFUSED = ("large", "matched", 200), ("small", "budget", 200), ("small", "budget", 429)


def test_requests_go_to_the_tier_of_the_budget_and_then_nowhere(snapshot, words):  # noqa: F811
    """Two requests fit. Later ones go to the small tier, until it has spent as much again."""
    amount = amount_of(router_of(snapshot, words, UsdBudget(1e6, "small")))
    router = router_of(snapshot, words, UsdBudget(2 * amount / 1e9, "small"))
    answers = said(router, 40)
    assert answers[:3] == [LARGE, LARGE, SMALL]
    first_refused = answers.index(REFUSED)
    assert set(answers[2:first_refused]) == {SMALL} and set(answers[first_refused:]) == {REFUSED}
    [total] = router.budgets.spending.totals.values()  # type: ignore[union-attr]
    assert total <= 4 * amount


def test_a_refused_request_gets_an_error_that_no_library_retries(snapshot, words):  # noqa: F811
    router = router_of(snapshot, words, UsdBudget(1e-9, "refuse"))
    answer = routed(router)
    assert (answer.refusal.status, answer.decision.reason) == (429, Reason.BUDGET)
    assert answer.refusal.headers == {"retry-after": str(seconds_left(NOVEMBER)), "x-should-retry": "false"}
    assert answer.record.budget == "all" and answer.payment.charge is None
    assert "`all` is used up" in answer.refusal.message


def test_the_real_cost_takes_the_place_of_the_reserved_one(snapshot, words):  # noqa: F811
    """Without a cost the reserved amount stays."""
    router = router_of(snapshot, words, UsdBudget(1.0, "small"))
    charge = routed(router).payment.charge
    totals = router.budgets.spending.totals  # type: ignore[union-attr]
    assert [*totals.values()] == [charge.amount]
    router.budgets.settle(charge, None, None, None)  # type: ignore[union-attr]
    assert [*totals.values()] == [charge.amount]
    router.budgets.settle(charge, 7, "large", 10)  # type: ignore[union-attr]
    assert dict(totals) == {"2026-11:all": 7}
    assert Charge.from_text(charge.to_text()) == charge
    assert [Charge.from_text(text) for text in ("", "x all", "5", "-1 all", "5 ", f"{10**19} a")] == [None] * 6


def test_each_principal_has_its_own_budget(snapshot, words):  # noqa: F811
    amount = amount_of(router_of(snapshot, words, UsdBudget(1e6, "small")))
    router = router_of(snapshot, words, UsdBudget(amount / 1e9, "small", "principal"))
    assert said(router, 2, key="a") == [LARGE, SMALL] and said(router, 2, key="b") == [LARGE, SMALL]
    assert shares(router.snapshot.budgets, router.budgets.spending.totals, "2026-11").keys() == {"all/principal"}  # type: ignore[union-attr]


def test_a_floor_is_not_lowered_by_a_budget(snapshot, words):  # noqa: F811
    """The request stays at its floor until twice the budget is spent."""
    amount = amount_of(router_of(snapshot, words, UsdBudget(1e6, "small")))
    rules = (Rule(name="safe", when=Conditions(), tier_floor="large"),)
    router = router_of(snapshot, words, UsdBudget(amount / 1e9, "small"), rules=rules)
    assert said(router, 3) == [LARGE, LARGE, ("large", "budget", 429)]


def test_only_is_not_left_because_of_a_budget(snapshot, words):  # noqa: F811
    rules = (Rule(name="here", when=Conditions(), only=("large",)),)
    amount = amount_of(router_of(snapshot, words, UsdBudget(1e6, "small"), rules=rules))
    router = router_of(snapshot, words, UsdBudget(amount / 1e9, "small"), rules=rules)
    tiers = [tier for tier, _, status in said(router, 3) if status == 200]
    assert set(tiers) == {"large"}


def test_the_model_that_a_client_names_is_paid_for_too(snapshot, words):  # noqa: F811
    """Otherwise any client could spend without a limit."""
    amount = amount_of(router_of(snapshot, words, UsdBudget(1e6, "small")), model="qwen3-32b")
    router = router_of(snapshot, words, UsdBudget(1.5 * amount / 1e9, "small"))
    assert said(router, 2, model="qwen3-32b") == [("large", "pinned", 200), SMALL]
    assert b"qwen3-8b" in routed(router, model="qwen3-32b").mutation.body


def test_a_body_that_cannot_be_read_is_paid_for_too(snapshot, words):  # noqa: F811
    router = router_of(snapshot, words, UsdBudget(1e-9, "refuse"))
    assert said(router, 1, body=b"") == [("large", "budget", 429)]


def test_no_rejected_answer_leads_above_the_tier_of_the_budget(snapshot, words):  # noqa: F811
    router = router_of(snapshot, words, UsdBudget(1e-3, "small"))
    router.budgets.spending.add(["2026-11:all"], nano(1e-3))  # type: ignore[union-attr]
    answer = routed(router)
    assert (answer.decision.tier.name, answer.decision.ladder) == ("small", ())


def test_shadow_mode_spends_no_budget(snapshot, words):  # noqa: F811
    router = router_of(snapshot, words, UsdBudget(1e-9, "refuse"), mode="shadow")
    assert routed(router).refusal is None and not router.budgets.spending.totals  # type: ignore[union-attr]


def test_an_app_has_its_own_budget_beside_that_of_the_policy():
    support = App(hosts=("a.example",), budget=UsdBudget(5, "small"), labels={"team": "search"})
    names = [(spec.name, spec.limit) for spec in specs_of(UsdBudget(9, "refuse"), "support", support)]
    assert names == [("all", nano(9)), ("app/support", nano(5))]
    shared = msgspec.structs.replace(support, budget=UsdBudget(5, "small", "team"))
    each = msgspec.structs.replace(support, budget=UsdBudget(5, "small", "principal"))
    [team], [principal] = specs_of(None, "support", shared), specs_of(None, "support", each)
    assert (team.name, team.key("p", "2026-11")) == ("team/search", "2026-11:team/search")
    assert principal.key("p", "2026-11") == "2026-11:app/support/principal:p"
    assert [spec.whose for spec in (team, principal)] == [("team", "search"), ("app", "support")]


@pytest.mark.parametrize(
    ("now", "month", "left"),
    [((2026, 11, 30, 23, 59, 59), "2026-11", 2), ((2026, 12, 31, 0, 0, 0), "2026-12", 86_401)],
)
def test_a_month_ends_in_utc(now, month, left):
    now_s = float(calendar.timegm((*now, 0, 0, 0)))
    assert (month_of(now_s), seconds_left(now_s)) == (month, left)
    assert time.gmtime(now_s + left)[1] != time.gmtime(now_s)[1]


def test_an_answer_is_expected_to_be_twice_as_long_as_usual():
    outputs = Outputs()
    assert [outputs.expected("a", None), outputs.expected("a", 10)] == [2048, 10]
    for _ in range(400):
        outputs.note("a", 100)
    assert outputs.expected("a", None) == pytest.approx(200, abs=2)


def test_the_sums_of_one_process_are_bounded():
    spending = MemorySpending(most=2)
    spending.add(["a", "b"], 1)
    spending.add(["a", "c"], 1)
    assert dict(spending.totals) == {"a": 2, "c": 1}
