"""One YAML file -> one typed value, strictly: every mistake is reported with its line and a remedy."""

import difflib
import re
from typing import Any, TypeVar

import msgspec
import yaml

Lines = dict[tuple[str, str], int]  # (file, path such as ".tiers[0].name") -> line


class Problem(msgspec.Struct, frozen=True, order=True):
    """One mistake of the operator, and how to mend it."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


T = TypeVar("T")
# A file without aliases has no more values than bytes; with a few of them, a short file may have more.
_LEAST_VALUES = 10_000
_PATH = re.compile(r" - at `\$?(.*)`$")
_ITEM = re.compile(r"(.*)\[(\d+)\]$")
_UNKNOWN = re.compile(r"unknown field `(.+?)`")


def decode_yaml(name: str, raw: bytes, kind: type[T], problems: list[Problem], lines: Lines) -> T | None:
    """Decode one file into `kind`; report every mistake by dropping what is wrong and looking again."""
    found: list[Problem] = []
    try:
        node = yaml.compose(raw, Loader=yaml.CSafeLoader)
        most = len(lines) + max(_LEAST_VALUES, len(raw))
        data = _plain(node, "", name, lines, found, most) if node is not None else None
        if data is None:
            found.append(Problem(name, 1, "is empty: remove it, or write the intent"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        found.append(Problem(name, mark.line + 1 if mark else 1, f"is not valid YAML: {what}"))
        data = None
    value: T | None = None
    dropped: set[str] = set()
    gone: dict[str, list[int]] = {}  # list -> places in it that were dropped
    while data is not None:
        try:
            value = msgspec.convert(data, kind)
            break
        except msgspec.ValidationError as error:
            path, what, culprit = _explain(str(error), data, kind, gone)
            place = _original(culprit, gone)
            if f"{_original(path, gone)}.{_missing(what)}" not in dropped:
                found.append(Problem(name, line_of(lines, name, place), what))
            if place in dropped or not _drop(data, culprit):
                break
            dropped.add(place)
            if (item := _ITEM.match(place)) is not None:
                gone.setdefault(item[1], []).append(int(item[2]))
    problems += found
    return None if found else value


def _plain(node: yaml.Node, path: str, name: str, lines: Lines, found: list[Problem], most: int) -> Any:
    """The node's plain value; every value's line is noted, and a key that stands twice is reported.

    Raises ValueError when more than `most` lines would be noted: aliases of aliases stand for any number.
    """
    lines[name, path] = node.start_mark.line + 1
    if len(lines) > most:
        raise ValueError("its aliases stand for too many values: write out what you mean")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                line, shown = key_node.start_mark.line + 1, _show(key_node.value) if key is None else key
                found.append(Problem(name, line, f"the key {shown} is no text: write a name"))
                continue
            at = f"{path}.{key}"
            if key in mapping:
                line = key_node.start_mark.line + 1
                found.append(Problem(name, line, f"`{key}` stands twice: keep one of them"))
            mapping[key] = _plain(value_node, at, name, lines, found, most)
            lines[name, at] = key_node.start_mark.line + 1
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_plain(v, f"{path}[{i}]", name, lines, found, most) for i, v in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: yaml.Node) -> Any:
    value = yaml.CSafeLoader("").construct_object(node)
    if not isinstance(value, str | int | float | bool | None):
        # A date or a list used as a key: text is what the writer meant, if anything.
        return str(node.value)
    return value


def _explain(message: str, data: Any, kind: type, gone: dict[str, list[int]]) -> tuple[str, str, str]:
    """A decoder's message -> the path of the object, what to say, and the path of the culprit."""
    at = _PATH.search(message)
    path = at[1] if at else ""
    text = _PATH.sub("", message)
    unknown = _UNKNOWN.search(text)
    if unknown is not None:
        key = unknown[1]
        known = _fields_at(kind, path)
        close = difflib.get_close_matches(key, known, 1)
        remedy = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known)}"
        return path, f"unknown key `{key}`: {remedy}", f"{path}.{key}"
    missing = _missing(text)
    if missing:
        return path, f"`{missing}` is missing: add it", path
    value = _at(data, path)
    shown = _original(path, gone).lstrip(".") or "the file"
    words = text[0].lower() + text[1:].replace("`", "")
    hint = _choices(kind, path)
    return path, f"`{shown}` is {_show(value)}: {words}{hint}", path


def _missing(text: str) -> str:
    found = re.search(r"missing required field `(.+?)`", text) or re.match(r"`(.+?)` is missing", text)
    return found[1] if found else ""


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _type_at(kind: Any, path: str) -> Any:
    info = msgspec.inspect.type_info(kind)
    for step in re.findall(r"\.([^.\[\]]+)|(\[[^\]]*\])", path):
        members = [info, *getattr(info, "types", ())]
        for member in members:
            if step[0] and isinstance(member, msgspec.inspect.StructType):
                field = next((f for f in member.fields if f.encode_name == step[0]), None)
                info = field.type if field else info
            elif step[1] and hasattr(member, "item_type"):
                info = member.item_type
            elif step[1] and isinstance(member, msgspec.inspect.DictType):
                info = member.value_type
    return info


def _fields_at(kind: type, path: str) -> list[str]:
    info = _type_at(kind, path)
    for member in (info, *getattr(info, "types", ())):
        if isinstance(member, msgspec.inspect.StructType):
            return [field.encode_name for field in member.fields]
    return []


def _choices(kind: type, path: str) -> str:
    info = _type_at(kind, path)
    values = [v for m in (info, *getattr(info, "types", ())) for v in getattr(m, "values", ())]
    return f" (one of: {', '.join(map(str, values))})" if values else ""


def _original(path: str, gone: dict[str, list[int]]) -> str:
    """Where `path` led before items were dropped from the lists on its way."""
    place = ""
    for step in re.findall(r"\.[^.\[\]]+|\[[^\]]*\]", path):
        if step[1:-1].isdecimal():
            index = int(step[1:-1])
            for dropped in sorted(gone.get(place, ())):
                index += index >= dropped
            step = f"[{index}]"
        place += step
    return place


def _steps(path: str) -> list[str | int]:
    return [int(index) if index else key for key, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path)]


def _at(data: Any, path: str) -> Any:
    for step in _steps(path):
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _drop(data: Any, path: str) -> bool:
    """Take the culprit out, so that the next look finds the next mistake."""
    steps = _steps(path)
    if not steps:
        return False
    try:
        holder = data
        for step in steps[:-1]:
            holder = holder[step]
        del holder[steps[-1]]
    except (KeyError, IndexError, TypeError):  # a key may look like a path
        return False
    return True


def line_of(lines: Lines, name: str, path: str) -> int:
    """The line of `path`, or of the nearest thing around it."""
    while path and (name, path) not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get((name, path), 1)
