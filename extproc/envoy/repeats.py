"""Repeated attempts at one tier, for connections that broke.

An upstream may close a pooled connection at the moment at which Envoy sends a request on it. This request is sent
once more to the same tier. A new connection that breaks means that the upstream is in trouble, so the next tier is
asked. A wait that has run into its timeout is not repeated either.

A broken connection runs no filter, so no code can react to it. Therefore the ladder has two groups for each
repeated attempt: a cluster that decides, and the tier again. The filter of that cluster edits the ladder, and then
its connection is refused.
"""

from extproc.config.load import Config
from extproc.contract.names import HeaderName, Key, Namespace
from extproc.envoy.builders import LUA, START, Dict, filter_entry, lua, skip_if, typed

# After this share of the time of an attempt, it is not repeated. The timers of a busy Envoy may fire early.
REPEATED_UNTIL = 0.9

# Lua code that leaves out the repeated attempts at the rung of the current attempt.
LEAVE_OUT_REPEATS = f"""
local function leave_out_repeats(metadata, groups, attempt)
  local kept = {{}}
  for i, group in ipairs(groups) do
    if i <= attempt or group["name"] ~= groups[attempt]["name"] then kept[#kept + 1] = group end
  end
  if #kept < #groups then metadata:set("{Namespace.LADDER}", "priority_groups", kept) end
end
"""

# Lua code that counts an attempt that reaches no tier. Envoy's own count has it.
COUNT_DETOUR = f"""
local function count_detour(metadata, attempt)
  local noted = metadata:get("{Namespace.ATTEMPT}")
  local detours = (noted and noted["{Key.DETOURS}"] or 0) + 1
  metadata:set("{Namespace.ATTEMPT}", "{Key.DETOURS}", detours)
  metadata:set("{Namespace.ATTEMPT}", "{Key.MADE}", attempt - detours)
end
"""

# Lua code for an attempt on a new connection.
_ASK_ONCE = f"""{LEAVE_OUT_REPEATS}
function envoy_on_request(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local ladder = metadata:get("{Namespace.LADDER}")
  local groups = ladder and ladder["priority_groups"] or {{}}
  local attempt = tonumber(handle:headers():get("{HeaderName.ATTEMPT_COUNT}")) or 1
  if groups[attempt] ~= nil then leave_out_repeats(metadata, groups, attempt) end
end
"""
_UPSTREAM: Dict = {"id": 1, "ident_expr": {"name": "upstream"}}
_HAS_CONNECTION: Dict = {"operand": _UPSTREAM, "field": "local_address", "test_only": True}
# A predicate: the attempt already has a connection, so an earlier request opened it. Envoy opens a new one only
# after the filters. The expression is `has(upstream.local_address)`. Envoy takes it parsed.
_IS_REUSED: Dict = {
    "single_predicate": {
        "input": {"name": "connection", "typed_config": typed("xds.type.matcher.v3.HttpAttributesCelMatchInput")},
        "custom_match": {
            "name": "reused",
            "typed_config": typed(
                "xds.type.matcher.v3.CelMatcher",
                expr_match={"cel_expr_parsed": {"expr": {"id": 2, "select_expr": _HAS_CONNECTION}}},
            ),
        },
    }
}


def new_connection_filter() -> Dict:
    """Return the filter of a tier for attempts on new connections: none of them is repeated.

    Envoy skips it on other connections.
    """
    return filter_entry("new_connection", skip_if(_IS_REUSED, LUA, lua(_ASK_ONCE)))


def repeating_filter(config: Config) -> Dict:
    """Return the filter of the cluster that decides whether an attempt is repeated: not after a timeout."""
    limits_s = {t.cluster_name: REPEATED_UNTIL * config.policy.attempt_s(t) for t in config.policy.tiers}
    limits = ", ".join(f'["{name}"] = {limit_s:g}' for name, limit_s in limits_s.items())
    return filter_entry("repeat", lua(_REPEAT.replace("LIMITS", limits)))


_REPEAT = f"""{LEAVE_OUT_REPEATS}{COUNT_DETOUR}
local limits_s = {{ LIMITS }}
function envoy_on_request(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local ladder, decision = metadata:get("{Namespace.LADDER}"), metadata:get("{Namespace.DECISION}")
  local attempt = tonumber(handle:headers():get("{HeaderName.ATTEMPT_COUNT}")) or 1
  count_detour(metadata, attempt)
  -- The body of the tier does not change.
  metadata:set("{Namespace.DECISION}", "{Key.SKIPPED}", (decision["{Key.SKIPPED}"] or 0) - 1)
  local age_s = handle:timestamp() / 1000 - (tonumber(handle:streamInfo():filterState():get("{START}")) or 0)
  local groups = ladder["priority_groups"]
  local limit_s = limits_s[groups[attempt - 1]["clusters"][1]["cluster_name"]]
  if limit_s ~= nil and age_s > limit_s then leave_out_repeats(metadata, groups, attempt) end
end
"""
