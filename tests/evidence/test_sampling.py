"""`extproc sample`: which rows to label, and how many rows of the log each of them stands for."""

import os
import shutil
import sys
import threading
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from extproc.cli import evidence_sample
from extproc.cli.main import main
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute
from extproc.evidence.measure.evaluation import evaluate
from extproc.evidence.measure.sampling import allocate, draw
from tests.evidence.asks import alone

CONFIGS = Path(__file__).parents[1] / "configs"
BILL, COOK, NEITHER = "Is my invoice wrong this month", "How long does the egg recipe take", "zebras graze"


def log(n=600):
    """A skewed log: most rows ask about bills. Repeated texts, forms, and conversations of three rows."""
    rows = []
    for i in range(n):
        kind = BILL if i % 10 < 7 else COOK if i % 10 < 9 else NEITHER
        label = {BILL: "billing", COOK: "cooking", NEITHER: "oos"}[kind]
        rows.append(
            {"text": f"{alone(kind, i // 10 % 26)} {i}", "id": label, "session": f"s{i // 3}" if i % 2 else f"t{i}"}
        )
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory, words):
    folder = Path(shutil.copytree(CONFIGS / "good", tmp_path_factory.mktemp("sample") / "intents"))
    for name in ("billing", "cooking"):
        with (folder / f"{name}.yaml").open("a") as file:
            file.write("floor: 0.2\n")
    path = folder.parent / "log.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in log()))
    return folder, path, execute(folder, Memory(words), read_traffic(path), Tokens())


def test_one_row_for_each_text_and_conversation_is_drawn(run):
    """Forms with another number are one text. Small cohorts and rejected rows are drawn, too."""
    _, _, done = run
    drawn = draw(done, 60, seed=1)
    rows = [log()[row.line - 1] for row in drawn.rows]
    assert len(rows) == 60 and drawn.texts < 600 and drawn.units <= drawn.texts
    texts = Counter(row["text"].rpartition(" ")[0] for row in rows)
    sessions = Counter(row["session"] for row in rows)
    assert set(texts.values()) == {1} and set(sessions.values()) == {1}
    assert {row["id"] for row in rows} == {"billing", "cooking", "oos"}
    assert draw(done, 60, seed=1) == drawn != draw(done, 60, seed=2)


def test_weighted_shares_of_samples_are_those_of_the_log(run):
    """On average over draws, the weights add up to the rows, and bills are 70 % of them. Without weights not."""
    _, _, done = run
    labels = [row["id"] for row in log()]
    sums, shares, unweighted = [], [], []
    for seed in range(200):
        rows = draw(done, 40, seed).rows
        weight = np.array([row.weight for row in rows])
        bills = np.array([labels[row.line - 1] == "billing" for row in rows])
        sums.append(weight.sum())
        shares.append((weight * bills).sum() / 600)
        unweighted.append(bills.mean())
    assert np.mean(sums) == pytest.approx(600, rel=0.02)
    assert np.mean(shares) == pytest.approx(0.7, abs=0.02)
    assert np.mean(unweighted) < 0.6


def test_strata_get_rows_by_the_root_of_their_size():
    """A stratum of four times the size gets twice the rows. Each gets one, and none more than it has."""
    assert allocate([400.0, 100.0], [400, 100], 30) == [20, 10]
    assert allocate([900.0, 1.0, 4.0], [900, 1, 2], 10) == [8, 1, 1]
    assert allocate([5.0, 5.0], [2, 1], 10) == [2, 1]


def test_the_printed_rows_are_rows_of_the_log_with_a_weight(run, words, monkeypatch, capfdbinary, tmp_path):
    """A person adds labels, and `eval` weights them."""
    folder, path, _ = run
    monkeypatch.setattr(evidence_sample, "patient_encoder", lambda intents: Memory(words))
    assert main(["sample", "--intents", str(folder), str(path), "--rows", "50"]) == 0
    out, err = capfdbinary.readouterr()
    rows = [msgspec.json.decode(line) for line in out.splitlines()]
    originals = [msgspec.json.encode(row) for row in log()]
    assert all(msgspec.json.encode({k: v for k, v in row.items() if k != "weight"}) in originals for row in rows)
    assert f"{path}: 50 rows drawn from 600, which have ".encode() in err
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_bytes(b"".join(msgspec.json.encode(row | {"intent": row["id"]}) + b"\n" for row in rows))
    again = execute(folder, Memory(words), read_traffic(labelled), Tokens())
    fallback = [routed.decision.reason.is_fallback for routed in again.routed]
    report = evaluate(again)
    assert 0 < report.overall.fallback.value == pytest.approx(np.average(fallback, weights=again.weights()))
    assert report.overall.fallback.value != pytest.approx(np.mean(fallback))
    assert report.data["weighted"] is True


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_any_number_of_rows_can_be_drawn(run, size):
    """With fewer rows than strata, strata are joined, so that every row had a chance."""
    _, _, done = run
    drawn = draw(done, size, seed=0)
    assert len(drawn.rows) == min(size, drawn.units) and drawn.strata <= size


def test_a_folder_needs_the_packages_that_read_parquet(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"Parquet files need more packages: pip install .*\[scale\]"):
        evidence_sample.run_sample(CONFIGS / "good", tmp_path, 5, 0)


def test_messages_about_a_pipe_name_the_pipe(tmp_path, words, monkeypatch):
    """The rows are read from a copy, which is gone after the command."""
    monkeypatch.setattr(evidence_sample, "patient_encoder", lambda intents: Memory(words))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("text,intent\n",), daemon=True)
    writer.start()
    with pytest.raises(ValueError, match=f"^{pipe}: no row can be used: give JSON lines"):
        evidence_sample.run_sample(CONFIGS / "good", pipe, 5, 0)
    writer.join(5)
