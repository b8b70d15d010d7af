"""Opens what the policy's `state` shares between router processes: conversations, answers, limits and budgets."""

import logging
from collections.abc import Callable

import msgspec

from extproc.config.load import ConfigError
from extproc.config.schema import POLICY_FILE
from extproc.config.strict_yaml import Problem
from extproc.routing.cache_store import AnswerStore
from extproc.routing.limits import RateLimit, Rates
from extproc.routing.redis_limits import RedisRates, RedisSpending
from extproc.routing.redis_link import RedisLink
from extproc.routing.redis_store import RedisStore
from extproc.routing.spending import MemorySpending, Spending
from extproc.routing.store import MemoryStore, StateStore

log = logging.getLogger(__name__)


# The memory of one process for kept answers: some 20,000 answers of 500 words.
_ANSWER_BYTES = 64 * 1024 * 1024


class SharedState(msgspec.Struct, frozen=True):
    """The state that outlives a request."""

    conversations: StateStore
    answers: AnswerStore
    upgrades: RateLimit
    spending: Spending
    escalations: RateLimit | None = None  # None: each process counts alone
    is_away: Callable[[], bool] = bool  # whether the store cannot be reached


def open_state(url: str, failed: Callable[[], None], workers: int = 1) -> SharedState:
    """Return the state of this process, or of all. Raises ConfigError if the URL of the policy cannot be used."""
    memory = MemoryStore(most_bytes=_ANSWER_BYTES)
    if not url:
        answers = AnswerStore(memory)
        if workers > 1:
            log.warning(
                "%d workers each remember only their own conversations and spending: set `state` in the policy",
                workers,
            )
        return SharedState(MemoryStore(), answers, Rates(workers), MemorySpending())
    try:
        link = RedisLink(url, failed)
    except ImportError:
        what = "`state` needs the package redis: pip install 'envoy-semantic-router[redis]'"
    except ValueError as error:
        what = f"`state` is not the URL of a Redis: {error}"
    else:
        upgrades, escalations = (RedisRates(link, name, Rates(workers)) for name in ("upgrade", "escalation"))
        answers = AnswerStore(RedisStore(link, memory))
        spending = RedisSpending(link)
        return SharedState(RedisStore(link), answers, upgrades, spending, escalations, lambda: not link.reachable)
    raise ConfigError([Problem(POLICY_FILE, 1, what)])
