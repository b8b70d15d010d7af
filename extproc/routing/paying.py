"""Pays for requests: reserves their expected cost in their budgets, and corrects it when the real cost is known."""

import time
from collections.abc import Callable

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
from extproc.routing.decision import Decision, refused
from extproc.routing.signals import Signals
from extproc.routing.snapshot import Snapshot
from extproc.routing.spending import MemorySpending, Spending

# The decision for a request whose budgets pay for no tier above this rank. None: they pay for every tier.
Choose = Callable[[int | None], Decision]
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

    def settle(self, charge: Charge, amount: int | None, tier: str | None, output: int | None) -> None:
        """Put the real cost in the place of the reserved one. None: it is not known, so the reserved one stays."""
        if tier is not None and output is not None:
            self._outputs.note(tier, output)
        if amount is not None and amount != charge.amount:
            self.spending.add(charge.keys, amount - charge.amount)
