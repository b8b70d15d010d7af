"""Caps on escalation: the trigger is a control boundary, so nobody gets to push traffic up without end."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from extproc.contract.words import Bound

# Principals remembered at once; the one longest unheard of is forgotten first, with a full bucket when it
# comes back.
_PRINCIPALS = 10_000
# Of what opens a conversation; more tells no two of them apart.
_OPENING_CHARS = 4096
# A cohort's first escalations are allowed before its share says anything.
_SHARE_BURST = 10.0


class _Bucket(msgspec.Struct):
    tokens: float
    at_s: float = 0.0


class Rates:
    """A token bucket for each principal.

    Counts are this process's own. As one of `workers`, among which Envoy spreads everybody's requests, it allows
    its part of a rate and of a burst (one at least), so that all of them together allow the whole.
    """

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._principals: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, principal: str, per_minute: float, burst: int, now_s: float) -> bool:
        """Take one, if there is one."""
        bucket = self.bucket(principal, per_minute, burst, now_s)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def bucket(self, principal: str, per_minute: float, burst: int, now_s: float) -> _Bucket:
        """A principal's bucket, filled up to now."""
        bucket, most = self._principals.get(principal), _part(burst, self._workers)
        if bucket is None:
            bucket = self._principals[principal] = _Bucket(most, now_s)
            if len(self._principals) > _PRINCIPALS:
                self._principals.popitem(last=False)
        self._principals.move_to_end(principal)
        bucket.tokens = min(bucket.tokens + (now_s - bucket.at_s) * per_minute / 60 / self._workers, most)
        bucket.at_s = now_s
        return bucket


class Bounds:
    """Two token buckets an escalation has to pass: its cohort's share, and its principal's rate.

    Counts are this process's own, as those of `Rates` are.
    """

    def __init__(self, workers: int = 1) -> None:
        self._share_burst = _part(_SHARE_BURST, workers)
        self._cohorts: dict[str, _Bucket] = {}
        self._rates = Rates(workers)

    def judged(self, cohort: str, share: float) -> None:
        """Count one judged answer: it earns its cohort `share` of an escalation."""
        bucket = self._cohorts.setdefault(cohort, _Bucket(self._share_burst))
        bucket.tokens = min(bucket.tokens + share, self._share_burst)

    def allow(self, cohort: str, principal: str, per_minute: float, burst: int, now_s: float) -> Bound | None:
        """Take one escalation from both buckets, or return the bound that forbids it."""
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
    return max(burst / workers, min(burst, 1.0))


def principal_of(header: str | None) -> str:
    """Who asks, as a hash: the header itself may be a key and is never kept."""
    if header is None:
        return "anonymous"
    return hashlib.blake2b(header.encode(errors="replace"), digest_size=8).hexdigest()


def session_of(header: str | None, opening: Sequence[str]) -> str:
    """The conversation, as a hash of the first words that the person said in it.

    Keyed by the principal's header, which is never kept: without it, nobody can try words against the hash.
    """
    key = hashlib.blake2b((header or "").encode(errors="replace")).digest()
    said = "\n".join(opening)[:_OPENING_CHARS].encode(errors="replace")
    return hashlib.blake2b(said, digest_size=8, key=key).hexdigest()
