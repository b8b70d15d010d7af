"""Opens the store of conversations that the policy names."""

import logging
from collections.abc import Callable

from extproc.config.load import ConfigError
from extproc.config.schema import POLICY_FILE
from extproc.config.strict_yaml import Problem
from extproc.routing.redis_store import RedisStore
from extproc.routing.store import MemoryStore, StateStore

log = logging.getLogger(__name__)


def open_state(url: str, failed: Callable[[], None], workers: int = 1) -> StateStore:
    """Return the store of conversations. Raises ConfigError if the URL of the policy cannot be used."""
    if not url:
        if workers > 1:
            log.warning("%d workers each remember only their own conversations: set `state` in the policy", workers)
        return MemoryStore()
    try:
        return RedisStore(url, failed)
    except ImportError:
        what = "`state` needs the package redis: pip install 'envoy-semantic-router[redis]'"
    except ValueError as error:
        what = f"`state` is not the URL of a Redis: {error}"
    raise ConfigError([Problem(POLICY_FILE, 1, what)])
