"""The keys that tiers had in earlier releases: they mean what they meant, and `check` says what to write."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config.load import Config, ConfigError, load_config
from extproc.config.upstream_files import check_upstream_files
from extproc.settings import TierKey

GOOD = Path(__file__).parents[1] / "configs" / "good"


def loaded(folder: Path, *, without: tuple[str, ...] = ("url",), **keys: Any) -> Config:
    """The good policy, whose first tier has these keys."""
    folder.mkdir(exist_ok=True)
    for path in GOOD.iterdir():
        (folder / path.name).write_text(path.read_text())
    policy = yaml.safe_load((GOOD / "policy.yaml").read_text())
    policy["tiers"][0] = {k: v for k, v in policy["tiers"][0].items() if k not in without} | keys
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    return load_config(folder)


def problems(folder: Path, **keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, **keys)
    return [problem.what for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("old", "url", "note"),
    [
        ({"endpoint": "vllm:8000"}, "http://vllm:8000", "`endpoint`"),
        ({"endpoint": "api.example:443", "tls": True}, "https://api.example:443", "`endpoint` and `tls`"),
        ({"endpoint": "10.0.0.7:80", "tls": False}, "http://10.0.0.7:80", "`endpoint` and `tls`"),
        ({"endpoint": "[::1]:8000"}, "http://[::1]:8000", "`endpoint`"),
        ({"endpoint": "::1:8000"}, "http://[::1]:8000", "`endpoint`"),
    ],
)
def test_an_endpoint_becomes_a_url(tmp_path: Path, old: dict[str, Any], url: str, note: str) -> None:
    config = loaded(tmp_path, **old)
    assert config.policy.tiers[0].url == url
    assert [str(line) for line in config.old_keys] == [
        f"policy.yaml:{config.old_keys[0].line}: {note} will go: write `url: {url}`"
    ]


def test_a_judge_has_a_url_too(tmp_path: Path) -> None:
    """A path takes the place of /v1, and a relative key file starts at the folder of the YAML."""
    policy = yaml.safe_load((GOOD / "policy.yaml").read_text())
    judges = {
        "old": {"endpoint": "judge:443", "tls": True, "model": "j", "api_key_env": "KEY"},
        "new": {"url": "http://[::1]:81/a", "model": "j", "key": {"file": "keys/judge"}},
    }
    loaded(tmp_path, url="http://a")
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy | {"judges": judges}))
    config = load_config(tmp_path)
    assert [line.what for line in config.old_keys] == [
        "`endpoint` and `tls` will go: write `url: https://judge:443`"
    ]
    old, new = config.policy.judges["old"], config.policy.judges["new"]
    assert (old.chat_url, new.chat_url) == (
        "https://judge:443/v1/chat/completions", "http://[::1]:81/a/chat/completions"
    )  # fmt: skip
    assert new.key == TierKey(str(tmp_path / "keys" / "judge"))
    with pytest.raises(FileNotFoundError):
        new.authorization()
    (tmp_path / "keys").mkdir()
    with pytest.raises(ConfigError, match=r"keys/judge cannot be read"):
        check_upstream_files(config)
    (tmp_path / "keys" / "judge").write_text("sk-1\n")
    assert (check_upstream_files(config), new.authorization()) == ([], {"authorization": "Bearer sk-1"})


def test_a_credential_becomes_a_key_that_is_sent_as_it_is(tmp_path: Path) -> None:
    """Its file has the whole value of the header, with the scheme."""
    config = loaded(tmp_path, without=(), credential="/etc/keys/small")
    assert config.policy.tiers[0].key == TierKey("/etc/keys/small", scheme="none")
    assert config.policy.tiers[0].key.prefix == ""
    assert [line.what for line in config.old_keys] == [
        "`credential` will go: write `key: {file: /etc/keys/small, scheme: none}`"
    ]


@pytest.mark.parametrize(
    ("keys", "mistakes"),
    [
        ({"url": "http://a", "endpoint": "a:80"}, ["`endpoint` beside `url` or `endpoints`: remove `endpoint`"]),
        (
            {"url": "http://a", "tls": True},
            ["`tls` is in the scheme of `url` now, https:// or http://: remove `tls`"],
        ),
        (
            {"endpoint": "a:80", "key": {"file": "/k"}, "credential": "/k"},
            ["`credential` beside `key`: remove `credential`"],
        ),
        ({"endpoint": 80}, ["`tiers[0].url`: expected text, found the number 80: put it in quotes"]),
        (
            {},
            ["`url` is missing: add it (address of the upstream: `https://host[:port][/base/path]`, or `http://`)"],
        ),
    ],
)
def test_old_and_new_keys_do_not_stand_beside_each_other(
    tmp_path: Path, keys: dict[str, Any], mistakes: list[str]
) -> None:
    assert problems(tmp_path, **keys) == mistakes


def test_new_keys_have_no_note(tmp_path: Path) -> None:
    assert loaded(tmp_path, url="http://a").old_keys == ()
