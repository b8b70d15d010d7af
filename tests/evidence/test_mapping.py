"""`extproc map` and a sample of its files. They need the extra `scale`, and are skipped without it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from extproc.cli import evidence_sample
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute
from extproc.evidence.measure.mapped_sample import draw_mapped
from extproc.evidence.measure.sampling import draw
from tests.evidence.asks import alone
from tests.evidence.folders import good_folder

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CONFIGS = Path(__file__).parents[1] / "configs"
BILL, COOK = "Is my invoice wrong this month", "How long does the egg recipe take"


def log(start: int, n: int) -> list[dict[str, Any]]:
    return [
        {
            "text": alone(BILL if i % 3 else COOK, i % 26),
            "session": f"s{i // 2}",
            "id": str(i),
            "weight": 1.0 + i % 2,
        }
        for i in range(start, start + n)
    ]


def as_request(row: dict[str, Any]) -> dict[str, Any]:
    """The same row as a whole request, in JSON, with a column that is not read."""
    messages = [{"role": "user", "content": row["text"]}]
    request = msgspec.json.encode({"model": "auto", "messages": messages}).decode()
    return row | {"text": None, "request": request, "theirs": 7}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Intents, and two files: texts, and requests with one row that cannot be used."""
    good_folder(tmp_path / "intents", floor=0.2)
    (tmp_path / "rows").mkdir()
    broken = {"text": None, "request": "no json", "session": None, "id": "x", "weight": None, "theirs": 7}
    pq.write_table(pa.Table.from_pylist(log(0, 40)), tmp_path / "rows" / "a.parquet")
    requests = [*map(as_request, log(40, 20)), broken]
    pq.write_table(pa.Table.from_pylist(requests), tmp_path / "rows" / "b.parquet")
    return tmp_path


def mapped(folder: Path, words: Any) -> None:
    """Map both files in this process."""
    from extproc.evidence.mapping import map_file

    memory = Memory(words)
    snapshot = compile_snapshot(load_config(folder / "intents"), memory)
    (folder / "out").mkdir()
    for name in ("a.parquet", "b.parquet"):
        map_file(snapshot, memory, folder / "rows" / name, folder / "out" / name)


def executed(folder: Path, words: Any) -> Any:
    lines = [msgspec.json.encode(row) + b"\n" for row in log(0, 60)]
    (folder / "log.jsonl").write_bytes(b"".join(lines))
    return execute(folder / "intents", Memory(words), read_traffic(folder / "log.jsonl"), Tokens())


def test_each_row_has_the_decision_that_serving_makes(folder: Path, words: Any) -> None:
    """And its vector in half precision. Other columns are kept, and an unusable row has no decision."""
    mapped(folder, words)
    run = executed(folder, words)
    a, b = (pq.read_table(folder / "out" / name).to_pylist() for name in ("a.parquet", "b.parquet"))
    assert [row["theirs"] for row in b] == [7] * 21
    assert {key: b[20][key] for key in ("cohort", "reason", "tier", "vector")} == dict.fromkeys(
        ("cohort", "reason", "tier", "vector")
    )
    rows = [*a, *b[:20]]
    assert len(rows) == len(run.routed) == 60
    for row, routed in zip(rows, run.routed, strict=True):
        decision = routed.decision
        assert (row["cohort"], row["reason"], row["tier"]) == (
            decision.cohort.name, decision.reason.value, decision.tier.name
        )  # fmt: skip
        assert (row["similarity"], row["margin"]) == pytest.approx(
            (decision.match.similarity, decision.match.margin), abs=1e-6
        )
        vector = words.encode([routed.signals.ask.text])[0]
        assert np.asarray(row["vector"], dtype=np.float32) == pytest.approx(vector, abs=1e-3)
    assert pq.read_schema(folder / "out" / "a.parquet").field("vector").type.value_type == pa.float16()


def test_a_sample_of_the_files_is_that_of_the_log(
    folder: Path, words: Any, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """With the same seed, the same rows are drawn with the same weights. They are lines of traffic."""
    mapped(folder, words)
    assert evidence_sample.run_sample(folder / "intents", folder / "out", 12, 3) == 0
    captured = capsysbinary.readouterr()
    lines = [msgspec.json.decode(line) for line in captured.out.splitlines()]
    run = executed(folder, words)
    expected = {str(row.line - 1): row.weight for row in draw(run, 12, 3).rows}
    assert {line["id"]: line["weight"] for line in lines} == expected
    assert b"12 rows drawn from 60" in captured.err
    (folder / "sample.jsonl").write_bytes(captured.out)
    assert not read_traffic(folder / "sample.jsonl").bad


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"no parquet", "is not a valid Parquet file: "),
        (None, "found the columns prompt: expected `text` or `request`"),
    ],
    ids=["damaged", "other columns"],
)
def test_a_file_without_asks_is_refused_before_the_work(folder: Path, content: bytes | None, what: str) -> None:
    """Each of its rows would be unusable."""
    from extproc.evidence.mapping import map_folder

    path = folder / "rows" / "c.parquet"
    if content is None:
        pq.write_table(pa.table({"prompt": ["a recipe"]}), path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"c.parquet: {what}"):
        map_folder(folder / "intents", folder / "rows", folder / "out")


def test_files_that_were_not_mapped_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.parquet: has no column cohort: run `extproc map`"):
        draw_mapped(folder / "rows", 5, 0)
    with pytest.raises(OSError, match=r"expected files whose names end in \.parquet, found none"):
        draw_mapped(folder / "intents", 5, 0)


def test_a_local_cluster_maps_the_files_that_are_missing(folder: Path) -> None:
    """The command runs on Ray. A second run has nothing to do, and a lost file is made again."""
    pytest.importorskip("ray.data")
    command = [sys.executable, "-m", "extproc", "map", "--intents", str(folder / "intents")]
    command += ["--rows", str(folder / "rows"), "--out", str(folder / "out")]

    def run() -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stderr

    first = run()
    assert "0 of 2 files are there already" in first
    assert "a.parquet: 40 rows, 0 of them unusable" in first
    assert "b.parquet: 21 rows, 1 of them unusable" in first
    whole = pq.read_table(folder / "out" / "b.parquet")
    assert set(whole["cohort"].to_pylist()) == {"billing", "cooking", None}
    assert "2 of 2 files are there already" in run()
    (folder / "out" / "b.parquet").unlink()
    again = run()
    assert "1 of 2 files are there already" in again and "a.parquet: " not in again
    assert pq.read_table(folder / "out" / "b.parquet").equals(whole)
    assert [path.name for path in sorted((folder / "out").iterdir())] == ["a.parquet", "b.parquet"]
