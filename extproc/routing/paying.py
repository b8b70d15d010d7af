"""Pays for requests: reserves their expected cost in their budgets, and corrects it when the real cost is known."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from extproc.contract.words import Reason
from extproc.routing.budget import (
    Charge,
    Outputs,
    Payment,
    ceiling_of,
    claims,
    cost,
    month_of,
    seconds_left,
)
from extproc.routing.conversations import Continuation
from extproc.routing.decision import Decision, decide, decide_named, refused
from extproc.routing.index import Match
from extproc.routing.limits import RateLimit
from extproc.routing.policy import is_named
from extproc.routing.signals import Signals
from extproc.routing.snapshot import Snapshot
from extproc.routing.spending import MemorySpending, Spending


class Choose(Protocol):
    """The decision for a request whose budgets pay for no tier above a rank. None: they pay for every tier.

    `spent`: the principal has no upgrade left.
    """

    def __call__(self, ceiling: int | None = None, spent: bool = False) -> Decision: ...


# Bytes of a body for each token, where the body cannot be read.
_BYTES_PER_TOKEN = 4


class Budgets:
    """Pays for requests from sums that other processes may share."""

    def __init__(self, spending: Spending | None = None, clock: Callable[[], float] = time.time) -> None:
        self.spending: Spending = spending or MemorySpending()
        self._clock = clock
        self._outputs = Outputs()

    async def pay(
        self, snapshot: Snapshot, principal: str, decision: Decision, choose: Choose, load: "Signals | int"
    ) -> tuple[Decision, Payment]:
        """Reserve the cost of a request, at the tier of the decision or at a cheaper one.

        `load` is what is known about the request: its signals, or the bytes of a body that cannot be read. The
        decision is refused if its budgets pay for no tier that may get it.
        """
        specs = snapshot.budgets
        if not specs or decision.refused or snapshot.policy.mode == "shadow":
            return decision, Payment()
        now_s = self._clock()
        month, full, local = month_of(now_s), set[int](), False
        while (wanted := claims(specs, full, principal, month)) is not None:
            amount = self._expected(decision, load)
            reserved = await self.spending.reserve(wanted, amount)
            local |= reserved.local
            budget = specs[min(full)].name if full else None
            if not reserved.full:
                return decision, Payment(Charge(amount, tuple(claim.key for claim in wanted)), budget, local)
            if full.intersection(reserved.full):
                break  # twice the budget is spent
            full.update(reserved.full)
            if all(specs[i].over is not None for i in full):
                decision = choose(ceiling_of(specs, full, snapshot.policy))
                if decision.refused:
                    return decision, Payment(local=local)
        budget = specs[min(full)].name
        return refused(decision, Reason.BUDGET), Payment(None, budget, local, seconds_left(now_s))

    def _expected(self, decision: Decision, load: "Signals | int") -> int:
        """The cost to reserve for the first attempt."""
        caps = [decision.max_output_tokens]
        tokens = load // _BYTES_PER_TOKEN if isinstance(load, int) else load.tokens
        if not isinstance(load, int):
            caps.append(load.max_output_tokens)
        cap = min((cap for cap in caps if cap is not None), default=None)
        return cost(decision.tier.price, tokens, self._outputs.expected(decision.tier.name, cap))

    def give_back(self, payment: Payment) -> None:
        """Give back what was reserved for a request that needs no tier after all."""
        if payment.charge is not None:
            self.settle(payment.charge, 0, None, None)

    def settle(self, charge: Charge, amount: int | None, tier: str | None, output: int | None) -> None:
        """Put the real cost in the place of the reserved one. None: it is not known, so the reserved one stays."""
        if tier is not None and output is not None:
            self._outputs.note(tier, output)
        if amount is not None and amount != charge.amount:
            self.spending.add(charge.keys, amount - charge.amount)


def chooser(
    snapshot: Snapshot,
    signals: Signals,
    match: Match | None,
    headers: Mapping[str, str],
    failure: Reason,
    continuation: Continuation,
) -> Choose:
    """Return the function that decides about a request, for a ceiling that its budgets may set."""
    policy = snapshot.policy
    how = decide_named if is_named(policy, signals.model) else partial(decide, continuation=continuation)

    def choose(ceiling: int | None = None, spent: bool = False) -> Decision:
        return how(policy, signals, match, headers, failure, spent=spent, ceiling=ceiling)

    return choose


async def within_upgrades(
    rates: RateLimit | None, snapshot: Snapshot, principal: str, decision: Decision, choose: Choose
) -> tuple[Decision, Choose]:
    """Return the decision that the principal's upgrades allow, and the function for the ceilings of budgets.

    A tier above the default takes one of the upgrades, if the policy limits them. A client that names the model of
    a tier takes none.
    """
    policy, upgrades = snapshot.policy, snapshot.policy.upgrades
    above = policy.rank(decision.tier.name) > policy.rank(policy.default_tier)
    chosen_by_client = decision.reason in (Reason.PINNED, Reason.PASSTHROUGH)
    if upgrades is None or rates is None or not above or decision.refused or chosen_by_client:
        return decision, choose
    spent: Choose = partial(choose, spent=True)
    capped = spent(None)
    if capped.tier == decision.tier:  # a floor or a capability that no cap lowers
        return decision, choose
    if await rates.take(principal, upgrades.per_minute, upgrades.burst, time.monotonic()):
        return decision, choose
    return capped, spent
