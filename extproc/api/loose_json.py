"""Read decoded JSON loosely: a value of another type counts as absent, as it does for most clients."""

from typing import Any


def as_text(value: Any) -> str:
    """Return a string as it is, and "" for any other value."""
    return value if isinstance(value, str) else ""


def as_object(value: Any) -> dict[str, Any]:
    """Return an object as it is, and an empty one for any other value."""
    return value if isinstance(value, dict) else {}


def as_objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list, without its other items; an empty list for any other value."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def as_index(value: Any, default: int = 0) -> int:
    """Return an integer as it is, and `default` for any other value, booleans included."""
    return value if type(value) is int else default
