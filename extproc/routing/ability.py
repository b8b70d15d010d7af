"""Whether a tier can serve a request: its API, its capabilities, and room for the request and its answer."""

from collections.abc import Sequence

import msgspec

from extproc.api.paths import Api
from extproc.routing.signals import Signals
from extproc.settings import AGENT_CAPABILITIES, Tier

# The room for an answer without a cap, in tokens: about 700 words. A tier with a small context keeps a quarter.
_USUAL_ANSWER = 1024
# The part of a small context that is kept for a short answer: one of this many.
_SHARE = 4


class Load(msgspec.Struct, frozen=True):
    """The request and its answer, as a tier sees them."""

    api: Api
    needs: frozenset[str]
    tokens: int  # of the request
    answer: int | None  # most tokens of the answer; None: no cap
    brief: bool = False  # the answer is a title, which is short, however high the client's cap is


def load_of(signals: Signals, cap: int | None, tiers: Sequence[Tier]) -> Load:
    """Return the load of a request. `cap` is the policy's cap on output tokens."""
    caps = [tokens for tokens in (signals.max_output_tokens, cap) if tokens is not None]
    listed = {name for tier in tiers for name in tier.capabilities or ()}
    ignored = AGENT_CAPABILITIES - listed
    answer = max(0, min(caps)) if caps else None
    return Load(signals.api, signals.needs - ignored, signals.tokens, answer, signals.background == "title")


def first_able(tiers: Sequence[Tier], ranks: Sequence[int], load: Load) -> int | None:
    """Return the first of these ranks whose tier can serve the load, or None if no tier has the capabilities.

    If none can by our estimate of the request's size, the capable tier with the largest context gets it. That
    upstream then reports the error to the client.
    """
    taking = [rank for rank in ranks if tiers[rank].takes_new]
    capable = [rank for rank in taking if _is_capable(tiers, rank, load, max(taking))]
    fitting = (rank for rank in capable if _has_room(tiers[rank], load))
    return next(fitting, max(capable, key=lambda rank: tiers[rank].context, default=None))


def can_serve(tiers: Sequence[Tier], rank: int, load: Load, last: int) -> bool:
    """Return whether the tier of this rank can serve the load. `last` is the highest rank that may."""
    return _has_room(tiers[rank], load) and _is_capable(tiers, rank, load, last)


def cap_that_fits(tier: Tier, load: Load) -> int | None:
    """Return the cap for a brief answer at a tier whose context is too small for the client's cap, or None."""
    if not load.brief or load.answer is None or load.tokens + load.answer <= tier.context:
        return None
    return tier.context // _SHARE


def _has_room(tier: Tier, load: Load) -> bool:
    answer = min(_USUAL_ANSWER, tier.context // _SHARE) if load.answer is None else load.answer
    return load.tokens + (cap_that_fits(tier, load) or answer) <= tier.context


def _is_capable(tiers: Sequence[Tier], rank: int, load: Load, last: int) -> bool:
    """Whether the tier takes new requests on this API and has a capability for every need.

    The last tier also serves each need that no tier has.
    """
    tier = tiers[rank]
    if not tier.takes_new or not tier.speaks(load.api):
        return False
    lacking = tier.lacks(load.needs)
    if not lacking or rank != last:
        return not lacking
    return all(other.lacks(lacking) == lacking for other in tiers if other.takes_new)
