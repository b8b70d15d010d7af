"""Caps on escalation: the trigger is a control boundary, so nobody gets to push traffic up without end."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

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


class Bounds:
    """Two token buckets an escalation has to pass: its cohort's share, and its principal's rate.

    Counts are this process's own. As one of `workers`, among which Envoy spreads everybody's requests, it allows
    its part of a rate and of a burst (one escalation at least), so that all of them together allow the whole.
    """

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._cohorts: dict[str, _Bucket] = {}
        self._principals: OrderedDict[str, _Bucket] = OrderedDict()

    def judged(self, cohort: str, share: float) -> None:
        """Count one judged answer: it earns its cohort `share` of an escalation."""
        burst = self._part(_SHARE_BURST)
        bucket = self._cohorts.setdefault(cohort, _Bucket(burst))
        bucket.tokens = min(bucket.tokens + share, burst)

    def allow(self, cohort: str, principal: str, per_minute: float, burst: int, now_s: float) -> str | None:
        """Take one escalation from both buckets; or say which bound forbids it: cohort_share, principal_rate."""
        share = self._cohorts.setdefault(cohort, _Bucket(self._part(_SHARE_BURST)))
        rate, most = self._principals.get(principal), self._part(burst)
        if rate is None:
            rate = self._principals[principal] = _Bucket(most, now_s)
            if len(self._principals) > _PRINCIPALS:
                self._principals.popitem(last=False)
        self._principals.move_to_end(principal)
        rate.tokens = min(rate.tokens + (now_s - rate.at_s) * per_minute / 60 / self._workers, most)
        rate.at_s = now_s
        if share.tokens < 1:
            return "cohort_share"
        if rate.tokens < 1:
            return "principal_rate"
        share.tokens -= 1
        rate.tokens -= 1
        return None

    def _part(self, burst: float) -> float:
        return max(burst / self._workers, min(burst, 1.0))


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
