"""JSON Schema for judging answers: a bounded, linear-time check against an untrusted schema.

The schema usually comes from a client, so it must not hang the check or open connections. Patterns run in RE2,
references stay inside the schema, and every step is charged to a budget.

The `jsonschema` package guarantees none of this. A nested `$schema` changes its validator class,
`additionalProperties` runs patterns in `re`, and each failure formats the whole instance. So the keywords are
implemented here. A standard keyword that is not implemented makes the schema unusable, instead of checking a part
of it. A keyword that the standard does not define is ignored, as the standard says.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
import re2  # google-re2 ships no types

MAX_SCHEMA_BYTES = 65536
# Limit for compiling the patterns of a schema: about 50 ms of CPU at worst. See `_pattern_work`.
MAX_PATTERN_WORK = 10_000
# Limit for the keywords, items and members of one check: about 50 ms of CPU at worst.
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


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _canonical(value: Any) -> Any:
    """Return the value with 1.0 as 1, so that equal JSON values have equal text."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _canonical_text(value: Any) -> bytes:
    return msgspec.json.encode(_canonical(value), order="sorted")


@lru_cache(maxsize=512)
def compile_pattern(pattern: str) -> Any:
    """Compile an RE2 pattern, which takes linear time on any text. Raises ValueError with the reason."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"RE2 cannot use the pattern {pattern!r}: {reason}") from error


class _Check:
    """One check of a value: the root schema for references, and the steps that are left."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.steps = MAX_STEPS

    def charge(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise SchemaUnusable(f"the check takes too long: more than {MAX_STEPS} steps")

    def valid(self, schema: Any, value: Any) -> bool:
        if isinstance(schema, bool):
            return schema
        self.charge(1 + len(schema))
        for keyword, wanted in schema.items():
            if keyword in _KEYWORDS and not _KEYWORDS[keyword](self, wanted, value, schema):
                return False
        if isinstance(value, dict):
            return schema.keys().isdisjoint(_MEMBERS) or self.members(schema, value)
        if isinstance(value, list):
            return schema.keys().isdisjoint(_ITEMS) or self.items(schema, value)
        return True

    def has_all(self, value: dict[str, Any], names: list[str]) -> bool:
        self.charge(len(names))
        return all(name in value for name in names)

    def equals(self, wanted: list[Any], value: Any) -> bool:
        if isinstance(value, str):  # the usual enum; a string can equal only strings
            self.charge(len(wanted))
            return value in wanted
        key, keys = _canonical_text(value), [_canonical_text(item) for item in wanted]
        self.charge((len(key) + sum(map(len, keys))) // 8)
        return key in keys

    def unique(self, items: list[Any]) -> bool:
        keys = [_canonical_text(item) for item in items]
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
            schemas = [named[name]] if name in named else []
            schemas += [s for p, s in patterned.items() if self.matches(p, name)]
            if not all(self.valid(s, item) for s in schemas or [others]):
                return False
        return True

    def items(self, schema: dict[str, Any], value: list[Any]) -> bool:
        first = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        self.charge(len(value))
        return all(self.valid(first[i] if i < len(first) else rest, item) for i, item in enumerate(value))


def _resolve(root: Any, pointer: str) -> Any:
    if pointer != "#" and not pointer.startswith("#/"):
        raise SchemaUnusable(f"$ref {pointer!r} points outside the schema; it must begin with #/")
    target = root
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and step.isascii() and step.isdigit() and len(step) < 6:
            target = dict(enumerate(target)).get(int(step))
        else:
            target = target.get(step) if isinstance(target, dict) else None
    if not isinstance(target, dict | bool):
        raise SchemaUnusable(f"$ref {pointer!r} does not point to a schema")
    return target


def _multiple(value: float, of: float) -> bool:
    quotient = value / of
    return abs(quotient - round(quotient)) < 1e-9 * max(1.0, abs(quotient))


# The check, the value of the keyword, the value to check, and the schema that has the keyword.
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
    "required": lambda c, w, v, _: not isinstance(v, dict) or c.has_all(v, w),
    "dependentRequired": lambda c, w, v, _: (
        not isinstance(v, dict) or all(c.has_all(v, w[name]) for name in w if name in v)
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

# The allowed values of keywords. They are verified first, so that a check meets only these.
_SCHEMA = ("not", "if", "then", "else", "additionalProperties", "propertyNames", "items")
_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_SHAPES: dict[str, Callable[[Any], bool]] = {
    "type": lambda w: all(isinstance(t, str) and t in _TYPES for t in (w if isinstance(w, list) else [w])),
    "enum": lambda w: isinstance(w, list),
    "$ref": lambda w: isinstance(w, str),
    "pattern": lambda w: isinstance(w, str),
    "required": _is_list_of_texts,
    "dependentRequired": lambda w: isinstance(w, dict) and all(map(_is_list_of_texts, w.values())),
    "uniqueItems": lambda w: isinstance(w, bool),
    "multipleOf": lambda w: _number(w) and w > 0,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _number),
    **{
        f"{end}{noun}": lambda w: type(w) is int and w >= 0
        for end in ("min", "max")
        for noun in ("Properties", "Items", "Length")
    },
}


_REPEAT = re.compile(r"(\)?)\{(\d{1,6})(?:,(\d{0,6}))?\}")


def _pattern_work(pattern: str) -> int:
    """Estimate the work of compiling a pattern, in units of about 4 microseconds: its length and its repetitions.

    RE2 copies what is repeated, and allows a thousand copies of it in all.
    """
    work = 20 + len(pattern)
    for nested, least, most in _REPEAT.findall(pattern):
        work += 1000 if nested else min(1000, max(int(least), int(most or 0)))
    return work


def _compile_patterns(patterns: list[str], compiled: dict[str, int]) -> None:
    """Compile patterns, and add the work of each to `compiled`. Raises ValueError when it is too much in all."""
    for pattern in patterns:
        if pattern not in compiled:
            compiled[pattern] = _pattern_work(pattern)
            if sum(compiled.values()) > MAX_PATTERN_WORK:
                raise SchemaUnusable("the patterns take too long to compile: use fewer, or smaller repetitions")
            compile_pattern(pattern)


def _ensure_usable(root: Any, schema: Any, seen: set[int], compiled: dict[str, int]) -> None:
    """Raise ValueError when `schema`, or a schema in it or referenced by it, cannot be checked."""
    if isinstance(schema, bool) or id(schema) in seen:
        return
    if not isinstance(schema, dict):
        raise SchemaUnusable(f"a schema must be an object or a boolean, not {schema!r:.40}")
    seen.add(id(schema))
    for keyword, value in schema.items():
        if keyword in _UNSUPPORTED:
            raise SchemaUnusable(f"the keyword {keyword!r} is not supported; use other keywords")
        if keyword in _SHAPES and not _SHAPES[keyword](value):
            raise SchemaUnusable(f"{keyword!r} cannot be {value!r:.40}")
        if keyword in _SCHEMAS and not isinstance(value, list):
            raise SchemaUnusable(f"{keyword!r} must be a list of schemas")
        if keyword in _NAMED and not isinstance(value, dict):
            raise SchemaUnusable(f"{keyword!r} must map names to schemas")
        if keyword in ("pattern", "patternProperties"):
            _compile_patterns([value] if isinstance(value, str) else list(value), compiled)
        schemas = [value] if keyword in _SCHEMA else value if keyword in _SCHEMAS else ()
        for item in value.values() if keyword in _NAMED else schemas:
            _ensure_usable(root, item, seen, compiled)
        if keyword == "$ref":
            _ensure_usable(root, _resolve(root, value), seen, compiled)


@lru_cache(maxsize=256)
def _fault(encoded: bytes) -> str | None:
    schema = msgspec.json.decode(encoded)
    try:
        _ensure_usable(schema, schema, set(), {})
    except ValueError as error:
        return str(error)
    return None


def schema_fault(schema: Any) -> str | None:
    """Return why no answer can be checked against `schema`, or None if it can. Cached by content."""
    try:
        encoded = msgspec.json.encode(schema)
        if len(encoded) > MAX_SCHEMA_BYTES:
            return f"the schema is larger than {MAX_SCHEMA_BYTES} bytes"
        return _fault(encoded)
    except (RecursionError, OverflowError, TypeError, msgspec.MsgspecError) as error:
        return f"the schema cannot be read: {error}"


def conforms(schema: Any, value: Any) -> bool:
    """Whether decoded JSON meets the schema. Raises SchemaUnusable when it cannot be checked."""
    fault = schema_fault(schema)
    if fault is not None:
        raise SchemaUnusable(fault)
    try:
        return _Check(schema).valid(schema, value)
    except (RecursionError, OverflowError, msgspec.MsgspecError) as error:
        raise SchemaUnusable(f"the check failed: {error}") from error
