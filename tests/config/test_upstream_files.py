"""`check` reads the files of keys and certificates that are on this machine, and says which are not."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config.load import Config, ConfigError, load_config
from extproc.config.upstream_files import check_upstream_files

GOOD = Path(__file__).parents[1] / "configs" / "good"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A writable copy of the good folder."""
    for path in GOOD.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    return tmp_path


def config(folder: Path, **key: str) -> Config:
    return with_tier(folder, key=key)


def with_tier(folder: Path, **more: Any) -> Config:
    """Load the folder with these settings of its first tier."""
    policy = yaml.safe_load((GOOD / "policy.yaml").read_text())
    policy["tiers"][0] |= more
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    return load_config(folder)


def certificate() -> bytes:
    """Return a new certificate in PEM."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=ca -keyout /dev/null"
    return subprocess.run(command.split(), check=True, capture_output=True, timeout=30).stdout


def with_ca(folder: Path, ca: str) -> Config:
    return with_tier(folder, ca=ca, url="https://small.example")


@pytest.mark.parametrize("content", ["sk-1", "sk-1\n", " sk-1 \r\n"])
def test_a_key_may_end_with_a_newline(folder: Path, content: str) -> None:
    (folder / "key").write_text(content)
    assert check_upstream_files(config(folder, file="key")) == []


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
        check_upstream_files(config(folder, file="key", **key))
    [problem] = caught.value.problems
    assert problem.what == f"key file {folder / 'key'} {what}"
    assert "sk-1" not in str(caught.value)


def test_a_file_that_is_missing_beside_the_yaml_is_a_mistake(folder: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        check_upstream_files(config(folder, file="key"))


def test_a_file_in_a_folder_of_another_machine_is_only_noted(folder: Path) -> None:
    [note] = check_upstream_files(config(folder, file="/etc/elsewhere/key"))
    assert note.what == (
        "key file /etc/elsewhere/key is not on this machine, so it was not checked: "
        "make sure that Envoy can read it"
    )


def test_a_relative_path_starts_at_the_folder_of_the_yaml(folder: Path) -> None:
    key = config(folder, file="keys/small").policy.tiers[0].key
    assert key is not None and key.file == str(folder / "keys" / "small")


# --- certificates -------------------------------------------------------------------------------------------


def test_certificates_that_can_be_read_are_fine(folder: Path) -> None:
    """Beside comments, as in the file of a distribution."""
    pem = certificate()
    (folder / "ca.pem").write_bytes(b"# Our root\n" + pem + pem)
    assert check_upstream_files(with_ca(folder, "ca.pem")) == []


@pytest.mark.parametrize(
    "content", [b"", b"sk-1\n", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\x30\x82\x01"],
    ids=["empty", "a key", "damaged", "DER"],
)  # fmt: skip
def test_a_file_without_certificates_is_a_mistake(folder: Path, content: bytes) -> None:
    """Envoy would refuse the whole configuration."""
    (folder / "ca.pem").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        check_upstream_files(with_ca(folder, "ca.pem"))
    [problem] = caught.value.problems
    what = "has no certificate that can be read: write certificates in PEM into it"
    assert (problem.what, problem.file) == (f"ca file {folder / 'ca.pem'} {what}", "policy.yaml")
    assert problem.line


def test_missing_certificates_are_a_mistake_or_a_note_as_a_missing_key_is(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_upstream_files(with_ca(folder, "ca.pem"))
    [problem] = caught.value.problems
    why = "(No such file or directory): write the certificates into it, or correct `ca`"
    assert problem.what == f"ca file {folder / 'ca.pem'} cannot be read {why}"
    [note] = check_upstream_files(with_ca(folder, "/etc/elsewhere/ca.pem"))
    assert note.what == (
        "ca file /etc/elsewhere/ca.pem is not on this machine, so it was not checked: "
        "make sure that Envoy can read it"
    )


def test_each_file_of_a_tier_is_reported(folder: Path) -> None:
    tier = {"url": "https://small.example", "ca": "ca.pem", "key": {"file": "key"}}
    with pytest.raises(ConfigError) as caught:
        check_upstream_files(with_tier(folder, **tier))
    assert [problem.what.split(" ")[0] for problem in caught.value.problems] == ["ca", "key"]
