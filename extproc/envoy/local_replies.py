"""Errors that Envoy itself answers, as JSON in the shape of the client's API."""

from collections.abc import Iterator

from extproc.api.errors import too_large_message
from extproc.config.load import Config
from extproc.contract.names import ANSWERED, HeaderPrefix
from extproc.envoy.builders import Dict, typed

# Envoy's formatter for the text that it would have answered.
_TEXT = "%LOCAL_REPLY_BODY%"
# Anthropic's types of errors by status. Other statuses have the types of 400 or 500.
_ANTHROPIC_TYPES = {404: "not_found_error", 413: "request_too_large", 408: "timeout_error", 504: "timeout_error",
                    503: "overloaded_error"}  # fmt: skip
_LEAST_ERROR, _LEAST_SERVER_ERROR = 400, 500
_UPGRADE_REFUSED = "response.code_details == 'upgrade_failed'"
_OURS = f"response.code_details == '{ANSWERED}'"


def local_replies(config: Config) -> Dict:
    """Return the setting of the connection manager. The first mapper that fits an answer shapes it."""
    return {"mappers": [*_mappers(config)]}


def _mappers(config: Config) -> Iterator[Dict]:
    yield {"filter": _expression(_OURS)}  # these answers already have the shape
    for is_anthropic in (_ANTHROPIC, None):
        upgrade = _all(_expression(_UPGRADE_REFUSED), is_anthropic)
        yield _mapper(upgrade, "WebSocket is not served here: use HTTP", 426, is_anthropic) | {"status_code": 426}
        yield _mapper(
            _all(_status(413), is_anthropic), too_large_message(config.policy.max_body_bytes), 413, is_anthropic
        )
        overloaded = _all({"response_flag_filter": {"flags": ["UO"]}}, is_anthropic)
        header = {"header": {"key": f"{HeaderPrefix.ENVOY}overloaded", "value": "true"}}
        yield _mapper(overloaded, _TEXT, 503, is_anthropic) | {"headers_to_add": [header]}
        for status in sorted(_ANTHROPIC_TYPES) if is_anthropic is not None else ():
            yield _mapper(_all(_status(status), is_anthropic), _TEXT, status, is_anthropic)
        for status in (_LEAST_SERVER_ERROR, _LEAST_ERROR):
            yield _mapper(_all(_status(status, "GE"), is_anthropic), _TEXT, status, is_anthropic)


def _mapper(condition: Dict, message: str, status: int, is_anthropic: Dict | None) -> Dict:
    of_server = status >= _LEAST_SERVER_ERROR
    if is_anthropic is not None:
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if of_server else "invalid_request_error")
        body: Dict = {"type": "error", "error": {"type": kind, "message": message}}
    else:
        kind = "server_error" if of_server else "invalid_request_error"
        body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return {"filter": condition, "body_format_override": {"json_format": body}}


def _status(status: int, compared: str = "EQ") -> Dict:
    value = {"default_value": status, "runtime_key": "no_runtime_key"}
    return {"status_code_filter": {"comparison": {"op": compared, "value": value}}}


def _expression(text: str) -> Dict:
    kind = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    return {"extension_filter": {"name": "expression", "typed_config": typed(kind, expression=text)}}


def _all(first: Dict, second: Dict | None) -> Dict:
    return first if second is None else {"and_filter": {"filters": [first, second]}}


def _has_header(name: str, **value: object) -> Dict:
    return {"header_filter": {"header": {"name": name, **value}}}


_ANTHROPIC = {
    "or_filter": {
        "filters": [
            _has_header(":path", string_match={"safe_regex": {"regex": "[^?]*/messages([/?].*)?"}}),
            _has_header("anthropic-version", present_match=True),
        ]
    }
}
