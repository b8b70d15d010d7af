"""Change the bootstrap for Envoys that lack the priority-group cluster specifier of 1.40 and some filters.

A Lua filter behind the decision writes the name of a cluster into a header. Envoy then chooses the route again, by
that header. The cluster depends on the cascade:

- `composite`, for Envoy 1.37 and newer: the cluster has the tiers of one ladder, the nth for the nth attempt.
- `priorities`, for builds of 1.37 and newer that lack the composite cluster: its nth priority is the nth tier.
- `none`, for Envoy 1.36 and newer: it is the cluster of the first tier. No answer is judged or escalated.
"""

import copy
from collections.abc import Iterator, Mapping
from itertools import combinations

from extproc.config.load import Config
from extproc.contract.names import HeaderName, Namespace
from extproc.envoy.builders import Dict, filter_entry, typed
from extproc.envoy.clusters import ladder_cluster
from extproc.envoy.filters import FAILOPEN_FILTER, RESCUE_FILTER, STATE_FILTER, USAGE_FILTER
from extproc.envoy.priorities import RETRY_PRIORITY, priorities_cluster
from extproc.envoy.tier_filters import start_state
from extproc.envoy.unsupported import Cascade
from extproc.settings import Tier

# Comments at the top of the rendered file.
NOTES: dict[Cascade, str] = {
    "priority-group": "",
    "composite": "# For Envoy 1.37 and newer. Render it again after you change `escalate`, too.\n",
    "priorities": "# For Envoy 1.37 and newer. Render it again after you change `escalate`, too.\n",
    "none": "# For Envoy 1.36 and newer. No answer is judged or escalated.\n",
}
# A ladder's name is the names of its clusters with this between them. The names of tiers cannot contain a "+".
_SEPARATOR = "+"
# The start of the names of filters without which nothing escalates.
_CASCADE_FILTERS = ("rung_", "verifier_", "failure")
# Filters that these Envoys lack, or that have no purpose if no answer is judged.
_REMOVED: dict[Cascade, set[str]] = {
    "composite": {USAGE_FILTER},
    "priorities": {USAGE_FILTER, FAILOPEN_FILTER},
    "none": {USAGE_FILTER, STATE_FILTER, RESCUE_FILTER, FAILOPEN_FILTER},
}


def adapt_to_older(resources: Dict, config: Config, cascade: Cascade) -> None:
    """Change the listener and the clusters of 1.40 in place."""
    manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    ladders = {} if cascade == "none" else _ladders(config)
    lua = typed("envoy.extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": _lua(ladders)})
    *filters, router = (entry for entry in manager["http_filters"] if entry["name"] not in _REMOVED[cascade])
    for entry in filters:
        if entry["name"] == STATE_FILTER:  # these Envoys cannot follow a file
            entry["typed_config"] = start_state(config, follow_keys=False)
    manager["http_filters"] = [*filters, filter_entry("ladder", lua), router]
    if cascade == "none" and "tracing" in manager:  # 1.36 has no tags with a format
        manager["tracing"]["custom_tags"] = [tag for tag in manager["tracing"]["custom_tags"] if "value" not in tag]
    [host] = manager["route_config"]["virtual_hosts"]
    host["request_body_buffer_limit"] *= 2  # 1.37 counts a body twice if it may have to send it again
    host["routes"] = [changed for route in host["routes"] for changed in _routes(route, cascade)]
    if cascade == "priorities":
        alone = {tier.cluster_name: (tier,) for tier in config.policy.tiers}
        others = [cluster for cluster in resources["clusters"] if cluster["name"] not in alone]
        by_priority = [priorities_cluster(name, ladder, config) for name, ladder in (alone | ladders).items()]
        resources["clusters"] = [*others, *by_priority]
    else:
        resources["clusters"] += [ladder_cluster(name, ladder, config) for name, ladder in ladders.items()]
    if cascade == "none":
        for cluster in resources["clusters"]:
            _remove_cascade_filters(cluster)


def _remove_cascade_filters(cluster: Dict) -> None:
    """Remove the verifiers and the rungs' bodies from a tier's cluster."""
    for options in cluster.get("typed_extension_protocol_options", {}).values():
        remaining = [f for f in options.get("http_filters", []) if not f["name"].startswith(_CASCADE_FILTERS)]
        if remaining:
            options["http_filters"] = remaining


def _routes(route: Dict, cascade: Cascade) -> Iterator[Dict]:
    """Yield a route by the header, for requests with a decision, and one to the cluster for the others."""
    if "inline_cluster_specifier_plugin" not in route.get("route", {}):
        yield route
        return
    route = copy.deepcopy(route)
    for name in _REMOVED[cascade]:
        route["typed_per_filter_config"].pop(name, None)
    action = route["route"]
    specifier = action["inline_cluster_specifier_plugin"]["extension"]["typed_config"]
    [undecided] = specifier["priority_groups"][0]["clusters"]
    del action["inline_cluster_specifier_plugin"], action["retry_policy"]["refresh_cluster_on_retry"]
    if cascade == "none":
        policy = action["retry_policy"]
        action["retry_policy"] = {"num_retries": 0} | {k: v for k, v in policy.items() if k.startswith("per_try")}
    if cascade == "priorities":
        action["retry_policy"]["retry_priority"] = RETRY_PRIORITY
    decided = {"name": HeaderName.LADDER, "present_match": True}
    match = route["match"] | {"headers": [*route["match"]["headers"], decided]}
    yield route | {"match": match, "route": action | {"cluster_header": HeaderName.LADDER}}
    yield route | {"route": action | {"cluster": undecided["cluster_name"]}}


def _ladders(config: Config) -> dict[str, tuple[Tier, ...]]:
    """Return every ladder of two or more tiers that a request may get, by name.

    A request's ladder leaves out rungs that cannot serve it, so all subsets of the rungs are possible.
    """
    tiers = config.policy.tiers
    index_of = {tier.name: i for i, tier in enumerate(tiers)}
    ladders: list[tuple[Tier, ...]] = []
    for at, first in enumerate(tiers):
        ladders += [(first, above) for above in tiers[at + 1 :]]  # of a cohort without rungs
        for up in (intent.escalate for intent in config.intents if intent.escalate is not None):
            rungs = [index_of[rung.tier] for rung in up.rungs if index_of[rung.tier] >= at]
            for able in _subsets(set(rungs)):
                ladders.append((first, *[tiers[i] for i in rungs if i in able][: up.max]))
    return {_SEPARATOR.join(tier.cluster_name for tier in ladder): ladder for ladder in ladders}


def _subsets(indexes: set[int]) -> Iterator[set[int]]:
    """Yield every subset that is not empty."""
    return (set(subset) for size in range(len(indexes)) for subset in combinations(indexes, size + 1))


def _lua(ladders: Mapping[str, object]) -> str:
    """Return Lua code that writes the name of a request's ladder into a header, if it is one of `ladders`."""
    names = ", ".join(f'["{name}"] = true' for name in ladders)
    return f"""
local ladders = {{ {names} }}
function envoy_on_request(handle)
  local decided = handle:streamInfo():dynamicMetadata():get("{Namespace.LADDER}")
  if decided == nil then return end
  local clusters = {{}}
  local before, repeated = nil, 0
  for _, group in ipairs(decided["priority_groups"]) do
    if group["name"] == before then repeated = repeated + 1
    else clusters[#clusters + 1] = group["clusters"][1]["cluster_name"] end
    before = group["name"]
  end
  if repeated > 0 then -- a ladder's cluster cannot repeat an attempt in the middle
    local retries = tonumber(handle:headers():get("{HeaderName.MAX_RETRIES}")) or repeated
    handle:headers():replace("{HeaderName.MAX_RETRIES}", tostring(retries - repeated))
  end
  local name = table.concat(clusters, "{_SEPARATOR}")
  if not ladders[name] then -- one rung, or a ladder newer than this file: its first tier serves it, without retries
    name = clusters[1]
    if #clusters > 1 then handle:headers():replace("{HeaderName.MAX_RETRIES}", "0") end
  end
  handle:headers():replace("{HeaderName.LADDER}", name)
  handle:clearRouteCache()
end
"""
