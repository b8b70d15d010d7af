"""The keys of clients: they are saved once, removed for tiers with their own key, and restored for the others.

An attempt finds the headers and the path as the previous attempt left them.
"""

from extproc.config.load import Config
from extproc.envoy.builders import Dict, set_header, skip_if, typed

# Query parameters in which clients send keys, in lower case.
_PARAMETERS = ("key", "api-key", "api_key", "apikey", "x-api-key", "x-goog-api-key", "access_token", "access-token",
               "auth_token", "token", "authorization", "subscription-key", "sig", "signature")  # fmt: skip
_QUERY = "extproc.client.query"


def save_headers(config: Config) -> Dict:
    """Return a filter config that saves the client's keys. Attempts at tiers without a key send them again."""
    return _save({_saved(header): f"%REQ({header})%" for header in config.policy.key_headers})


def save_query() -> Dict:
    """Return a filter config that saves the query. Envoy skips it if the path has none."""
    path = typed("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=":path")
    no_query = {
        "not_matcher": {
            "single_predicate": {
                "input": {"name": "path", "typed_config": path},
                "value_match": {"contains": "?"},
            }
        }
    }
    return skip_if(no_query, "envoy.filters.http.set_filter_state", _save({_QUERY: "%CEL(request.query)%"}))


def _save(values: dict[str, str]) -> Dict:
    saved = [
        {
            "object_key": name,
            "factory_key": "envoy.string",
            # A missing value is saved as an empty text, which adds nothing later.
            "format_string": {"text_format_source": {"inline_string": value}, "omit_empty_values": True},
        }
        for name, value in values.items()
    ]
    return typed("envoy.extensions.filters.http.set_filter_state.v3.Config", on_request_headers=saved)


def remove_headers(config: Config) -> Dict:
    """Return a filter config that removes the client's keys."""
    return _mutations([{"remove": header} for header in config.policy.key_headers])


def restore_headers(config: Config) -> Dict:
    """Return a filter config that writes the client's keys again, after an attempt that removed them."""
    headers = config.policy.key_headers
    removed: list[Dict] = [{"remove": header} for header in headers]
    return _mutations(removed + [set_header(h, f"%FILTER_STATE({_saved(h)}:PLAIN)%") for h in headers])


def _mutations(mutations: list[Dict]) -> Dict:
    return typed(
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": mutations},
    )


def _saved(header: str) -> str:
    """Return the name of the filter state object with the client's value of this header."""
    return f"extproc.client.{header}"


def no_query() -> Dict:
    """Return a predicate: the client's path had no query."""
    state = typed("envoy.extensions.matching.common_inputs.network.v3.FilterStateInput", key=_QUERY)
    return {
        "not_matcher": {
            "single_predicate": {
                "input": {"name": "query", "typed_config": state},
                "value_match": {"safe_regex": {"google_re2": {}, "regex": ".+"}},
            }
        }
    }


def write_query(own_key: bool) -> Dict:
    """Return a filter config that writes the client's query. A tier with its own key gets no parameters of keys."""
    removed = ", ".join(f'["{name}"] = true' for name in _PARAMETERS) if own_key else ""
    code = _WRITE_QUERY.replace("REMOVED", removed).replace("QUERY", _QUERY)
    return typed("envoy.extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": code})


# Only Lua may change the path in an attempt.
_WRITE_QUERY = """
local removed = { REMOVED }
local function decoded(name)
  return name:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end):lower()
end
function envoy_on_request(handle)
  local parts = {}
  for part in handle:streamInfo():filterState():get("QUERY"):gmatch("[^&;]+") do
    if not removed[decoded(part:match("^[^=]*"))] then parts[#parts + 1] = part end
  end
  local path = handle:headers():get(":path"):match("^[^?]*")
  handle:headers():replace(":path", #parts > 0 and path .. "?" .. table.concat(parts, "&") or path)
end
"""
