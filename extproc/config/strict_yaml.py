"""One YAML file to one typed value. Every mistake is reported with its line and a remedy."""

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec
import yaml

from extproc.config.syntax import syntax_problem
from extproc.mismatch import Mismatch, Steps, convert_or_mismatch, dotted_path, shown, value_at
from extproc.written_number import plain_number

Lines = dict[tuple[str, str], int]  # (file, path such as ".tiers[0].name") -> line


class Problem(msgspec.Struct, frozen=True, order=True):
    """One mistake of the operator: its place, and a sentence with the remedy."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


_T = TypeVar("_T")
# Octal numbers, and numbers to the base of 60 such as times.
_OTHER_NUMBER = re.compile(r"[-+]?(0[0-7_]+|\d[\d_]*(:\d+)+(\.\d*)?)")
# The parts of a number with commas, which perhaps has a currency.
_STARTS_NUMBER = re.compile(r"\D{0,3}\d[\d.]*")
_PART_OF_NUMBER = re.compile(r"\d[\d.]*\D{0,4}")
# A file without aliases has no more values than bytes. A short file with a few aliases may have more, up to this.
_LEAST_VALUES = 10_000


def decode_yaml(
    name: str,
    raw: bytes,
    kind: type[_T],
    problems: list[Problem],
    lines: Lines,
    translate: Callable[[Any], None] | None = None,
) -> _T | None:
    """The file as a value of type `kind`. With any mistake in it: None, and all of them are added to `problems`.

    `lines` gets the line of every value. `translate` changes the plain values in place before they are decoded.
    """
    file = _File(name, lines)
    data = file.read(raw)
    if translate is not None and data is not None:
        translate(data)
    value = file.convert(data, kind) if data is not None else None
    problems += file.problems
    return None if file.problems else value


def line_of(lines: Lines, name: str, path: str) -> int:
    """The line of `path`, or of the nearest value around it."""
    while path and (name, path) not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get((name, path), 1)


class Pair(msgspec.Struct, frozen=True):
    """The place of a key and of its plain value in a text, in characters."""

    start: int  # of the key
    value: int
    end: int


def pairs_of(text: str, key: str) -> dict[str, Pair]:
    """The places of the pairs below a key at the top of a file. Empty: there is no such mapping."""
    top = yaml.compose(text, Loader=yaml.CSafeLoader)
    pairs = top.value if isinstance(top, yaml.MappingNode) else []
    inner = next((value for name, value in pairs if name.value == key), None)
    if not isinstance(inner, yaml.MappingNode):
        return {}
    mark = text.startswith("\ufeff")  # YAML does not count a byte order mark
    return {
        name.value: Pair(name.start_mark.index + mark, value.start_mark.index + mark, value.end_mark.index + mark)
        for name, value in inner.value
        if isinstance(value, yaml.ScalarNode)
    }


class _File:
    """One file while it is read: the lines of its values, and the mistakes so far."""

    def __init__(self, name: str, lines: Lines) -> None:
        self.problems: list[Problem] = []
        self._name, self._lines = name, lines
        self._most_lines = 0

    def read(self, raw: bytes) -> Any | None:
        """The file's plain values, or None when there are none."""
        self._most_lines = len(self._lines) + max(_LEAST_VALUES, len(raw))
        try:
            node = yaml.compose(raw, Loader=yaml.CSafeLoader)
            data = self._plain(node, "") if node is not None else None
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
            self._report(*syntax_problem(raw, error))
            return None
        if data is None:
            self._report(1, "the file is empty: fill it in, or remove it")
        return data

    def convert(self, data: Any, kind: type[_T]) -> _T | None:
        """The data as a value of type `kind`. A mistake is taken out of the data, so that the next one shows."""
        taken = _Taken()
        while isinstance(value := convert_or_mismatch(data, kind), Mismatch):
            place = taken.original(value.steps)
            if (*place, value.missing) not in taken.places:
                self._report(line_of(self._lines, self._name, dotted_path(place)), _sentence(value, place))
            if place in taken.places or not taken.take(data, value.steps):
                return None
        return value  # type: ignore[no-any-return]

    def _plain(self, node: yaml.Node, path: str) -> Any:
        """The node's plain value. The line of every value is noted. Raises ValueError for too many values."""
        self._lines[self._name, path] = node.start_mark.line + 1
        if len(self._lines) > self._most_lines:  # aliases of aliases stand for any number of values
            raise ValueError("aliases stand for too many values: write the values themselves")
        if isinstance(node, yaml.MappingNode):
            return self._plain_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, f"{path}[{i}]") for i, item in enumerate(node.value)]
        value = _scalar(node)
        if isinstance(value, int | float) and _OTHER_NUMBER.fullmatch(node.value):
            line = node.start_mark.line + 1
            self._report(line, f"YAML reads {node.value} as {value}: write {value}, or put a text in quotes")
        return value

    def _plain_mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node, number in _pairs(node):
            line = key_node.start_mark.line + 1
            key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            key = ("off", "on")[key] if isinstance(key, bool) else key  # YAML reads these words as booleans
            if not isinstance(key, str):
                written = f" {shown(key_node.value)}" if isinstance(key_node, yaml.ScalarNode) else ""
                self._report(line, f"the key{written} is not text: write a name, or put it in quotes")
                continue
            if key in mapping:
                self._report(line, f"`{shown(key)}` is written twice: remove one of them")
            mapping[key] = self._plain(value_node, f"{path}.{key}")
            if number is not None:
                mapping[key] = self._report_commas(line, f"{path}.{shown(key)}".lstrip("."), number)
            self._lines[self._name, f"{path}.{key}"] = line
        return mapping

    def _report_commas(self, line: int, path: str, number: str) -> float:
        """Report a number that has commas, and return what it may mean, so that its type is no second mistake."""
        plain = plain_number(number, whole=False)
        remedy = f"write {plain or 'digits and a point only'}"
        self._report(
            line, f"`{path}`: in braces, a comma ends a value, so `{shown(number)}` is not one number: {remedy}"
        )
        return float(plain) if plain is not None and "." in plain else int(plain or 0)

    def _report(self, line: int, what: str) -> None:
        self.problems.append(Problem(self._name, line, what))


def _pairs(node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node, str | None]]:
    """Yield the keys and values. If a number has commas, YAML reads its parts as keys. Then it comes third."""
    pairs: list[tuple[yaml.Node, yaml.Node, str | None]] = []
    end = -1  # of the last value
    for key, value in node.value:
        if key.start_mark.index == end + 1 and _goes_on(key, value):
            first, start, number = pairs.pop()
            pairs.append((first, start, f"{number or start.value},{key.value}"))
            end = key.end_mark.index
            continue
        pairs.append((key, value, None))
        plain = isinstance(value, yaml.ScalarNode) and _STARTS_NUMBER.fullmatch(value.value) is not None
        end = value.end_mark.index if plain else -1
    yield from pairs


def _goes_on(key: yaml.Node, value: yaml.Node) -> bool:
    """Whether a key without a value may be a part of a number."""
    parts = isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)
    return parts and not value.value and _PART_OF_NUMBER.fullmatch(key.value) is not None


class _Taken:
    """The values that were taken out of the data, by their places in the file."""

    def __init__(self) -> None:
        self.places: set[tuple[Any, ...]] = set()
        self._from_lists: dict[Steps, list[int]] = {}

    def take(self, data: Any, steps: Steps) -> bool:
        """Take this value out of the data. False if the steps lead to the whole data, or nowhere."""
        if not steps:
            return False
        try:
            del value_at(data, steps[:-1])[steps[-1]]
        except (LookupError, TypeError):
            return False
        *way, last = self.original(steps)
        self.places.add((*way, last))
        if isinstance(last, int):
            self._from_lists.setdefault(tuple(way), []).append(last)
        return True

    def original(self, steps: Steps) -> Steps:
        """The steps to the same value in the file, before items were taken out of lists on the way."""
        place: Steps = ()
        for step in steps:
            if isinstance(step, int):
                for taken in sorted(self._from_lists.get(place, ())):
                    step += step >= taken
            place = (*place, step)
        return place


def _sentence(mismatch: Mismatch, place: Steps) -> str:
    if mismatch.is_key:
        return mismatch.what
    return f"{'`' + dotted_path(place).lstrip('.') + '`' if place else 'the file'}: {mismatch.what}"


def _scalar(node: yaml.Node) -> Any:
    value = yaml.CSafeLoader("").construct_object(node)
    # YAML reads some plain values as dates and the like. Here they are text.
    return value if isinstance(value, str | int | float | bool | None) else str(node.value)
