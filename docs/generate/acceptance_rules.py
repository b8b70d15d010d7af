"""The page about acceptance rules, and the words of a rejection."""

import ast
from collections.abc import Iterator
from pathlib import Path

import extproc.acceptance
from docs.generate import words
from docs.generate.markdown import code, described, no_leftovers, page, table
from docs.generate.yaml_keys import Structs
from extproc.acceptance import rules
from extproc.acceptance.checks import UNAVAILABLE

# A struct's own keys that a user does not write.
_NOT_WRITTEN = {"scorer", "predictor", "name"}


def acceptance_page() -> str:
    """Every rule of an `accept` list, with its parameters."""
    kinds = {name: kind for name, (kind, _, _) in rules._RULES.items()}
    kinds |= dict.fromkeys(rules._CALL_OUTS, rules.External)
    no_leftovers(words.RULES, kinds, "acceptance rule")
    structs = Structs(list(dict.fromkeys(kinds.values())))
    parts = [words.ACCEPTANCE, _overview(kinds)]
    for name, kind in kinds.items():
        schema = structs.components[kind.__name__]
        schema["properties"] = {k: v for k, v in schema.get("properties", {}).items() if k not in _NOT_WRITTEN}
        if schema["properties"]:
            parts += [f"## {name}", described(words.RULES, name, "rule"), structs.section(kind.__name__)]
    return page("Acceptance rules", *parts, words.ACCEPTANCE_END)


def _overview(kinds: dict[str, type]) -> str:
    examples = {name: example for name, (_, _, example) in rules._RULES.items()}
    rows = [
        (
            code(name),
            code(examples.get(name, f"{{{name}: {{by: a-judge}}}}")),
            described(words.RULES, name, "rule"),
        )
        for name in kinds
    ]
    return table(("Rule", "Written as", "Accepts an answer if"), rows)


def rejections() -> list[str]:
    """The words that a check or the verdict gives for a rejection."""
    folder = Path(extproc.acceptance.__file__).parent
    found = {word for path in sorted(folder.glob("*.py")) for word in _returned_words(path)}
    return sorted({*found, UNAVAILABLE, *rules._CALL_OUTS})


def _returned_words(path: Path) -> Iterator[str]:
    """String constants that functions of a module return for an outcome: `-> str` or `-> str | None`."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef) or function.returns is None:
            continue
        if ast.unparse(function.returns) not in ("str", "str | None", "Verdict"):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Return | ast.Assign) and node.value is not None:
                yield from _words_in(node.value)


def _words_in(value: ast.expr) -> Iterator[str]:
    """A constant, or those of both branches of a conditional expression."""
    if isinstance(value, ast.IfExp):
        yield from _words_in(value.body)
        yield from _words_in(value.orelse)
    elif isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value.isidentifier():
        yield value.value
