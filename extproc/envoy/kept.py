"""The routes of requests about a response that an upstream keeps. They go to the tier that made it."""

import re
from collections.abc import Iterator

from extproc.api.paths import KEPT_PATHS, PATH_PREFIX, SIDE_PATHS
from extproc.envoy.builders import Dict, typed
from extproc.envoy.other_routes import kept_match, path_match, wrong_method

# The number of the group with the path, behind the groups of PATH_PREFIX.
_PATH_GROUP = re.compile(PATH_PREFIX).groups + 1


def kept_routes(action: Dict, router_filter: str, others: Dict) -> Iterator[Dict]:
    """Yield the routes for requests about a response. `action` sends them to the tier of the decision.

    `others` are the settings for other filters. Other methods on these paths are answered with 405.
    """
    mode = {"request_header_mode": "SEND", "request_body_mode": "NONE", "response_header_mode": "SKIP"}
    router = typed("envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute", overrides={"processing_mode": mode})
    filters = {router_filter: typed("envoy.config.route.v3.FilterConfig", config=router)} | others
    for path in SIDE_PATHS:
        if path.startswith("/v1/responses/"):  # it looks like a path with an id
            yield wrong_method(path_match(path), "POST")
    for path, methods in KEPT_PATHS.items():
        rewrite = {"pattern": {"regex": f"^{PATH_PREFIX}({path})/?$"}, "substitution": f"/v1\\{_PATH_GROUP}"}
        method = {"name": ":method", "string_match": {"safe_regex": {"regex": "|".join(methods)}}}
        yield {
            "name": "kept",
            "match": kept_match(path) | {"headers": [method]},
            "route": action | {"regex_rewrite": rewrite},
            "typed_per_filter_config": filters,
        }
