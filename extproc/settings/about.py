"""Descriptions of the keys of the YAML, for the JSON Schema and the reference."""

import msgspec


def about(description: str) -> msgspec.Meta:
    """The description of a field of the YAML."""
    return msgspec.Meta(description=description)
