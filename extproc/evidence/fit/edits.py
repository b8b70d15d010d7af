"""Fitted values into the YAML that people wrote: lines are edited in place, so comments and layout stay."""

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

T = TypeVar("T")

# New keys stand above this one, which is the longest.
_LAST = "utterances"
# Text that YAML, in 1.1 and in 1.2, reads as the text it is; but for the words for true, false and nothing.
_BARE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_SWITCHES = frozenset(word for w in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
                      for word in (w, w.title(), w.upper()))  # fmt: skip
_SIGN = "# written by `extproc calibrate`"


def with_settings(text: str, values: Mapping[str, Any]) -> str:
    """The text of an intent's file with these values by key; None takes a key away.

    Raises ValueError where the file is not laid out in lines.
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
        raise ValueError("the file is not laid out with one key a line: write it so, then calibrate again")
    return edited


def _set(lines: list[str], key: str, new: list[str]) -> None:
    """Replace a top-level key with its block, or put it above the utterances; a comment on its line stays."""
    place = _place(lines, key)
    if place is None:
        at = _place(lines, _LAST)
        if at is None:
            raise ValueError(f"no line begins with `{_LAST}:`: write the file with one key a line")
        first = at[0]
        while first > 0 and lines[first - 1].startswith("#"):  # that speaks of the utterances
            first -= 1
        lines[first:first] = new
        return
    comment = re.search(r"\s+#.*$", lines[place[0]].rstrip("\n"))
    if comment is not None and len(new) == 1:
        new = [new[0].rstrip("\n") + comment[0] + "\n"]
    lines[place[0] : place[1]] = new


def _place(lines: list[str], key: str) -> tuple[int, int] | None:
    """The lines of a top-level key: its own, and the indented ones below it."""
    first = next((i for i, line in enumerate(lines) if line.startswith(f"{key}:")), None)
    if first is None:
        return None
    end = first + 1
    while end < len(lines) and lines[end].startswith((" ", "\t")):
        end += 1
    return first, end


def _evidence_lines(evidence: msgspec.Struct, key: str = "evidence") -> Iterator[str]:
    yield f"{key}: {_SIGN}\n"
    for name, value in msgspec.to_builtins(evidence).items():
        yield f"  {name}: {_flow(value)}\n"


def _flow(value: Any) -> str:
    """A value on one line, as both YAML 1.1 and 1.2 read it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_flow(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    # A hash of digits, or of digits around an e, would be read as a number.
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _decoded(text: str, kind: type[T]) -> T:
    problems: list[Problem] = []
    value = decode_yaml("", text.encode(), kind, problems, {})
    if value is None:
        raise ValueError("; ".join(problem.what for problem in problems))
    return value


def written(value: Any) -> str:
    """A value on one line as people write it: words and switches bare, what else needs it quoted."""
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
    """A unified diff of one file."""
    names = f"{path}", f"{path} (calibrated)"
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), *names, lineterm="", n=1)
    yield from lines


def with_encoder(text: str, line: int | None, model: str) -> str:
    """The text of policy.yaml with this encoder; `line` is that of `encoder.model`, None where it is left out.

    Raises ValueError where the file is not laid out in lines.
    """
    lines, quoted = text.splitlines(keepends=True), f'"{model}"'
    if line is not None:
        old = re.compile(r"""(model["']?:\s*)("[^"]*"|'[^']*'|[^\s,}#]+)""")
        lines[line - 1] = old.sub(lambda found: found[1] + quoted, lines[line - 1], count=1)
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
        raise ValueError(f"{POLICY_FILE} is not laid out with one key a line: write `encoder: {{model: {quoted}}}`")
    return edited


def write_text(path: Path, text: str) -> None:
    """Replace a file's text at once; its lines end as its first one did."""
    ends = b"\r\n" if path.read_bytes().partition(b"\n")[0].endswith(b"\r") else b"\n"
    write(path, text.encode().replace(b"\n", ends))


def write(path: Path, content: bytes) -> None:
    """Replace a file at once: a router that watches the folder never reads half of it. Who may read it stays."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    if path.exists():
        shutil.copymode(path, beside)
    os.replace(beside, path.resolve())
