"""The money that a ledger knows to be spent, for budgets that begin to count after a restart.

Whole hours are read from the hourly sums of the ledger, so that a start does not read the rows of a month. Only the
budgets of each principal of an app or a team are read from rows, as no sums are by both.
"""

import contextlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from extproc.accounting.connection import Connection
from extproc.accounting.queries import ALL, NAMES, OUTCOME_SUMS, REJECTION_SUMS
from extproc.accounting.sources import source_of
from extproc.accounting.store import connect
from extproc.routing.budget import BudgetSpec, month_of, month_start, nano

_GROUPS = "coalesce(o.app, '') AS app, coalesce(o.team, '') AS team, coalesce(o.principal, '') AS principal"
_LAST = f"SELECT {_GROUPS}, sum(o.cost) AS cost FROM outcomes o WHERE o.time >= ? GROUP BY 1, 2, 3"
_REJECTED = (
    f"SELECT {_GROUPS}, sum(r.cost) AS cost FROM rejections r JOIN outcomes o ON o.id = r.outcome "
    "WHERE o.time >= ? GROUP BY 1, 2, 3"
)
# The second requests of `--explore` are in no sum, but cost money, too.
_JOINED = "FROM explorations e JOIN outcomes o ON o.request = e.id"
_EXPLORED = (
    f"SELECT {{name}} AS name, sum(o.cost) AS cost {_JOINED} WHERE o.time >= {{since!r}} GROUP BY 1",
    f"SELECT {{name}} AS name, sum(r.cost) AS cost {_JOINED} JOIN rejections r ON r.outcome = o.id "
    "WHERE o.time >= {since!r} GROUP BY 1",
)
_NO_NAME = "-"  # in hourly sums
_Group = tuple[str, str, str]  # the app, the team and the principal; "" for those that a sum does not tell apart


def read_spent(place: Path | str, specs: Sequence[BudgetSpec], now_s: float) -> dict[str, int]:
    """Return the sum of each budget in this month, by its key. Raises OSError."""
    since, month, sums = month_start(now_s), month_of(now_s), Counter[str]()
    with contextlib.closing(connect(place)) as ledger:
        if not ledger.has_column("app"):
            return {}  # an older ledger, which this router brings up to date
        with ledger.snapshot():
            for dimension, group in _by_dimension(specs).items():
                costs = _costs_of_rows(ledger, since) if dimension is None else _costs(ledger, dimension, since)
                for (app, team, principal), cost in costs.items():
                    for spec in group:
                        if spec.holds(app, team):
                            sums[spec.key(principal, month)] += cost
    return dict(sums)


def _by_dimension(specs: Sequence[BudgetSpec]) -> dict[str | None, list[BudgetSpec]]:
    """The budgets by the dimension of their hourly sums. None: those of each principal of an app or a team."""
    groups = defaultdict[str | None, list[BudgetSpec]](list)
    for spec in specs:
        kind = spec.name.partition("/")[0]
        if spec.per_principal:
            groups["principal" if kind == ALL else None].append(spec)
        else:
            groups[kind].append(spec)
    return groups


def _costs(ledger: Connection, dimension: str, since: float) -> Counter[_Group]:
    """The cost of each group of one dimension, in nanodollars."""
    costs, source = Counter[_Group](), source_of(ledger, since)
    queries = [query.format(name=NAMES[dimension], since=since) for query in _EXPLORED]
    rows = itertools.chain(
        *(source.read(ledger, each, dimension) for each in (OUTCOME_SUMS, REJECTION_SUMS)),
        *map(ledger.fetch, queries),
    )
    for row in rows:
        name = "" if row["name"] == _NO_NAME else row["name"]
        group = [name if dimension == each else "" for each in ("app", "team", "principal")]
        costs[group[0], group[1], group[2]] += nano(row["cost"] or 0.0)
    return costs


def _costs_of_rows(ledger: Connection, since: float) -> Counter[_Group]:
    """The cost of each group of all three, in nanodollars."""
    costs = Counter[_Group]()
    for query in (_LAST, _REJECTED):
        for row in ledger.fetch(query, (since,)):
            costs[row["app"], row["team"], row["principal"]] += nano(row["cost"] or 0.0)
    return costs
