"""The schema of the answer that a request asks for."""

import msgspec

from extproc.api.members import UNDECODABLE


class _Properties(msgspec.Struct, frozen=True):
    properties: dict[str, msgspec.Raw] = {}


class _Named(msgspec.Struct, frozen=True):
    schema: _Properties = _Properties()


class _Format(msgspec.Struct, frozen=True):
    schema: _Properties = _Properties()
    json_schema: _Named = _Named()


class _Holder(msgspec.Struct, frozen=True):
    format: _Format = _Format()


class _Formats(msgspec.Struct, frozen=True):
    """The members of the four APIs that may hold the schema."""

    response_format: _Format = _Format()
    text: _Holder = _Holder()
    output_config: _Holder = _Holder()
    output_format: _Format = _Format()


_decode = msgspec.json.Decoder(_Formats).decode


def answer_properties(body: bytes) -> frozenset[str]:
    """Return the names of the members that the answer must have. Empty without a schema that can be read."""
    try:
        formats = _decode(body)
    except UNDECODABLE:
        return frozenset()
    places = (formats.response_format, formats.text.format, formats.output_config.format, formats.output_format)
    schemas = [schema for place in places for schema in (place.schema, place.json_schema.schema)]
    return frozenset(name for schema in schemas for name in schema.properties)
