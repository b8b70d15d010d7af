"""JSON Schema for judging answers: a bounded, linear-time check against a schema we do not trust.

The schema usually comes from a client, so no schema may hang or reach out: patterns run in RE2,
references stay inside the schema, and every step is charged to a budget. The `jsonschema` package
gives none of these (a nested `$schema` swaps its validator class, `additionalProperties` runs
patterns in `re`, each failure formats the whole instance), so the keywords are our own. A keyword
of the standard that is not here makes the schema unusable rather than half checked; a word the
standard does not know is ignored, as it says.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
import re2  # google-re2 ships no types

MAX_SCHEMA_BYTES = 65536
# Keyword applications, items and members of one check: about 50 ms of CPU at worst.
MAX_STEPS = 100_000

_UNSUPPORTED = {
    *("$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor", "dependencies"),
    *("dependentSchemas", "unevaluatedProperties", "unevaluatedItems", "contains"),
    *("minContains", "maxContains"),
}
_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "number": lambda v: _number(v),
    "integer": lambda v: _number(v) and (isinstance(v, int) or v.is_integer()),
}


_MEMBERS = ("properties", "patternProperties", "additionalProperties")
_ITEMS = ("prefixItems", "items")


class SchemaUnusable(ValueError):
    """The schema cannot be checked; the message says why."""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """The value with 1.0 as 1, so that equal JSON is equal text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _key(value: Any) -> bytes:
    return msgspec.json.encode(_plain(value), order="sorted")


@lru_cache(maxsize=512)
def compile_pattern(pattern: str) -> Any:
    """An RE2 pattern: linear time on any text. Raises ValueError with the reason."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"RE2 cannot use the pattern {pattern!r}: {reason}") from error


class _Check:
    """One value against one schema: the root for references, and what may still be spent."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.steps = MAX_STEPS

    def charge(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise SchemaUnusable("checking it takes too long")

    def valid(self, schema: Any, value: Any) -> bool:
        if isinstance(schema, bool):
            return schema
        self.charge(1 + len(schema))
        for word, wanted in schema.items():
            if word in _KEYWORDS and not _KEYWORDS[word](self, wanted, value, schema):
                return False
        if isinstance(value, dict):
            return schema.keys().isdisjoint(_MEMBERS) or self.members(schema, value)
        if isinstance(value, list):
            return schema.keys().isdisjoint(_ITEMS) or self.items(schema, value)
        return True

    def holds(self, value: dict[str, Any], names: list[str]) -> bool:
        self.charge(len(names))
        return all(name in value for name in names)

    def equals(self, wanted: list[Any], value: Any) -> bool:
        if isinstance(value, str):  # the common enum; a string equals only strings
            self.charge(len(wanted))
            return value in wanted
        key, keys = _key(value), [_key(item) for item in wanted]
        self.charge((len(key) + sum(map(len, keys))) // 8)
        return key in keys

    def unique(self, items: list[Any]) -> bool:
        keys = [_key(item) for item in items]
        self.charge(sum(map(len, keys)) // 8)
        return len(set(keys)) == len(keys)

    def matches(self, pattern: str, text: str) -> bool:
        self.charge(1 + len(text) // 64)
        return compile_pattern(pattern).search(text) is not None

    def members(self, schema: dict[str, Any], value: dict[str, Any]) -> bool:
        named, patterned = schema.get("properties", {}), schema.get("patternProperties", {})
        others = schema.get("additionalProperties", True)
        self.charge(len(value))
        for name, item in value.items():
            found = [named[name]] if name in named else []
            found += [s for p, s in patterned.items() if self.matches(p, name)]
            if not all(self.valid(s, item) for s in found or [others]):
                return False
        return True

    def items(self, schema: dict[str, Any], value: list[Any]) -> bool:
        first = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        self.charge(len(value))
        return all(self.valid(first[i] if i < len(first) else rest, item) for i, item in enumerate(value))


def _resolve(root: Any, pointer: str) -> Any:
    if pointer != "#" and not pointer.startswith("#/"):
        raise SchemaUnusable(f"$ref {pointer!r} leads outside the schema")
    found = root
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and step.isascii() and step.isdigit() and len(step) < 6:
            found = dict(enumerate(found)).get(int(step))
        else:
            found = found.get(step) if isinstance(found, dict) else None
    if not isinstance(found, dict | bool):
        raise SchemaUnusable(f"$ref {pointer!r} leads nowhere")
    return found


def _multiple(value: float, of: float) -> bool:
    quotient = value / of
    return abs(quotient - round(quotient)) < 1e-9 * max(1.0, abs(quotient))


_Keyword = Callable[[_Check, Any, Any, dict[str, Any]], bool]
_KEYWORDS: dict[str, _Keyword] = {
    "type": lambda c, w, v, _: any(_TYPES[t](v) for t in ([w] if isinstance(w, str) else w)),
    "enum": lambda c, w, v, _: c.equals(w, v),
    "const": lambda c, w, v, _: c.equals([w], v),
    "$ref": lambda c, w, v, _: c.valid(_resolve(c.root, w), v),
    "allOf": lambda c, w, v, _: all(c.valid(s, v) for s in w),
    "anyOf": lambda c, w, v, _: any(c.valid(s, v) for s in w),
    "oneOf": lambda c, w, v, _: sum(c.valid(s, v) for s in w) == 1,
    "not": lambda c, w, v, _: not c.valid(w, v),
    "if": lambda c, w, v, s: c.valid(s.get("then" if c.valid(w, v) else "else", True), v),
    "required": lambda c, w, v, _: not isinstance(v, dict) or c.holds(v, w),
    "dependentRequired": lambda c, w, v, _: (
        not isinstance(v, dict) or all(c.holds(v, w[name]) for name in w if name in v)
    ),
    "propertyNames": lambda c, w, v, _: not isinstance(v, dict) or all(c.valid(w, n) for n in v),
    "minProperties": lambda c, w, v, _: not isinstance(v, dict) or len(v) >= w,
    "maxProperties": lambda c, w, v, _: not isinstance(v, dict) or len(v) <= w,
    "minItems": lambda c, w, v, _: not isinstance(v, list) or len(v) >= w,
    "maxItems": lambda c, w, v, _: not isinstance(v, list) or len(v) <= w,
    "uniqueItems": lambda c, w, v, _: not w or not isinstance(v, list) or c.unique(v),
    "minLength": lambda c, w, v, _: not isinstance(v, str) or len(v) >= w,
    "maxLength": lambda c, w, v, _: not isinstance(v, str) or len(v) <= w,
    "pattern": lambda c, w, v, _: not isinstance(v, str) or c.matches(w, v),
    "minimum": lambda c, w, v, _: not _number(v) or v >= w,
    "maximum": lambda c, w, v, _: not _number(v) or v <= w,
    "exclusiveMinimum": lambda c, w, v, _: not _number(v) or v > w,
    "exclusiveMaximum": lambda c, w, v, _: not _number(v) or v < w,
    "multipleOf": lambda c, w, v, _: not _number(v) or _multiple(v, w),
}

# What may stand under a keyword, so that a check never meets a shape it does not expect.
_SCHEMA = ("not", "if", "then", "else", "additionalProperties", "propertyNames", "items")
_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_SHAPES: dict[str, Callable[[Any], bool]] = {
    "type": lambda w: all(isinstance(t, str) and t in _TYPES for t in (w if isinstance(w, list) else [w])),
    "enum": lambda w: isinstance(w, list),
    "$ref": lambda w: isinstance(w, str),
    "pattern": lambda w: isinstance(w, str),
    "required": lambda w: _words(w),
    "dependentRequired": lambda w: isinstance(w, dict) and all(map(_words, w.values())),
    "uniqueItems": lambda w: isinstance(w, bool),
    "multipleOf": lambda w: _number(w) and w > 0,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _number),
    **{
        f"{end}{noun}": lambda w: type(w) is int and w >= 0
        for end in ("min", "max")
        for noun in ("Properties", "Items", "Length")
    },
}


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _vet(root: Any, schema: Any, seen: set[int]) -> None:
    """Raise ValueError when `schema`, or anything it leads to, cannot be checked."""
    if isinstance(schema, bool) or id(schema) in seen:
        return
    if not isinstance(schema, dict):
        raise SchemaUnusable(f"a schema must be an object or a boolean, not {schema!r:.40}")
    seen.add(id(schema))
    for word, value in schema.items():
        if word in _UNSUPPORTED:
            raise SchemaUnusable(f"the keyword {word!r} is not supported; write it another way")
        if word in _SHAPES and not _SHAPES[word](value):
            raise SchemaUnusable(f"{word!r} cannot be {value!r:.40}")
        if word in _SCHEMAS and not isinstance(value, list):
            raise SchemaUnusable(f"{word!r} must be a list of schemas")
        if word in _NAMED and not isinstance(value, dict):
            raise SchemaUnusable(f"{word!r} must map names to schemas")
        if word in ("pattern", "patternProperties"):
            for pattern in [value] if isinstance(value, str) else value:
                compile_pattern(pattern)
        under = [value] if word in _SCHEMA else value if word in _SCHEMAS else ()
        for item in value.values() if word in _NAMED else under:
            _vet(root, item, seen)
        if word == "$ref":
            _vet(root, _resolve(root, value), seen)


@lru_cache(maxsize=256)
def _fault(encoded: bytes) -> str | None:
    schema = msgspec.json.decode(encoded)
    try:
        _vet(schema, schema, set())
    except ValueError as error:
        return str(error)
    return None


def schema_fault(schema: Any) -> str | None:
    """Why no answer can be checked against `schema`; None when it is fine. Cached by content."""
    try:
        encoded = msgspec.json.encode(schema)
        if len(encoded) > MAX_SCHEMA_BYTES:
            return f"the schema is larger than {MAX_SCHEMA_BYTES} bytes"
        return _fault(encoded)
    except (RecursionError, OverflowError, TypeError, msgspec.MsgspecError) as error:
        return f"the schema cannot be read: {error}"


def conforms(schema: Any, value: Any) -> bool:
    """Whether decoded JSON meets the schema. Raises SchemaUnusable when that cannot be told."""
    fault = schema_fault(schema)
    if fault is not None:
        raise SchemaUnusable(fault)
    try:
        return _Check(schema).valid(schema, value)
    except (RecursionError, OverflowError, msgspec.MsgspecError) as error:
        raise SchemaUnusable(f"the check failed: {error}") from error
