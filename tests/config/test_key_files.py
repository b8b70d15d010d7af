"""`check` reads the files of keys that are on this machine, and says which are not."""

from pathlib import Path

import pytest
import yaml

from extproc.config.key_files import check_key_files
from extproc.config.load import Config, ConfigError, load_config

GOOD = Path(__file__).parents[1] / "configs" / "good"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A writable copy of the good folder."""
    for path in GOOD.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    return tmp_path


def config(folder: Path, **key: str) -> Config:
    policy = yaml.safe_load((GOOD / "policy.yaml").read_text())
    policy["tiers"][0]["key"] = key
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    return load_config(folder)


@pytest.mark.parametrize("content", ["sk-1", "sk-1\n", " sk-1 \r\n"])
def test_a_key_may_end_with_a_newline(folder: Path, content: str) -> None:
    (folder / "key").write_text(content)
    assert check_key_files(config(folder, file="key")) == []


@pytest.mark.parametrize(
    ("content", "key", "what"),
    [
        ("", {}, "is empty: write the key into it"),
        ("\n", {}, "is empty: write the key into it"),
        ("${KEY}", {}, "names a variable, and Envoy does not replace it: write the key itself into it"),
        ("$KEY", {}, "names a variable, and Envoy does not replace it: write the key itself into it"),
        ("sk-1\nsk-2", {}, "has several lines: write only the key into it"),
        ("schlüssel", {}, "has characters that a header cannot have: write only the key into it"),
        (
            "Bearer sk-1",
            {},
            "begins with `Bearer`, which is sent in front of the key anyway: remove it from the file",
        ),
        (
            "token sk-1",
            {"header": "x-auth", "scheme": "Token"},
            "begins with `Token`, which is sent in front of the key anyway: remove it from the file",
        ),
        (
            "sk-1",
            {"scheme": "none"},
            "has no scheme in front of the key, as in `Bearer ...`: add it, or remove `scheme: none`",
        ),
    ],
)
def test_a_file_that_holds_no_key_is_a_mistake(folder: Path, content: str, key: dict[str, str], what: str) -> None:
    """No message repeats the key."""
    (folder / "key").write_text(content)
    with pytest.raises(ConfigError) as caught:
        check_key_files(config(folder, file="key", **key))
    [problem] = caught.value.problems
    assert problem.what == f"key file {folder / 'key'} {what}"
    assert "sk-1" not in str(caught.value)


def test_a_file_that_is_missing_beside_the_yaml_is_a_mistake(folder: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        check_key_files(config(folder, file="key"))


def test_a_file_in_a_folder_of_another_machine_is_only_noted(folder: Path) -> None:
    [note] = check_key_files(config(folder, file="/etc/elsewhere/key"))
    assert note.what == (
        "key file /etc/elsewhere/key is not on this machine, so it was not checked: see that Envoy can read it"
    )


def test_a_relative_path_starts_at_the_folder_of_the_yaml(folder: Path) -> None:
    key = config(folder, file="keys/small").policy.tiers[0].key
    assert key is not None and key.file == str(folder / "keys" / "small")
