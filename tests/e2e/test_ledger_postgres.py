"""Routers behind a real Envoy keep one ledger in a real Postgres."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from extproc.accounting.report import CostReport, read_report
from extproc.accounting.why import why
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from tests.accounting.test_ledger_at_scale import maintain, rolled
from tests.e2e.traffic import EXTRACT, MODELS, PROVE, ask, eventually, with_ledger, write_small_intents
from tests.postgres import Postgres, postgres, server

__all__ = ["postgres", "server"]


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("postgres")
    with SampleUpstreams(MODELS) as upstreams:
        running = Stack(write_small_intents(folder / "written"), folder, upstreams)
        running.program = [sys.executable, str(Path(__file__).parent / "quick_keeper.py")]
        with with_ledger(running, "--ledger", postgres.url):
            yield running


def test_a_request_is_in_the_partition_of_its_day_and_in_the_hourly_sums(stack: Stack, postgres: Postgres) -> None:
    """The router maintains the ledger. The report stays the same when the sums have it, and `why` finds it."""
    answers = [ask(stack.port, prompt) for prompt in (PROVE, EXTRACT, EXTRACT)]

    def all_reported() -> CostReport | None:
        report = read_report(postgres.url, 3600)
        return report if report.total.requests == 3 else None

    report = eventually(all_reported, "the report has three requests")
    assert report.total.cost > 0
    assert postgres.rows("SELECT count(*) FROM outcomes_other") == [(0,)]
    assert why(postgres.url, answers[0].headers["x-request-id"]).startswith("request   ")
    eventually(lambda: postgres.rows("SELECT settled FROM rollup_state") == [(3,)], "the router maintains it", 90)
    maintain(postgres.url)
    assert rolled(postgres.url) == 3
    after = read_report(postgres.url, 86400)
    assert (after.total.requests, after.total.cost, len(after.groups)) == (3, report.total.cost, len(report.groups))
