"""Errors that the router itself sends to a client, in the shape of the client's API."""

import msgspec

from extproc.api.paths import speaks_anthropic

# By status: the type of the error in all four APIs, and Anthropic's own word if it differs.
_TYPES = {
    400: ("invalid_request_error", "invalid_request_error"),
    404: ("invalid_request_error", "not_found_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    413: ("invalid_request_error", "request_too_large"),
    503: ("server_error", "api_error"),
}

# A 429 that does not end within minutes has another type.
_BY_CODE: dict[str | None, str] = {"budget": "insufficient_quota"}


def error_body(path: str, status: int, message: str, code: str | None = None) -> bytes:
    """Return the JSON body of an error for a request to `path`. Anthropic's errors have no `code`."""
    type_, anthropic_type = _TYPES[status]
    type_ = _BY_CODE.get(code, type_)
    if speaks_anthropic(path):
        return msgspec.json.encode({"type": "error", "error": {"type": anthropic_type, "message": message}})
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": None, "code": code}})


def too_large_message(limit_bytes: int) -> str:
    """Return the message of a 413, which Envoy sends, too."""
    return (
        f"the body is larger than {limit_bytes / 2**20:g} MiB: send a smaller one, or ask the operator of this "
        "gateway to raise `max_body_mb` in policy.yaml"
    )
