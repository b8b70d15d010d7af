"""The paths of the four APIs, and the ways in which clients write them."""

import re
from typing import Literal

Api = Literal["chat", "completions", "responses", "messages"]

APIS: dict[str, Api] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}
COMPACT = "/v1/responses/compact"
# Paths that generate no answer, and the path of the API whose body they take. Only the model's name is replaced in
# their requests.
SIDE_PATHS = {
    "/v1/messages/count_tokens": "/v1/messages",
    COMPACT: "/v1/responses",
    "/v1/responses/input_tokens": "/v1/responses",
}
# Where clients rate answers. Clients also write it without /v1.
FEEDBACK = "/v1/feedback"
# Regular expressions of the paths behind /v1 about a response that an upstream keeps, with their methods.
KEPT_PATHS: dict[str, tuple[str, ...]] = {
    "/responses/[^/]+": ("GET", "DELETE"),
    "/responses/[^/]+/input_items": ("GET",),
    "/responses/[^/]+/cancel": ("POST",),
}
# The start of an API's path that clients write or leave out, for Python and for Envoy (RE2). Base URLs of SDKs
# differ: some have no version, and some repeat it. Gemini's is /v1beta/openai.
PATH_PREFIX = "(/(openai|anthropic|api|v1beta/openai))?(/v1){0,2}"
_VARIANT = re.compile(rf"{PATH_PREFIX}(/.+?)/?")
_SLASHES = re.compile("//+")


def canonical(path: str) -> str:
    """Return the path as upstreams know it: without a query, with one /v1, and without needless slashes."""
    bare = _SLASHES.sub("/", path.partition("?")[0])
    match = _VARIANT.fullmatch(bare)
    return f"/v1{match[4]}" if match is not None else bare


def api_of(path: str) -> Api | None:
    """Return the API whose requests are routed at `path`, or None."""
    return APIS.get(path) or APIS.get(canonical(path))


def kept_id(path: str) -> str | None:
    """Return the id in the path of a response that an upstream keeps, or None."""
    path = canonical(path)
    kept = path not in SIDE_PATHS and any(re.fullmatch(f"/v1{pattern}", path) for pattern in KEPT_PATHS)
    return path.split("/")[3] if kept else None


def speaks_anthropic(path: str) -> bool:
    """Whether clients expect errors of `path` in the shape of Anthropic's API."""
    return f"{canonical(path)}/".startswith("/v1/messages/")
