"""The page about the router's own log: every line that the code can write, with its level."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

import extproc
from docs.generate import words
from docs.generate.markdown import code, described, no_leftovers, page, table

_LEVELS = {"exception": "error", "error": "error", "warning": "warning", "info": "info"}
_PACKAGE = Path(extproc.__file__).parent
# A place that `%` formatting fills.
_PLACE = re.compile(r"%[-\d.,]*[sdgfr]")


class LogLine(msgspec.Struct, frozen=True, order=True):
    """One line of the log; `...` stands for the parts that differ each time."""

    level: str
    text: str
    module: str
    key: str  # the function that writes it, with a number from its second line on


def log_lines_page() -> str:
    """A table for each level, the most severe first."""
    lines = sorted(log_lines())
    no_leftovers(words.LOG_LINES, (line.key for line in lines), "log line")
    parts = []
    for level in ("error", "warning", "info"):
        rows = [
            (
                code(line.text),
                described(words.LOG_LINES, line.key, f"log line `{line.text}`, written by"),
                code(line.module),
            )
            for line in lines
            if line.level == level
        ]
        parts += [f"## {level.upper()}", table(("Line", "What it means, and what to do", "Module"), rows)]
    return page("Log lines", words.LOG, *parts)


def log_lines() -> Iterator[LogLine]:
    """Every call of `log.LEVEL` in the package."""
    for path in sorted(_PACKAGE.rglob("*.py")):
        module = str(path.relative_to(_PACKAGE))
        for function, body in _functions(ast.parse(path.read_text(encoding="utf-8")), ""):
            calls = [call for node in body for call in _log_calls(node)]
            for number, call in enumerate(calls, start=1):
                key = function if number == 1 else f"{function} {number}"
                yield LogLine(_LEVELS[call.func.attr], _text(call.args[0]), module, key)  # type: ignore[attr-defined]


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, list[ast.stmt]]]:
    """Every function with its qualified name, without the functions inside it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")


def _log_calls(node: ast.AST) -> Iterator[ast.Call]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr in _LEVELS) == ("log", True)
    ):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _log_calls(child)


def _text(argument: ast.expr) -> str:
    text = argument.value if isinstance(argument, ast.Constant) else "%s"
    return _PLACE.sub("...", str(text)).replace("\n", " ")
