"""The filters that a tier's own settings add to its attempts: the base path, the API key, and failed statuses."""

from collections.abc import Sequence

import msgspec

from extproc.config.load import Config
from extproc.contract.names import ROUTE_NAMESPACE, HeaderName, Key, Namespace
from extproc.envoy.builders import LUA, START, Dict, lua, typed
from extproc.envoy.repeats import LEAVE_OUT_REPEATS
from extproc.settings import USUAL_BASE, Tier

# Error codes and messages of a request that is too long for the model. Another tier may have room for it.
_TOO_LONG = ("context_length_exceeded", "maximum context length", "prompt is too long")
_KEY_REFUSED = "the upstream refused the key that this gateway has for it: its operator has to replace the key"
_INJECTOR = "envoy.filters.http.credential_injector"
# Names of the objects with the client's path, without its query, and with the path of the API below a base path.
_CLIENT_PATH, _API_PATH = "extproc.client.path", "extproc.api_path"
# Envoy's formatter for the client's path, for any path of the last attempt.
CLIENT_PATH = f"%FILTER_STATE({_CLIENT_PATH}:PLAIN)%"


def start_state(config: Config, follow_keys: bool = True) -> Dict:
    """Return a filter config that keeps the start of each request, and the own keys of tiers, for its attempts.

    Envoy reads a key's file again when it is replaced: by a rename over it, or by the symbolic link that Kubernetes
    swaps. A relative link or a new file in its folder is noticed, too.
    """
    values = [
        _state(START, "%START_TIME(%s.%3f)%"),
        _state(_CLIENT_PATH, "%PATH(NQ)%"),
        _state(_API_PATH, f"%METADATA(ROUTE:{ROUTE_NAMESPACE}:path)%"),
    ]
    for tier in config.policy.tiers:
        if tier.key is not None and follow_keys:
            folder = tier.key.file.rpartition("/")[0] or "/"
            values.append(_state(_own_key(tier), f"%FILE_CONTENT({tier.key.file}:{folder})%", _FILE_FORMATTER))
    return typed("envoy.extensions.filters.http.set_filter_state.v3.Config", on_request_headers=values)


_FILE_FORMATTER = {
    "name": "envoy.formatter.file_content",
    "typed_config": typed("envoy.extensions.formatter.file_content.v3.FileContent"),
}


def _state(name: str, text: str, *formatters: Dict) -> Dict:
    return {
        "object_key": name,
        "factory_key": "envoy.string",
        "format_string": {
            "text_format_source": {"inline_string": text},
            "omit_empty_values": True,
            **({"formatters": list(formatters)} if formatters else {}),
        },
    }


class OwnFilter(msgspec.Struct, frozen=True):
    """A filter of one tier. Envoy skips it if the predicate `skip` is true."""

    kind: str
    config: Dict
    skip: Dict | None = None


def path_filter(tier: Tier, config: Config, first_attempt: Dict) -> OwnFilter | None:
    """Return a filter that writes the path below the tier's base, or None if no tier has a base path.

    An attempt finds the path as the previous attempt left it, so the path of the API comes from the route. Requests
    about a response have a single tier, and the path that the client wrote.
    """
    if all(other.base == USUAL_BASE for other in config.policy.tiers):
        return None
    skip = first_attempt if tier.base == USUAL_BASE else None
    return OwnFilter(LUA, lua(_PATH.replace("BASE", tier.base)), skip)


_PATH = f"""
function envoy_on_request(handle)
  local path = handle:headers():get(":path")
  local rest = handle:streamInfo():filterState():get("{_API_PATH}") or ""
  if rest == "" then rest = path:match("^/v1(/responses/[^?]*)") or "" end
  if rest == "" then return end
  local query = path:match("%?.*$") or ""
  handle:headers():replace(":path", "BASE" .. rest .. query)
end
"""


def key_filters(tier: Tier, follow: bool) -> dict[str, OwnFilter]:
    """Return filters, by name, that send the tier's own key without the newline at the end of its file.

    `follow`: Envoy takes a replaced file over. Envoys before 1.40 cannot, and read the file once.
    """
    key = tier.key
    if key is None:
        return {}
    source = f'handle:streamInfo():filterState():get("{_own_key(tier)}")'
    if not follow:
        source = f'handle:headers():get("{key.header}")'
    code = f"""
function envoy_on_request(handle)
  local key = {source} or ""
  handle:headers():replace("{key.header}", "{key.prefix}" .. key:match("^%s*(.-)%s*$"))
end
"""
    read = {} if follow else {"read_key": OwnFilter(_INJECTOR, _injector(tier, key.header))}
    return {**read, "own_key": OwnFilter(LUA, lua(code))}


def _own_key(tier: Tier) -> str:
    """Return the name of the filter state object with the tier's own key."""
    return f"extproc.key.{tier.name}"


def _injector(tier: Tier, header: str) -> Dict:
    """Return a filter that writes the whole content of a key's file into a header."""
    source = typed(
        "envoy.extensions.http.injected_credentials.generic.v3.Generic",
        credential={"name": f"{tier.name}_key"},
        header=header,
    )
    return typed(
        "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector",
        overwrite=True,
        credential={"name": "envoy.http.injected_credentials.generic", "typed_config": source},
    )


def key_secrets(tiers: Sequence[Tier]) -> list[Dict]:
    """Return the files of the keys for Envoys before 1.40."""
    return [
        {"name": f"{tier.name}_key", "generic_secret": {"secret": {"filename": tier.key.file}}}
        for tier in tiers
        if tier.key is not None
    ]


def failure_filter(tier: Tier, attempts: Sequence[int] = ()) -> OwnFilter:
    """Return a filter that marks answers at which the next tier is asked. It marks none when all rungs had a turn.

    If the upstream refuses the tier's key and no rung is left, the client gets a 502. With a 401 it would doubt the
    key that it sent.

    Envoy skips it at no cost if the answer is not an error. `attempts` are those of the tier, () if all are. Their
    number is not in the header any more when the answer comes.
    """
    statuses = ", ".join(f"[{status}] = true" for status in sorted(tier.failures))
    texts = ", ".join(f'"{text}"' for text in _TOO_LONG)
    own = " and ".join(f"attempt ~= {number}" for number in attempts) or "false"
    parts = {
        "STATUSES": statuses, "TEXTS": texts, "OTHERS": own, "TIER": tier.name,
        "OWN_KEY": "true" if tier.key is not None else "false",
    }  # fmt: skip
    code = _FAILURE
    for name, part in parts.items():
        code = code.replace(name, part)
    status = {
        "input": {
            "name": "status",
            "typed_config": typed("envoy.type.matcher.v3.HttpResponseHeaderMatchInput", header_name=":status"),
        },
        "value_match": {"safe_regex": {"google_re2": {}, "regex": "[123].."}},
    }
    return OwnFilter(LUA, lua(code), {"single_predicate": status})


_FAILURE = f"""
local failures = {{ STATUSES }}
local too_long = {{ TEXTS }}
local function is_too_long(handle)
  local body = handle:body()
  local text = body and body:getBytes(0, body:length()) or ""
  for _, words in ipairs(too_long) do
    if text:find(words, 1, true) then return true end
  end
  return false
end
{LEAVE_OUT_REPEATS}
-- The client must not take the refusal of the key of the tier for that of its own.
local function hide_refused_key(handle, status)
  local path = handle:streamInfo():filterState():get("{_CLIENT_PATH}") or ""
  local message = "{_KEY_REFUSED} (status " .. status .. ")"
  local text = '{{"error":{{"message":"' .. message .. '","type":"server_error","param":null,"code":null}}}}'
  if path:find("/messages", 1, true) then
    text = '{{"type":"error","error":{{"type":"api_error","message":"' .. message .. '"}}}}'
  end
  handle:body(true):setBytes(text)
  local headers = handle:headers()
  for _, name in ipairs({{"www-authenticate", "content-encoding"}}) do headers:remove(name) end
  headers:replace("content-type", "application/json")
  headers:replace(":status", "502")
end
function envoy_on_response(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local status = tonumber(handle:headers():get(":status"))
  local ladder, decision = metadata:get("{Namespace.LADDER}"), metadata:get("{Namespace.DECISION}")
  local groups = ladder and ladder["priority_groups"] or {{}}
  local skipped = decision and decision["{Key.SKIPPED}"] or 0
  local noted = metadata:get("{Namespace.ATTEMPT}")
  local attempt = noted and noted["{Key.ATTEMPTS}"] or 1
  if OTHERS then return end
  metadata:set("{Namespace.LEDGER}", "{Key.FAILED}" .. string.format("%d", attempt), "TIER " .. status)
  local key_refused = OWN_KEY and (status == 401 or status == 403)
  if key_refused then
    handle:logErr("tier TIER: the upstream refused the key of this tier with status " .. status)
    metadata:set("{Namespace.LEDGER}", "{Key.KEY_REFUSED}", "TIER")
  end
  local is_last = attempt >= math.max(#groups, 1) + math.max(skipped, 0)
  if not is_last and (failures[status] or (status == 400 and is_too_long(handle))) then
    -- An earlier handle of the metadata is invalid once a body was read.
    leave_out_repeats(handle:streamInfo():dynamicMetadata(), groups, attempt)
    handle:headers():replace("{HeaderName.FAILED}", tostring(status))
  elseif key_refused then
    hide_refused_key(handle, status)
  end
end
"""
