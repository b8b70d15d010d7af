"""The same bootstrap for Envoys before 1.40, which lack the priority-group cluster specifier and more.

Here a few lines of Lua, run when the decision is there, name a cluster in a header, and the route is chosen again
by it. With the cascade `composite` (Envoy 1.37 and newer) that cluster has the tiers of one ladder, the nth for the
nth attempt; with `none` (1.36) it is the first tier's: requests are routed, no answer is judged, nothing climbs.
"""

import copy
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Literal

from extproc.acceptance.rules import compile_rules
from extproc.acceptance.verdict import wants_logprobs
from extproc.config.load import Config
from extproc.contract.names import MAX_BODY_BYTES, HeaderName, Namespace
from extproc.envoy.builders import Dict, filter_entry, typed
from extproc.envoy.clusters import ladder_cluster
from extproc.envoy.filters import FAILOPEN_FILTER, RESCUE_FILTER, SIZE_LIMIT_FILTER, USAGE_FILTER
from extproc.settings import Tier

Cascade = Literal["priority-group", "composite", "none"]
# What a rendered file says of itself; nothing where it is the usual one.
NOTES: dict[Cascade, str] = {
    "priority-group": "",
    "composite": "# For Envoy 1.37 and newer; render again after a change of ladders, too.\n",
    "none": "# For Envoy 1.36 and newer: no answer is judged, and nothing climbs.\n",
}
# Between Lua and the route: the clusters of this request's ladder, joined. Tiers cannot be named with a "+".
_AND_THEN = "+"
# Filters that the oldest has not, or that have nothing to do where nobody judges.
_GONE: dict[Cascade, set[str]] = {
    "composite": {USAGE_FILTER},
    "none": {USAGE_FILTER, RESCUE_FILTER, FAILOPEN_FILTER},
}


def for_older(bootstrap: Dict, config: Config, cascade: Cascade) -> None:
    """Change what is rendered for 1.40, in place. Raises ValueError for intents that this cascade cannot serve."""
    _refuse(config, cascade)
    resources = bootstrap["static_resources"]
    manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    ladders = {} if cascade == "none" else _ladders(config)
    lua = typed("envoy.extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": _lua(ladders)})
    *filters, router = (entry for entry in manager["http_filters"] if entry["name"] not in _GONE[cascade])
    for entry in filters:
        if entry["name"] == SIZE_LIMIT_FILTER:  # newer than these, too
            limit = typed("envoy.extensions.filters.http.buffer.v3.Buffer", max_request_bytes=MAX_BODY_BYTES)
            entry["typed_config"] = limit
    manager["http_filters"] = [*filters, filter_entry("ladder", lua), router]
    [host] = manager["route_config"]["virtual_hosts"]
    host["request_body_buffer_limit"] *= 2  # 1.37 counts a body twice that it may have to send again
    host["routes"] = [older for route in host["routes"] for older in _routes(route, config, cascade)]
    resources["clusters"] += [ladder_cluster(name, ladder, config) for name, ladder in ladders.items()]
    if cascade == "none":
        for cluster in resources["clusters"]:
            _judge_nothing(cluster)


def _judge_nothing(cluster: Dict) -> None:
    for options in cluster.get("typed_extension_protocol_options", {}).values():
        kept = [f for f in options.get("http_filters", []) if not f["name"].startswith(("rung_", "verifier_"))]
        if kept:
            options["http_filters"] = kept


def _routes(route: Dict, config: Config, cascade: Cascade) -> Iterator[Dict]:
    """By the header where there is a decision, else to the default tier."""
    if "inline_cluster_specifier_plugin" not in route["route"]:
        yield route
        return
    route = copy.deepcopy(route)
    for name in _GONE[cascade]:
        route["typed_per_filter_config"].pop(name, None)
    action = route["route"]
    del action["inline_cluster_specifier_plugin"], action["retry_policy"]["refresh_cluster_on_retry"]
    if cascade == "none":
        del action["retry_policy"]
    default = next(t for t in config.policy.tiers if t.name == config.policy.default_tier)
    decided = {"name": HeaderName.LADDER, "present_match": True}
    match = route["match"] | {"headers": [*route["match"]["headers"], decided]}
    yield route | {"match": match, "route": action | {"cluster_header": HeaderName.LADDER}}
    yield route | {"route": action | {"cluster": default.cluster_name}}


def _ladders(config: Config) -> dict[str, tuple[Tier, ...]]:
    """Every ladder of more than one rung that a request may get, by name: any rung may be unable to serve it."""
    tiers = config.policy.tiers
    place = {tier.name: i for i, tier in enumerate(tiers)}
    found: list[tuple[Tier, ...]] = []
    for at, first in enumerate(tiers):
        found += [(first, above) for above in tiers[at + 1 :]]  # of a cohort that names no rung
        for up in (intent.escalate for intent in config.intents if intent.escalate is not None):
            rungs = [place[rung.tier] for rung in up.rungs if place[rung.tier] >= at]
            for able in _some_of(set(rungs)):
                found.append((first, *[tiers[i] for i in rungs if i in able][: up.max]))
    return {_AND_THEN.join(tier.cluster_name for tier in ladder): ladder for ladder in found}


def _some_of(places: set[int]) -> Iterator[set[int]]:
    return (set(some) for count in range(len(places)) for some in combinations(places, count + 1))


def _refuse(config: Config, cascade: Cascade) -> None:
    for intent in config.intents:
        up = intent.escalate
        if cascade == "composite" and up is not None and up.skip:
            why = "`skip` jumps a rung, which takes the cascade of Envoy 1.40"
        elif cascade == "none" and up is not None and up.human:
            why = "what goes to a person has to be judged, which takes --cascade composite and Envoy 1.37"
        elif cascade == "none" and wants_logprobs(compile_rules(intent.accept, intent.scorer)):
            why = "`logprob`, or a `score` of them, asks for what only a judged answer is freed of again"
        else:
            continue
        raise ValueError(f"--cascade {cascade}: intent {intent.intent}: {why}; drop it from the intent")


def _lua(ladders: Mapping[str, object]) -> str:
    known = ", ".join(f'["{name}"] = true' for name in ladders)
    return f"""
local ladders = {{ {known} }}
function envoy_on_request(handle)
  local decided = handle:streamInfo():dynamicMetadata():get("{Namespace.LADDER}")
  if decided == nil then return end
  local clusters = {{}}
  for i, group in ipairs(decided["priority_groups"]) do
    clusters[i] = group["clusters"][1]["cluster_name"]
  end
  local name = table.concat(clusters, "{_AND_THEN}")
  if not ladders[name] then -- of one rung, or newer than this file: it is served, and does not climb
    name = clusters[1]
    handle:headers():replace("{HeaderName.MAX_RETRIES}", "0")
  end
  handle:headers():replace("{HeaderName.LADDER}", name)
  handle:clearRouteCache()
end
"""
