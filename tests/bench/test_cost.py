"""The worked example of docs/guides/cost.md: each of its figures, by the command and by `extproc eval`."""

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from bench.cost import Load, Tier, cascade, main, routed
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute
from extproc.evidence.measure.evaluation import evaluate
from tests.evidence.asks import alone

ROOT = Path(__file__).parents[2]
MONTH = Load(10_000_000, 750, 250)
SMALL, MEDIUM, LARGE = Tier("small", 0.28, 0.42, 0.86), Tier("medium", 1, 5, 0.88), Tier("large", 3, 15, 0.9)
BILL, COOK = "Is my invoice wrong this month", "How long does the egg recipe take"


@pytest.mark.parametrize(("tiers", "dollars"), [
    ([(LARGE, 1.0)], 60_000), ([(MEDIUM, 0.7), (LARGE, 0.3)], 32_000),
    ([(SMALL, 0.5), (MEDIUM, 0.4), (LARGE, 0.1)], 15_575),
])  # fmt: skip
def test_a_month_with_routed_tiers(tiers, dollars):
    """Each request is paid for once, at the price of its tier."""
    assert routed(tiers, MONTH).dollars == pytest.approx(dollars)


def test_a_month_with_a_cascade_includes_rejected_answers():
    """All of the medium tier, and 30 % of the large one. The first answers of those were paid for nothing."""
    way = cascade(MEDIUM, LARGE, 0.3, (0.93, 0.8), MONTH)
    assert (way.dollars, way.rejected, way.right) == (
        pytest.approx(38_000), pytest.approx(6_000), pytest.approx(0.891),
    )  # fmt: skip
    assert way.per_1000_right(MONTH) == pytest.approx(38_000 / 8_910)


def test_the_table_in_the_guide_is_the_output_of_the_command(capsys):
    """Word for word. Other prices give other figures."""
    assert main([]) == 0
    table = capsys.readouterr().out
    shown = re.search(r"```text\n(.*?)```", (ROOT / "docs" / "guides" / "cost.md").read_text(), re.DOTALL)
    assert shown is not None and shown[1] == table
    assert main(["--large", "6", "30", "0.9", "--requests", "5000000"]) == 0
    assert "100 % large                                      60,000" in capsys.readouterr().out


@pytest.mark.parametrize("judged", [False, True], ids=["two tiers", "cascade"])
def test_eval_prices_the_same_month(judged, tmp_path, words):
    """Ten recorded rows: 70 % at 1 / 5 and 30 % at 3 / 15 cost $32,000 a month, and $38,000 as a cascade."""
    folder = Path(shutil.copytree(ROOT / "tests" / "configs" / "good", tmp_path / "intents"))
    policy = folder / "policy.yaml"
    text = policy.read_text().replace("price: {input: 0.05, output: 0.20}", "price: {input: 1, output: 5}")
    policy.write_text(re.sub(r"price: \{input: 0.40,.*?\}", "price: {input: 3, output: 15}", text))
    if judged:
        with (folder / "billing.yaml").open("a") as file:
            file.write("accept: [{min_chars: 3}]\nescalate: {to: large, share: 1.0}\n")
    tokens = {"tokens_in": 750, "tokens_out": 250}
    rows = [
        {"text": alone(BILL if judged or i < 7 else COOK, i), "outcomes": {
            "small": {"success": i < 7, "answer": "a good answer" if i < 7 else "no", **tokens},
            "large": {"success": True, "answer": "a good answer", **tokens},
        }}
        for i in range(10)
    ]  # fmt: skip
    data = tmp_path / "recorded.jsonl"
    data.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    report = evaluate(execute(folder, Memory(words), read_traffic(data), Tokens()))
    lines = {line.name: line for line in report.lines}
    month = {name: 10_000 * line.per_1000.value for name, line in lines.items()}
    assert month["always large"] == pytest.approx(60_000)
    assert month["as configured"] == pytest.approx(38_000 if judged else 32_000)
    assert lines["as configured"].per_success.value == pytest.approx(0.0038 if judged else 0.0032)
