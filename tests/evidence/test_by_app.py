"""`diff` and `gate` decide about each row as a request of its app."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.cli import evidence as commands
from extproc.cli.main import main
from extproc.cli.reload_gate import run_reload_gate
from extproc.config.gate import Gate, GateTask
from extproc.evidence.execution import Memory
from extproc.evidence.measure.gate import Passage
from tests.evidence.texts import letters

CONFIGS = Path(__file__).parents[1] / "configs"
APPS = """
apps:
  support:
    hosts: ["*.support.example"]
    intents: support
    tiers: [small, large]
    default_tier: large
"""
REFUNDS = """intent: refunds
tier: large
floor: 0.2
utterances:
  - money back for my order
  - return the shoes please
  - refund never arrived
"""
# By its host, by its source, and one of no app.
PLACES: list[dict[str, Any]] = [{"headers": {"Host": "eu.support.example:443"}}, {"source": "support"}, {}]


@pytest.fixture(autouse=True)
def word_encoder(monkeypatch: pytest.MonkeyPatch, words: Any) -> None:
    monkeypatch.setattr(commands, "load_encoder", lambda _: words)
    monkeypatch.setattr(commands, "patient", lambda _: Memory(words))
    monkeypatch.setattr("extproc.cli.evidence_compare.patient", lambda _: Memory(words))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = shutil.copytree(CONFIGS / "good", tmp_path / "intents")
    with (folder / "policy.yaml").open("a") as policy:
        policy.write(APPS)
    for intent in ("billing", "cooking"):
        with (folder / f"{intent}.yaml").open("a") as file:
            file.write("floor: 0.2\n")
    (folder / "support").mkdir()
    (folder / "support" / "refunds.yaml").write_text(REFUNDS)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sixty requests for each place, which only the large tier answers well."""
    outcomes = {
        "small": {"success": False, "tokens_in": 100, "tokens_out": 0},
        "large": {"success": True, "tokens_in": 100, "tokens_out": 0},
    }
    rows = [
        {"text": f"my refund never arrived {letters(i)}", "intent": intent, "outcomes": outcomes, **place}
        for place, intent in zip(PLACES, ("refunds", "refunds", None), strict=True)
        for i in range(60)
    ]
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in rows))
    return path


def gated(old: Path, new: Path, data: Path) -> int:
    return main(["gate", "--baseline", str(old), str(new), str(data), "--max-cost-rise", "10"])


def edited(folder: Path, old: str, new: str) -> Path:
    """Return a copy with another intent of the app."""
    copy = shutil.copytree(folder, folder.parent / "new")
    assert old in REFUNDS
    (copy / "support" / "refunds.yaml").write_text(REFUNDS.replace(old, new))
    return copy


def test_an_apps_intent_that_gets_worse_fails_the_gate(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gated(folder, folder, data) == Passage.PASSED
    assert "0 of 180 rows flip" in capsys.readouterr().out
    new = edited(folder, "tier: large", "tier: small")
    assert gated(folder, new, data) == Passage.FAILED
    out = capsys.readouterr().out
    assert out.startswith("FAILED")
    assert "support/refunds" in out and "120 of 180 rows flip" in out
    assert main(["diff", str(folder), str(new), str(data), "--show-text"]) == 0
    out = capsys.readouterr().out
    assert "refunds, large -> refunds, small  (line 1, 2, 3, ...)" in out
    assert "'my refund never arrived a'" in out


def test_an_app_that_is_new_is_compared_with_the_policy(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = shutil.copytree(folder, folder.parent / "old")
    (old / "policy.yaml").write_text((CONFIGS / "good" / "policy.yaml").read_text())
    assert gated(old, folder, data) == Passage.PASSED
    out = capsys.readouterr().out
    assert "has no intent support/refunds: rows with this label count as routed wrong" in out
    assert "-> refunds, large" in out


def test_an_app_with_a_mistake_is_as_before(folder: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its earlier intents go on serving, so nothing changes."""
    new = edited(folder, "tier: large", "tier: larg")
    assert gated(folder, new, data) == Passage.PASSED
    assert "0 of 180 rows flip" in capsys.readouterr().out


def test_rows_of_an_app_that_is_off_cannot_be_compared(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = edited(folder, "tier: large", "tier: larg")
    assert gated(broken, folder, data) == Passage.PASSED
    assert "0 of 60 rows flip" in capsys.readouterr().out
    lines = data.read_bytes().splitlines(keepends=True)
    data.write_bytes(b"".join(lines[:120]))
    assert gated(broken, folder, data) == 2
    assert "every row belongs to an app that is off" in capsys.readouterr().err


def test_a_reload_compares_the_copies_of_an_apps_files(folder: Path, data: Path) -> None:
    """An edit during the comparison does not change it."""
    gate = Gate(data, 0.02, 10)
    old = gate.copy(folder)
    refunds = folder / "support" / "refunds.yaml"
    refunds.write_text(REFUNDS.replace("tier: large", "tier: small"))
    new = gate.copy(folder)
    refunds.write_text("intent: refunds\n")
    task = GateTask(str(old), str(new), str(data), 0.02, 10, str(folder))
    assert run_reload_gate(msgspec.json.encode(task).decode()) == Passage.FAILED
    task = GateTask(str(old), str(gate.copy(old, folder)), str(data), 0.02, 10, str(folder))
    assert run_reload_gate(msgspec.json.encode(task).decode()) == Passage.PASSED
