"""Budgets start from the sums in the ledger: those of the start, and those that a reload adds."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import pytest

from extproc.accounting.outcome import Cost
from extproc.accounting.store import Store
from extproc.routing.budget import BudgetSpec, month_of, nano
from extproc.routing.index import Index
from extproc.routing.paying import Budgets
from extproc.routing.policy import Policy
from extproc.routing.router import Router
from extproc.routing.snapshot import AppRoute, Snapshot
from extproc.serving import spending
from extproc.serving.spending import follow_spent
from tests.accounting.test_ledger import outcome

EVERYTHING = BudgetSpec("all", nano(9), "small")
SUPPORT = BudgetSpec("app/support", nano(5), "small")


def snapshot(*budgets: BudgetSpec, of_app: tuple[BudgetSpec, ...] = ()) -> Snapshot:
    plain = Snapshot("r1", Policy((), "small", {}), cast(Index, None), budgets=budgets)
    app = AppRoute("support", Snapshot("r1", plain.policy, plain.index, budgets=(*budgets, *of_app)))
    return Snapshot("r1", plain.policy, plain.index, budgets=budgets, apps=(app,))


def store(place: Path, usd: float) -> bool:
    ledger = Store(place, 1e6)
    ledger.add([(outcome(time.time(), app="support", principal="p"), Cost(usd, (), None))])
    ledger.close()
    return True


def follow(router: Router, place: Path, *steps: Callable[[], object]) -> None:
    """Follow the ledger. Each step is done as soon as the one before has returned something true."""

    async def run() -> None:
        task = asyncio.create_task(follow_spent(router, place))
        for step in steps:
            for _ in range(1000):
                if step():
                    break
                await asyncio.sleep(0.01)
            else:
                raise AssertionError("it did not become true")
        task.cancel()

    asyncio.run(run())


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Router:
    for name in ("_INTERVAL_S", "_PATIENCE_S"):
        monkeypatch.setattr(spending, name, 0.01)
    return Router(snapshot(EVERYTHING), None, budgets=Budgets())  # type: ignore[arg-type]


def sums(router: Router) -> Mapping[str, int]:
    """The sums of this month, by budget."""
    assert router.budgets is not None
    month = month_of(time.time())
    return {key.removeprefix(f"{month}:"): total for key, total in router.budgets.spending.totals.items()}


def settled(router: Router, usd: float) -> bool:
    assert router.budgets is not None
    router.budgets.spending.add([f"{month_of(time.time())}:all"], nano(usd))
    return True


def swapped(router: Router, new: Snapshot) -> bool:
    router.swap(new)
    return True


def test_a_budget_that_a_reload_adds_starts_from_the_ledger(tmp_path: Path, router: Router) -> None:
    """Also one of an app, and one that was removed in the meantime. Other sums stay as they are."""
    place = tmp_path / "ledger.sqlite"
    store(place, 0.5)
    follow(
        router,
        place,
        lambda: sums(router) == {"all": nano(0.5)},
        lambda: settled(router, -0.25),
        lambda: swapped(router, snapshot(EVERYTHING, of_app=(SUPPORT,))),
        lambda: sums(router) == {"all": nano(0.25), "app/support": nano(0.5)},
        lambda: swapped(router, snapshot(EVERYTHING)),
        lambda: store(place, 1.0),
        lambda: swapped(router, snapshot(EVERYTHING, of_app=(SUPPORT,))),
    )
    assert sums(router)["all"] == nano(0.25)


def test_a_budget_that_comes_back_knows_what_was_spent_without_it(tmp_path: Path, router: Router) -> None:
    place = tmp_path / "ledger.sqlite"
    store(place, 0.5)
    follow(router, place, lambda: sums(router) == {"all": nano(0.5)})
    looks = iter([False] * 10 + [True])  # without the budget
    follow(
        router,
        place,
        lambda: swapped(router, snapshot()),
        lambda: store(place, 1.0),
        lambda: next(looks),
        lambda: swapped(router, snapshot(EVERYTHING)),
        lambda: sums(router) == {"all": nano(1.5)},
    )


def test_a_ledger_that_cannot_be_read_is_read_again(
    tmp_path: Path, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "ledger.sqlite"
    with caplog.at_level(logging.INFO, "extproc"):
        follow(
            router,
            place,
            lambda: "budgets go on without the sums of the ledger" in caplog.text,
            lambda: store(place, 0.5),
            lambda: sums(router) == {"all": nano(0.5)},
        )
    assert caplog.text.count("budgets go on") == 1
