"""`weight`: a row that stands for two counts in every mean as two rows of different conversations do.

In an interval it does not: it is one row that was looked at, so its interval is wider.
"""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute
from extproc.evidence.fit.choice import choose
from extproc.evidence.fit.labelled import labelled_rows
from extproc.evidence.fit.plans import cap_of
from extproc.evidence.fit.scored_table import scored_table
from extproc.evidence.fit.suggestion import as_yaml, propose
from extproc.evidence.fit.target import parse_target
from extproc.evidence.fit.units import Units
from extproc.evidence.measure.comparison import compare
from extproc.evidence.measure.evaluation import evaluate
from extproc.evidence.measure.gate import gate_report
from extproc.evidence.measure.metrics import quantile
from tests.evidence.asks import alone
from tests.evidence.folders import good_folder
from tests.evidence.test_suggestion import FLIGHTS, TUNES

BILL, COOK, NEITHER = "Is my invoice wrong this month", "How long does the egg recipe take", "zebras graze"


@pytest.fixture
def folder(tmp_path):
    return good_folder(tmp_path / "intents", floor=0.2)


def outcome(success, tokens_out):
    return {
        "success": bool(success),
        "tokens_in": 10,
        "tokens_out": int(tokens_out),
        "latency_s": int(tokens_out) / 10,
    }


def rows(count=160):
    """Rows of which some count more: (row, weight)."""
    rng = np.random.default_rng(3)
    for i in range(count):
        ask, label = [(BILL, "billing"), (COOK, "cooking"), (NEITHER, None)][i % 3 if i % 7 else 2]
        lengths = rng.integers(20, 200, 2)
        outcomes = {
            "small": outcome(rng.random() < 0.6, lengths[0]),
            "large": outcome(rng.random() < 0.9, lengths[1]),
        }
        yield {"text": alone(ask, i), "intent": label, "outcomes": outcomes}, 2 if i % 4 == 0 else 1


@pytest.fixture
def both_ways(folder, tmp_path, words, tokens):
    """(rows with weights, the same rows repeated), executed with a folder of intents."""

    def both(intents=folder, count=160):
        weighted = [row | {"weight": times, "session": f"s{i}"} for i, (row, times) in enumerate(rows(count))]
        repeated = [
            row | {"session": f"s{i}-{k}"} for i, (row, times) in enumerate(rows(count)) for k in range(times)
        ]
        runs = []
        for name, lines in (("weighted", weighted), ("repeated", repeated)):
            path = tmp_path / f"{name}.jsonl"
            path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in lines))
            runs.append(execute(intents, Memory(words), read_traffic(path), tokens))
        return runs

    return both


def values_of(report):
    """Every mean and share of an evaluation, without intervals and counts of rows."""
    groups = {
        group.name: [getattr(group, name).value for name in (
            "accuracy", "accepted", "wrong", "fallback", "escalated", "corrected", "quality", "per_1000",
            "per_success",
        )]
        for group in (*report.groups, report.overall)
    }  # fmt: skip
    lines = {line.name: [line.quality.value, line.per_1000.value, line.per_success.value] for line in report.lines}
    others = [
        report.scope_recall.value, report.scope_recall_at_5, report.auroc.value, report.tiers.right.value,
        report.tiers.below.value, *(value for point in report.risk_coverage[-1:] for value in point),
    ]  # fmt: skip
    return groups | lines | {"others": others}


def test_eval(both_ways):
    """Matching, routing, quality, cost, the controls, AUROC, the curve and the latencies."""
    reports = [evaluate(run) for run in both_ways()]
    weighted, repeated = map(values_of, reports)
    assert weighted.keys() == repeated.keys()
    for name, values in weighted.items():
        np.testing.assert_allclose(values, repeated[name], rtol=1e-9, err_msg=name)
    for path, (_, *ends) in reports[0].latency_s.items():  # a quantile lies between two rows, or is one of them
        np.testing.assert_allclose(ends, reports[1].latency_s[path][1:], atol=0.5, err_msg=path)


def test_diff_and_gate(both_ways, folder, tmp_path):
    """The change in each measure, and the verdict on a cohort that goes to the cheaper tier."""
    cheaper = Path(shutil.copytree(folder, tmp_path / "cheaper"))
    path = cheaper / "cooking.yaml"
    path.write_text(path.read_text().replace("tier: large", "tier: small"))
    before, after = both_ways(), both_ways(cheaper)
    weighted, repeated = (compare(old, new) for old, new in zip(before, after, strict=True))
    cells = [
        {(cell.group, cell.measure): (cell.old, cell.new, cell.change.value) for cell in compared.cells}
        for compared in (weighted, repeated)
    ]
    assert cells[0].keys() == cells[1].keys() and ("cooking", "quality") in cells[0]
    for key, values in cells[0].items():
        np.testing.assert_allclose(values, cells[1][key], rtol=1e-9, err_msg=str(key))
    assert [gate_report(compared, 0.02, 0.1).passage.name for compared in (weighted, repeated)] == ["UNCLEAR"] * 2


def test_calibrate(both_ways):
    """The rows of the traffic that matches and wrong ones stand for."""
    weighted, repeated = (labelled_rows(run).matches for run in both_ways())
    assert weighted.masses.sum() == len(repeated.right)
    assert weighted.masses @ weighted.right == repeated.right.sum()


@pytest.mark.parametrize("target", ["cost=0.1", "quality=0.7"])
def test_calibrate_with_a_target(both_ways, target):
    """The same tiers are chosen, with the same quality and cost of every line. Intervals are not narrower."""
    weighted, repeated = (
        choose(scored_table(run, 0), parse_target(target), 0.05, "2026-11-29") for run in both_ways(count=600)
    )
    for one, other in zip(weighted.cohorts, repeated.cohorts, strict=True):
        assert (one.plan and one.plan.option) == (other.plan and other.plan.option)
        for a, b in zip((*one.before, *one.after), (*other.before, *other.after), strict=True):
            assert a.value == pytest.approx(b.value)
            assert a.high - a.low > 0.99 * (b.high - b.low)
    for line, same in zip(weighted.lines, repeated.lines, strict=True):
        assert (line.name, line.quality.value) == (same.name, pytest.approx(same.quality.value))
        assert line.per_1000.value == pytest.approx(same.per_1000.value)


def test_repeated_rows_are_no_more_evidence_for_a_target(folder, tmp_path, words, tokens):
    """Five times the same rows choose the same, count as many rows, and have the same intervals."""
    choices = []
    for times in (1, 5):
        path = tmp_path / f"{times}.jsonl"
        lines = [row for row, _ in rows(400) for _ in range(times)]
        path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in lines))
        run = execute(folder, Memory(words), read_traffic(path), tokens)
        choices.append(choose(scored_table(run, 0), parse_target("quality=0.7"), 0.05, "2026-11-29"))
    once, often = choices
    assert once.rows == often.rows
    for one, other in zip(once.cohorts, often.cohorts, strict=True):
        assert (one.rows, one.plan and one.plan.option) == (other.rows, other.plan and other.plan.option)
        for a, b in zip((*one.before, *one.after), (*other.before, *other.after), strict=True):
            assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))


def test_suggest(folder, tmp_path, words, tokens):
    """The proposal that stands for the most rows comes first, and says for how many."""
    lines = [*(row | {"weight": 50} for row in FLIGHTS), *TUNES]
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in lines))
    memory = Memory(words)
    run = execute(folder, memory, read_traffic(path), tokens)
    proposals = propose(run, memory)
    assert [(each.rows, each.weight) for each in proposals] == [(9, 450), (10, 10)]
    assert as_yaml(proposals[0], "small").startswith(
        "# proposed from 9 rows, which stand for 450, that are similar;"
    )
    assert as_yaml(proposals[1], "small").startswith("# proposed from 10 rows with the label")


def test_a_cap_and_a_level_count_the_answers_that_a_row_stands_for():
    """A long answer that stands for many is not cut."""
    lengths, good = np.arange(100.0), np.ones(100)
    assert cap_of(lengths, good, 0.05) == cap_of(lengths, good, 0.05, np.full(100, 7.0)) == 95
    heavy = np.where(lengths == 99, 30.0, 1.0)
    assert cap_of(lengths, good, 0.05, heavy) is None
    assert quantile(lengths, 0.5) == quantile(lengths, 0.5, np.full(100, 3.0)) == 49.5
    assert quantile(lengths, 0.5, np.where(lengths > 90, 100.0, 1.0)) > 90


def test_the_error_of_a_mean_counts_each_conversation_once():
    """Ten times the same row is one row. A weight counts in the mean, and does not make a row two."""
    values = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    single = Units.of(np.ones(5), np.arange(5))
    assert single.error(values) == pytest.approx(values.std(ddof=1) / np.sqrt(5))
    repeated = Units.of(np.ones(50), np.repeat(np.arange(5), 10))
    assert repeated.error(np.repeat(values, 10)) == pytest.approx(single.error(values))
    assert (repeated.count, repeated.effective) == (5, 5)
    doubled = Units.of(np.full(5, 2.0), np.arange(5))
    assert doubled.error(values) == pytest.approx(single.error(values))
