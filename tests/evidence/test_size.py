"""The commands keep little of each row in memory, so that a million rows fit."""

import gc
import shutil
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest

from extproc.evidence import routed_rows
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute
from extproc.evidence.measure import metrics
from extproc.evidence.measure.columns import columns
from extproc.evidence.measure.comparison import sign_flip
from extproc.evidence.measure.metrics import Ratio, resamples, share
from tests.evidence.texts import letters

CONFIGS = Path(__file__).parents[1] / "configs"
# Kept of each row, and in use at most while rows are read, in bytes. A row of the test has 6,000. In 2 GB, with
# 400 MB for the program, a million rows have room for 1,600 each.
_KEPT, _PEAK = 700, 1400


def written(path, count):
    """Rows with long answers, each of another conversation."""
    with path.open("wb") as file:
        for i in range(count):
            answer = f"a long answer {letters(i)} " * 120
            small = {"success": i % 3 > 0, "answer": answer, "tokens_in": 10, "tokens_out": 500, "latency_s": 1.0}
            row = {
                "text": f"Is my {letters(i)} invoice {letters(7 * i)} wrong this month", "session": f"s{i}",
                "outcomes": {"small": small, "large": small | {"success": True}},
            } | ({"intent": "billing"} if i % 2 else {})  # fmt: skip
            file.write(msgspec.json.encode(row) + b"\n")
    return path


def used(action):
    """(bytes that the result keeps, the most bytes in use on the way)."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    result = action()
    gc.collect()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    return after - before, peak - before


def test_memory_grows_by_little_for_each_row(tmp_path, words, monkeypatch):
    """The texts of requests and answers, their vectors and the decisions are not kept."""
    monkeypatch.setattr(routed_rows, "_MOST_RECENT", 100)
    folder, tokens = Path(shutil.copytree(CONFIGS / "good", tmp_path / "intents")), Tokens()

    def run(count):
        data = written(tmp_path / f"{count}.jsonl", count)
        return used(lambda: columns_of(execute(folder, Memory(words), read_traffic(data), tokens)))

    def columns_of(execution):
        return execution, columns(execution)

    run(600)  # what is loaded once
    few, many = run(600), run(3000)
    kept, peak = ((much - little) / 2400 for much, little in zip(many, few, strict=True))
    assert kept < _KEPT, f"{kept:.0f} bytes a row"
    assert peak < _PEAK, f"{peak:.0f} bytes a row"


def test_resampling_many_rows_needs_no_more_memory(monkeypatch):
    """The chunks get smaller. Ten times as many rows than the limit of units need only the numbers of each row."""
    n = 200_000
    values = np.random.default_rng(0).random(n)
    ratio = Ratio(values, np.ones(n))
    _, peak = used(lambda: ratio.estimate(0))
    assert peak < 60e6 + 100 * n
    _, peak = used(lambda: sum(len(weights) for weights in resamples(n, 0)))
    assert peak < 4 * 8 * metrics._CHUNK_NUMBERS + 100 * n
    _, peak = used(lambda: sign_flip(values - 0.5, 0))
    assert peak < 300e6


@pytest.mark.parametrize("kind", ["shares", "means", "conversations"])
def test_blocks_give_the_interval_of_single_rows(kind, monkeypatch):
    """Rows that are joined at random into blocks are as far apart as the rows say."""
    rng = np.random.default_rng(1)
    n = 4000
    together = np.repeat(np.arange(n // 4), 4) if kind == "conversations" else None
    if kind == "means":
        ratio = Ratio(rng.exponential(size=n), np.ones(n), None)
    else:
        ratio = share(rng.random(n) < 0.3, np.ones(n, dtype=bool))
    exact = ratio.estimate(0, together)
    monkeypatch.setattr(metrics, "MOST_UNITS", 500)
    monkeypatch.setattr(metrics, "BLOCKS", 400)
    joined = ratio.estimate(0, together)
    assert joined.value == exact.value
    assert (joined.high - joined.low) == pytest.approx(exact.high - exact.low, rel=0.15)
