"""The command `extproc`. Its commands are in four groups, with a module for each group."""

import argparse
from collections.abc import Iterator, Mapping
from typing import NoReturn

from extproc import __version__
from extproc.cli import author, evidence_commands, ledger, operate
from extproc.cli.process import USER_ERROR, run_process

_GROUPS = (
    ("Write intents", author),
    ("Run the router", operate),
    ("Read what requests cost", ledger),
    ("Test and fit on traffic", evidence_commands),
)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are short: the message, and the command that shows the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: {message}\n`{self.prog} --help` shows how to use it.\n")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 2 if the user's input is at fault."""
    args = command_parser().parse_args(argv)
    return run_process(lambda: int(args.run(args)), getattr(args, "intents", None))


def command_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="extproc",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description="A semantic router for LLM traffic: an Envoy external processor (ext_proc).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"extproc {__version__}", help="show the version and exit"
    )
    commands = parser.add_subparsers(prog="extproc", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    lines: list[str] = []
    for title, module in _GROUPS:
        others = set(commands.choices)
        module.add_commands(commands)
        lines += [f"{title}:", *_summaries(commands.choices, others), ""]
    parser.epilog = "\n".join([*lines, "`extproc COMMAND --help` explains a command and its options."])
    return parser


def _summaries(commands: Mapping[str, argparse.ArgumentParser], without: set[str]) -> Iterator[str]:
    """A line for each command: the first sentence of its description."""
    for name, command in commands.items():
        if name not in without:
            yield f"  {name:<11}{(command.description or '').partition('. ')[0].rstrip('.')}"
