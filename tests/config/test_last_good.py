"""The last good files on disk."""

import os
import shutil
from pathlib import Path

import pytest

from extproc.config.last_good import keep, kept_folder
from extproc.config.load import load_config
from tests.e2e.traffic import write_small_intents


def test_each_edit_is_kept_and_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept copy is that of the last edit, it is the only one, and a router can go on for months."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    intents = write_small_intents(tmp_path / "intents")
    text = (intents / "extraction.yaml").read_text()
    open_files = len(os.listdir("/proc/self/fd"))
    for cap in (101, 102, 103):
        (intents / "extraction.yaml").write_text(text.replace("tokens: 512", f"tokens: {cap}"))
        keep(intents, load_config(intents))
    kept = kept_folder(intents)
    assert kept is not None and "max_output_tokens: 103" in (kept / "extraction.yaml").read_text()
    assert sorted(path.name for path in kept.parent.iterdir()) == sorted([kept.name, "current"])
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_the_files_of_apps_are_kept_and_a_mistake_keeps_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy has the revision of the whole. An app with mistakes has the files in it that served last."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    intents = write_small_intents(tmp_path / "intents")
    with (intents / "policy.yaml").open("a") as policy:
        policy.write("apps:\n  support: {hosts: [a.example], intents: ../support}\n")
    support = tmp_path / "support"
    shutil.copytree(intents, support, ignore=shutil.ignore_patterns("policy.yaml"))
    first = load_config(intents)
    keep(intents, first)
    kept = kept_folder(intents)
    assert kept is not None
    assert load_config(kept, intents).revision == first.revision

    (support / "extraction.yaml").write_text("intent: extraction\n")
    config = load_config(intents)
    assert [*config.broken] == ["support"]
    keep(intents, config, [*config.broken])
    kept = kept_folder(intents)
    assert kept is not None and kept.name == config.revision != first.revision
    again = load_config(kept, intents)
    assert again.apps["support"].intents == first.apps["support"].intents
    assert again.signatures == config.signatures, "those of the folder that is watched"

    shutil.rmtree(support)
    config = load_config(intents)
    keep(intents, config, [*config.broken])
    kept = kept_folder(intents)
    assert kept is not None
    assert load_config(kept, intents).apps["support"].intents == first.apps["support"].intents


def test_a_copy_of_an_earlier_release_gets_the_files_of_apps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the same revision, so only the files of its apps are missing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    intents = write_small_intents(tmp_path / "intents")
    with (intents / "policy.yaml").open("a") as policy:
        policy.write("apps:\n  support: {hosts: [a.example], intents: ../support}\n")
    support = tmp_path / "support"
    shutil.copytree(intents, support, ignore=shutil.ignore_patterns("policy.yaml"))
    config = load_config(intents)
    keep(intents, config)
    kept = kept_folder(intents)
    assert kept is not None
    whole = sorted(path.relative_to(kept) for path in kept.rglob("*"))
    for app in kept.glob("app-*"):
        shutil.rmtree(app)
    keep(intents, config, ["support"])
    assert not [*kept.glob("app-*")], "files with mistakes are not kept"
    keep(intents, config)
    assert sorted(path.relative_to(kept) for path in kept.rglob("*")) == whole

    shutil.rmtree(next(kept.glob("app-*")))
    (support / "extraction.yaml").write_text("intent: extraction\n")
    keep(intents, config)
    assert not [*kept.glob("app-*")], "the folder was edited after it was loaded"
