"""The spend of a conversation on its prompts, and whether it can pay for a switch to a cheaper tier. No I/O.

A switch gives up a warm prompt cache. The tier that takes over reads the whole conversation at full price. When the
conversation comes back, the first tier does so, too. So a conversation is compared with one that never
switches: it stays at the highest tier that it has needed so far, its `anchor`.

A request may go below the anchor if what was spent, and the price of a return to the anchor, stays within
(1 + budget) times what never switching costs. A return is then always paid for, so this holds for every request.
Tokens are estimates, and output is left out: it costs no more at a cheaper tier.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from extproc.settings import Price, Tier, about

# How long providers keep a prompt cache that no request uses: 5 minutes at Anthropic, 5 to 10 at OpenAI.
_WARM_S = 300.0


class Sticky(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a conversation may move to another tier between two turns."""

    switch_budget: Annotated[
        float | None,
        about(
            "How much more a conversation may spend on its prompts because of switches to cheaper tiers, as a "
            "fraction of its spend without switches (0.1 = 10 %). Left out: switches are not limited."
        ),
    ] = None
    on_switch: Annotated[
        Literal["bind", "strip"],
        about(
            "bind: a request with sealed state stays at the tier that made it. strip: it may move. Encrypted "
            "reasoning and signed thinking that the new tier cannot read are then removed."
        ),
    ] = "bind"


class History(msgspec.Struct, frozen=True, array_like=True):
    """A conversation after its last request, as the store keeps it."""

    tier: str  # answered last
    seal: str = ""  # hash of that tier's seal
    anchor: str = ""  # where a conversation that never switches would be
    tokens: int = 0  # of the last request
    spent: float = 0.0  # US dollars for all prompts
    baseline: float = 0.0  # the same without switches
    at_s: float = 0.0  # time of the last request
    foreign: str = ""  # hash of the last sealed item that the tier cannot read
    newest: str = ""  # hash of the newest sealed item in the last request


def seal_of(tier: Tier) -> str:
    """The seal of a tier. Tiers with the same seal can read each other's state."""
    return tier.seal or " ".join((*(endpoint.url for endpoint in tier.endpoints), tier.url, tier.model))


def advance(history: History | None, tiers: Sequence[Tier], served: int, tokens: int, now_s: float) -> History:
    """Return the history after a request of `tokens` to the tier of rank `served`."""
    tier = tiers[served]
    last, anchor = _rank(tiers, history.tier if history else ""), _rank(tiers, history.anchor if history else "")
    highest = max(served, anchor)
    if history is None or anchor < 0:
        cost = _cost(tier.price, tokens, 0)
        return History(tier.name, anchor=tier.name, tokens=tokens, spent=cost, baseline=cost, at_s=now_s)
    cached = min(history.tokens, tokens) if now_s - history.at_s < _WARM_S else 0
    return History(
        tier.name,
        anchor=tiers[highest].name,
        tokens=tokens,
        spent=history.spent + _cost(tier.price, tokens, cached if served == last else 0),
        baseline=history.baseline + _cost(tiers[highest].price, tokens, cached if highest == anchor else 0),
        at_s=now_s,
        foreign=history.foreign,
    )


def choose(
    history: History,
    tiers: Sequence[Tier],
    proposed: int,
    able: Sequence[int],
    tokens: int,
    now_s: float,
    budget: float,
) -> int:
    """Return the lowest rank from `proposed` up that the budget pays for. `able` are the ranks that may serve.

    The result is `proposed`, the tier that answered last, or the anchor.
    """
    anchor = _rank(tiers, history.anchor)
    ranks = {proposed, _rank(tiers, history.tier), anchor}
    for rank in sorted(rank for rank in ranks if rank == proposed or (rank > proposed and rank in able)):
        after = advance(history, tiers, rank, tokens, now_s)
        back = _cost(tiers[anchor].price, tokens, 0) - _cost(tiers[anchor].price, tokens, tokens)
        reserve = back if rank < anchor else 0.0
        if rank >= anchor or after.spent + reserve <= (1 + budget) * after.baseline:
            return rank
    return proposed


def _rank(tiers: Sequence[Tier], name: str) -> int:
    """The rank of a tier, or -1 if it is no longer in the policy."""
    return next((rank for rank, tier in enumerate(tiers) if tier.name == name), -1)


def _cost(price: Price, tokens: int, cached: int) -> float:
    """The price of a prompt in US dollars, with this many of its tokens in the cache."""
    cached_price = price.input if price.cached_input is None else min(price.cached_input, price.input)
    return ((tokens - cached) * price.input + cached * cached_price) / 1e6
