"""Keeps private model names, which only the router knows, from upstreams, in requests without a decision.

Forms of opened paths, which the router does not read, are among them.

Without the router, a filter before this one writes the default tier's model into the body. It leaves a body
unchanged that is not strict JSON, and Envoys before 1.37 lack it.
"""

import json

from extproc.config.load import Config
from extproc.contract.names import Key
from extproc.envoy.builders import LUA, Dict, lua, metadata_predicate, skip_if, typed
from extproc.settings import Tier

UNDECIDED_FILTER = "undecided"
# The client may send the request again: the router may be back then, and reads more than this filter does.
_NOT_REPLACED = "the router cannot be reached, and without it the model of this body cannot be replaced"
UNKNOWN_MODEL = "no upstream of this path knows the model of this body: name a model of the upstream"
# Limits of the search in a form. Each takes less than 0.1 s: places with the word, and those that may name a field.
_MOST_WORDS, _MOST_FIELDS = 100_000, 1000
_LINE_CHARS, _HEAD_CHARS = 300, 2000  # of a part's first line, and of its other lines


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
  if count > 0 or not clear then handle:respond({{[":status"] = "400"}}, "{UNKNOWN_MODEL}") end""",
    )


def guard_form(config: Config) -> Dict:
    """Return the setting of an opened path for multipart forms: the field `model` names no private model.

    A form is also refused if its field is encoded, or if too many places look like one.
    """
    return _setting(
        config,
        f"""
  if names_private(text) then handle:respond({{[":status"] = "400"}}, "{UNKNOWN_MODEL}") end""",
        _NAMES_PRIVATE,
    )


# A name with an escape is not clear: it may be private.
_COUNT_PRIVATE = """
local function count_private(text)
  local count, clear = 0, true
  for name in text:gmatch('"model"%s*:%s*"([^"]*)') do
    if private[name] then count = count + 1 end
    if name:find("\\\\", 1, true) then clear = false end
  end
  return count, clear
end"""
# The search for a plain word is fast. Only a place with a quote or an equals sign before the word is looked at.
_NAMES_PRIVATE = f"""
local function names_private(text)
  local at, words, fields = 1, 0, 0
  while true do
    local first, last = text:find("model", at, true)
    if first == nil then return false end
    at, words = last + 1, words + 1
    local before = text:byte(first - 1)
    if before == 34 or before == 61 then
      fields = fields + 1
      local line = text:sub(math.max(1, first - {_LINE_CHARS}), first - 1):lower()
      local rest = text:sub(at, at + {_HEAD_CHARS})
      if line:find('form%-data[^\\n]*%f[%w]name%s*=%s*"?$') and rest:find('^"?[%s;]') then
        local head, value = rest:match('^(.-)\\r?\\n\\r?\\n%s*([^\\r\\n]*)')
        if head == nil or head:lower():find('transfer%-encoding:%s*[bq][au]') then return true end
        if private[(value:gsub("%s+$", ""))] then return true end
      end
    end
    if words > {_MOST_WORDS} or fields > {_MOST_FIELDS} then return true end
  end
end"""


def _setting(config: Config, check: str, function: str = _COUNT_PRIVATE) -> Dict:
    """Return Lua code that checks the text of a body with the help of a function."""
    names = ", ".join(f"[{_quoted(name)}] = true" for name in sorted(private_models(config)))
    code = f"""
local private = {{ {names} }}{function}
function envoy_on_request(handle)
  local body = handle:body()
  if body == nil or body:length() == 0 then return end
  local text = body:getBytes(0, body:length()){check}
end
"""
    return typed("envoy.extensions.filters.http.lua.v3.LuaPerRoute", source_code={"inline_string": code})


def private_models(config: Config) -> frozenset[str]:
    """Return the names in `retarget` that no tier has."""
    names = {name for name in config.policy.retarget if not set(name) & set("*?[")}
    return frozenset(names - {tier.model for tier in config.policy.tiers})


def _quoted(text: str) -> str:
    """Return the text as a string of Lua. Both languages escape quotes and backslashes in the same way."""
    return json.dumps(text, ensure_ascii=False)
