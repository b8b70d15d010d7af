"""Fitted values, written into YAML that people wrote. Lines are edited in place, so comments and layout stay."""

import difflib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from extproc.config.schema import POLICY_FILE, Intent, PolicyFile
from extproc.config.strict_yaml import Problem, decode_yaml

Decoded = TypeVar("Decoded")

# Decimals of fitted numbers in the YAML.
DIGITS = 4
# New keys are written above this one, which is the longest.
_LAST = "utterances"
# Text that YAML 1.1 and 1.2 read as this text without quotes, except for the words for true, false and null.
_BARE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_SWITCHES = frozenset(word for w in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
                      for word in (w, w.title(), w.upper()))  # fmt: skip
_COMMENT = "# written by `extproc calibrate`"


def with_settings(text: str, values: Mapping[str, Any]) -> str:
    """Return the text of an intent's file with these values by key. None removes a key.

    Raises ValueError if the file does not have one key per line.
    """
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    for key, value in values.items():
        if value is None:
            del lines[slice(*(_place(lines, key) or (0, 0)))]
        elif isinstance(value, msgspec.Struct):
            _set(lines, key, list(_evidence_lines(value, key)))
        else:
            _set(lines, key, [f"{key}: {written(value)}\n"])
    edited = "".join(lines)
    intent = msgspec.to_builtins(_decoded(text, Intent))
    wanted = intent | {key: value for key, value in msgspec.to_builtins(values).items() if value is not None}
    for key in [key for key, value in values.items() if value is None]:
        del wanted[key]
    if _decoded(edited, Intent) != msgspec.convert(wanted, Intent):
        raise ValueError("the file does not have one key per line: write it that way, then calibrate again")
    return edited


def _set(lines: list[str], key: str, new: list[str]) -> None:
    """Replace a top-level key with its block, or insert it above the utterances. A comment on its line stays."""
    place = _place(lines, key)
    if place is None:
        at = _place(lines, _LAST)
        if at is None:
            raise ValueError(f"found no line that begins with `{_LAST}:`: write the file with one key per line")
        first = at[0]
        while first > 0 and lines[first - 1].startswith("#"):  # a comment about the utterances
            first -= 1
        lines[first:first] = new
        return
    comment = re.search(r"\s+#.*$", lines[place[0]].rstrip("\n"))
    if comment is not None and len(new) == 1:
        new = [new[0].rstrip("\n") + comment[0] + "\n"]
    lines[place[0] : place[1]] = new


def _place(lines: list[str], key: str) -> tuple[int, int] | None:
    """Return the range of lines of a top-level key: its own line, and the indented ones below it."""
    first = next((i for i, line in enumerate(lines) if line.startswith(f"{key}:")), None)
    if first is None:
        return None
    end = first + 1
    while end < len(lines) and lines[end].startswith((" ", "\t")):
        end += 1
    return first, end


def _evidence_lines(evidence: msgspec.Struct, key: str = "evidence") -> Iterator[str]:
    yield f"{key}: {_COMMENT}\n"
    for name, value in msgspec.to_builtins(evidence).items():
        yield f"  {name}: {_flow(value)}\n"


def _flow(value: Any) -> str:
    """Return a fitted value on one line, as both YAML 1.1 and 1.2 read it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_flow(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    # Without quotes, a hash of digits, or of digits around an e, is read as a number.
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _decoded(text: str, kind: type[Decoded]) -> Decoded:
    problems: list[Problem] = []
    value = decode_yaml("", text.encode(), kind, problems, {})
    if value is None:
        raise ValueError("; ".join(problem.what for problem in problems))
    return value


def written(value: Any) -> str:
    """Return a value on one line as people write it, with quotes only if it needs them."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{written(name)}: {written(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float) and value.is_integer():
        return f"{value:g}"
    bare = isinstance(value, str) and _BARE.fullmatch(value) and value not in _SWITCHES
    return value if bare else msgspec.json.encode(value).decode()


def diff(path: Path, before: str, after: str) -> Iterator[str]:
    """Yield the lines of a unified diff of one file."""
    names = f"{path}", f"{path} (calibrated)"
    yield from difflib.unified_diff(before.splitlines(), after.splitlines(), *names, lineterm="", n=1)


def with_encoder(text: str, line: int | None, model: str) -> str:
    """Return the text of policy.yaml with this encoder.

    `line` is the number of the line with `encoder.model`, None if there is no such line. Raises ValueError if the
    file does not have one key per line.
    """
    lines, quoted = text.splitlines(keepends=True), f'"{model}"'
    if line is not None:
        old = re.compile(r"""(model["']?:\s*)("[^"]*"|'[^']*'|[^\s,}#]+)""")
        lines[line - 1] = old.sub(lambda match: match[1] + quoted, lines[line - 1], count=1)
    elif (place := _place(lines, "encoder")) is None:
        lines[-1:] = [lines[-1].removesuffix("\n") + "\n", f"encoder: {{model: {quoted}}}\n"]
    elif "{" in lines[place[0]]:
        lines[place[0]] = lines[place[0]].replace("{", f"{{model: {quoted}, ", 1)
    else:
        lines.insert(place[0] + 1, f"  model: {quoted}\n")
    edited = "".join(lines)
    before, after = (_decoded(each, PolicyFile) for each in (text, edited))
    encoder = msgspec.structs.replace(before.encoder, model=model)
    if after != msgspec.structs.replace(before, encoder=encoder):
        raise ValueError(f"{POLICY_FILE} does not have one key per line: write `encoder: {{model: {quoted}}}`")
    return edited


def write_text(path: Path, text: str) -> None:
    """Replace the text of a file atomically. Its lines end as its first line did."""
    ends = b"\r\n" if path.read_bytes().partition(b"\n")[0].endswith(b"\r") else b"\n"
    write(path, text.encode().replace(b"\n", ends))


def write(path: Path, content: bytes) -> None:
    """Replace a file atomically: a watching router never reads half of it. Its mode stays."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    if path.exists():
        shutil.copymode(path, beside)
    os.replace(beside, path.resolve())
