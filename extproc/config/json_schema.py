"""JSON Schemas of the kinds of YAML files, for editors that complete, explain and check YAML.

They are made from the structs that the files are decoded into, with the descriptions of their fields.
"""

import inspect
from typing import Any

import msgspec

from extproc.acceptance.rules import rule_types
from extproc.config.schema import BackgroundFile, Intent, PolicyFile

FILES: dict[str, type[Any]] = {"policy": PolicyFile, "intent": Intent, "background": BackgroundFile}

# Editors know this version best.
_VERSION = "http://json-schema.org/draft-07/schema#"
_REF = "#/$defs/{name}"
# The router reads YAML 1.1, where these words are booleans. For editors, which read YAML 1.2, they are text.
_BOOLEANS = [True, False, "on", "off", "yes", "no"]
# Options of a rule that are not keys of the YAML.
_NOT_WRITTEN = {"Score": "scorer", "Gain": "predictor", "External": "name"}

_Schema = dict[str, Any]


def json_schema(file: str) -> _Schema:
    """The JSON Schema of "policy", "intent" or "background"."""
    kind = FILES[file]
    types = [kind, *(options for options, _ in rule_types().values())] if kind is Intent else [kind]
    _, definitions = msgspec.json.schema_components(types, ref_template=_REF)
    if kind is Intent:
        for name, option in _NOT_WRITTEN.items():
            del definitions[name]["properties"][option]
            definitions[name]["required"] = [key for key in definitions[name]["required"] if key != option]
        definitions["Intent"]["properties"]["accept"]["items"] = _rule_schema(definitions)
    elif kind is PolicyFile:
        # A tier has one `url` or several `endpoints`. When `endpoints` are decoded, `url` is added.
        definitions["Tier"]["required"].remove("url")
        definitions["Tier"]["anyOf"] = [{"required": ["url"]}, {"required": ["endpoints"]}]
    root = definitions.pop(kind.__name__)
    schema: _Schema = _as_editors_read({"$schema": _VERSION, **root, "$defs": definitions})
    return schema


def _rule_schema(definitions: _Schema) -> _Schema:
    """One item of `accept`: the name of a rule, or a mapping of the name to the rule's options."""
    names, properties = [], {}
    for name, (options, plain) in rule_types().items():
        definition = definitions[options.__name__]
        description = inspect.getdoc(options)
        values = [{"$ref": _REF.format(name=options.__name__)}]
        if plain is not None:
            values.append(definition["properties"][plain])
        if name == "json_schema":
            values.append({"type": "object"})  # the schema itself
        if not definition["required"]:
            names.append({"const": name, "description": description})
            values.append({"type": "null"})
        properties[name] = {"description": description, "anyOf": values}
    mapping = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"anyOf": [*names, mapping | {"minProperties": 1, "maxProperties": 1}]}


def _as_editors_read(schema: Any) -> Any:
    """The schema in draft 7, with booleans as editors read them, and with defaults in a fixed order."""
    if isinstance(schema, list):
        return [_as_editors_read(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _as_editors_read(value) for key, value in schema.items()}
    if schema.get("type") == "boolean":
        del schema["type"]
        schema["enum"] = _BOOLEANS
    if "prefixItems" in schema:
        schema["items"], schema["additionalItems"] = schema.pop("prefixItems"), False
    if schema.get("uniqueItems") is True and isinstance(schema.get("default"), list):
        schema["default"] = sorted(schema["default"])
    return schema
