"""The end of a rollout on disk."""

from pathlib import Path

import pytest

from extproc.cli.main import main
from extproc.config.load import load_config
from extproc.config.rollout_files import promote, start, stop, without_candidate
from tests.config.test_candidate import both, folder, write_key

__all__ = ["folder"]  # a fixture


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_promoted_candidate_serves_and_the_old_files_are_kept(folder: Path) -> None:
    (folder / "next/soup.yaml").write_text((folder / "next/cooking.yaml").read_text().replace("cooking", "soup"))
    (folder / "next/cooking.yaml").unlink()
    policy = (folder / "policy.yaml").read_text()
    (folder / "policy.yaml").write_text(policy.replace("[cooking]", "[billing]"))
    (folder / "README.md").write_text("ours")
    _, candidate = both(folder)
    before = load_config(folder)

    lines = list(promote(folder))
    after = load_config(folder)
    assert {intent.intent: intent.tier for intent in after.intents} == {"billing": "large", "soup": "large"}
    assert after.intents == candidate.intents and after.policy.candidate is None
    assert names(folder) == ["README.md", "billing.yaml", "policy.yaml", "soup.yaml"]
    backup = folder.with_name(f"intents.before-{candidate.revision.removeprefix('candidate-')}")
    assert names(backup) == ["billing.yaml", "cooking.yaml", "policy.yaml"]
    assert load_config(backup).intents == before.intents
    assert lines == [
        f"copied 3 files of {folder} to {backup}",
        f"moved 2 files of {folder / 'next'} to {folder}, and removed 1 old ones there",
        f"removed `candidate` from {folder / 'policy.yaml'}",
    ]


def test_a_candidate_with_a_mistake_is_not_promoted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "next/billing.yaml").write_text("intent: billing\n")
    before = {path: path.read_bytes() for path in folder.glob("*.yaml")}
    assert main(["rollout", "promote", "--intents", str(folder)]) == 2
    assert "next/billing.yaml:1: `tier` is missing" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.glob("*.yaml")} == before
    assert names(folder.parent) == ["intents"]


def test_a_candidate_with_a_mistake_gets_no_share(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "next/billing.yaml").write_text("intent: billing\n")
    before = (folder / "policy.yaml").read_bytes()
    assert main(["rollout", "start", "--percent", "5", "--intents", str(folder)]) == 2
    assert "next/billing.yaml:1: `tier` is missing" in capsys.readouterr().err
    assert (folder / "policy.yaml").read_bytes() == before


def test_a_candidate_that_comes_back_is_not_promoted_over_the_old_files(folder: Path) -> None:
    """The folder of the earlier promotion has the files to go back to."""
    _, candidate = both(folder)
    backup = folder.with_name(f"intents.before-{candidate.revision.removeprefix('candidate-')}")
    backup.mkdir()
    with pytest.raises(ValueError, match=r"before an earlier promotion of this candidate: move it elsewhere$"):
        list(promote(folder))
    assert names(backup) == [] and (folder / "next/billing.yaml").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{dir: next, shadow: true} # Ann, May 3", "{dir: next, percent: 20} # Ann, May 3"),
        (
            "{ dir: 'next', percent: 5.0 , loss: 0.01 }  # weekly",
            "{ dir: 'next', percent: 20 , loss: 0.01 }  # weekly",
        ),
        ("{dir: next}", "{percent: 20, dir: next}"),
        (
            "{\n  dir: next, # ours\n  shadow: true # at first\n}",
            "{\n  dir: next, # ours\n  percent: 20 # at first\n}",
        ),
        (
            "# é weekly\n  # by learn\n  dir: next # ours\n  shadow: true # at first\n  loss: 0.01",
            "# é weekly\n  # by learn\n  dir: next # ours\n  percent: 20 # at first\n  loss: 0.01",
        ),
        ("\n  dir: next # ours", "\n  percent: 20\n  dir: next # ours"),
        ("\n    percent: 1\n    shadow: on\n    dir: next", "\n    percent: 20\n    shadow: false\n    dir: next"),
    ],
)
def test_a_started_candidate_keeps_its_comments(folder: Path, before: str, after: str) -> None:
    """Only the share changes, and each line stays in its place."""
    write_key(folder, before)
    more = "# the next key\nmode: shadow # for now\n"
    policy = (folder / "policy.yaml").read_text()
    (folder / "policy.yaml").write_text(policy + more)
    start(folder, 20)
    assert (folder / "policy.yaml").read_text() == policy.replace(before, after) + more


def test_a_started_candidate_in_another_form_is_written_anew(folder: Path) -> None:
    """If the share cannot be written in its place, the key moves to the end of the file."""
    write_key(folder, "{\n  dir: next # ours\n  }")
    policy = (folder / "policy.yaml").read_text()
    start(folder, 20)
    kept = policy.replace("candidate: {\n  dir: next # ours\n  }\n", "")
    assert (folder / "policy.yaml").read_text() == f'{kept}candidate: {{dir: "next", percent: 20, loss: 0.02}}\n'


def test_a_started_candidate_keeps_the_mark_of_a_windows_editor(folder: Path) -> None:
    write_key(folder, "{dir: next, shadow: true} # ours")
    policy = b"\xef\xbb\xbf" + (folder / "policy.yaml").read_bytes()
    (folder / "policy.yaml").write_bytes(policy)
    start(folder, 20)
    assert (folder / "policy.yaml").read_bytes() == policy.replace(b"shadow: true", b"percent: 20")


def test_a_stopped_candidate_keeps_its_files_and_nothing_else_changes(folder: Path) -> None:
    write_key(folder, "# the new floors\n  dir: next\n  percent: 20")
    policy = (folder / "policy.yaml").read_text()
    (folder / "policy.yaml").write_text(policy + "mode: shadow # for now\n")
    assert stop(folder).endswith(f"its files stay in {folder / 'next'}")
    assert (folder / "policy.yaml").read_text() == policy.partition("candidate:")[0] + "mode: shadow # for now\n"
    assert names(folder / "next") == ["billing.yaml", "cooking.yaml"]
    with pytest.raises(ValueError, match=r"has no candidate: add `candidate: \{dir: FOLDER\}`"):
        stop(folder)


def test_a_policy_on_one_line_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="remove `candidate` by hand"):
        without_candidate(b"{version: 1, default_tier: a, tiers: [], candidate: {dir: next}}")
