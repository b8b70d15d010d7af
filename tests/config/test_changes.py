"""What the log and `extproc status` say about an edit, and the copy of the last good files."""

import shutil
from pathlib import Path

import pytest

from extproc.config.changes import changes_between, describe
from extproc.config.last_good import keep, kept_folder
from extproc.config.load import load_config
from extproc.envoy.bootstrap import sample_of

GOOD = Path(__file__).parents[1] / "configs" / "good"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOOD, tmp_path / "intents"))


def edit(folder: Path, file: str, *pairs: tuple[str, str]) -> None:
    text = (folder / file).read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / file).write_text(text)


def edited(folder: Path, file: str, *pairs: tuple[str, str]) -> str:
    old = load_config(folder)
    edit(folder, file, *pairs)
    return describe(changes_between(old, load_config(folder), sample_of))


INTENT, POLICY = "billing.yaml", "policy.yaml"


def test_a_tier_of_an_intent_needs_no_envoy(folder: Path) -> None:
    assert edited(folder, INTENT, ("tier: small", "tier: large")) == "billing.tier small -> large"


def test_what_only_envoy_can_do_is_named_with_file_and_line(folder: Path) -> None:
    """Whether Envoy needs a change is read from what would be rendered for it."""
    line = (folder / POLICY).read_text().splitlines().index("default_tier: large") + 2
    said = edited(folder, POLICY, ("default_tier: large", "default_tier: large\ntimeouts: {attempt_s: 11}"))
    assert said == f"timeouts.attempt_s 120 -> 11; needs Envoy: policy.yaml:{line} attempt_s"


def test_texts_and_passwords_are_not_shown(folder: Path) -> None:
    utterance = (folder / INTENT).read_text().splitlines()[-1]
    assert edited(folder, INTENT, (utterance, utterance + "\n  - Bill me twice")) == (
        "billing.utterances: 1 added, 0 removed"
    )
    state = ("default_tier: large", "default_tier: large\nstate: redis://me:secret@host:6379")
    assert edited(folder, POLICY, state) == "state none -> ..."


def test_an_intent_that_is_new_or_gone_is_named(folder: Path) -> None:
    old = load_config(folder)
    shutil.copy(folder / INTENT, folder / "bills.yaml")
    edit(folder, "bills.yaml", ("intent: billing", "intent: bills"))
    (folder / INTENT).unlink()
    assert describe(changes_between(old, load_config(folder), sample_of)) == "billing removed, bills added"


def test_the_same_files_have_no_changes(folder: Path) -> None:
    assert changes_between(load_config(folder), load_config(folder), sample_of) == []


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_the_last_good_files_are_kept_until_the_next(folder: Path) -> None:
    assert kept_folder(folder) is None
    first = load_config(folder)
    keep(folder, first)
    keep(folder, first)
    edit(folder, INTENT, ("tier: small", "tier: large"))
    second = load_config(folder)
    keep(folder, second)
    kept = kept_folder(folder)
    assert kept is not None and load_config(kept, folder).revision == second.revision
    assert sorted(path.name for path in kept.parent.iterdir()) == sorted(["current", second.revision])


def test_files_that_were_edited_meanwhile_are_not_kept(folder: Path) -> None:
    config = load_config(folder)
    edit(folder, INTENT, ("tier: small", "tier: smal"))
    keep(folder, config)
    assert kept_folder(folder) is None


def test_a_place_that_cannot_be_written_costs_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    keep(folder, load_config(folder))
    assert kept_folder(folder) is None


def test_a_user_without_a_home_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    keep(folder, load_config(folder))
    assert kept_folder(folder) is None
