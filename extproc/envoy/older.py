"""Change the bootstrap for Envoys that lack the priority-group cluster specifier of 1.40 and some filters.

A Lua filter behind the decision writes the name of a cluster into a header. Envoy then chooses the route again, by
that header. The cluster depends on the cascade:

- `composite`, for Envoy 1.37 and newer: the cluster has the tiers of one ladder, the nth for the nth attempt.
- `priorities`, for builds of 1.37 and newer that lack the composite cluster: its nth priority is the nth tier.
- `none`, for Envoy 1.36 and newer: it is the cluster of the first tier. No answer is judged or escalated.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence

from extproc.config.load import Config
from extproc.contract.names import HeaderName, Namespace
from extproc.envoy.builders import Dict, filter_entry, typed
from extproc.envoy.clusters import ladder_cluster
from extproc.envoy.filters import FAILOPEN_FILTER, RESCUE_FILTER, STATE_FILTER, USAGE_FILTER
from extproc.envoy.ladders import SEPARATOR, all_ladders
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
    ladders = {} if cascade == "none" else all_ladders(config)
    code = _lua(ladders, config.policy.tiers)
    lua = typed("envoy.extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": code})
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


def _lua(ladders: Mapping[str, object], tiers: Sequence[Tier]) -> str:
    """Return Lua code that writes the name of a request's ladder into a header, if it is one of `ladders`."""
    names = ", ".join(f'["{name}"] = true' for name in ladders)
    repeats = ", ".join(f'["{tier.cluster_name}"] = {tier.same_retries}' for tier in tiers)
    return f"""
local ladders = {{ {names} }}
local repeats = {{ {repeats} }} -- of the last tier of a ladder
function envoy_on_request(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local decided = metadata:get("{Namespace.LADDER}")
  if decided == nil then return end
  local clusters, groups = {{}}, {{}}
  for _, group in ipairs(decided["priority_groups"]) do
    if #groups == 0 or group["name"] ~= groups[#groups]["name"] then
      groups[#groups + 1] = group
      clusters[#clusters + 1] = group["clusters"][1]["cluster_name"]
    end
  end
  if #groups < #decided["priority_groups"] then -- a ladder's cluster cannot repeat an attempt in the middle
    metadata:set("{Namespace.LADDER}", "priority_groups", groups)
    if handle:headers():get("{HeaderName.MAX_RETRIES}") ~= "0" then
      local retries = #clusters - 1 + (repeats[clusters[#clusters]] or 0)
      handle:headers():replace("{HeaderName.MAX_RETRIES}", tostring(retries))
    end
  end
  local name = table.concat(clusters, "{SEPARATOR}")
  if not ladders[name] then -- one rung, or a ladder newer than this file: its first tier serves it, without retries
    name = clusters[1]
    if #clusters > 1 then handle:headers():replace("{HeaderName.MAX_RETRIES}", "0") end
  end
  handle:headers():replace("{HeaderName.LADDER}", name)
  handle:clearRouteCache()
end
"""
