"""The money that is spent, by outcomes and by the ledger, for the budgets of the router."""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from extproc.accounting.outcome import Cost, Outcome, paid
from extproc.accounting.spent import read_spent
from extproc.routing.budget import BudgetSpec, Charge, month_of, nano, shares
from extproc.routing.paying import Budgets
from extproc.routing.router import Router

log = logging.getLogger(__name__)

# How soon a budget that a reload has added starts from the sum in the ledger.
_INTERVAL_S = 1.0
# A ledger that could not be read is read again this much later.
_PATIENCE_S = 30.0


def settle(budgets: Budgets | None, outcome: Outcome, cost: Cost) -> None:
    """Put the real cost of a request in the place of the reserved one."""
    charge = Charge.from_text(outcome.charge or "")
    if charge is None or budgets is None:
        return
    usd, usage = paid(outcome, cost), outcome.usage
    budgets.settle(
        charge,
        nano(usd) if usd is not None else None,
        outcome.tier,
        usage.output if usage is not None else None,
    )


async def follow_spent(router: Router, place: Path | str) -> None:
    """Until cancelled: raise the sum of each new budget to that of the ledger for this month.

    So a restart of a router forgets nothing, and a budget that a reload adds knows what was spent before.
    """
    counted: set[str] = set()
    failures = 0  # in a row
    while True:
        specs = router.snapshot.all_budgets
        # A budget that is removed and added again has not counted what was spent in between.
        counted &= {spec.name for spec in specs}
        new = [spec for spec in specs if spec.name not in counted]
        if new:
            failure = await _count(router, place, new)
            counted |= {spec.name for spec in new if failure is None}
            failures = 0 if failure is None else failures + 1
            if failures == 2:  # a new ledger may not be there at first
                log.warning("budgets go on without the sums of the ledger, which is read again later: %s", failure)
        await asyncio.sleep(_PATIENCE_S if failures > 1 else _INTERVAL_S)


async def _count(router: Router, place: Path | str, specs: Sequence[BudgetSpec]) -> OSError | None:
    """Raise the sums of these budgets. Return why the ledger cannot be read."""
    try:
        totals = await asyncio.to_thread(read_spent, place, specs, time.time())
    except OSError as error:
        return error
    if router.budgets is not None:
        router.budgets.spending.raise_to(totals)
    return None


def spent_shares(router: Router) -> dict[str, float]:
    """Return the spent share of each budget, by its name."""
    if router.budgets is None:
        return {}
    return shares(router.snapshot.all_budgets, router.budgets.spending.totals, month_of(time.time()))
