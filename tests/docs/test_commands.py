"""Every `extproc` command of the documentation parses, and the marked ones run on the sample intents."""

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from extproc.cli.main import command_parser, main
from extproc.encoder.features import FeatureEncoder
from extproc.evidence.execution import Memory
from tests.docs.fences import ROOT, Fence, all_fences
from tests.docs.sample_traffic import write_samples

_SHELLS = {"bash", "console"}
PARSER = command_parser()
BLOCKS = [fence for fence in all_fences() if fence.language in _SHELLS or (fence.file == "README.md")]


def commands(fence: Fence) -> Iterator[list[str]]:
    """The `extproc` commands of a block, word by word, without variables before and comments behind."""
    for line in fence.text.replace("\\\n", " ").splitlines():
        if "extproc " not in line:
            continue
        words = shlex.split(line, comments=True)
        while words and "=" in words[0].partition("/")[0]:
            words = words[1:]
        if words and Path(words[0]).name == "extproc":
            yield words[1:]


def subcommands(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The names of the commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices


def without_redirection(words: list[str]) -> tuple[list[str], str | None]:
    """A command, and the file that its output goes to."""
    if ">" not in words:
        return words, None
    at = words.index(">")
    return words[:at], words[at + 1]


PARSED = [(fence, words) for fence in BLOCKS for words in commands(fence)]
RUN = list({tuple(words): (fence, words) for fence, words in PARSED if fence.is_run}.values())


@pytest.mark.parametrize(
    ("fence", "words"), PARSED, ids=lambda value: str(value) if isinstance(value, Fence) else ""
)
def test_a_command_of_the_documentation_parses(fence: Fence, words: list[str]) -> None:
    """By the parser of the command line itself. A command that it refuses would exit the process."""
    PARSER.parse_args(without_redirection(words)[0])


def inline_commands() -> Iterator[tuple[str, str, list[str]]]:
    """(page, command, options) of every `extproc ...` within a sentence of README.md and of the pages."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for name, rest in re.findall(r"`extproc ([a-z]+)([^`]*)`", path.read_text(encoding="utf-8")):
            yield str(path.relative_to(ROOT)), name, re.findall(r"--[a-z][a-z-]*", rest)


def test_a_command_within_a_sentence_has_its_options() -> None:
    """A page that names an option of an earlier release misleads. Placeholders and values are not looked at."""
    (choices,) = (a.choices for a in PARSER._actions if isinstance(a, argparse._SubParsersAction))
    known = {name: set(parser._option_string_actions) for name, parser in choices.items()}
    seen = list(inline_commands())
    assert len(seen) > 100
    assert [(page, name, option) for page, name, options in seen for option in options
            if option not in known.get(name, set())] == []  # fmt: skip


class OnceEncoder:
    """The encoder that serves. It encodes each text once, for all commands."""

    def __init__(self, encoder: FeatureEncoder) -> None:
        self.sentences = encoder.sentences
        self.encode = Memory(encoder).encode


@pytest.fixture(scope="module")
def once(encoder: FeatureEncoder) -> OnceEncoder:
    return OnceEncoder(encoder)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the guides assume it."""
    folder = tmp_path_factory.mktemp("guides")
    write_samples(folder)
    return folder


@pytest.mark.parametrize(("fence", "words"), RUN, ids=lambda value: str(value) if isinstance(value, Fence) else "")
def test_a_marked_command_runs(
    fence: Fence,
    words: list[str],
    once: OnceEncoder,
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    """It exits with 0 in a folder with the sample intents, and prints something or writes a file."""
    shutil.copytree(samples, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    use_encoder(monkeypatch, once)
    arguments, target = without_redirection(words)
    assert main(arguments) == 0
    out = capsysbinary.readouterr().out
    assert out
    if target is not None:
        Path(target).write_bytes(out)


def use_encoder(monkeypatch: pytest.MonkeyPatch, encoder: OnceEncoder) -> None:
    """Let every command use the encoder that is loaded already."""
    for name, module in list(sys.modules.items()):
        if name.startswith("extproc.") and hasattr(module, "load_encoder"):
            monkeypatch.setattr(module, "load_encoder", lambda *_: encoder)


def test_commands_are_tested() -> None:
    """The documentation has commands of every kind, and some that run."""
    names = set(subcommands(PARSER))
    assert {words[0] for _, words in PARSED} >= names
    assert len(RUN) >= 10
