"""The store of conversations: bounded, with an expiry, and shared by processes through Redis."""

import asyncio
import time
from typing import Any

import pytest

from extproc.routing.redis_link import RedisLink
from extproc.routing.redis_store import RedisStore
from extproc.routing.store import MemoryStore, StateStore
from tests.redis_server import Redis


def get(store: StateStore, *keys: str) -> list[bytes | None]:
    return asyncio.run(store.get(keys))  # type: ignore[arg-type]  # a coroutine


def test_an_entry_is_kept_until_it_expires() -> None:
    now = [0.0]
    store = MemoryStore(clock=lambda: now[0])
    store.set({"a": b"1"}, 10)
    now[0] = 9.0
    assert get(store, "a", "b") == [b"1", None]
    now[0] = 11.0
    assert get(store, "a") == [None]
    assert store._entries == {}


def test_the_entry_that_was_used_least_recently_is_forgotten() -> None:
    store = MemoryStore(entries=2)
    store.set({"a": b"1", "b": b"2"}, 10)
    get(store, "a")
    store.set({"c": b"3"}, 10)
    assert get(store, "a", "b", "c") == [b"1", None, b"3"]


async def until(store: RedisStore, key: str, value: bytes | None) -> None:
    """Wait until `store` has this value."""
    deadline = time.monotonic() + 20
    while await store.get([key]) != [value]:
        assert time.monotonic() < deadline, f"{key} is not {value!r}"
        await asyncio.sleep(0.02)


def noting(send: Any, commands: list[str]) -> Any:
    """Send to Redis, and note each command that is sent."""

    async def sent(command: str, *arguments: Any, **options: Any) -> Any:
        commands.append(command)
        return await send(command, *arguments, **options)

    return sent


def test_two_processes_share_redis_and_outlive_it(
    redis: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Redis, each process has its own values. The failure is logged once, and it counts."""
    monkeypatch.setattr("extproc.routing.redis_store._WAIT_S", 5.0)  # a busy machine answers late
    failures: list[None] = []
    commands: list[str] = []

    async def scenario() -> None:
        one, two = (RedisStore(RedisLink(redis.url, lambda: failures.append(None))) for _ in range(2))
        await until(one, "started", None)
        while not one._link.reachable or not two._link.reachable:
            await asyncio.sleep(0.02)
        one.set({"a": b"1"}, 60)
        assert await one.get(["a"]) == [b"1"]  # its write may be on its way
        await until(two, "a", b"1")
        redis.stop()
        caplog.clear()
        failures.clear()
        assert await one.get(["a"]) == [b"1"]
        one.set({"b": b"2"}, 60)
        with monkeypatch.context() as patch:
            patch.setattr(one._link.client, "execute_command", noting(one._link.client.execute_command, commands))
            for _ in range(100):
                assert await one.get(["b"]) == [b"2"]
        assert set(commands) <= {"PING"}  # no request waits for Redis while it is away
        assert await two.get(["b"]) == [None]
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]  # one for each process
        assert len(failures) == 2
        redis.start()
        two.set({"c": b"3"}, 60)
        while not one._link.reachable or not two._link.reachable:
            await asyncio.sleep(0.02)
        two.set({"d": b"4"}, 60)
        await until(one, "d", b"4")
        for store in (one, two):
            await store._link.client.aclose()

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert "can be reached again" in caplog.text and redis.url not in caplog.text


def test_a_wrong_url_is_a_mistake_of_the_operator() -> None:
    with pytest.raises(ValueError):
        RedisLink("redis://[", lambda: None)
