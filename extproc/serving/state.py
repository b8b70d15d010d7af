"""Opens the stores of conversations and of accepted answers that the policy names."""

import logging
from collections.abc import Callable

from extproc.config.load import ConfigError
from extproc.config.schema import POLICY_FILE
from extproc.config.strict_yaml import Problem
from extproc.routing.cache_store import AnswerStore
from extproc.routing.redis_store import RedisStore
from extproc.routing.store import MemoryStore, StateStore

log = logging.getLogger(__name__)


# The memory of one process for kept answers: some 20,000 answers of 500 words.
_ANSWER_BYTES = 64 * 1024 * 1024


def open_answers(url: str, failed: Callable[[], None]) -> AnswerStore:
    """Return the store of accepted answers. Raises ConfigError if the URL of the policy cannot be used."""
    memory = MemoryStore(most_bytes=_ANSWER_BYTES)
    return AnswerStore(_open_redis(url, failed, memory) if url else memory)


def open_state(url: str, failed: Callable[[], None], workers: int = 1) -> StateStore:
    """Return the store of conversations. Raises ConfigError if the URL of the policy cannot be used."""
    if not url:
        if workers > 1:
            log.warning("%d workers each remember only their own conversations: set `state` in the policy", workers)
        return MemoryStore()
    return _open_redis(url, failed)


def _open_redis(url: str, failed: Callable[[], None], memory: MemoryStore | None = None) -> RedisStore:
    try:
        return RedisStore(url, failed, memory)
    except ImportError:
        what = "`state` needs the package redis: pip install 'envoy-semantic-router[redis]'"
    except ValueError as error:
        what = f"`state` is not the URL of a Redis: {error}"
    raise ConfigError([Problem(POLICY_FILE, 1, what)])
