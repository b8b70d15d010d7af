"""Budgets and apps over three routers with a real Redis or Valkey, through the real Envoy."""

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis as redis_client

from extproc.accounting.report import read_report
from extproc.config.load import load_config
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from tests.e2e.traffic import (
    CHAT,
    EXTRACT,
    MESSAGES,
    PROVE,
    Answer,
    body_of,
    eventually,
    ledger_of,
    send,
    small_intent,
    with_ledger,
    write_small_intents,
)
from tests.redis_server import Redis

ROUTERS = 3
USD = 0.003
MOST_TOKENS = 100
STRICT, SUPPORT = "strict.example", "support.example"


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    server = Redis()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, server: Redis) -> Iterator[Stack]:
    """Start three router processes that share only the store."""
    folder = tmp_path_factory.mktemp("budgets")
    intents = write_small_intents(folder / "source")
    (intents / "support").mkdir()
    (intents / "support" / "proofs.yaml").write_text(
        small_intent("math_reasoning", "tier: small").replace("intent: math_reasoning", "intent: proofs")
    )
    with (intents / "policy.yaml").open("a") as policy:
        policy.write(
            f"""
state: {server.url}
budget: {{usd_month: {USD}, over: small, per: principal}}
apps:
  strict:
    hosts: [{STRICT}]
    budget: {{usd_month: 0.0002, over: refuse}}
  support:
    hosts: ["*.{SUPPORT}", {SUPPORT}]
    intents: support
    tiers: [small]
    default_tier: small
    labels: {{team: care}}
"""
        )
    tiers = load_config(intents).policy.tiers
    with SampleUpstreams({tier.name: tier.model for tier in tiers}) as upstreams:
        stack = Stack(intents, folder, upstreams, workers=ROUTERS, deadline_ms=5000)
        with with_ledger(stack) as running:
            yield running


def post(stack: Stack, key: str, prompt: str = PROVE, host: str = "llm.example", path: str = CHAT) -> Answer:
    body = body_of(path, prompt) | {"max_tokens": MOST_TOKENS}
    return send(stack.port, path, msgspec.json.encode(body), {"authorization": f"Bearer {key}", "host": host})


def rows(stack: Stack, where: str) -> list[sqlite3.Row]:
    with sqlite3.connect(ledger_of(stack)) as ledger:
        ledger.row_factory = sqlite3.Row
        return list(ledger.execute(f"SELECT * FROM outcomes WHERE {where}"))


def test_the_budget_of_a_principal_holds_over_all_routers(three: Stack) -> None:
    """Requests at the same time spend at most one request per router more. Then the small tier serves."""

    def ask(number: int) -> Answer:
        return post(three, "greedy", f"{PROVE} Copy {number}.")

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(120)))
    assert {answer.status for answer in answers} == {200}
    served = Counter((answer.said["x-router-tier"], answer.said["x-router-reason"]) for answer in answers)
    assert served.keys() == {("large", "matched"), ("small", "budget")}
    eventually(
        lambda: len(rows(three, "reason IN ('matched', 'budget') AND cohort = 'math_reasoning'")) == 120, "rows"
    )
    large = rows(three, "tier = 'large'")
    costs = [row["cost"] for row in large]
    # On a busy machine the store may answer too late. The sums that the router saw last then decide.
    local = sum('"limits":"local"' in (row["decision"] or "") for row in large)
    assert sum(costs) <= USD + (ROUTERS + local) * max(costs)
    assert post(three, "modest").said["x-router-reason"] == "matched"


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_budget_that_refuses_answers_429_in_the_shape_of_the_api(three: Stack, path: str) -> None:
    """The case and the port of the host do not matter."""
    refused = eventually(
        lambda: answer if (answer := post(three, "b", host="Strict.Example:80", path=path)).status == 429 else None,
        "the budget of the app is used up",
    )
    assert refused.headers["x-should-retry"] == "false" and int(refused.headers["retry-after"]) > 0
    assert refused.said["x-router-reason"] == "budget"
    error = msgspec.json.decode(refused.body)["error"]
    assert "`app/strict` is used up" in error["message"]
    assert error["type"] == ("rate_limit_error" if path == MESSAGES else "insufficient_quota")
    assert post(three, "b").status == 200  # of no app


def test_an_app_has_its_own_intents_and_tiers(three: Stack) -> None:
    """Without the host, the same prompt goes to the large tier. A model that a client names is not an exception."""
    answer = post(three, "c", host=f"eu.{SUPPORT}")
    assert answer.said == {"x-router-cohort": "proofs", "x-router-tier": "small", "x-router-reason": "matched"}
    assert post(three, "c", EXTRACT, host=SUPPORT).said["x-router-tier"] == "small"
    assert post(three, "c").said["x-router-cohort"] == "math_reasoning"
    named = send(
        three.port, CHAT, msgspec.json.encode(body_of(CHAT, PROVE, "frontier-1")),
        {"authorization": "Bearer c", "host": SUPPORT},
    )  # fmt: skip
    assert (named.status, named.said["x-router-tier"], named.said["x-router-reason"]) == (200, "small", "residency")
    assert post(three, "c", host=STRICT).status in (200, 429)
    eventually(lambda: len(rows(three, "app = 'support'")) == 3, "rows of the app")

    def names(by: Any) -> set[str]:
        return {line.name for line in read_report(ledger_of(three), 3600, by).groups}

    eventually(lambda: names("app") == {"-", "strict", "support"}, "lines of each app, and of none")
    assert names("team") == {"-", "care"}


def spend_all(stack: Stack, key: str) -> None:
    """Send requests until the real costs use up the budget of a principal, not only what is reserved."""
    sent: list[str] = []

    def used_up(number: int) -> bool:
        answer = post(stack, key, f"{PROVE} Copy {number}.")
        sent.append(answer.headers["x-request-id"])
        return answer.said["x-router-reason"] == "budget"

    def is_counted(asked: int) -> bool:
        names = ", ".join(f"'{name}'" for name in sent)
        return len(rows(stack, f"request IN ({names})")) == asked

    settled = 0
    for number in range(1, 1000):
        if used_up(number):
            if number == settled + 1:
                return
            eventually(partial(is_counted, number), "rows")
            settled = number
    raise AssertionError("the budget was never used up")


def test_without_the_store_traffic_goes_on_and_the_sums_come_back(three: Stack, server: Redis) -> None:
    """Each router goes on with the sums that it knows. It restores them when the store is back, and empty."""
    spend_all(three, "late")
    server.stop()
    answers: list[Answer] = []
    while [answer.said["x-router-reason"] for answer in answers[-4 * ROUTERS :]] != ["budget"] * 4 * ROUTERS:
        # A router that has seen little of this principal first spends what it believes to be left.
        answers.append(post(three, "late", f"{PROVE} Again {len(answers)}."))
        assert len(answers) < 100 * ROUTERS
    assert {answer.status for answer in answers} == {200}
    eventually(lambda: rows(three, 'decision LIKE \'%"limits":"local"%\''), "rows with local limits")
    server.start()
    store: Any = redis_client.Redis.from_url(server.url)
    month = time.strftime("%Y-%m", time.gmtime())

    def restored() -> bool:
        try:
            sums = [int(store.get(key)) for key in store.keys(f"extproc:budget:{month}:all/principal:*")]
        except redis_client.RedisError:
            return False
        return max(sums, default=0) > 0.9 * USD * 1e9

    eventually(restored, "the sums in the store")
    # A router that has not reached the store yet still spends what it believes to be left.
    eventually(lambda: post(three, "late").said["x-router-reason"] == "budget", "the sums hold")
    eventually(lambda: "`state` can be reached again" in three.log("router.log"), "the log says so")


def test_the_app_of_an_undecided_request_is_refused_by_envoy(three: Stack, tmp_path: Path) -> None:
    """The app may not use the default tier of the policy. Other requests continue without a router."""
    three_alone = Stack(three.intents, tmp_path, three.upstreams)  # nothing listens on its router's port
    try:
        three_alone.start_envoy(three_alone.bootstrap())
        assert post(three_alone, "d", host=SUPPORT).status == 503
        assert post(three_alone, "d", host=f"EU.{SUPPORT}:8080").status == 503
        assert post(three_alone, "d", host=f"eu.{SUPPORT}.").status == 503
        assert post(three_alone, "d").said == {"x-router-tier": "large", "x-router-reason": "fail_open"}
    finally:
        three_alone.stop()
