"""Parquet files of the ledger, as DuckDB reads them."""

import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.accounting.export import export
from extproc.accounting.outcome import Cost, Explored, Outcome, Rejection
from extproc.accounting.store import Store
from extproc.api.observation import Usage
from extproc.cli.main import main

duckdb = pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")

DAY_S = 86400.0
PLAIN: dict[str, Any] = {
    "api": "chat", "ending": "accepted", "status": 200, "attempts": 1, "reason": "matched", "cohort": "faq",
    "tier": "small", "judged": True, "usage": Usage(10, 4, 3), "principal": "p",
}  # fmt: skip


@pytest.fixture
def noon() -> float:
    """Noon (UTC) of the day before yesterday."""
    return (time.time() // DAY_S - 2) * DAY_S + DAY_S / 2


@pytest.fixture
def ledger(tmp_path: Path, noon: float) -> Path:
    climbed = PLAIN | {
        "tier": "large", "attempts": 2, "rejections": (Rejection(1, "small", "refusal", Usage(9, 2)),),
        "chances": '{"small":0.1}', "explored": "explore-1", "first_byte_s": 0.25, "request": "5-5",
    }  # fmt: skip
    store = Store(tmp_path / "ledger.sqlite", 90)
    store.add([
        (Outcome(time=noon, **climbed), Cost(0.5, (0.25,), 0.5)),
        (Outcome(time=noon + 1, **PLAIN), Cost(None, (), None)),
        (Outcome(time=noon + DAY_S, **PLAIN | {"cohort": "out_of_scope", "reason": "out_of_scope"}),
         Cost(0.125, (), 0.5)),
    ])  # fmt: skip
    store.add_explored(Explored("explore-1", noon, "small", 0.1, 200, True, None, Usage(9, 2), 0.75, 1.25))
    store.close()
    return tmp_path / "ledger.sqlite"


def written(ledger: Path, *more: str) -> str:
    """The files of an export, as a table in DuckDB's SQL."""
    folder = ledger.parent / "lake"
    assert main(["export", "--ledger", str(ledger), "--since", "2d", "--parquet", str(folder), *more]) == 0
    return f"read_parquet('{folder}/*/*.parquet', hive_partitioning = true)"


def test_a_file_for_each_day_has_the_lines_of_the_export(ledger: Path, noon: float) -> None:
    """Days are whole. A day without outcomes has no file."""
    table = written(ledger)
    files = sorted(path.relative_to(ledger.parent / "lake") for path in (ledger.parent / "lake").glob("*/*"))
    days = [time.strftime("day=%Y-%m-%d", time.gmtime(noon + day * DAY_S)) for day in range(2)]
    assert files == [Path(day) / "outcomes.parquet" for day in days]
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        query = f"SELECT * EXCLUDE (day) REPLACE (epoch(time) AS time) FROM {table} ORDER BY time"
        names = [column[0] for column in engine.execute(query).description]
        rows = [dict(zip(names, row, strict=True)) for row in engine.fetchall()]
    lines = [msgspec.json.decode(line) for line in export(ledger, 3 * DAY_S)]
    for line in lines:
        line["answers"] = [{"reason": None, **answer} for answer in line["answers"]]
    assert rows == lines
    assert "principal" not in names


def test_an_engine_adds_up_cost_by_day_and_tier(ledger: Path) -> None:
    """The answers of an outcome are a list, so that rejected ones count for their tier."""
    query = (
        "SELECT day, answer.tier, sum(answer.cost), sum(answer.tokens.input)::int "
        f"FROM (SELECT day, unnest(answers) AS answer FROM {written(ledger)}) GROUP BY ALL ORDER BY 1, 2"
    )
    with duckdb.connect() as engine:
        rows = engine.execute(query).fetchall()
    assert [row[1:] for row in rows] == [("large", 0.5, 10), ("small", 0.25, 19), ("small", 0.125, 10)]


def test_an_export_can_be_repeated(ledger: Path, noon: float) -> None:
    """The files of a day are replaced, and a stopped export leaves no file that an engine would read."""
    table = written(ledger)
    store = Store(ledger, 90)
    store.add([(Outcome(time=noon + DAY_S + 1, **PLAIN), Cost(0.125, (), 0.5))])
    store.close()
    assert written(ledger) == table
    with duckdb.connect() as engine:
        assert engine.execute(f"SELECT count(*) FROM {table}").fetchall() == [(4,)]
    assert not list((ledger.parent / "lake").glob("*/.*"))


def test_parquet_has_its_own_package_and_no_prompts(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--ledger", str(ledger), "--parquet", str(ledger.parent / "lake")]
    assert main([*command, "--requests", "requests.jsonl"]) == 2
    assert "--parquet and --requests: give one of them" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert main(command) == 2
    assert "pip install 'envoy-semantic-router[parquet]'" in capsys.readouterr().err
