"""The money that a ledger knows to be spent, for budgets that begin to count after a restart."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from extproc.accounting.store import connect
from extproc.routing.budget import BudgetSpec, month_of, month_start, nano

_GROUPS = "coalesce(o.app, '') AS app, coalesce(o.team, '') AS team, coalesce(o.principal, '') AS principal"
_LAST = f"SELECT {_GROUPS}, sum(o.cost) AS cost FROM outcomes o WHERE o.time >= ? GROUP BY 1, 2, 3"
_REJECTED = (
    f"SELECT {_GROUPS}, sum(r.cost) AS cost FROM rejections r JOIN outcomes o ON o.id = r.outcome "
    "WHERE o.time >= ? GROUP BY 1, 2, 3"
)


def read_spent(place: Path | str, specs: Sequence[BudgetSpec], now_s: float) -> dict[str, int]:
    """Return the sum of each budget in this month, by its key. Raises OSError."""
    month, sums = month_of(now_s), Counter[str]()
    with contextlib.closing(connect(place)) as ledger:
        if not ledger.has_column("app"):
            return {}  # an older ledger, which this router brings up to date
        for query in (_LAST, _REJECTED):
            for row in ledger.select(query, (month_start(now_s),)):
                for spec in specs:
                    if spec.holds(row["app"], row["team"]):
                        sums[spec.key(row["principal"], month)] += nano(row["cost"] or 0.0)
    return dict(sums)
