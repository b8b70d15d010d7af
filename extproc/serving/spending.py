"""The money that is spent, by outcomes and by the ledger, for the budgets of the router."""

import asyncio
import logging
import time
from pathlib import Path

from extproc.accounting.outcome import Cost, Outcome, paid
from extproc.accounting.spent import read_spent
from extproc.routing.budget import Charge, month_of, nano, shares
from extproc.routing.paying import Budgets
from extproc.routing.router import Router

log = logging.getLogger(__name__)


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


async def count_spent(router: Router, place: Path | str) -> None:
    """Raise the sums of this month to those of the ledger. A restart of a router then forgets nothing."""
    specs, budgets = router.snapshot.all_budgets, router.budgets
    if not specs or budgets is None:
        return
    try:
        totals = await asyncio.to_thread(read_spent, place, specs, time.time())
    except OSError as error:
        log.info("budgets begin without the ledger: %s", error)
        return
    budgets.spending.raise_to(totals)


def spent_shares(router: Router) -> dict[str, float]:
    """Return the spent share of each budget, by its name."""
    if router.budgets is None:
        return {}
    return shares(router.snapshot.all_budgets, router.budgets.spending.totals, month_of(time.time()))
