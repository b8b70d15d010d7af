"""Explains why data from YAML does not fit a struct, in the words of YAML: text, number, list, mapping.

msgspec finds the first value that does not fit, and describes it in the words of Python. This module looks for the
value and its type again, and says which value was found and which values are expected.
"""

import difflib
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from extproc.written_number import plain_number

# The way to a value in the data: keys of mappings and places in lists.
Steps = tuple[str | int, ...]

_AT = re.compile(r"(.*) - at `(?:key` in `)?\$(.*)`", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|(\[\.\.\.\])")
_UNKNOWN_KEY = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING_KEY = re.compile(r"Object missing required field `(.*)`")
_LONGEST_SHOWN = 40
# A number with a unit, an exponent, or a comma: 32k, $0.05, 80%, 0,5.
_ALMOST_NUMBER = re.compile(r"[-+$€£]?\s?\d")
# Keys beside which somebody may have written a secret. It is not shown.
_SECRET = ("key",)


class Mismatch(msgspec.Struct, frozen=True):
    """One value that does not fit. `what` says why, and names no place unless it names a key."""

    steps: Steps  # the way to the value; for a missing key, to the mapping that lacks it
    what: str
    missing: str | None = None  # the missing key
    is_key: bool = False  # a key is missing or unknown, so the value itself says nothing


def convert_or_mismatch(data: Any, kind: Any) -> Any:
    """`data` as a value of the type `kind`, or the first Mismatch."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        return _explain(str(error), data, kind)


def dotted_path(steps: Steps) -> str:
    """The steps as one text, as in `.tiers[0].context`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


def _explain(message: str, data: Any, kind: Any) -> Mismatch:
    split = _AT.fullmatch(message)
    text, path = (split[1], split[2]) if split is not None else (message, "")
    steps = _locate(path, message, data, kind)
    unknown = _UNKNOWN_KEY.fullmatch(text)
    if unknown is not None:
        return _unknown_key(unknown[1], steps, message, data, kind)
    info = _type_at(kind, steps)
    missing = _MISSING_KEY.fullmatch(text)
    if missing is not None:
        what = f"`{missing[1]}` is missing: add it{_meaning(info, missing[1])}"
        return Mismatch(steps, what, missing[1], is_key=True)
    value = value_at(data, steps)
    if steps and steps[-1] in _SECRET and isinstance(value, str):
        return Mismatch(steps, f"expected {_expected(info)}, found a text: write the key itself into a file")
    hash_sign = (
        ": put a text that begins with `#` in quotes" if value is None and _is_item_of_texts(steps, info) else ""
    )
    return Mismatch(steps, f"expected {_expected(info)}, found {_found(value, info)}{hash_sign}")


def _is_item_of_texts(steps: Steps, info: Any) -> bool:
    return bool(steps) and isinstance(steps[-1], int) and _takes(info, inspect.StrType)


def _takes(info: Any, *kinds: type[Any]) -> bool:
    return any(isinstance(member, kinds) for member in _members(info))


def _unknown_key(key: str, steps: Steps, message: str, data: Any, kind: Any) -> Mismatch:
    mapping = value_at(data, steps)
    whole = _UNKNOWN_KEY.fullmatch(message)
    if whole is not None and not (isinstance(mapping, dict) and key in mapping):
        key, steps = whole[1], ()  # a key at the top whose own text looks like a path
    names = [field.encode_name for field in _fields(_type_at(kind, steps))]
    return Mismatch((*steps, key), f"unknown key `{shown(key)}`: {suggestion(key, names)}", is_key=True)


def suggestion(name: str, names: Sequence[str]) -> str:
    """The remedy for a name that is not in `names`."""
    near = difflib.get_close_matches(name, names, 1)
    known = f"expected one of {', '.join(names)}" if names else "there is none"
    return f"did you mean `{near[0]}`?" if near else known


def _locate(path: str, message: str, data: Any, kind: Any) -> Steps:
    """The steps of msgspec's path. It writes `[...]` for every key of a mapping: the key is found by trying."""
    steps: Steps = ()
    for field, place, any_key in _STEP.findall(path):
        if any_key:
            steps = (*steps, _failing_key(steps, message, data, kind))
        else:
            steps = (*steps, int(place) if place else field)
    return steps


def _failing_key(steps: Steps, message: str, data: Any, kind: Any) -> str:
    """The key whose value alone leads to the same message."""
    mapping = value_at(data, steps)
    if not isinstance(mapping, dict):
        return ""
    whole = dict(mapping)
    try:
        for key, value in whole.items():
            mapping.clear()
            mapping[key] = value
            if _message(data, kind) == message:
                return str(key)
    finally:
        mapping.clear()
        mapping.update(whole)
    return ""


def _message(data: Any, kind: Any) -> str:
    try:
        msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def value_at(data: Any, steps: Steps) -> Any:
    """The value that the steps lead to, or None if they lead nowhere. An unknown key may look like a path."""
    for step in steps:
        try:
            data = data[step]
        except (LookupError, TypeError):
            return None
    return data


def _members(info: Any) -> Iterator[Any]:
    """The types that a value may have, without the descriptions around them."""
    while isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.UnionType):
        for member in info.types:
            yield from _members(member)
    else:
        yield info


@functools.cache
def _type_info(kind: Any) -> Any:
    return inspect.type_info(kind)


def _type_at(kind: Any, steps: Steps) -> Any:
    info = _type_info(kind)
    for step in steps:
        inner = [_inside(member, step) for member in _members(info)]
        info = next((member for member in inner if member is not None), inspect.AnyType())
    return info


def _inside(info: Any, step: str | int) -> Any | None:
    """The type one step further inside, or None if this type has no values inside."""
    match info:
        case inspect.StructType():
            return next((field.type for field in info.fields if field.encode_name == step), None)
        case inspect.DictType():
            return info.value_type
        case inspect.TupleType() if isinstance(step, int) and step < len(info.item_types):
            return info.item_types[step]
        case inspect.ListType() | inspect.VarTupleType() | inspect.FrozenSetType():
            return info.item_type
    return None


def _fields(info: Any) -> list[inspect.Field]:
    return [field for member in _members(info) if isinstance(member, inspect.StructType) for field in member.fields]


def _meaning(info: Any, key: str) -> str:
    """The first sentence of the description of a key, in parentheses, or ""."""
    kinds = [field.type for field in _fields(info) if field.encode_name == key]
    described = (kind.extra_json_schema or {} for kind in kinds if isinstance(kind, inspect.Metadata))
    text = next(described, {}).get("description", "").split(". ")[0].rstrip(".")
    return f" ({text[:1].lower()}{text[1:]})" if text else ""


def _expected(info: Any) -> str:
    members = [member for member in _members(info) if not isinstance(member, inspect.NoneType)]
    names = [name for member in members for name in _names(member, alone=len(members) == 1)]
    *others, last = names or ["any value"]
    return f"{', '.join(others)} or {last}" if others else last


def _names(info: Any, alone: bool) -> list[str]:
    """The YAML words for the values of a type. `alone` means that no other type is expected."""
    match info:
        case inspect.BoolType():
            return ["true", "false"] if alone else ["on", "off"]
        case inspect.IntType():
            return [f"a whole number{_range(info)}"]
        case inspect.FloatType():
            return [f"a number{_range(info)}"]
        case inspect.StrType():
            return ["text"]
        case inspect.LiteralType():
            return [str(value) for value in info.values]
        case inspect.StructType():
            return [_example(info) if not alone else f"a mapping {_example(info)}".rstrip()]
        case inspect.DictType(key_type=inspect.LiteralType(values=keys)):
            return [f"a mapping with the keys {', '.join(map(str, keys))}"]
        case inspect.DictType():
            return ["a mapping"]
        case inspect.TupleType():
            return [f"a list of {len(info.item_types)} values"]
        case inspect.ListType() | inspect.VarTupleType() | inspect.FrozenSetType():
            return ["a list"]
    return ["any value"]


def _range(info: Any) -> str:
    if info.ge is not None and info.le is not None:
        return f" from {info.ge} to {info.le}"
    return f" from {info.ge} up" if info.ge is not None else f" up to {info.le}" if info.le is not None else ""


def _example(info: Any) -> str:
    """The keys that a mapping must have, as YAML."""
    numbers = (inspect.IntType, inspect.FloatType)
    required = [field for field in info.fields if field.required]
    pairs = [f"{f.encode_name}: {'N' if isinstance(next(_members(f.type)), numbers) else '...'}" for f in required]
    return f"{{{', '.join(pairs)}}}" if pairs else ""


def _found(value: Any, info: Any) -> str:
    """The value that was found, and the remedy if it is a plain value and text is expected."""
    match value:
        case None:
            return "nothing"
        case str():
            names = [str(name) for m in _members(info) if isinstance(m, inspect.LiteralType) for name in m.values]
            near = difflib.get_close_matches(value, names, 1)
            if value in names or _is_number(value, info):
                return f"the text `{shown(value)}`: remove the quotes"
            remedy = f"did you mean `{near[0]}`?" if near else _remedy_for_text(value, info)
            return f"the text `{shown(value)}`" + (f": {remedy}" if remedy else "")
        case list():
            return f"a list of {counted(len(value), 'value')}" if value else "an empty list"
        case dict():
            keys = [str(key) for m in _members(info) for key in _other_keys(value, m)]
            is_text = len(value) == 1 and _takes(info, inspect.StrType)
            colon = ": put a text with a colon in quotes" if is_text else ""
            return f"the key `{shown(keys[0])}`" if keys else f"a mapping{colon}"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, float) and value.is_integer() and _takes(info, inspect.IntType):
        return f"the number {shown(text)}: write {int(value)}"
    quotes = ": put it in quotes" if _takes(info, inspect.StrType) else ""
    return f"{'' if isinstance(value, bool) else 'the number '}{shown(text)}{quotes}"


def _remedy_for_text(text: str, info: Any) -> str:
    """The remedy for a text in place of a number or a list, or ""."""
    if _takes(info, inspect.IntType, inspect.FloatType) and _ALMOST_NUMBER.match(text):
        whole = not _takes(info, inspect.FloatType)
        return f"write {plain_number(text, whole) or ('digits only' if whole else 'digits and a point only')}"
    if _takes(info, inspect.ListType, inspect.VarTupleType) and text.isprintable() and len(text) <= _LONGEST_SHOWN:
        return f"write [{text}]"
    return ""


def _is_number(text: str, info: Any) -> bool:
    """Whether a number is expected, and the text is one in quotes."""
    if re.fullmatch(r"-?\d+", text):
        return any(isinstance(m, inspect.IntType | inspect.FloatType) for m in _members(info))
    return bool(re.fullmatch(r"-?\d*\.\d+", text)) and any(isinstance(m, inspect.FloatType) for m in _members(info))


def _other_keys(mapping: dict[Any, Any], info: Any) -> Iterator[Any]:
    """The keys of a mapping that are not among the expected ones."""
    if isinstance(info, inspect.DictType) and isinstance(info.key_type, inspect.LiteralType):
        yield from (key for key in mapping if key not in info.key_type.values)


def counted(count: int, noun: str) -> str:
    """The number with its noun, as in "1 cohort" or "2 cohorts"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def shown(text: str) -> str:
    """A text from the user as part of a message: short, and on one line."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."
