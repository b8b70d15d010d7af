"""The router acts on the verdict about its candidate, and after a restart it finds the same one."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from extproc.routing.index import Index
from extproc.routing.policy import Policy
from extproc.routing.router import Router
from extproc.routing.snapshot import Rollout, Snapshot
from extproc.serving import rollout as following
from extproc.serving.rollout import follow_rollout
from extproc.settings import Candidate
from tests.accounting.test_rollout import CANDIDATE, pairs, store


def router_with(spec: Candidate) -> Router:
    policy, index = Policy((), "small", {}), cast(Index, None)
    candidate = Rollout(spec, "/next", snapshot=Snapshot(CANDIDATE, policy, index), alike=("billing",))
    return Router(Snapshot("r1", policy, index, rollout=candidate), None)  # type: ignore[arg-type]


def follow(router: Router, place: Path, until: dict[str, float]) -> None:
    async def run() -> None:
        task = asyncio.create_task(follow_rollout(router, place))
        await true(lambda: router.shares == until)
        task.cancel()

    asyncio.run(run())


async def true(look: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not look():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(("accepted", "share", "word"), [(False, 0.0, "STOP"), (True, 1.0, "PROMOTE")])
def test_a_verdict_changes_the_share_and_a_restart_finds_it_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    accepted: bool,
    share: float,
    word: str,
) -> None:
    monkeypatch.setattr(following, "_INTERVAL_S", 0.01)
    place, spec = tmp_path / "ledger.sqlite", Candidate("next", percent=50, loss=0.2)
    store(place, *pairs(200, accepted=accepted))
    for _ in range(2):
        router = router_with(spec)
        with caplog.at_level(logging.WARNING):
            follow(router, place, {CANDIDATE: share})
        assert router.shares == {CANDIDATE: share}
        [line] = [record.message for record in caplog.records]
        assert line.startswith(f"rollout of {CANDIDATE}: {word}: ")
        caplog.clear()


def test_a_ledger_that_cannot_be_read_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once. When the ledger is there, the candidate is compared."""
    monkeypatch.setattr(following, "_INTERVAL_S", 0.01)
    place, router = tmp_path / "ledger.sqlite", router_with(Candidate("next", percent=50))

    async def run() -> None:
        task = asyncio.create_task(follow_rollout(router, place))
        await true(lambda: caplog.records)
        await asyncio.sleep(0.1)  # more failures
        assert router.shares == {}
        await asyncio.to_thread(store, place, *pairs(30, accepted=False))
        await true(lambda: router.shares)
        task.cancel()

    asyncio.run(run())
    assert router.shares == {CANDIDATE: 0.0}
    assert [record.message.partition(":")[0] for record in caplog.records if record.levelno == logging.WARNING] == [
        "the candidate cannot be compared, and keeps its share", f"rollout of {CANDIDATE}",
    ]  # fmt: skip


def test_a_candidate_that_only_decides_beside_has_no_verdict(tmp_path: Path) -> None:
    place, router = tmp_path / "ledger.sqlite", router_with(Candidate("next", shadow=True))
    store(place, *pairs(30, accepted=False))

    async def run() -> None:
        task = asyncio.create_task(follow_rollout(router, place))
        await asyncio.sleep(0.1)
        task.cancel()

    asyncio.run(run())
    assert router.shares == {}
