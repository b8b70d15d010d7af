"""The money that a ledger has as spent, by budget, and reports by app and team."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from extproc.accounting.outcome import Cost, paid
from extproc.accounting.queries import By
from extproc.accounting.report import read_report
from extproc.accounting.spent import read_spent
from extproc.accounting.store import Store
from extproc.routing.budget import month_start, nano, specs_of
from extproc.settings import App, UsdBudget
from tests.accounting.test_ledger import CLIMBED, outcome

NOW = 1_795_953_600.0  # 2026-11-29 16:00 UTC
SUPPORT = App(hosts=("a",), budget=UsdBudget(5, "small"), labels={"team": "care"})
SPECS = (
    *specs_of(UsdBudget(9, "small"), "support", SUPPORT),
    *specs_of(UsdBudget(9, "small", "principal")),
    *specs_of(None, "support", App(budget=UsdBudget(5, "small", "team"), labels={"team": "care"})),
)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Two requests of an app, one of no app, and one of the month before."""
    store = Store(tmp_path / "ledger.sqlite", 1e6)
    rejected = CLIMBED.rejections
    store.add(
        [
            (outcome(NOW, app="support", team="care", principal="p"), Cost(0.5, (), None)),
            (
                outcome(NOW, app="support", team="care", principal="q", rejections=rejected),
                Cost(0.25, (0.125,), None),
            ),
            (outcome(NOW, principal="p"), Cost(None, (), None)),
            (outcome(month_start(NOW) - 1, app="support", team="care", principal="p"), Cost(8.0, (), None)),
        ]
    )
    store.close()
    return tmp_path / "ledger.sqlite"


def test_each_budget_begins_with_what_the_ledger_has_of_this_month(ledger):
    assert read_spent(ledger, SPECS, NOW) == {
        "2026-11:all": nano(0.875),
        "2026-11:app/support": nano(0.875),
        "2026-11:team/care": nano(0.875),
        "2026-11:all/principal:p": nano(0.5),
        "2026-11:all/principal:q": nano(0.375),
    }


def test_a_budget_of_an_app_that_is_called_principal_holds():
    [spec] = specs_of(None, "principal", App(budget=UsdBudget(5, "small")))
    assert (spec.name, spec.whose) == ("app/principal", ("app", "principal"))


def test_a_report_groups_by_app_or_team(ledger):
    names: dict[By, str] = {"app": "support", "team": "care"}
    for by, name in names.items():
        groups = {line.name: (line.requests, line.cost) for line in read_report(ledger, 1e9, by).groups}
        assert groups == {name: (3, 8.875), "-": (1, 0.0)}


def test_an_older_ledger_knows_no_app(ledger):
    with contextlib.closing(sqlite3.connect(ledger)) as older:
        older.execute("ALTER TABLE outcomes DROP COLUMN app")
        older.execute("ALTER TABLE outcomes DROP COLUMN team")
        older.execute("PRAGMA user_version = 4")
        older.commit()
    assert [line.name for line in read_report(ledger, 1e9, "app").groups] == ["-"]
    assert read_spent(ledger, SPECS, NOW) == {}


def test_what_was_paid_for_a_request():
    """Without token counts the cost is unknown. A request without an answer costs nothing."""
    assert paid(outcome(), Cost(0.5, (0.25, None), None)) == 0.75
    assert paid(outcome(), Cost(None, (), None)) is None
    assert paid(outcome(status=503, ending="failed"), Cost(None, (), None)) == 0.0
    assert paid(outcome(status=429, attempts=0, ending="failed"), Cost(None, (), None)) == 0.0
