"""Envoy's report of the tier that answered, and of the id of its response.

The decision names the tier that is asked first. After an escalation or a failure, another one may answer. The id of
a response is in its first bytes. Envoy reports both to the ext_proc server immediately, because an agent sends its
next request within milliseconds. Nothing waits for this message.
"""

from extproc.contract.names import ANSWERED_METHOD, ANSWERED_SERVICE, HeaderName, Key, Namespace
from extproc.contract.statuses import NO_BODY
from extproc.envoy.builders import Dict, metadata_predicate, skip_if, typed

# The longest start of an answer that is searched for its id. In a stream, the id is in the first event.
_SEARCHED_BYTES = 64 * 1024
_LONGEST_ID = 256


def report_answers() -> Dict:
    """Return the filter that reports answers. Envoy skips it if the decision already names the tier, at no cost."""
    several = {
        "input": {
            "name": "attempts",
            "typed_config": typed(
                "envoy.type.matcher.v3.HttpResponseHeaderMatchInput", header_name=HeaderName.ATTEMPTS
            ),
        },
        "value_match": {"safe_regex": {"google_re2": {}, "regex": "[2-9]|[0-9]{2,}"}},
    }
    kept = metadata_predicate([Key.KEPT], {"present_match": True}, namespace=Namespace.CONVERSATION)
    reported = {"or_matcher": {"predicate": [{"single_predicate": several}, kept]}}
    lua = typed("envoy.extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": _REPORT})
    return skip_if({"not_matcher": reported}, "envoy.filters.http.lua", lua)


# The message is four lines: principal, conversation, tier, id. gRPC puts a byte and the length before it.
_REPORT = f"""
local function report(handle, keys, tier, id)
  local text = table.concat({{keys["{Key.PRINCIPAL}"], keys["{Key.CONVERSATION}"], tier, id}}, "\\n")
  local length = #text
  local frame = string.char(0, 0, 0, math.floor(length / 256), length % 256)
  handle:httpCall("extproc", {{
    [":method"] = "POST", [":path"] = "/{ANSWERED_SERVICE}/{ANSWERED_METHOD}", [":authority"] = "extproc",
    ["content-type"] = "application/grpc", ["te"] = "trailers"
  }}, frame .. text, 1000, true)
end

local function has_answer(status)
  return status ~= nil and status:sub(1, 1) == "2" and {" and ".join(f'status ~= "{none}"' for none in NO_BODY)}
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local tier = headers:get("{HeaderName.TIER}")
  local keys = handle:streamInfo():dynamicMetadata():get("{Namespace.CONVERSATION}")
  if tier == nil or keys == nil or not has_answer(headers:get(":status")) then return end
  if headers:get("{HeaderName.ATTEMPTS}") ~= "1" then report(handle, keys, tier, "") end
  if keys["{Key.KEPT}"] == nil then return end
  local text, searched, first = "", 0, nil
  for chunk in handle:bodyChunks() do
    local length = chunk:length()
    text = text:sub(-{_LONGEST_ID + 16}) .. chunk:getBytes(0, math.min(length, {_SEARCHED_BYTES}))
    first = first or text:match('"id"%s*:%s*"([^"]+)"')
    local id = text:match('"id"%s*:%s*"(resp[^"]+)"')
    searched = searched + length
    local event_is_over = first ~= nil and text:find("\\n\\n", 1, true) ~= nil
    if id ~= nil or event_is_over or searched > {_SEARCHED_BYTES} then
      first = id or first
      break
    end
  end
  if first ~= nil and #first <= {_LONGEST_ID} then report(handle, keys, tier, first) end
end
"""
