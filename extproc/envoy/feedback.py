"""The route of the feedback of clients. The router answers it, so its action is only for a router that is away."""

from collections.abc import Iterator

from extproc.api.paths import FEEDBACK
from extproc.envoy.builders import Dict, typed
from extproc.envoy.filters import ROUTER_FILTER
from extproc.envoy.other_routes import bad_encoding, path_match, wrong_method

_AWAY = "the feedback was not taken, because the router cannot be reached: send it again later"


def feedback_routes(inspected: Dict) -> Iterator[Dict]:
    """Yield the routes. `inspected` enables the filters that read a body and ask the router."""
    # With the headers, the router also answers a request without a body.
    mode = {"request_header_mode": "SEND", "request_body_mode": "BUFFERED", "response_header_mode": "SKIP"}
    router = typed("envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute", overrides={"processing_mode": mode})
    post = {"name": ":method", "string_match": {"exact": "POST"}}
    match = path_match(FEEDBACK) | {"headers": [post]}
    yield bad_encoding(match)
    yield {
        "name": "feedback",
        "match": match,
        "direct_response": {"status": 503, "body": {"inline_string": _AWAY}},
        "typed_per_filter_config": inspected
        | {ROUTER_FILTER: typed("envoy.config.route.v3.FilterConfig", config=router)},
    }
    yield wrong_method(path_match(FEEDBACK), "POST")
