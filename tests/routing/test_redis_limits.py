"""Limits and budgets that processes share through a real Redis, also after it stops and restarts empty."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from extproc.routing import redis_limits
from extproc.routing.budget import Claim
from extproc.routing.limits import Bounds, Rates
from extproc.routing.redis_limits import RedisRates, RedisSpending
from extproc.routing.redis_link import RedisLink
from extproc.routing.spending import Reserved
from tests.redis_server import Redis


class Processes:
    """Routers that share the store: a link and the sums of each. Several may be in one scenario."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.links: list[RedisLink] = []
        self.failures: list[None] = []

    async def start(self, within_s: float | None = None) -> RedisSpending:
        """Start another process, which reaches the store. It waits `within_s` for a reply in place of 10 ms."""
        link = RedisLink(self._redis.url, lambda: self.failures.append(None))
        self.links.append(link)
        link.within_s = link.within_s if within_s is None else within_s
        spending = RedisSpending(link)
        await reached(link)
        return spending

    async def settled(self) -> None:
        """Wait until every process has reached the store, and has no call on its way."""
        await reached(*self.links)

    async def stored(self, *keys: str) -> list[int | None]:
        """Return these sums as the store has them."""
        sums = await self.links[0].client.mget([f"extproc:budget:{key}" for key in keys])
        return [int(total) if total is not None else None for total in sums]


def play(redis: Redis, scenario: Callable[[Processes], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario, and close the connections of its processes."""

    async def run() -> None:
        processes = Processes(redis)
        try:
            await scenario(processes)
        finally:
            for link in processes.links:
                await link.client.aclose()

    asyncio.run(asyncio.wait_for(run(), 90))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.02)


async def reached(*links: RedisLink) -> None:
    """Wait until each process has reached the store, and has no call on its way."""
    for link in links:
        while True:
            try:
                await link.client.ping()
                break
            except link.errors:
                await asyncio.sleep(0.05)
    await until(lambda: all(link.reachable and not link.tasks for link in links))


async def reserve(spending: RedisSpending, claims: list[Claim], amount: int) -> Reserved:
    """Reserve in the store. A busy machine may need several tries for the 10 ms."""
    for _ in range(100):
        reserved = await spending.reserve(claims, amount)
        if not reserved.local:
            return reserved
        if not reserved.full:
            spending.add([claim.key for claim in claims], -amount)
        await asyncio.sleep(0.05)
    raise AssertionError("the store was never asked")


def test_processes_share_the_sums_and_outlive_the_store(redis: Redis) -> None:
    """Without the store, each process uses its last known sums. It restores them after the store restarts."""

    async def scenario(processes: Processes) -> None:
        one, two = await processes.start(), await processes.start()
        claims = [Claim("m:all", 100), Claim("m:app/a", 50)]
        assert await reserve(one, claims, 30) == Reserved()
        assert await reserve(two, claims, 30) == Reserved(full=(1,))
        assert await reserve(two, claims, 20) == Reserved()
        assert dict(two.totals) == {"m:all": 50, "m:app/a": 50}
        one.add(["m:all", "m:app/a"], -10)  # the first request cost less
        await processes.settled()
        assert await reserve(two, claims, 10) == Reserved()

        redis.stop()
        processes.failures.clear()
        assert await two.reserve([Claim("m:all", 60)], 10) == Reserved((), local=True)
        assert await two.reserve([Claim("m:all", 60)], 10) == Reserved((0,), local=True)
        assert len(processes.failures) >= 1 and not processes.links[1].reachable
        two.add(["m:all"], -4)

        redis.start()
        await processes.settled()
        three = await processes.start()
        assert await reserve(three, [Claim("m:all", 10**9)], 1) == Reserved()
        assert dict(three.totals) == {"m:all": 57}

    play(redis, scenario)


def test_a_store_restored_from_an_older_copy_gets_the_sums_back(redis: Redis) -> None:
    """Its keys are there, with lower sums. Each process raises those that it has seen, also those of no request."""

    async def scenario(processes: Processes) -> None:
        one, two = await processes.start(), await processes.start()
        assert await reserve(one, [Claim("m:all", 100)], 10) == Reserved()
        assert await reserve(two, [Claim("m:caller/b", 100)], 10) == Reserved()
        await processes.settled()
        await processes.links[0].client.save()
        assert await reserve(two, [Claim("m:caller/b", 100)], 30) == Reserved()
        assert await reserve(one, [Claim("m:all", 100)], 70) == Reserved()
        await processes.settled()
        redis.stop()
        redis.start()

        assert await reserve(one, [Claim("m:all", 100)], 30) == Reserved(full=(0,))
        assert await reserve(two, [Claim("m:all", 100)], 15) == Reserved()
        await processes.settled()
        assert await processes.stored("m:all", "m:caller/b") == [95, 40]
        two.add(["m:all"], -60)  # a sum that falls later is not raised again
        await processes.settled()
        assert await reserve(one, [Claim("m:all", 100)], 1) == Reserved()
        assert await processes.stored("m:all") == [36]

    play(redis, scenario)


def test_a_store_that_was_emptied_while_it_ran_gets_the_sums_back(redis: Redis) -> None:
    """No connection breaks, so only the next call can notice it."""

    async def scenario(processes: Processes) -> None:
        one = await processes.start()
        for key in ("m:all", "m:app/a"):
            assert await reserve(one, [Claim(key, 100)], 60) == Reserved()
        await processes.links[0].client.flushall()
        assert await reserve(one, [Claim("m:all", 100)], 50) == Reserved(full=(0,))
        await processes.settled()
        assert await processes.stored("m:all", "m:app/a") == [60, 60]

    play(redis, scenario)


def test_without_the_store_the_costs_of_other_processes_free_no_budget(redis: Redis) -> None:
    """Envoy reports every cost to one process. The store gets these differences when it is back."""

    async def scenario(processes: Processes) -> None:
        spending = await processes.start()
        assert await reserve(spending, [Claim("m:all", 100)], 95) == Reserved()
        redis.stop()
        assert await spending.reserve([Claim("m:all", 100)], 10) == Reserved((0,), local=True)
        for _ in range(10):
            spending.add(["m:all"], -4)  # another process reserved, and its requests cost less
            assert await spending.reserve([Claim("m:all", 100)], 10) == Reserved((0,), local=True)
        assert await spending.reserve([Claim("m:all", 200)], 50) == Reserved((), local=True)
        assert dict(spending.totals) == {"m:all": 105}
        redis.start()
        await processes.settled()
        await until(lambda: dict(spending.totals) == {"m:all": 105} and not processes.links[0].tasks)
        assert await processes.stored("m:all") == [105]

    play(redis, scenario)


def test_an_answer_that_comes_too_late_is_not_counted_twice(redis: Redis) -> None:
    """The store has added the amount, after the process had given up waiting and counted alone."""

    async def scenario(processes: Processes) -> None:
        spending = await processes.start()
        [link] = processes.links
        for within_s, expected in ((-1.0, 7), (5.0, 14)):
            link.within_s = within_s
            reserved = await spending.reserve([Claim("m:all", 100)], 7)
            assert reserved == Reserved((), local=within_s < 0)
            await until(lambda: not link.tasks)
            assert await processes.stored("m:all") == [expected]
            assert dict(spending.totals) == {"m:all": expected}

    play(redis, scenario)


def test_a_short_outage_that_loses_nothing_raises_no_sum(redis: Redis) -> None:
    """What a process saw before the outage may be more than the store has now, because requests cost less."""

    async def scenario(processes: Processes) -> None:
        one, two = await processes.start(), await processes.start()
        assert await reserve(one, [Claim("m:all", 100)], 80) == Reserved()
        await processes.settled()
        two.add(["m:all"], -60)
        await processes.settled()
        processes.links[0].stop(TimeoutError())
        await processes.settled()
        assert await processes.stored("m:all") == [20]

    play(redis, scenario)


def test_an_outage_with_many_callers_is_made_up_for_in_small_steps(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call for all of them would stop the store. The amounts that are kept have a bound."""
    monkeypatch.setattr(redis_limits, "_KEYS_IN_A_CALL", 2)
    monkeypatch.setattr(redis_limits, "_MOST_UNSENT", 5)

    async def scenario(processes: Processes) -> None:
        spending = await processes.start()
        [link] = processes.links
        assert await reserve(spending, [Claim("m:all", 100)], 1) == Reserved()
        await processes.settled()
        link.stop(TimeoutError())
        for amount in (2, -2):
            spending.add(["m:none"], amount)
        for caller in range(8):
            spending.add([f"m:{caller}"], 3)
            spending.add([f"m:{caller}"], 2)
        assert [*spending._unsent.items()] == [(f"m:{caller}", 5) for caller in range(3, 8)]
        await processes.settled()
        await until(lambda: not spending._unsent and not link.tasks)
        assert await processes.stored(*(f"m:{caller}" for caller in range(8))) == [None] * 3 + [5] * 5

    play(redis, scenario)


def test_the_ledgers_sum_reaches_a_store_that_was_away(redis: Redis) -> None:
    """A reload added the budget during that time. The store lost nothing, and does not have this sum."""

    async def scenario(processes: Processes) -> None:
        spending = await processes.start()
        assert await reserve(spending, [Claim("m:all", 100)], 1) == Reserved()
        await processes.settled()
        processes.links[0].stop(TimeoutError())
        spending.raise_to({"m:app/a": 40})
        await processes.settled()
        assert await processes.stored("m:app/a") == [40]

    play(redis, scenario)


def test_sums_are_raised_once_at_a_time(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that fails in between starts nothing beside it, because the store is slow already."""

    async def scenario(processes: Processes) -> None:
        spending = await processes.start(within_s=5.0)
        assert await reserve(spending, [Claim("m:all", 100)], 1) == Reserved()
        raise_some, calls = spending._raise, 0

        async def failing(keys: Sequence[str]) -> None:
            nonlocal calls
            calls += 1
            spending._to_raise = calls < 9
            await raise_some(keys)

        monkeypatch.setattr(spending, "_raise", failing)
        spending._to_raise = True
        assert await reserve(spending, [Claim("m:all", 100)], 1) == Reserved()
        await processes.settled()
        assert calls == 1
        assert await reserve(spending, [Claim("m:all", 100)], 1) == Reserved()
        await processes.settled()
        assert calls == 2  # the next answer

    play(redis, scenario)


def test_many_processes_never_spend_more_than_the_budget(redis: Redis) -> None:
    async def scenario(processes: Processes) -> None:
        spendings = [await processes.start(within_s=5.0) for _ in range(3)]
        claims = [Claim("m:all", 50)]
        results = await asyncio.gather(*(reserve(spending, claims, 1) for spending in spendings for _ in range(30)))
        assert sum(not reserved.full for reserved in results) == 50
        await processes.settled()
        assert await processes.stored("m:all") == [50]

    play(redis, scenario)


def test_the_ledger_raises_a_sum_and_never_lowers_it(redis: Redis) -> None:
    async def scenario(processes: Processes) -> None:
        spending = await processes.start()
        for total in (40, 30):
            spending.raise_to({"m:all": total})
            await processes.settled()
        assert await processes.stored("m:all") == [40]

    play(redis, scenario)


def test_a_slow_store_adds_no_burst_and_costs_no_token(redis: Redis) -> None:
    """Its answer comes after the process had given up waiting and asked its own bucket."""

    async def scenario(processes: Processes) -> None:
        await processes.start(within_s=5.0)
        [link] = processes.links
        rates = RedisRates(link, "upgrade", Rates())
        assert [await rates.take("p", 0.001, 2, 0.0) for _ in range(3)] == [True, True, False]
        link.within_s = -1.0
        assert not await rates.take("p", 0.001, 2, 0.0)
        await link.client.hset("extproc:rate:upgrade:p", "tokens", "1")
        assert not await rates.take("p", 0.001, 2, 0.0)
        await until(lambda: not link.tasks)
        assert float(await link.client.hget("extproc:rate:upgrade:p", "tokens")) == pytest.approx(1, abs=0.01)

    play(redis, scenario)


def test_a_rate_holds_over_all_processes(redis: Redis) -> None:
    """Without the store, each process goes on from the tokens that it saw last. A new principal has its part."""

    async def scenario(processes: Processes) -> None:
        for _ in range(2):
            await processes.start(within_s=5.0)
        links = processes.links
        rates = [RedisRates(link, "upgrade", Rates(2)) for link in links]
        taken = [await rate.take("p", 0.001, 3, 0.0) for _ in range(3) for rate in rates]
        assert sum(taken) == 3 and await rates[0].take("q", 0.001, 3, 0.0)
        bounds = Bounds(1, RedisRates(links[0], "escalation", Rates()))
        assert [await bounds.take("c", "p", 0.001, 2, 0.0) for _ in range(3)] == [None, None, "principal_rate"]
        redis.stop()
        for principal, expected in (("p", 0), ("r", 4)):  # each worker has half of the burst
            taken = [await rate.take(principal, 0.001, 4, 0.0) for _ in range(4) for rate in rates]
            assert sum(taken) == expected

    play(redis, scenario)
