"""The money that a ledger knows to be spent, for budgets that begin to count after a restart."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec

from extproc.accounting.connection import Connection
from extproc.accounting.queries import ALL, OUTCOME_SUMS, REJECTION_SUMS
from extproc.accounting.sources import source_of
from extproc.accounting.store import connect
from extproc.routing.budget import BudgetSpec, month_of, month_start, nano

# Of the hourly sums, only the cost. They outlive the rows, and a month of them is read at once.
_COSTS = [
    msgspec.structs.replace(each, columns={"cost": each.columns["cost"]}) for each in (OUTCOME_SUMS, REJECTION_SUMS)
]
# There are no sums by both app and principal.
_OF_APP = "coalesce(o.principal, '-') AS name, sum({}) AS cost FROM {} WHERE o.time >= ? AND o.app = ? GROUP BY 1"
_OF_APP_QUERIES = (
    "SELECT " + _OF_APP.format("o.cost", "outcomes o"),
    "SELECT " + _OF_APP.format("r.cost", "rejections r JOIN outcomes o ON o.id = r.outcome"),
)
_EXPLORED = "SELECT coalesce(sum(cost), 0) AS cost FROM explorations WHERE time >= ?"


def read_spent(place: Path | str, specs: Sequence[BudgetSpec], now_s: float) -> dict[str, int]:
    """Return the sum of each budget in this month, by its key. Raises OSError.

    Rows that the ledger has deleted count by their hourly sums. Sums of principals are deleted with the rows.
    """
    month, begin, spent = month_of(now_s), month_start(now_s), Counter[str]()
    with contextlib.closing(connect(place)) as ledger, ledger.snapshot():
        if not ledger.has_column("app"):
            return {}  # an older ledger, which this router brings up to date
        of_dimension = cache(_reader(ledger, begin))
        for spec in specs:
            kind, name = spec.whose
            if not spec.per_principal:
                spent[spec.key("", month)] += of_dimension(ALL if kind == "all" else kind).get(name, 0)
                continue
            each = of_dimension("principal") if kind == "all" else _of_app(ledger, begin, name)
            for principal, amount in each.items():
                spent[spec.key("" if principal == "-" else principal, month)] += amount
    return dict(spent)


def _reader(ledger: Connection, begin: float) -> Callable[[str], Mapping[str, int]]:
    """Return the function that reads the cost of each name in a dimension, in nanodollars."""
    source = source_of(ledger, begin)

    def read(dimension: str) -> Mapping[str, int]:
        costs = Counter[str]()
        for each in _COSTS:
            for row in source.read(ledger, each, dimension):
                costs[row["name"]] += nano(row["cost"])
        if dimension == ALL:  # the second requests of `--explore` have the budget of the policy
            [explored] = ledger.select(_EXPLORED, (begin,))
            costs[""] += nano(explored["cost"])
        return costs

    return read


def _of_app(ledger: Connection, begin: float, app: str) -> Mapping[str, int]:
    """The cost of each principal of an app, in nanodollars, by the rows that the ledger still has."""
    costs = Counter[str]()
    for query in _OF_APP_QUERIES:
        for row in ledger.select(query, (begin, app)):
            costs[row["name"]] += nano(row["cost"] or 0.0)
    return costs
