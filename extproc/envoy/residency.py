"""Routes for requests without a decision that the default tier may not get, because `only` excludes it.

It goes to a cluster without hosts, and Envoy answers with 503. A request with a decision goes to the
clusters of its ladder, on the same routes.
"""

import copy
import re
from collections.abc import Mapping

from extproc.config.load import Config
from extproc.config.residency import matches_of, refused_apps, refused_headers
from extproc.contract.names import REFUSING_CLUSTER, HeaderName
from extproc.contract.words import Reason
from extproc.envoy.builders import Dict, set_header, typed
from extproc.envoy.filters import HEADERS_FILTER
from extproc.routing.snapshot import AUTHORITY

# The value of an expression that fails is empty, and adds no header.
_REFUSED = f"%CEL(response.headers[':status'] == '503' ? '{Reason.RESIDENCY}' : request.headers[':none'])%"


def confine_routes(routes: list[Dict], config: Config) -> list[Dict]:
    """Return the routes, with those before them that refuse requests without a decision."""
    patterns = refused_headers(config)
    if patterns is None:
        return [_refusing(route) if _is_decided(route) else route for route in routes]
    return [confined for route in routes for confined in (*_for_headers(route, patterns, config), route)]


def refusing_clusters(config: Config) -> list[Dict]:
    """Return the cluster without hosts, if a route needs it."""
    if refused_headers(config) == []:
        return []
    return [{"name": REFUSING_CLUSTER, "type": "STATIC", "connect_timeout": "1s"}]


def _for_headers(route: Dict, patterns: list[Mapping[str, str]], config: Config) -> list[Dict]:
    """A refusing route for each set of headers. The tiers that a rule allows stay open on other paths."""
    refusing = []
    cluster = route.get("route", {}).get("cluster")
    allowed = {
        tuple(sorted((rule.when.headers or {}).items())): {
            tier.cluster_name for tier in config.policy.tiers if tier.name in (rule.only or ())
        }
        for rule in config.policy.rules
    }
    for name, app in config.policy.apps.items():
        clusters = {tier.cluster_name for tier in config.policy.tiers if tier.name in (app.tiers or (tier.name,))}
        if name in refused_apps(config):
            allowed |= {tuple(sorted(match.items())): clusters for match in matches_of(app)}
    for headers in patterns:
        if not _is_decided(route) and (cluster is None or cluster in allowed[tuple(sorted(headers.items()))]):
            continue
        match = route["match"] | {
            "headers": [*route["match"].get("headers", []), *(_header_match(*pair) for pair in headers.items())]
        }
        refusing.append(_refusing(route | {"match": match}))
    return refusing


def _is_decided(route: Dict) -> bool:
    """Whether the router decides about the requests of this route."""
    return "inline_cluster_specifier_plugin" in route.get("route", {})


def _refusing(route: Dict) -> Dict:
    """The route, with the cluster without hosts in place of the default tier."""
    route = copy.deepcopy(route)
    reason = set_header(HeaderName.REASON, Reason.RESIDENCY, "ADD_IF_ABSENT")
    if not _is_decided(route):
        route["route"]["cluster"] = REFUSING_CLUSTER
        mutation = typed(
            "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
            mutations={"response_mutations": [reason]},
        )
        return route | {
            "typed_per_filter_config": route.get("typed_per_filter_config", {}) | {HEADERS_FILTER: mutation}
        }
    specifier = route["route"]["inline_cluster_specifier_plugin"]["extension"]["typed_config"]
    specifier["priority_groups"] = [
        {"name": REFUSING_CLUSTER, "clusters": [{"cluster_name": REFUSING_CLUSTER, "weight": 1}]}
    ]
    mutations = route["typed_per_filter_config"][HEADERS_FILTER]["mutations"]
    others = [m for m in mutations["response_mutations"] if not _sets_reason(m)]
    mutations["response_mutations"] = [*others, set_header(HeaderName.REASON, _REFUSED, "ADD_IF_ABSENT")]
    return route


def _sets_reason(mutation: Dict) -> bool:
    return "append" in mutation and mutation["append"]["header"]["key"] == HeaderName.REASON


def _header_match(name: str, pattern: str) -> Dict:
    """Envoy's match for a header of a rule. An absent header counts as empty, as it does in the router."""
    regex = f"(?i){_regex(pattern)}\\.?(:[0-9]+)?" if name == AUTHORITY else _regex(pattern)
    return {
        "name": name,
        "string_match": {"safe_regex": {"regex": regex}},
        "treat_missing_header_as_empty": True,
    }


def _regex(pattern: str) -> str:
    """The pattern as a regular expression of RE2. A set of characters in brackets matches any character."""
    parts = re.split(r"(\[[^\]]+\]|[*?])", pattern)
    return "".join(_REGEX.get(part[:1], re.escape(part)) for part in parts)


_REGEX = {"*": ".*", "?": ".", "[": "."}
