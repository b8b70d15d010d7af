"""Limits on escalations and upgrades, so that no client can force traffic to expensive tiers."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from extproc.contract.words import Bound

# Cache size. The least recently used principal is evicted and starts again with a full bucket.
_PRINCIPALS = 10_000
# Escalations of a cohort that are allowed before its share applies.
_SHARE_BURST = 10.0


class _Bucket(msgspec.Struct):
    """A token bucket. One token allows one escalation or upgrade."""

    tokens: float
    at_s: float = 0.0


class RateLimit(Protocol):
    """A token bucket for each principal."""

    async def take(self, principal: str, per_minute: float, burst: int, now_s: float) -> bool:
        """Take one token, and return whether there was one. Never waits long."""


class Rates:
    """A token bucket for each principal.

    Each process counts alone. Envoy spreads requests over `workers` processes, so each allows its part of a rate
    and of a burst, but at least one.
    """

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._principals: OrderedDict[str, _Bucket] = OrderedDict()

    async def take(self, principal: str, per_minute: float, burst: int, now_s: float) -> bool:
        """Take one token, and return whether there was one."""
        bucket = self.bucket(principal, per_minute, burst, now_s)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def follow(self, shared: float, principal: str, per_minute: float, burst: int, now_s: float) -> None:
        """Set a bucket to its part of the tokens in the bucket that all processes share."""
        size = _part(burst, self._workers)
        self.bucket(principal, per_minute, burst, now_s).tokens = shared * size / burst if burst else 0.0

    def bucket(self, principal: str, per_minute: float, burst: int, now_s: float) -> _Bucket:
        """Return the principal's bucket, refilled until `now_s`."""
        bucket, size = self._principals.get(principal), _part(burst, self._workers)
        if bucket is None:
            bucket = self._principals[principal] = _Bucket(size, now_s)
            if len(self._principals) > _PRINCIPALS:
                self._principals.popitem(last=False)
        self._principals.move_to_end(principal)
        bucket.tokens = min(bucket.tokens + (now_s - bucket.at_s) * per_minute / 60 / self._workers, size)
        bucket.at_s = now_s
        return bucket


class Bounds:
    """The two token buckets for an escalation: the share of its cohort and the rate of its principal.

    Each process counts alone, as with `Rates`. With `shared`, the rate of a principal holds over all processes.
    """

    def __init__(self, workers: int = 1, shared: RateLimit | None = None) -> None:
        self._share_burst = _part(_SHARE_BURST, workers)
        self._cohorts: dict[str, _Bucket] = {}
        self._rates = Rates(workers)
        self._shared = shared

    def judged(self, cohort: str, share: float) -> None:
        """Count one judged answer, which adds `share` tokens to the bucket of its cohort."""
        bucket = self._cohorts.setdefault(cohort, _Bucket(self._share_burst))
        bucket.tokens = min(bucket.tokens + share, self._share_burst)

    async def take(self, cohort: str, principal: str, per_minute: float, burst: int, now_s: float) -> Bound | None:
        """Do as `allow`, and ask the shared buckets if there are some."""
        if self._shared is None:
            return self.allow(cohort, principal, per_minute, burst, now_s)
        share = self._cohorts.setdefault(cohort, _Bucket(self._share_burst))
        if share.tokens < 1:
            return Bound.COHORT_SHARE
        share.tokens -= 1  # before the wait, in which other answers are judged
        if await self._shared.take(principal, per_minute, burst, now_s):
            return None
        share.tokens += 1
        return Bound.PRINCIPAL_RATE

    def allow(self, cohort: str, principal: str, per_minute: float, burst: int, now_s: float) -> Bound | None:
        """Take one token from both buckets, or return the limit that is reached and take none."""
        share = self._cohorts.setdefault(cohort, _Bucket(self._share_burst))
        rate = self._rates.bucket(principal, per_minute, burst, now_s)
        if share.tokens < 1:
            return Bound.COHORT_SHARE
        if rate.tokens < 1:
            return Bound.PRINCIPAL_RATE
        share.tokens -= 1
        rate.tokens -= 1
        return None


def _part(burst: float, workers: int) -> float:
    """One worker's part of a burst: at least 1, so that small bursts still allow something, but 0 of 0."""
    return max(burst / workers, min(burst, 1.0))


def principal_header(headers: Mapping[str, str], names: Sequence[str]) -> str | None:
    """Return the value of the first of these headers that the request has."""
    return next((headers[name] for name in names if name in headers), None)


def principal_of(header: str | None) -> str:
    """Return the principal, as a hash. The header may be an API key, so it is never stored."""
    if header is None:
        return "anonymous"
    return hashlib.blake2b(header.encode(errors="replace"), digest_size=8).hexdigest()
