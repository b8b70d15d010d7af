"""Errors that the router itself sends to a client, in the shape of the client's API."""

import msgspec

from extproc.api.request import APIS

# By status: the type of the error in all four APIs, and Anthropic's own word if it differs.
_TYPES = {400: ("invalid_request_error", "invalid_request_error"), 503: ("server_error", "api_error")}


def error_body(path: str, status: int, message: str, code: str | None = None) -> bytes:
    """Return the JSON body of an error for a request to `path`. Anthropic's errors have no `code`."""
    type_, anthropic_type = _TYPES[status]
    if APIS.get(path.partition("?")[0]) == "messages":
        return msgspec.json.encode({"type": "error", "error": {"type": anthropic_type, "message": message}})
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": None, "code": code}})
