"""Read decoded JSON loosely: a value of another type counts as absent, as it does for most clients."""

from typing import Any


def as_text(value: Any) -> str:
    """Return `value` if it is a string, otherwise ""."""
    return value if isinstance(value, str) else ""


def as_object(value: Any) -> dict[str, Any]:
    """Return `value` if it is an object, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def as_objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects in `value` if it is a list, without its other items, otherwise an empty list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def as_index(value: Any, default: int = 0) -> int:
    """Return `value` if it is an integer and not a boolean, otherwise `default`."""
    return value if type(value) is int else default
