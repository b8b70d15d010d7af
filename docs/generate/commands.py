"""The page about the command line, from its own parser."""

import argparse
from collections.abc import Iterator

from docs.generate import words
from docs.generate.markdown import MissingWordsError, code, page, table
from extproc.cli.main import command_parser


def commands_page() -> str:
    """Every command with every argument and option."""
    parser = command_parser()
    commands = dict(_commands(parser))
    parts = [words.COMMANDS, _overview(commands), "## extproc", _options(parser)]
    for name, command in commands.items():
        parts += [f"## {name}", command.description or "", _usage(command), _options(command)]
    return page("Command line", *parts)


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _overview(commands: dict[str, argparse.ArgumentParser]) -> str:
    rows = []
    for name, command in commands.items():
        if not command.description:
            raise MissingWordsError(f"the command `{name}` has no description: give its parser one")
        rows.append((f"[`{name}`](#{name})", command.description.partition(". ")[0].rstrip(".")))
    return table(("Command", "What it does"), rows)


def _usage(command: argparse.ArgumentParser) -> str:
    required = [action for action in _shown(command) if action.required and action.option_strings]
    places = [action for action in _shown(command) if not action.option_strings]
    words_ = [command.prog]
    words_ += [f"{action.option_strings[-1]} {_metavar(action)}" for action in required]
    words_ += [_place(action) for action in places]
    return f"```text\n{' '.join([*words_, '[options]'])}\n```"


def _place(action: argparse.Action) -> str:
    return f"[{_metavar(action)}]" if action.nargs == "?" else _metavar(action)


def _options(command: argparse.ArgumentParser) -> str:
    formatter = command._get_formatter()
    rows = []
    for action in _shown(command):
        if not action.help:
            flag = action.option_strings[-1] if action.option_strings else action.dest
            raise MissingWordsError(f"`{flag}` of `{command.prog}` has no help text: write one")
        rows.append((_name(action), formatter._expand_help(action)))
    return table(("Argument or option", "Meaning"), rows)


def _shown(command: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in command._actions:
        hidden = (argparse._SubParsersAction, argparse._HelpAction)
        if action.help != argparse.SUPPRESS and not isinstance(action, hidden):
            yield action


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return code(_place(action))
    value = "" if action.nargs == 0 else f" {_metavar(action)}"
    return ", ".join(code(f"{flag}{value}") for flag in action.option_strings)


def _metavar(action: argparse.Action) -> str:
    if action.metavar is not None:
        return str(action.metavar)
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper()
