"""The candidate of a configuration: its policy, its revision and its mistakes."""

import asyncio
import contextlib
import logging
import shutil
import time
from pathlib import Path

import pytest

from extproc.cli.main import main
from extproc.config import reload
from extproc.config.candidate import alike_cohorts, compile_all
from extproc.config.load import Config, load_candidate, load_config
from extproc.config.signature import signature
from extproc.config.strict_checks import strict_problems
from extproc.routing.rollout import arm_of
from extproc.routing.snapshot import AUTHORITY, Snapshot

GOOD = Path(__file__).parents[1] / "configs" / "good"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The good folder with a candidate that sends billing to the larger tier."""
    intents = Path(shutil.copytree(GOOD, tmp_path / "intents"))
    shutil.copytree(GOOD, intents / "next", ignore=shutil.ignore_patterns("policy.yaml"))
    edit(intents / "next/billing.yaml", "tier: small", "tier: large")
    write_key(intents, "{dir: next, percent: 20}")
    return intents


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def write_key(intents: Path, value: str) -> None:
    policy = (intents / "policy.yaml").read_text().partition("candidate:")[0]
    (intents / "policy.yaml").write_text(f"{policy}candidate: {value}\n")


def both(folder: Path) -> tuple[Config, Config]:
    config = load_config(folder)
    return config, load_candidate(config, folder)


def test_a_candidate_has_its_own_intents_and_the_policy_that_serves(folder, words):
    snapshot = compile_all(load_config(folder), folder, words)
    rollout = snapshot.rollout
    assert rollout is not None and rollout.snapshot is not None
    policies = snapshot.policy, rollout.snapshot.policy
    assert [policy.cohorts["billing"].tier for policy in policies] == ["small", "large"]
    assert rollout.snapshot.policy.tiers == snapshot.policy.tiers
    assert (rollout.spec.percent, rollout.spec.shadow, rollout.spec.loss) == (20, False, 0.02)
    assert rollout.snapshot.rollout is None
    assert snapshot.arm(rollout.snapshot.revision) is rollout.snapshot
    assert snapshot.arm(snapshot.revision) is snapshot.arm("candidate-0123456789ab") is snapshot


def test_its_revision_says_what_is_compared(folder):
    """Another share or a copy of the folder compares the same. Other files of either arm are another comparison."""
    config, first = both(folder)
    assert first.revision.startswith("candidate-") and len(first.revision) == len("candidate-") + 12
    write_key(folder, "{dir: next, percent: 50, loss: 0.1}")
    other, again = both(folder)
    assert again.revision == first.revision and other.revision != config.revision
    moved = Path(shutil.copytree(folder, folder.parent / "elsewhere"))
    assert both(moved)[1].revision == first.revision

    revisions = {first.revision}
    for file, old, new in (
        ("next/billing.yaml", "max_output_tokens: 200", "max_output_tokens: 300"),
        ("billing.yaml", "max_output_tokens: 200", "max_output_tokens: 300"),
        ("policy.yaml", "context: 32768", "context: 16384"),
    ):
        edit(folder / file, old, new)
        revisions.add(both(folder)[1].revision)
    assert len(revisions) == 4


def test_cohorts_are_compared_one_by_one_if_both_arms_match_alike(folder):
    """Another floor of a cohort gives it other requests. Other utterances may move requests of every cohort."""
    assert alike_cohorts(*both(folder)) == ("billing", "cooking")
    edit(folder / "next/cooking.yaml", "tier: large", "tier: large\nfloor: 0.3")
    assert alike_cohorts(*both(folder)) == ("billing",)
    edit(folder / "next/cooking.yaml", "How long do I boil an egg", "How long do I boil two eggs")
    assert alike_cohorts(*both(folder)) == ()


@pytest.mark.parametrize("mistake", ["tier: huge", "teir: large"])
def test_a_broken_candidate_is_off_and_the_policy_serves(folder, words, caplog, mistake):
    edit(folder / "next/billing.yaml", "tier: large", mistake)
    with caplog.at_level(logging.ERROR):
        snapshot = compile_all(load_config(folder), folder, words)
    assert snapshot.rollout is not None and snapshot.rollout.snapshot is None
    assert snapshot.policy.cohorts["billing"].tier == "small"
    assert f"the candidate in {folder / 'next'} is off" in caplog.text and "next/billing.yaml:" in caplog.text


def test_an_edit_of_the_candidate_alone_is_read_again(folder, words, monkeypatch, caplog):
    """A mistake turns it off, and its repair turns it on again. The policy that serves stays the same."""
    monkeypatch.setattr(reload, "_INTERVAL_S", 0.01)
    serving = [compile_all(load_config(folder), folder, words)]
    reports: list[tuple[str, str]] = []

    def revision(snapshot: Snapshot) -> str | None:
        return snapshot.rollout.revision if snapshot.rollout is not None else "none"

    async def changed(count: int) -> None:
        deadline = time.monotonic() + 30
        while len(serving) < count:
            assert time.monotonic() < deadline, reports
            await asyncio.sleep(0.01)

    async def run() -> None:
        watching = asyncio.create_task(
            reload.watch(
                folder, signature(folder), lambda: serving[-1], words, serving.append,
                lambda *report: reports.append(report),
            )
        )  # fmt: skip
        for count, (old, new) in enumerate((("tier: large", "tier: huge"), ("tier: huge", "tier: large")), start=2):
            edit(folder / "next/billing.yaml", old, new)
            await changed(count)
        write_key(folder, "null")
        await changed(4)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    first, off, again, none = map(revision, serving)
    assert (off, none) == (None, "none") and first == again
    assert len({snapshot.revision for snapshot in serving[:3]}) == 1
    assert [word for word, _ in reports[:2]] == ["unchanged", "unchanged"]
    assert f"a candidate is compared: revision {first} beside {serving[0].revision}" in caplog.text


def test_the_folder_of_the_candidate_is_read_and_another_one_is_not(folder):
    """`check --strict` names folders that look as if they were read."""
    assert not [p for p in strict_problems(load_config(folder), folder) if p.file == "next"]
    write_key(folder, "null")
    assert [p.file for p in strict_problems(load_config(folder), folder) if "is a folder" in p.what] == ["next"]


def test_the_candidate_decides_about_no_request_of_an_app(folder, words, monkeypatch, capsys):
    """An app has its own tiers, budget and perhaps intents, and the comparison leaves its rows out."""
    shutil.copytree(folder / "next", folder / "support")
    with (folder / "policy.yaml").open("a") as policy:
        policy.write("apps: {support: {hosts: [s.example], intents: support}, plain: {hosts: [p.example]}}\n")
    snapshot = compile_all(load_config(folder), folder, words)
    assert snapshot.rollout is not None and snapshot.rollout.revision is not None
    shares = {snapshot.rollout.revision: 1.0}
    revisions = {}
    for host in ("s.example", "p.example", "other.example"):
        own = snapshot.of_request({AUTHORITY: host, ":path": "/v1/chat/completions"})
        revisions[host] = arm_of(own, "conversation", shares).revision
    assert revisions == {
        "s.example": snapshot.revision, "p.example": snapshot.revision, "other.example": snapshot.rollout.revision,
    }  # fmt: skip
    monkeypatch.setattr("extproc.encoder.backends.load_encoder", lambda *_: words)
    assert main(["check", str(folder)]) == 0
    assert "decides about 20 % of the conversations, and about no request of an app" in capsys.readouterr().out
