"""`extproc learn`: its steps, its lock, a failed step, and what the gate decides about the candidate."""

import contextlib
import errno
import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.accounting.outcome import Cost, Ending, Outcome
from extproc.accounting.signals import AnswerSignal
from extproc.accounting.store import Store
from extproc.cli import learn
from extproc.cli.main import main
from extproc.config.load import load_config
from extproc.contract.words import Signal
from extproc.evidence.measure.gate import Passage
from extproc.routing.gain_file import GAINS_FILE, encode_gains
from tests.postgres import Postgres, postgres, server
from tests.routing.test_by_prompt import gains as by_prompt_gains
from tests.routing.test_by_prompt import header

__all__ = ["postgres", "server"]

CONFIGS = Path(__file__).parents[1] / "configs"
ROWS = 30


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with intents, and a ledger with requests of which each has a label."""
    fill(tmp_path, tmp_path / "ledger.sqlite")
    return tmp_path


def fill(place: Path, ledger: Path | str) -> None:
    shutil.copytree(CONFIGS / "good", place / "intents")
    store, requests = Store(ledger, 90), []
    for i in range(ROWS):
        name = f"r-{i}"
        outcome = Outcome(
            time.time(), "chat", Ending.ACCEPTED, 200, 1, "matched", cohort="billing", tier="small", request=name
        )
        store.add([(outcome, Cost(0.1, (), 0.1))])
        store.add_signal(AnswerSignal(name, Signal.FEEDBACK, "anonymous", time.time(), 1.0, "billing"))
        body = {"model": "auto", "messages": [{"role": "user", "content": f"Is invoice number {i} wrong?"}]}
        requests.append(msgspec.json.encode({"id": name, "request": body}) + b"\n")
    store.close()
    (place / "requests.jsonl").write_bytes(b"".join(requests))


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the slow steps take no time: calibration moves one floor, and the gate passes."""
    called: list[str] = []

    def calibrated(intents: Path, data: Path, *_: object, **__: object) -> int:
        called.append("calibrate")
        path = intents / "billing.yaml"
        if "\nfloor:" not in path.read_text():
            path.write_text(path.read_text() + "floor: 0.3\n")
        return 0

    monkeypatch.setattr(learn, "run_calibrate", calibrated)
    monkeypatch.setattr(learn, "run_diff", lambda *_, **__: called.append("diff"))
    monkeypatch.setattr(learn, "run_gate", lambda *_: Passage.PASSED)
    monkeypatch.setattr(learn, "rows_to_label", lambda *_: (None, []))
    return called


def run(place: Path, *more: str, ledger: str = "ledger.sqlite") -> int:
    arguments = (
        "--intents",
        "intents",
        "--ledger",
        ledger,
        "--requests",
        "requests.jsonl",
        "--out",
        "learn",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return main(["learn", *arguments, *more])


def test_learn_makes_a_candidate_and_does_it_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The serving files stay. The second run finds the same candidate."""
    served = (place / "intents" / "billing.yaml").read_text()
    assert run(place, "--percent", "20") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "export",
        "labels",
        "calibrate",
        "diff",
        "gate",
        "candidate",
    ]
    assert lines[-1] == "candidate: the candidate in intents/next decides about 20 % of the conversations"
    spec = load_config(place / "intents").policy.candidate
    assert spec is not None and (spec.dir, spec.percent, spec.shadow) == ("next", 20.0, False)
    assert (place / "intents" / "billing.yaml").read_text() == served
    assert "floor: 0.3" in (place / "intents" / "next" / "billing.yaml").read_text()
    assert "== gate ==" in (place / "learn" / "report.txt").read_text()
    policy = (place / "intents" / "policy.yaml").read_bytes()
    assert run(place) == 0
    assert "the same candidate is in " in capsys.readouterr().out
    assert (place / "intents" / "policy.yaml").read_bytes() == policy


def test_the_ledger_may_be_a_postgres(
    tmp_path: Path, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps are the same, and no output has the password."""
    fill(tmp_path, postgres.url)
    assert run(tmp_path, ledger=postgres.url) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"export:    {ROWS} requests with their text, 0 without it")
    assert load_config(tmp_path / "intents").policy.candidate is not None
    assert main(["rollout", "status", "--intents", str(tmp_path / "intents"), "--ledger", postgres.url]) == 0
    (tmp_path / "requests.jsonl").write_text('{"id": "other", "request": {"model": "auto", "messages": []}}\n')
    assert run(tmp_path, ledger=postgres.url) == 2
    captured = capsys.readouterr()
    report = (tmp_path / "learn" / "report.txt").read_text()
    assert "no request of postgresql://" in captured.err
    assert "secret" not in output + captured.out + captured.err + report


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_keeps_its_files_and_learn_says_what_to_copy(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """As with a mounted ConfigMap. The other steps need no write access to it."""
    intents = place / "intents"
    before = {path: path.read_bytes() for path in intents.iterdir()}
    real = Path.mkdir

    def mkdir(path: Path, *args: Any, **more: Any) -> None:
        if intents.resolve() in path.resolve().parents:
            raise OSError(error, os.strerror(error), str(path))
        real(path, *args, **more)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert run(place, "--percent", "20") == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "candidate: intents is read-only, so the candidate stays in learn/next: copy its files without policy.yaml "
        "to a folder beside your policy.yaml, and add `candidate: {dir: FOLDER, percent: 20}` there"
    )
    assert {path: path.read_bytes() for path in intents.iterdir()} == before
    assert "floor: 0.3" in (place / "learn" / "next" / "billing.yaml").read_text()


def test_paths_may_have_spaces_and_start_elsewhere(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A cron job starts in the home of its user."""
    spaced = place / "with a space"
    spaced.mkdir()
    for name in ("intents", "ledger.sqlite", "requests.jsonl"):
        (place / name).rename(spaced / name)
    arguments = (
        "--intents",
        "intents",
        "--ledger",
        "ledger.sqlite",
        "--requests",
        "requests.jsonl",
        "--out",
        "new learn",
    )
    home = tmp_path_factory.mktemp("home")
    relative = Path(os.path.relpath(spaced, home))
    words = [word if word.startswith("--") else str(relative / word) for word in arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["learn", *words]) == 0
        assert main(["rollout", "start", "--percent", "30", "--intents", words[1]]) == 0
    assert list(home.iterdir()) == []
    spec = load_config(spaced / "intents").policy.candidate
    assert spec is not None and (spec.dir, spec.percent) == ("next", 30.0)
    assert (spaced / "new learn" / "report.txt").exists()


def test_the_candidate_keeps_the_predicted_gains(place: Path) -> None:
    """Without them, the tiers of the intents would serve in place of those that the prompt chooses."""
    raw = encode_gains(header(load_config(place / "intents")), by_prompt_gains())
    (place / "intents" / GAINS_FILE).write_bytes(raw)
    assert run(place) == 0
    assert (place / "intents" / "next" / GAINS_FILE).read_bytes() == raw


def test_requests_of_an_app_with_its_own_intents_are_left_out(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their labels are cohorts of that app, which would count as out of scope here."""
    intents = place / "intents"
    shutil.copytree(intents, intents / "support", ignore=shutil.ignore_patterns("policy.yaml"))
    with (intents / "policy.yaml").open("a") as policy:
        policy.write("apps: {support: {hosts: [s.example], intents: support}, plain: {hosts: [p.example]}}\n")
    with (
        contextlib.closing(Store(place / "ledger.sqlite", 90)) as store,
        (place / "requests.jsonl").open("a") as log,
    ):
        for app in ("support", "plain"):
            outcome = Outcome(time.time(), "chat", Ending.ACCEPTED, 200, 1, "matched", request=app, app=app)
            store.add([(outcome, Cost(0.1, (), 0.1))])
            body = {"model": "auto", "messages": [{"role": "user", "content": f"From {app}"}]}
            log.write(msgspec.json.encode({"id": app, "request": body}).decode() + "\n")
    assert run(place) == 0
    assert f"export:    {ROWS + 1} requests with their text" in capsys.readouterr().out
    assert "From support" not in (place / "learn" / "log.jsonl").read_text()


def test_the_copy_has_the_fitted_files_and_finds_the_encoder(place: Path) -> None:
    """A candidate without `gains.safetensors` would make every choice by the prompt stale."""
    gains = encode_gains(header(), by_prompt_gains())
    (place / "intents" / GAINS_FILE).write_bytes(gains)
    (place / "adapted").mkdir()
    policy = place / "intents" / "policy.yaml"
    policy.write_text(policy.read_text() + "encoder: {model: ../adapted}\n")
    assert run(place) == 0
    assert (place / "intents" / "next" / GAINS_FILE).read_bytes() == gains
    copied, served = (load_config(place / name).policy.encoder.model for name in ("learn/next", "intents"))
    assert copied == served == str(place / "adapted")
    assert "model: ../adapted" in policy.read_text()


def test_after_the_promotion_there_is_nothing_to_learn(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place) == 0 and main(["rollout", "promote", "--intents", str(place / "intents")]) == 0
    capsys.readouterr()
    assert run(place) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "calibrate: no file changes"
    assert load_config(place / "intents").policy.candidate is None


@pytest.mark.parametrize(
    ("passage", "code", "shadow"),
    [(Passage.FAILED, 1, None), (Passage.UNSEEN, 0, True), (Passage.UNCLEAR, 0, True)],
)
def test_the_gate_decides_about_the_share(
    place: Path, monkeypatch: pytest.MonkeyPatch, passage: Passage, code: int, shadow: bool | None
) -> None:
    """A worse cohort makes no candidate. In doubt it only decides beside, and a person gives it a share."""
    monkeypatch.setattr(learn, "run_gate", lambda *_: passage)
    assert run(place) == code
    spec = load_config(place / "intents").policy.candidate
    assert (spec.shadow if spec is not None else None) is shadow
    if shadow:
        assert main(["rollout", "start", "--percent", "10", "--intents", str(place / "intents")]) == 0
        spec = load_config(place / "intents").policy.candidate
        assert spec is not None and (spec.shadow, spec.percent) == (False, 10.0)


def test_a_candidate_with_conversations_is_not_replaced(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place) == 0
    other = place / "intents" / "next" / "billing.yaml"
    other.write_text(other.read_text().replace("floor: 0.3", "floor: 0.4"))
    capsys.readouterr()
    assert run(place) == 0
    assert "another candidate is compared in " in capsys.readouterr().out
    assert "floor: 0.4" in other.read_text()


def test_a_failed_step_is_named_and_changes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise ValueError("no space left")

    monkeypatch.setattr(learn, "run_calibrate", broken)
    before = {path: path.read_bytes() for path in (place / "intents").iterdir()}
    assert run(place) == 2
    error = capsys.readouterr().err
    assert "extproc: the step `calibrate` of learn failed, and what serves is unchanged: no space left" in error
    assert {path: path.read_bytes() for path in (place / "intents").iterdir()} == before
    assert "no space left" in (place / "learn" / "report.txt").read_text()


def test_two_runs_do_not_work_at_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "learn").mkdir()
    with (place / "learn" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(place) == 2
    assert "another `extproc learn` works in learn: wait for its end" in capsys.readouterr().err


def test_requests_without_the_ids_of_the_ledger_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "requests.jsonl").write_text('{"id": "other", "request": {"model": "a", "messages": []}}\n')
    assert run(place) == 2
    assert "no request of ledger.sqlite is in requests.jsonl" in capsys.readouterr().err


def test_without_labels_the_queue_is_filled_and_nothing_fitted(
    place: Path, steps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(Store(place / "ledger.sqlite", 90).open()) as ledger:
        ledger.write([("DELETE FROM signals", ())])
    assert run(place) == 0 and steps == []
    assert "nothing to learn from: label rows of learn/queue.jsonl" in capsys.readouterr().out


def test_a_file_of_requests_that_is_missing_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "requests.jsonl").unlink()
    assert run(place) == 2
    assert capsys.readouterr().err.endswith("what serves is unchanged: requests.jsonl: no such file or directory\n")
