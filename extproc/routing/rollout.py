"""Which arm of a rollout decides about a conversation."""

import hashlib
from collections.abc import Mapping

from extproc.routing.conversations import Continuation
from extproc.routing.decision import Decision, decide
from extproc.routing.policy import is_named
from extproc.routing.snapshot import Rollout, Snapshot
from extproc.routing.vector import Matched, match_asks


def arm_of(snapshot: Snapshot, conversation: str, shares: Mapping[str, float]) -> Snapshot:
    """Return the snapshot that decides: the candidate for its share of the conversations.

    All replicas with the same files agree. A larger share takes more conversations and gives none back. After a
    verdict on a candidate, `shares` has its share by its revision. It takes the place of the policy's share.
    """
    for revision, share in candidate_shares(snapshot.rollout, shares).items():
        if is_in_share(conversation, revision, share):
            return snapshot.arm(revision)
    return snapshot


def candidate_shares(rollout: Rollout | None, shares: Mapping[str, float]) -> dict[str, float]:
    """The share of the candidate by its revision. Empty: there is none, or it only decides beside, or it is off."""
    revision = rollout.revision if rollout is not None else None
    if rollout is None or revision is None or rollout.spec.shadow:
        return {}
    return {revision: shares.get(revision, rollout.spec.percent / 100)}


def is_off(rollout: Rollout | None) -> bool:
    """Whether there is a candidate, and its files have mistakes."""
    return rollout is not None and rollout.snapshot is None


def is_in_share(conversation: str, revision: str, share: float) -> bool:
    """Whether a conversation is in the share of this candidate. Another candidate gets other conversations."""
    digest = hashlib.blake2b(f"{revision} {conversation}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


def decide_candidate(
    snapshot: Snapshot, matched: Matched, headers: Mapping[str, str], continuation: Continuation
) -> Decision | None:
    """Return the decision of a candidate that decides without an effect. None: there is no such candidate."""
    rollout = snapshot.rollout
    if rollout is None or rollout.snapshot is None or not rollout.spec.shadow:
        return None
    candidate = rollout.snapshot
    if is_named(candidate.policy, matched.signals.model):
        return None
    own = match_asks(candidate, matched.asks, headers) if matched.asks else matched
    return decide(candidate.policy, own.signals, own.match, headers, own.failure, continuation=continuation)
