"""Keeps private model names, which only the router knows, from upstreams, in requests without a decision.

Without the router, a filter before this one writes the default tier's model into the body. It leaves a body
unchanged that is not strict JSON, and Envoys before 1.37 lack it.
"""

import json

from extproc.config.load import Config
from extproc.contract.names import Key
from extproc.envoy.builders import Dict, metadata_predicate, skip_if, typed
from extproc.envoy.tier_filters import LUA, lua
from extproc.settings import Tier

UNDECIDED_FILTER = "undecided"
# The client may send the request again: the router may be back then, and reads more than this filter does.
_NOT_REPLACED = "the router cannot be reached, and without it the model of this body cannot be replaced"
_UNKNOWN = "no upstream of this path knows the model of this body: name a model of the upstream"


def undecided_filter() -> Dict:
    """Return the filter. Envoy skips it if there is a decision, at no cost. Routes give it its code."""
    decided = metadata_predicate([Key.CLUSTER], {"present_match": True})
    return skip_if(decided, LUA, lua("function envoy_on_request(handle) end"))


def guard_routed(config: Config, default: Tier) -> Dict:
    """Return the setting of an API's route. It replaces a private name that is left, if it is easy to find.

    After the replacement by the filter before, the default tier's model is a member without spaces. No text of a
    person can look like it, because quotes are escaped in JSON.
    """
    model = json.dumps(default.model, ensure_ascii=False)
    return _setting(
        config,
        f"""
  if text:find({_quoted(f'"model":{model}')}, 1, true) then return end
  local count, clear = count_private(text)
  if clear and count == 0 and text:find('"model"%s*:') then return end
  if clear and count == 1 then
    body:setBytes((text:gsub('("model"%s*:%s*)"([^"]*)"', function(key, name)
      if private[name] then return key .. {_quoted(model)} end
    end)))
    return
  end
  handle:respond({{[":status"] = "503"}}, "{_NOT_REPLACED}")""",
    )


def guard_opened(config: Config) -> Dict:
    """Return the setting of a path that the policy opens: the body names no private model."""
    return _setting(
        config,
        f"""
  local count, clear = count_private(text)
  if count > 0 or not clear then handle:respond({{[":status"] = "400"}}, "{_UNKNOWN}") end""",
    )


def _setting(config: Config, check: str) -> Dict:
    """Return Lua code that checks the text of a body. A name with an escape is not clear: it may be private."""
    names = ", ".join(f"[{_quoted(name)}] = true" for name in sorted(_private_models(config)))
    code = f"""
local private = {{ {names} }}
local function count_private(text)
  local count, clear = 0, true
  for name in text:gmatch('"model"%s*:%s*"([^"]*)') do
    if private[name] then count = count + 1 end
    if name:find("\\\\", 1, true) then clear = false end
  end
  return count, clear
end
function envoy_on_request(handle)
  local body = handle:body()
  if body == nil or body:length() == 0 then return end
  local text = body:getBytes(0, body:length()){check}
end
"""
    return typed("envoy.extensions.filters.http.lua.v3.LuaPerRoute", source_code={"inline_string": code})


def _private_models(config: Config) -> frozenset[str]:
    """Return the names in `retarget` that no tier has."""
    names = {name for name in config.policy.retarget if not set(name) & set("*?[")}
    return frozenset(names - {tier.model for tier in config.policy.tiers})


def _quoted(text: str) -> str:
    """Return the text as a string of Lua. Both languages escape quotes and backslashes in the same way."""
    return json.dumps(text, ensure_ascii=False)
