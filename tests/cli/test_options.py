"""The command line: messages about wrong arguments, and the text of `--help`."""

import argparse
import re
from collections.abc import Iterator

import pytest

from extproc import __version__
from extproc.cli.main import command_parser, main

PARSER = command_parser()
SERVE = ["serve", "--intents", "x"]
ENVOY = ["envoy", "--intents", "x"]
CALIBRATE = ["calibrate", "--intents", "x", "data.jsonl"]
GATE = ["gate", "--baseline", "old", "new", "data.jsonl"]
EXPORT = ["export", "--ledger", "x"]
WORKERS = "a number of processes from 1 up, or `auto` for one per core"
SERVER_ADDRESS = "HOST:PORT, as in 127.0.0.1:50051, or unix:///PATH, as in unix:///run/extproc.sock"
ADDRESS = "HOST:PORT, as in 127.0.0.1:50051"
HOST = "a host in lower case, without scheme, port and wildcard, as in llm.example.com"
OPEN_SHARE = "a share above 0 and below 1, as in 0.05"
QUALITY_DROP = "a share from 0 up and below 1, as in 0.02 for two percentage points"
WHOLE_PATH = "a path that starts at the root: give a whole path, as in unix:///run/extproc.sock"


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parser of each command."""
    for action in PARSER._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


COMMANDS = dict(commands())
OPTIONS = [
    pytest.param(action, id=f"{name} {action.metavar or action.option_strings or action.dest}")
    for name, command in COMMANDS.items()
    for action in command._actions
]


@pytest.mark.parametrize(
    ("command", "option", "given", "expected"),
    [
        (["explain", "--intents", "x"], "--header", "x-app", "NAME: VALUE, as in 'host: llm.example.com'"),
        (SERVE, "--workers", "0", WORKERS),
        (SERVE, "--workers", "many", WORKERS),
        (SERVE, "--workers", "-2", WORKERS),
        (SERVE, "--listen", "50051", SERVER_ADDRESS),
        (SERVE, "--listen", "unix://router.sock", WHOLE_PATH),
        (SERVE, "--health", "localhost:http", SERVER_ADDRESS),
        (SERVE, "--ledger-days", "-1", "a number of days from 0 up, as in 90"),
        (SERVE, "--max-quality-drop", "2", QUALITY_DROP),
        (SERVE, "--explore", "2", "a share from 0 to 1, as in 0.1"),
        (SERVE, "--explore-url", "localhost:10000", "an address, as in http://127.0.0.1:10000"),
        (ENVOY, "--listen", ":", ADDRESS),
        (ENVOY, "--extproc", "router", SERVER_ADDRESS),
        (ENVOY, "--admin", "9901", ADDRESS),
        (ENVOY, "--probe", "unix:///probe.sock", ADDRESS),
        (ENVOY, "--gateway", "A b/llm/http", "NAMESPACE/NAME/LISTENER, as in semantic-router/llm/http"),
        (ENVOY, "--otlp", "http://collector", ADDRESS),
        (ENVOY, "--otlp", "http://collector:4317", ADDRESS),
        (ENVOY, "--admin", "127.0.0.1:99010", ADDRESS),
        *((ENVOY, "--host", given, HOST) for given in ("https://x", "x:443", "*.x", "*", "X.example", "a b", "")),
        (CALIBRATE, "--risk", "5", OPEN_SHARE),
        (CALIBRATE, "--risk", "nan", OPEN_SHARE),
        (CALIBRATE, "--cut", "0", OPEN_SHARE),
        (CALIBRATE, "--seed", "1.5", "a whole number from 0 up, as in 7"),
        (CALIBRATE, "--date", "today", "a day as YYYY-MM-DD, as in 2026-11-22 (Invalid isoformat string: 'today')"),
        (GATE, "--max-quality-drop", "two", QUALITY_DROP),
        (GATE, "--max-cost-rise", "-0.1", "a share from 0 up, as in 0.1 for 10 % more"),
        (EXPORT, "--share", "50", "a share from 0 to 1, as in 0.1"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_answered_with_what_is_expected(
    command: list[str], option: str, given: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option, what was found, what is expected, and an example. The exit code is 2."""
    with pytest.raises(SystemExit) as ended:
        main([*command, f"{option}={given}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"extproc {command[0]}: argument {option}: found `{given}`, expected {expected}\n"
        f"`extproc {command[0]} --help` shows how to use it.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ([*SERVE, "--workers=3"], "workers", 3),
        ([*SERVE, "--listen=unix:///run/extproc.sock"], "listen", "unix:///run/extproc.sock"),
        ([*SERVE, "--listen=[::1]:50051"], "listen", "[::1]:50051"),
        ([*SERVE, "--explore=0.02"], "explore", 0.02),
        ([*SERVE, "--explore-url=https://llm.example"], "explore_url", "https://llm.example"),
        ([*ENVOY, "--admin=localhost:9901"], "admin", "localhost:9901"),
        ([*ENVOY, "--host=llm-1.example.com"], "host", "llm-1.example.com"),
        ([*CALIBRATE, "--risk=0.1"], "risk", 0.1),
        ([*CALIBRATE, "--date=2026-11-22"], "date", "2026-11-22"),
        ([*GATE, "--max-quality-drop=0"], "max_quality_drop", 0.0),
        ([*EXPORT, "--share=1"], "share", 1.0),
    ],
)
def test_a_right_value_is_read(arguments: list[str], name: str, value: object) -> None:
    """The ends of a range belong to it where the message says so."""
    assert getattr(PARSER.parse_args(arguments), name) == value


def test_auto_is_a_worker_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a container may use."""
    monkeypatch.setattr("extproc.serving.workers.cores", lambda: 6)
    assert PARSER.parse_args([*SERVE, "--workers", "auto"]).workers == 6


def test_help_lists_every_command_once_in_a_group_with_a_short_line() -> None:
    """The summary of a command fits beside its name."""
    lines = PARSER.format_help().splitlines()
    groups = [line for line in lines if re.fullmatch(r"[A-Z].*:", line)]
    assert groups == ["Write intents:", "Run the router:", "Read what requests cost:", "Test and fit on traffic:"]
    listed = [line for line in lines if re.match(r"  [a-z]", line)]
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert all(line[13].isupper() and len(line) <= 100 for line in listed), listed


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_help_that_names_its_default(option: argparse.Action) -> None:
    """No option is hidden, and no default has to be guessed."""
    assert option.help is not None and option.help != argparse.SUPPRESS
    if option.option_strings and option.default not in (None, False, [], argparse.SUPPRESS):
        assert "(default" in option.help or "default: %(default)s" in option.help


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """It is known in a source checkout, too."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"extproc {__version__}\n"
