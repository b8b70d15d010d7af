"""The store of conversations that the policy names."""

import pytest

from extproc.config.load import ConfigError
from extproc.routing.store import MemoryStore
from extproc.serving.state import open_state


def test_without_a_url_each_process_remembers_its_own_conversations() -> None:
    assert isinstance(open_state("", lambda: None).conversations, MemoryStore)


def test_a_url_that_cannot_be_used_is_a_mistake_in_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"policy\.yaml:1: `state` is not the URL of a Redis: "):
        open_state("redis://[", lambda: None)
    monkeypatch.setitem(__import__("sys").modules, "redis.asyncio", None)
    with pytest.raises(ConfigError, match="`state` needs the package redis: pip install"):
        open_state("redis://valkey:6379/0", lambda: None)
