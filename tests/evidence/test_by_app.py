"""The commands decide about each row as a request of its app."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.cli import evidence as commands
from extproc.cli.drift import _similarities
from extproc.cli.main import main
from extproc.cli.reload_gate import run_reload_gate
from extproc.config.gate import Gate, GateTask
from extproc.config.load import load_config
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


def test_eval_decides_about_a_row_as_a_request_of_its_app(
    folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cohorts of the app have its name in front, so that two of one name are two lines."""
    (folder / "support" / "billing.yaml").write_text(
        "intent: billing\ntier: small\nfloor: 0.2\nutterances:\n  - my invoice is wrong\n  - the bill\n  - charge\n"
    )
    own = [
        {"text": f"is my invoice wrong {letters(i)}", "intent": "billing", **place}
        for place in PLACES
        for i in range(20)
    ]
    foreign = {"text": "how long does the egg take", "intent": "cooking", "source": "support"}
    with data.open("ab") as file:
        file.write(b"".join(msgspec.json.encode(each) + b"\n" for each in [*own, foreign]))
    numbers = tmp_path / "eval.json"
    assert main(["eval", "--intents", str(folder), str(data), "--json", str(numbers), "--perturb"]) == 0
    out = capsys.readouterr().out
    read = msgspec.json.decode(numbers.read_bytes())
    rows = {group["name"]: group["rows"] for group in read["groups"]}
    assert rows == {"billing": 20, "support/billing": 40, "support/refunds": 120, "out of scope": 61}
    right = {group["name"]: group["accuracy"]["value"] for group in read["groups"]}
    assert (right["billing"], right["support/billing"], right["support/refunds"]) == (1, 1, 1)
    assert ["support/refunds", "support/refunds", 120] in read["confusion"]
    assert {("small", "small", 60), ("large", "large", 121)} <= {*map(tuple, read["tiers"]["cells"])}
    assert "\nsupport/refunds " in out
    assert "not intents here and count as out of scope: support/cooking (1)." in " ".join(out.split())
    flipped = {effect["kind"]: effect["flipped"]["value"] for effect in read["robustness"]["effects"]}
    assert flipped["upper case"] == 0 and read["robustness"]["rows"] == 241


def test_eval_of_an_app_with_mistakes_says_which(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing decides about its rows."""
    assert main(["eval", "--intents", str(edited(folder, "tier: large", "tier: larg")), str(data)]) == 2
    assert "rows belong to the app `support`, whose files have mistakes" in capsys.readouterr().err


def test_calibrate_fits_the_intents_of_an_app_on_its_own_rows(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows of the app say nothing about the intents beside the policy, and are no rows out of scope there."""
    rows = [
        {"text": f"my refund never arrived {letters(i)}", "intent": "refunds", "source": "support"}
        for i in range(60)
    ]
    rows += [{"text": f"is my invoice wrong {letters(i)}", "intent": "billing"} for i in range(60)]
    data, numbers = tmp_path / "labelled.jsonl", tmp_path / "fit.json"
    data.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in rows))
    assert main(["calibrate", "--intents", str(folder), str(data), "--write", "--json", str(numbers)]) == 0
    out, err = capsys.readouterr()
    assert "\napp support\n-----------\n" in out and "not intents" not in err
    read = msgspec.json.decode(numbers.read_bytes())
    assert read["floors"]["rows"] == read["apps"]["support"]["floors"]["rows"] == [60, 60]
    assert str(folder / "support" / "refunds.yaml") in read["changes"]
    config = load_config(folder)
    for own, name in ((config, "billing"), (config.apps["support"], "refunds")):
        (evidence,) = (intent.evidence for intent in own.intents if intent.intent == name)
        assert evidence is not None and evidence.rows == 60


def test_a_choice_of_tiers_for_an_app_keeps_to_its_tiers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The large tier answers better, and the app may use only the small one."""
    policy = folder / "policy.yaml"
    policy.write_text(policy.read_text().replace("tiers: [small, large]", "tiers: [small]").replace(
        "    default_tier: large\n", "    default_tier: small\n"))  # fmt: skip
    (folder / "support" / "refunds.yaml").write_text(REFUNDS.replace("tier: large", "tier: small"))
    outcomes = {"small": {"success": False, "tokens_in": 100, "tokens_out": 5}}
    outcomes["large"] = outcomes["small"] | {"success": True}
    rows = [
        {"text": f"my refund never arrived {letters(i)}", "source": "support", "outcomes": outcomes}
        for i in range(120)
    ]
    data = tmp_path / "recorded.jsonl"
    data.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in rows))
    arguments = ["calibrate", "--intents", str(folder), str(data), "--target", "quality=0.9", "--write"]
    main(arguments)
    assert "large" not in (folder / "support" / "refunds.yaml").read_text()
    assert main(["check", str(folder)]) == 0


def test_drift_compares_the_rows_of_an_app_with_its_requests(folder: Path, data: Path) -> None:
    similarities = _similarities(folder, data)
    assert len(similarities["support/refunds"]) == 120 and "refunds" not in similarities
    assert sum(map(len, similarities.values())) == 180


def test_a_source_that_is_not_an_app_is_named_once(
    folder: Path, data: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rows count as requests of no app. Without apps, a source is only a source."""
    data.write_bytes(data.read_bytes().replace(b'"source":"support"', b'"source":"desk"'))
    warning = "60 rows have a `source` that is not an app of policy.yaml (`desk`): they count as requests of no app"
    for command in (
        ["eval", "--intents", str(folder), str(data)],
        ["gate", "--baseline", str(folder), str(folder), str(data)],
    ):
        caplog.clear()
        assert main(command) == 0, capsys.readouterr()
        assert caplog.messages == [warning]
    caplog.clear()
    assert main(["eval", "--intents", str(CONFIGS / "good"), str(data)]) == 0
    assert caplog.messages == []
