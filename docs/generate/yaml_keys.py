"""The keys of files that users write, from the types that read them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from docs.generate.markdown import MissingWordsError, code, table

Schema = Mapping[str, Any]


class Structs:
    """JSON Schemas of some structs and of everything that they hold."""

    def __init__(self, roots: list[type], words: Mapping[str, str] | None = None) -> None:
        """`words`: descriptions by `Struct.field`, for fields that have none in the code."""
        _, self.components = msgspec.json.schema_components(roots)
        self.words = words or {}
        self.roots = [root.__name__ for root in roots]

    def section(self, name: str) -> str:
        """A table of one struct's keys."""
        schema = self.components[name]
        required = set(schema.get("required", ()))
        rows = [
            (
                code(key),
                self.type_of(value),
                "required" if key in required else self._default(value),
                self._description(name, key, value),
            )
            for key, value in schema.get("properties", {}).items()
        ]
        return table(("Key", "Type", "Default", "Meaning"), rows)

    def nested(self, name: str) -> list[str]:
        """The structs that `name` holds, in the order in which they are met."""
        met: list[str] = []
        waiting = [name]
        while waiting:
            for found in _references(self.components[waiting.pop(0)]):
                if found not in met and found not in self.roots:
                    met.append(found)
                    waiting.append(found)
        return met

    def summary(self, name: str) -> str:
        """The docstring of a struct."""
        return " ".join(str(self.components[name].get("description", "")).split())

    def type_of(self, value: Schema) -> str:
        """The type of a value, with a link if it has its own keys."""
        if "$ref" in value:
            name = value["$ref"].rpartition("/")[2]
            return f"[{name}](#{name.lower()})"
        if "anyOf" in value:
            kinds = [self.type_of(kind) for kind in value["anyOf"] if kind.get("type") != "null"]
            return ", or ".join(kinds)
        if "enum" in value:
            return ", ".join(code(_yaml(word)) for word in value["enum"])
        if value.get("type") == "array":
            return self._type_of_list(value)
        if value.get("type") == "object":
            extra = value.get("additionalProperties")
            return f"mapping of names to {self.type_of(extra)}" if isinstance(extra, dict) else "mapping"
        return {"integer": "whole number", "boolean": "`true` or `false`", "string": "text"}.get(
            str(value.get("type")), str(value.get("type", "any value"))
        )

    def _type_of_list(self, value: Schema) -> str:
        if "prefixItems" in value:
            return f"list: {', '.join(map(self.type_of, value['prefixItems']))}"
        if not value.get("items"):
            return "list"
        item = self.type_of(value["items"])
        return f"list of ({item})" if ", or " in item else f"list of {item}"

    def _default(self, value: Schema) -> str:
        if "default" not in value:
            return ""
        default = value["default"]
        if default in (None, "", {}):
            return "left out"
        if "$ref" in value or isinstance(default, dict):
            return "as below"
        return code(_yaml(sorted(default) if value.get("uniqueItems") else default))

    def _description(self, name: str, key: str, value: Schema) -> str:
        text = value.get("description") or self.words.get(f"{name}.{key}")
        if not text:
            raise MissingWordsError(
                f"the key `{key}` of {name} has no description: give its field a msgspec.Meta, or write one as "
                f"`{name}.{key}` in docs/generate/words.py"
            )
        return str(text)


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _yaml(value: object) -> str:
    """A value as YAML in one line."""
    if isinstance(value, list):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    return value if isinstance(value, str) else json.dumps(value)
