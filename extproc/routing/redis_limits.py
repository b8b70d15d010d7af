"""Limits and budgets over all router processes, in the Redis or Valkey that they share.

Each limit is one script in the store, so that no two processes take the same token or the same dollar. While the
store is gone, this process counts alone, from the last sums that it saw. The amounts of that time are added when
the store is back, also if the store has lost its sums.
"""

import logging
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from extproc.routing.budget import Claim
from extproc.routing.limits import Rates
from extproc.routing.redis_link import KEY_PREFIX, RedisLink
from extproc.routing.spending import MemorySpending, Reserved, without_room

log = logging.getLogger(__name__)

# A write in the background has more time.
_WRITE_S = 1.0
# Sums of a month are kept for that month, and for the outcomes of its last requests.
_KEPT_S = 40 * 86_400
_KEYS_IN_A_CALL = 500
# Amounts that are kept for the store, one for each budget or principal. The oldest goes.
_MOST_UNSENT = 100_000
_PREFIX = f"{KEY_PREFIX}budget:"

# The start of each script. The data in the store has a name, and each change a number. Both are lost with the sums.
# Another name says that sums are lost. A number below one that a process has seen says that an older copy was
# restored. Then the data gets a new name, so that every process raises its sums.
_CHECK = """
local name, number = KEYS[1], KEYS[2]
if tonumber(redis.call('GET', number) or '0') < tonumber(ARGV[4]) then
  redis.call('SET', number, ARGV[4])
  redis.call('SET', name, ARGV[3])
end
redis.call('SET', name, ARGV[3], 'NX')
local named = redis.call('GET', name)
local lost = ARGV[2] ~= '' and named ~= ARGV[2]
local answer = {named, lost and 1 or 0, redis.call('INCR', number)}
"""
# Adds the amount to every sum, if all of them then stay within their limits. Returns the sums after that, and a 1
# if the amount was added. A sum that the store has lost starts from the sum in this process.
_RESERVE = f"""{_CHECK}
local full = false
for i = 3, #KEYS do
  local total, known = redis.call('GET', KEYS[i]), ARGV[2 * i + 1]
  if total and lost and tonumber(total) < tonumber(known) then redis.call('SET', KEYS[i], known) end
  if not total or (lost and tonumber(total) < tonumber(known)) then total = known end
  if tonumber(total) + tonumber(ARGV[5]) > tonumber(ARGV[2 * i]) then full = true end
  table.insert(answer, tonumber(total))
end
if full then return answer end
for i = 3, #KEYS do
  redis.call('SET', KEYS[i], ARGV[2 * i + 1], 'NX')
  answer[i + 1] = redis.call('INCRBY', KEYS[i], ARGV[5])
  redis.call('EXPIRE', KEYS[i], ARGV[1])
end
table.insert(answer, 1)
return answer
"""
# Adds amounts to sums, and returns the sums. With a 1 as fifth argument, each sum is first raised to the one that
# this process has seen.
_ADD = f"""{_CHECK}
for i = 3, #KEYS do
  local total = redis.call('GET', KEYS[i])
  if not total or ((lost or ARGV[5] == '1') and tonumber(total) < tonumber(ARGV[2 * i])) then
    redis.call('SET', KEYS[i], ARGV[2 * i])
  end
  total = redis.call('INCRBY', KEYS[i], ARGV[2 * i + 1])
  if total < 0 then
    redis.call('SET', KEYS[i], '0')
    total = 0
  end
  redis.call('EXPIRE', KEYS[i], ARGV[1])
  table.insert(answer, total)
end
return answer
"""
# A token bucket, by the clock of the store. Returns whether a token was taken, and the tokens that are left.
_TAKE = """
local rate, size = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = tonumber(bucket[1] or size)
tokens = math.min(size, tokens + math.max(0, now - tonumber(bucket[2] or now)) * rate)
local taken = 0
if tokens >= 1 then
  tokens = tokens - 1
  taken = 1
end
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {taken, tostring(tokens)}
"""
# A bucket is forgotten when it is full again, between these two times after its last use.
_LEAST_KEPT_S, _MOST_KEPT_S = 60, 86_400


# The answer of a script: the name of the data, whether sums were lost, the number of the change, and the sums.
_Answer = tuple[bytes, int, int, *tuple[int, ...]]


class RedisSpending:
    """The sums of budgets in the store, and a copy of those that this process has seen."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._stored = MemorySpending()  # the sums as the store had them last
        self._unsent = OrderedDict[str, int]()  # the amounts that the store has not got
        self._reserve = link.client.register_script(_RESERVE)
        self._add = link.client.register_script(_ADD)
        self._name = b""  # of the data in the store. Empty: it is not known yet
        self._changes = 0  # the highest number of a change that this process has seen
        self._to_raise = False  # the store may not have the sums of this process
        self._raising = False
        link.returned.append(self._restore)

    async def reserve(self, claims: Sequence[Claim], amount: int) -> Reserved:
        """Add the amount to every sum, if there is room for it."""
        keys = [claim.key for claim in claims]
        answer: _Answer | None = None
        if self._link.reachable:
            values = [value for claim in claims for value in (claim.limit, self._in_store(claim.key))]
            call = self._reserve(self._keys(keys), [*self._seen(), amount, *values])
            late = partial(self._take_back, keys, amount)
            answer = await self._link.ask(call, self._link.within_s, late)
        if answer is None:
            full = without_room(claims, [*map(self._known, keys)], amount)
            if not full:
                self._note_unsent(keys, amount)
            return Reserved(full, local=True)
        totals = self._see(keys, answer)
        if len(totals) > len(claims):
            return Reserved()
        return Reserved(without_room(claims, totals, amount))

    def _take_back(self, keys: Sequence[str], amount: int, answer: _Answer) -> None:
        """Take back what the store has added too late. The request was paid for, or refused, without it."""
        totals = self._see(keys, answer)
        if len(totals) > len(keys):
            self.add(keys, -amount)

    def add(self, keys: Sequence[str], amount: int) -> None:
        """Add an amount to every sum. The write goes on in the background."""
        self._note_unsent(keys, amount)
        self._send()

    def raise_to(self, totals: Mapping[str, int]) -> None:
        """Raise each sum to at least this amount."""
        self._stored.raise_to(totals)
        self._link.start(self._raise([*totals]))

    def _restore(self) -> None:
        """Send what was counted while the store was gone, and the sums that it may have lost."""
        self._link.start(self._flush(look=True))

    async def _raise_all(self) -> None:
        """Raise every sum, once at a time: a store that is slow under these calls must not get more of them."""
        try:
            await self._raise([*self._stored.totals.keys() | self._unsent])
        finally:
            self._raising = False

    async def _raise(self, keys: Sequence[str]) -> None:
        """Raise these sums in the store, some after others, so that requests do not wait behind all of them."""
        for start in range(0, len(keys), _KEYS_IN_A_CALL):
            await self._flush(keys[start : start + _KEYS_IN_A_CALL])

    def _send(self) -> None:
        if self._link.reachable and self._unsent:
            self._link.start(self._flush())

    async def _flush(self, raised: Sequence[str] = (), look: bool = False) -> None:
        """Send amounts. `look`: also if there are none, to see whether the store has lost sums."""
        keys = [*(raised or islice(self._unsent, _KEYS_IN_A_CALL))]
        if not keys and not look:
            return  # an earlier call has sent them
        unsent = {key: self._unsent.pop(key, 0) for key in keys}
        values = [value for key in keys for value in (self._in_store(key), unsent[key])]
        call = self._add(self._keys(keys), [*self._seen(), int(bool(raised)), *values])
        answer: _Answer | None = await self._link.ask(call, _WRITE_S, partial(self._sent_late, unsent))
        if answer is None:
            for key in keys:
                self._note_unsent([key], unsent[key])
            if raised:
                self._to_raise = True
            return
        self._see(keys, answer)
        self._send()

    def _sent_late(self, unsent: Mapping[str, int], answer: _Answer) -> None:
        """Take amounts off that the store has got after all. `answer` has its sums in the same order."""
        for key, amount in unsent.items():
            self._note_unsent([key], -amount)
        self._see([*unsent], answer)

    def _note_unsent(self, keys: Sequence[str], amount: int) -> None:
        for key in keys:
            total = self._unsent.pop(key, 0) + amount
            if total:
                self._unsent[key] = total
        while len(self._unsent) > _MOST_UNSENT:
            self._unsent.popitem(last=False)

    def _keys(self, keys: Sequence[str]) -> list[str]:
        return [_PREFIX + key for key in ("name", "changes", *keys)]

    def _seen(self) -> list[Any]:
        """The first arguments of each script: the name and the changes that this process knows, and a new name."""
        return [_KEPT_S, self._name, secrets.token_hex(8), self._changes]

    def _see(self, keys: Sequence[str], answer: _Answer) -> list[int]:
        """Note an answer of the store, and return its sums. If it has lost sums, raise those of this process."""
        name, lost, changes, *totals = answer
        if lost and name != self._name:  # otherwise an earlier answer reported it
            log.warning("`state` has lost sums of budgets: they are raised to those that this router has seen")
            self._to_raise = True
        # Not otherwise: the sums of this process may be from before other processes lowered them.
        if self._to_raise and not self._raising:
            self._to_raise, self._raising = False, True
            self._link.start(self._raise_all())
        self._name, self._changes = name, max(self._changes, changes)
        for key, total in zip(keys, totals, strict=False):
            self._stored.put(key, int(total))
        return totals

    def _in_store(self, key: str) -> int:
        """The sum as the store had it last."""
        return self._stored.totals.get(key, 0)

    def _known(self, key: str) -> int:
        """The sum, as this process knows it.

        Envoy reports every cost to one of the processes, also that of requests for which another process reserved
        more. Without the store, only that process would see its sum fall, and would spend the difference again.
        """
        return self._in_store(key) + max(0, self._unsent.get(key, 0))

    @property
    def totals(self) -> Mapping[str, int]:
        """The sums, as this process knows them."""
        return {key: self._known(key) for key in (*self._stored.totals, *self._unsent)}


class RedisRates:
    """Token buckets in the store, one for each principal. While the store is gone: those of this process.

    The buckets of this process follow those of the store. So they are not full when the store does not answer.
    """

    def __init__(self, link: RedisLink, name: str, own: Rates) -> None:
        """`name` is that of the limit, in the keys of its buckets."""
        self._link, self._name, self._own = link, name, own
        self._take = link.client.register_script(_TAKE)

    async def take(self, principal: str, per_minute: float, burst: int, now_s: float) -> bool:
        """Take one token, and return whether there was one."""
        key, allowed = f"{KEY_PREFIX}rate:{self._name}:{principal}", True

        def late(answer: Sequence[bytes]) -> None:
            if int(answer[0]) and not allowed:
                self._link.start(self._give_back(key))

        if self._link.reachable:
            full_s = 60 * burst / per_minute if per_minute > 0 else _MOST_KEPT_S
            kept_s = int(min(max(full_s, _LEAST_KEPT_S), _MOST_KEPT_S)) + 1
            call = self._take([key], [per_minute / 60, burst, kept_s])
            answer = await self._link.ask(call, self._link.within_s, late)
            if answer is not None:
                self._own.follow(float(answer[1]), principal, per_minute, burst, now_s)
                return bool(int(answer[0]))
        allowed = await self._own.take(principal, per_minute, burst, now_s)
        return allowed

    async def _give_back(self, key: str) -> None:
        """Give back a token that the store took for a request that was refused without its answer."""
        await self._link.ask(self._link.client.hincrbyfloat(key, "tokens", 1), _WRITE_S)
