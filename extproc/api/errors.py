"""Errors that the router itself sends to a client, in the shape of the client's API."""

import msgspec

from extproc.api.paths import speaks_anthropic

_TYPE = "invalid_request_error"  # the same word in all four APIs
_TOO_LARGE = "request_too_large"  # Anthropic's word for a 413


def bad_request(path: str, message: str) -> bytes:
    """Return the JSON body of a 400 for a request to `path`."""
    return _error(path, _TYPE, message)


def too_large(path: str, limit_bytes: int) -> bytes:
    """Return the JSON body of a 413 for a request to `path`."""
    return _error(path, _TOO_LARGE if speaks_anthropic(path) else _TYPE, too_large_message(limit_bytes))


def too_large_message(limit_bytes: int) -> str:
    """Return the message of a 413, which Envoy sends, too."""
    return (
        f"the body is larger than {limit_bytes / 2**20:g} MiB: send a smaller one, or ask the operator of this "
        "gateway to raise `max_body_mb` in policy.yaml"
    )


def _error(path: str, kind: str, message: str) -> bytes:
    if speaks_anthropic(path):
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": None}})
