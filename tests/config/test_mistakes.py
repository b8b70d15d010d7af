"""Mistakes that people make while they edit: each has one line, in words of YAML, with a remedy."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from extproc.config.load import Config, ConfigError, load_config
from extproc.config.strict_checks import strict_problems

GOOD = Path(__file__).parents[1] / "configs" / "good"
Edit = Callable[[Path], object]
APP = "apps:\n  support: {hosts: [a.example], intents: support}\n"


def replace(file: str, old: str, new: str) -> Edit:
    def edit(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return edit


def add(file: str, text: str) -> Edit:
    return lambda folder: (folder / file).write_text((folder / file).read_text() + text)


def write(file: str, content: bytes) -> Edit:
    return lambda folder: (folder / file).write_bytes(content)


def with_app(folder: Path, name: str = "billing.yaml", more: str = "") -> None:
    """Add an app with one intent of its own."""
    (folder / "support").mkdir()
    (folder / "support" / name).write_text((folder / "billing.yaml").read_text() + more)
    add("policy.yaml", APP)(folder)


def with_mistaken_app(folder: Path) -> None:
    with_app(folder, more="accept: [no_refusal]\nescalate: {to: small}\n")
    (folder / "support" / "notes.txt").write_text("x")


MISTAKES: dict[str, tuple[Edit, str]] = {
    "a pipe": (  # a reload would wait for its writer without end
        lambda folder: os.mkfifo(folder / "pipe.yaml"),
        "pipe.yaml:1: cannot be read: it is a pipe, and a file is expected",
    ),
    "Latin-1": (
        write("billing.yaml", "intent: billing\ntier: small\nutterances: [café, b]\n".encode("latin-1")),
        "billing.yaml:3: is not UTF-8 text: save the file with the encoding UTF-8",
    ),
    "a tab": (
        replace("billing.yaml", "  - Why", "\t- Why"),
        "billing.yaml:5: is not valid YAML: found character that cannot start any token: indent with spaces, as "
        "YAML allows no tabs there",
    ),
    "a decimal with a comma": (
        add("billing.yaml", "accept: [no_refusal]\nescalate: {to: large, share: 0,5}\n"),
        "billing.yaml:9: `escalate.share`: in braces, a comma ends a value, so `0,5` is not one number: write 0.5",
    ),
    "thousands with a comma": (
        add("policy.yaml", "budget: {usd_month: 2,000, over: small}\n"),
        "policy.yaml:20: `budget.usd_month`: in braces, a comma ends a value, so `2,000` is not one number: "
        "write 2000",
    ),
    "a million with commas": (
        add("policy.yaml", "budget: {usd_month: $1,000,000.50, over: small}\n"),
        "policy.yaml:20: `budget.usd_month`: in braces, a comma ends a value, so `$1,000,000.50` is not one "
        "number: write 1000000.5",
    ),
    "an exponent": (
        add("policy.yaml", "budget:\n  usd_month: 1e3\n  over: small\n"),
        "policy.yaml:21: `budget.usd_month`: expected a number, found the text `1e3`: write 1000",
    ),
    "a special character": (
        add("billing.yaml", "description: @us\n"),
        "billing.yaml:8: is not valid YAML: found character that cannot start any token: put a text that begins "
        "with a special character in quotes",
    ),
    "a colon": (
        add("billing.yaml", "description: a: b\n"),
        "billing.yaml:8: is not valid YAML: mapping values are not allowed in this context: put a text with `: ` "
        "in quotes, and begin the keys of one mapping in the same column",
    ),
    "a star": (
        add("billing.yaml", "  - *what* is this\n"),
        "billing.yaml:8: is not valid YAML: did not find expected alphabetic or numeric character: put a text that "
        "begins with `*` or `&` in quotes",
    ),
    "an alias": (
        replace("billing.yaml", "tier: small", "tier: *low"),
        "billing.yaml:2: is not valid YAML: found undefined alias: a word that begins with `*` refers to an "
        "anchor: put a text in quotes",
    ),
    "a merge key": (
        add("billing.yaml", "<<: {risk: low}\n"),
        "billing.yaml:8: a merge key (`<<`) is not supported: write the keys themselves",
    ),
    "a tag": (
        replace("billing.yaml", "tier: small", "tier: !!python/name:small small"),
        "billing.yaml:2: the tag `!!python/name:small` is not supported: remove it",
    ),
    "two documents": (
        add("billing.yaml", "---\nintent: other\n"),
        "billing.yaml:8: is not valid YAML: but found another document: write one document, without a line of "
        "`---` inside",
    ),
    "deep": (
        write("billing.yaml", b"intent: " + b"[" * 3000 + b"]" * 3000),
        "billing.yaml:1: lists and mappings are nested too deeply: write fewer levels",
    ),
    "octal": (
        replace("policy.yaml", "context: 32768", "context: 0100000"),
        "policy.yaml:8: YAML reads 0100000 as 32768: write 32768, or put a text in quotes",
    ),
    "a time": (
        add("policy.yaml", "timeouts: {request_s: 5:00}\n"),
        "policy.yaml:20: YAML reads 5:00 as 300: write 300, or put a text in quotes",
    ),
    "a number in quotes": (
        replace("policy.yaml", "context: 32768", 'context: "32768"'),
        "policy.yaml:8: `tiers[0].context`: expected a whole number, found the text `32768`: remove the quotes",
    ),
    "the version in quotes": (
        replace("policy.yaml", "version: 1", 'version: "1"'),
        "policy.yaml:1: `version`: expected 1, found the text `1`: remove the quotes",
    ),
    "an endless price": (
        replace("policy.yaml", "input: 0.05", "input: .inf"),
        "policy.yaml:9: `price.input` is inf: expected a number from 0 up",
    ),
    "a secret": (
        replace("policy.yaml", "    context: 32768", "    context: 32768\n    key: sk-secret"),
        "policy.yaml:9: `tiers[0].key`: expected a mapping {file: ...}, found a text: write the key itself into a "
        "file",
    ),
    "a folder": (
        lambda folder: (folder / "more.yaml").mkdir(),
        "more.yaml:1: is a folder, and a file is expected: rename the folder, or move it elsewhere",
    ),
    "policy.yml": (
        lambda folder: (folder / "policy.yaml").rename(folder / "policy.yml"),
        "policy.yml:1: the policy is read from policy.yaml alone: rename this file",
    ),
    "two policies": (
        lambda folder: shutil.copy(folder / "policy.yaml", folder / "policy.yml"),
        "policy.yml:1: the policy is read from policy.yaml alone: rename this file, or remove it",
    ),
    "a long name": (
        replace("billing.yaml", "intent: billing", f"intent: {'b' * 65}"),
        f"billing.yaml:1: `{'b' * 37}...` has 65 characters and is sent in headers: use at most 64",
    ),
    "the port of the store": (
        add("policy.yaml", "state: redis://user:secret@valkey:port/0\n"),
        "policy.yaml:20: `state` is `redis://...@valkey:port/0`: its host, its port or the number of its database "
        "cannot be used: write it as in redis://valkey:6379/0",
    ),
    "the database of the store": (
        add("policy.yaml", "state: redis://valkey:6379/one\n"),
        "policy.yaml:20: `state` is `redis://valkey:6379/one`: its host, its port or the number of its database "
        "cannot be used: write it as in redis://valkey:6379/0",
    ),
}
# In the folder of an app. {} is the folder of the policy.
OF_APPS: dict[str, tuple[Edit, str]] = {
    "a file": (
        lambda folder: (folder / "support").write_text(""),
        "policy.yaml:21: app `support`: {}/support is not a folder: create it, or remove `intents`",
    ),
    "nothing": (
        lambda folder: None,
        "policy.yaml:21: app `support`: {}/support is not a folder: create it, or remove `intents`",
    ),
    "an empty folder": (
        lambda folder: (folder / "support").mkdir(),
        "policy.yaml:21: app `support`: {}/support has no intents: write at least one <intent>.yaml there, or "
        "remove `intents`",
    ),
    "the folder of the policy": (
        replace("policy.yaml", "intents: support", "intents: ."),
        "policy.yaml:21: app `support`: an app cannot have a policy, because the one beside the apps holds for it: "
        "remove {}/policy.yaml, or name another folder",
    ),
}
FINDINGS: dict[str, tuple[Edit, list[str]]] = {
    "milliseconds": (
        add("policy.yaml", "timeouts: {request_s: 30000}\n"),
        [
            "policy.yaml:20: `request_s` is 30000 seconds, more than an hour: is it meant in milliseconds? Write "
            "seconds"
        ],
    ),
    "a budget that moves nothing": (
        add("policy.yaml", "budget: {usd_month: 5, over: large}\n"),
        [
            "policy.yaml:20: `over` is `large`, the last tier, so no request moves when the money is spent: name a "
            "cheaper tier, or refuse"
        ],
    ),
    "the same rung twice": (
        add("billing.yaml", "accept: [no_refusal]\nescalate: {to: [large, large]}\n"),
        [
            "billing.yaml:9: `escalate.to` names tier `large` twice: the second answer would be like the first "
            "one. Name each tier once"
        ],
    ),
    "a hidden file": (
        lambda folder: shutil.copy(folder / "billing.yaml", folder / ".billing.yaml"),
        [".billing.yaml:1: is not read: its name begins with a dot. Rename the file, or move it elsewhere"],
    ),
    "an app beside the policy": (with_app, []),
    "an app with its own mistakes": (
        with_mistaken_app,
        [
            "support/billing.yaml:9: `escalate.to` names the intent's own tier `small` with the same `reasoning`: "
            "a rejected answer is asked for again in the same way. Name a higher tier",
            "support/notes.txt:1: is not read: the name of an intent's file ends in .yaml. Rename the file, or "
            "move it elsewhere",
        ],
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(GOOD, tmp_path / "intents")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_has_one_line_with_a_remedy(folder: Path, name: str) -> None:
    edit, expected = MISTAKES[name]
    edit(folder)
    with pytest.raises(ConfigError) as raised:
        load_config(folder)
    assert [str(problem) for problem in raised.value.problems] == [expected]


@pytest.mark.parametrize("name", OF_APPS)
def test_a_mistake_about_the_folder_of_an_app_has_one_line(folder: Path, name: str) -> None:
    edit, expected = OF_APPS[name]
    add("policy.yaml", APP)(folder)
    edit(folder)
    [broken] = load_config(folder).broken.values()
    assert [str(problem) for problem in broken.problems] == [expected.format(folder)]


@pytest.mark.parametrize("name", FINDINGS)
def test_a_setting_that_is_not_meant_is_a_finding_of_strict(folder: Path, name: str) -> None:
    edit, expected = FINDINGS[name]
    edit(folder)
    assert [str(problem) for problem in strict_problems(load_config(folder), folder)] == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: b"\xef\xbb\xbf" + raw,
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: raw.replace(b"tier: small", b"tier: &low small\ntier_floor: *low"),
        lambda raw: raw.decode().encode("utf-16"),
    ],
    ids=["a byte order mark", "Windows newlines", "an anchor", "UTF-16"],
)
def test_other_ways_to_write_the_same_are_read(folder: Path, change: Callable[[bytes], bytes]) -> None:
    plain: Config = load_config(folder)
    write("billing.yaml", change((folder / "billing.yaml").read_bytes()))(folder)
    [intent, _] = load_config(folder).intents
    assert intent.utterances == plain.intents[0].utterances
