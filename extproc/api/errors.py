"""Errors that the router itself sends to a client, in the shape of the client's API."""

import msgspec

from extproc.api.request import APIS

_TYPE = "invalid_request_error"  # the same word in all four APIs


def bad_request(path: str, message: str) -> bytes:
    """Return the JSON body of a 400 for a request to `path`."""
    if APIS.get(path.partition("?")[0]) == "messages":
        return msgspec.json.encode({"type": "error", "error": {"type": _TYPE, "message": message}})
    return msgspec.json.encode({"error": {"message": message, "type": _TYPE, "param": None, "code": None}})
