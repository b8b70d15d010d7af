"""What runs on every attempt upstream: the rung's body, the verifiers, the keys, and what a tier may not claim."""

from collections.abc import Sequence

from extproc.config.load import Config
from extproc.contract.names import (
    ATTEMPT_ATTRIBUTE,
    HEADER_ATTRIBUTE,
    TIER_ATTRIBUTE,
    VERDICT_HEADERS,
    HeaderName,
    HeaderPrefix,
    Key,
    Namespace,
)
from extproc.contract.words import JudgeMode, Role
from extproc.envoy.builders import (
    Dict,
    filter_entry,
    metadata_predicate,
    opened_by,
    set_header,
    skipped,
    strip_headers,
    typed,
)
from extproc.settings import Tier

# Where clients put their keys for the upstreams.
_CLIENT_KEYS = ("authorization", "x-api-key")
_LONGEST_S = 3600.0  # that Envoy waits for a reply of ours
_LATER_S = 5.0  # a busy Envoy's timers fire late


def attempt_filters(tiers: Sequence[Tier], config: Config) -> list[Dict]:
    """What runs for every attempt; all of it is skipped, at no cost, unless the decision wants it.

    `tiers` are those of the first attempt, the second ...; a single one is that of all.
    """
    lua = typed("envoy.extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": _RUNG_BODY})
    believed = typed(
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={
            "response_mutations": [strip_headers(prefix) for prefix in (HeaderPrefix.ROUTER, HeaderPrefix.CASCADE)]
        },
    )
    filters = [filter_entry("rung_body", skipped(_attempt(1), "envoy.filters.http.lua", lua))]
    for mode, body_mode in ((JudgeMode.BODY, "BUFFERED"), (JudgeMode.STREAM, "STREAMED")):
        verifier = _verifier(config, body_mode)
        other = _not_judged(tiers, mode)
        filters.append(filter_entry(f"verifier_{mode}", skipped(other, "envoy.filters.http.ext_proc", verifier)))
    if any(tier.credential for tier in config.policy.tiers):
        filters += [entry for tier in dict.fromkeys(tiers) for entry in _keys(tier, tiers)]
    # Behind the verifiers, as answers pass in reverse: a tier cannot forge a verdict on itself. Not under the name
    # of the listener's filter: that one's settings per route would hold here, too.
    filters.append(filter_entry("upstream_claims", believed))
    codec = typed("envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec")
    filters.append(filter_entry("envoy.filters.http.upstream_codec", codec))
    return filters


def _attempt(number: int) -> Dict:
    """Whether this is the attempt of that number, from 1."""
    counted = typed("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=HeaderName.ATTEMPT_COUNT)
    return {
        "single_predicate": {
            "input": {"name": "attempt", "typed_config": counted},
            "value_match": {"exact": str(number)},
        }
    }


def _not_judged(tiers: Sequence[Tier], mode: JudgeMode) -> Dict:
    """Whether this attempt's answer is not to be judged in this way."""
    value = {"string_match": {"exact": mode}}
    if len(tiers) == 1:
        return metadata_predicate([Key.JUDGE, tiers[0].name], value, invert=True)
    judged = [
        {"and_matcher": {"predicate": [_attempt(number), metadata_predicate([Key.JUDGE, tier.name], value)]}}
        for number, tier in enumerate(tiers, 1)
    ]
    return {"not_matcher": {"or_matcher": {"predicate": judged}}}


def _keys(tier: Tier, tiers: Sequence[Tier]) -> list[Dict]:
    """Which keys this tier sees: its own, from a file, or else the client's.

    What one attempt does to the headers, the next one finds done: so each writes them anew.
    """
    mutations: list[Dict] = [{"remove": header} for header in _CLIENT_KEYS]
    if not tier.credential:
        mutations += [set_header(header, f"%FILTER_STATE({_kept(header)}:PLAIN)%") for header in _CLIENT_KEYS]
    rewritten = typed(
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": mutations},
    )
    found = [("client_keys", "envoy.filters.http.header_mutation", rewritten)]
    if tier.credential:
        source = typed(
            "envoy.extensions.http.injected_credentials.generic.v3.Generic",
            credential={"name": f"{tier.name}_credential"},
            header="authorization",
        )
        injector = typed(
            "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector",
            overwrite=True,
            credential={"name": "envoy.http.injected_credentials.generic", "typed_config": source},
        )
        found.append(("own_credential", "envoy.filters.http.credential_injector", injector))
    if len(tiers) == 1:
        return [filter_entry(name, config) for name, _, config in found]
    mine = [_attempt(number) for number, one in enumerate(tiers, 1) if one == tier]
    others = {"not_matcher": mine[0] if len(mine) == 1 else {"or_matcher": {"predicate": mine}}}
    return [filter_entry(f"{name}_{tier.name}", skipped(others, kind, config)) for name, kind, config in found]


def client_keys() -> Dict:
    """Keeps the client's keys for the tiers that have none of their own, whatever earlier attempts send."""
    kept = [
        {
            "object_key": _kept(header),
            "factory_key": "envoy.string",
            # A header that is not there is kept as an empty text, which adds none later.
            "format_string": {
                "text_format_source": {"inline_string": f"%REQ({header})%"},
                "omit_empty_values": True,
            },
        }
        for header in _CLIENT_KEYS
    ]
    return typed("envoy.extensions.filters.http.set_filter_state.v3.Config", on_request_headers=kept)


def _kept(header: str) -> str:
    return f"extproc.client.{header}"


_AT, _LENGTH, _TEXT = Key.AT, Key.LENGTH, Key.TEXT
# From the second attempt on, the body of the first is patched into that of the rung; backwards, so that places
# stay where they are. A rung that a verdict has jumped has no attempt; the one it saved is the last rung's, again.
_RUNG_BODY = f"""
function envoy_on_request(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local rungs = metadata:get("{Namespace.RUNGS}")
  if rungs == nil or rungs["{Key.ATTEMPTS}"] == nil then return end
  local attempt = tonumber(handle:headers():get("{HeaderName.ATTEMPT_COUNT}")) or 1
  local skipped = metadata:get("{Namespace.DECISION}")["{Key.SKIPPED}"] or 0
  local patches = rungs["{Key.ATTEMPTS}"][math.min(attempt - 1 + skipped, #rungs["{Key.ATTEMPTS}"])]
  if patches == nil then return end
  local body = handle:body()
  if body == nil then return end
  local text = body:getBytes(0, body:length())
  for i = #patches, 1, -1 do
    local patch = patches[i]
    text = text:sub(1, patch["{_AT}"]) .. patch["{_TEXT}"] .. text:sub(patch["{_AT}"] + patch["{_LENGTH}"] + 1)
  end
  body:setBytes(text)
end
"""


def _verifier(config: Config, body_mode: str) -> Dict:
    """Of whole answers one message; of streams each chunk, which Envoy keeps until we have replied to it.

    So a server that dies while it holds an answer loses none of it. A held stream's headers wait for as long as its
    first words take: no longer than the attempt; a server that is gone is seen long before, by its connection.
    """
    streamed = body_mode == "STREAMED"
    judges_s = max([2.0, *(judge.timeout_ms / 1000 + 1 for judge in config.policy.judges.values())])
    # Later than the attempt's own end: else what was held would leave just as the next rung is tried.
    timeout_s = min(config.policy.timeouts.attempt_s + _LATER_S, _LONGEST_S) if streamed else judges_s
    return typed(
        "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        stat_prefix="verifier",
        grpc_service={
            "envoy_grpc": {"cluster_name": "extproc"},
            "initial_metadata": opened_by(Role.VERIFIER),
        },
        failure_mode_allow=True,  # without a verifier, answers pass unjudged
        message_timeout=f"{timeout_s:g}s",
        processing_mode={
            "request_header_mode": "SKIP",
            "request_body_mode": "NONE",
            "response_header_mode": "SEND",
            "response_body_mode": body_mode,
            **({"response_trailer_mode": "SEND"} if streamed else {}),
        },
        **({"send_body_without_waiting_for_header_response": True} if streamed else {}),
        response_attributes=[
            ATTEMPT_ATTRIBUTE,
            TIER_ATTRIBUTE,
            *(HEADER_ATTRIBUTE.format(name) for name in config.policy.escalations.principal),
        ],
        mutation_rules={
            "disallow_all": True,
            "allow_expression": {"regex": f"^({VERDICT_HEADERS}|content-(length|type))$"},
        },
        metadata_options={
            "forwarding_namespaces": {"untyped": [Namespace.DECISION, Namespace.REQUIREMENTS]},
            "receiving_namespaces": {
                "untyped": [Namespace.DECISION, Namespace.LADDER, Namespace.ANSWER, Namespace.LEDGER]
            },
        },
    )
