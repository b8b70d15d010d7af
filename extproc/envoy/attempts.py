"""The filters of each attempt: the rung's body, the verifiers, the API keys, and the removal of our headers."""

from collections.abc import Sequence

from extproc.config.load import Config
from extproc.contract.names import (
    ATTEMPT_ATTRIBUTE,
    COUNTS_TOKENS,
    HEADER_ATTRIBUTE,
    READS_ENDINGS,
    TIER_ATTRIBUTE,
    VERDICT_HEADERS,
    HeaderName,
    HeaderPrefix,
    Key,
    Namespace,
)
from extproc.contract.words import JudgeMode, Role
from extproc.envoy.builders import (
    LUA,
    START,
    Dict,
    any_of,
    filter_entry,
    lua,
    metadata_predicate,
    role_metadata,
    skip_if,
    strip_headers,
    typed,
)
from extproc.envoy.client_keys import no_query, remove_headers, restore_headers, write_query
from extproc.envoy.endings import endings_filter
from extproc.envoy.repeats import COUNT_DETOUR, REPEATED_UNTIL, new_connection_filter
from extproc.envoy.tier_filters import OwnFilter, failure_filter, key_filters, path_filter
from extproc.settings import Tier

_HEADER_MUTATION = "envoy.filters.http.header_mutation"
_JUDGE_MODES = ((JudgeMode.BODY, "BUFFERED"), (JudgeMode.STREAM, "STREAMED"))
_MAX_MESSAGE_TIMEOUT_S = 3600.0  # Envoy accepts no longer wait for a reply of an ext_proc server
_TIMER_DELAY_S = 5.0  # the timers of a busy Envoy fire late


def attempt_filters(tiers: Sequence[Tier], config: Config, follow_keys: bool = True) -> list[Dict]:
    """Return the filters of each attempt. Envoy skips those that the decision does not need, at no cost.

    `tiers` are the tiers of the first attempt, the second and so on. A single tier is the tier of every attempt.
    Envoys before 1.40 cannot `follow_keys`, the files of keys that are replaced. They do not count tokens either.
    """
    rung_body = _rung_body(config, tiers[-1], tiers[-1].same_retries if len(tiers) == 1 else None)
    filters = [filter_entry("rung_body", skip_if(_is_attempt(1), LUA, lua(rung_body)))]
    # Envoys before 1.40 do not repeat attempts.
    if follow_keys and len(tiers) == 1 and tiers[0].repeats_reused:
        filters.append(new_connection_filter())
    if follow_keys:  # it reads answers after the verifiers, which are behind it
        not_streamed = _not_judged(tiers, JudgeMode.STREAM)
        filters.append(filter_entry("verifier_ending", skip_if(not_streamed, LUA, endings_filter())))
    for mode, body_mode in _JUDGE_MODES:
        verifier = _verifier(config, body_mode, counts=follow_keys)
        not_judged = _not_judged(tiers, mode)
        filters.append(
            filter_entry(f"verifier_{mode}", skip_if(not_judged, "envoy.filters.http.ext_proc", verifier))
        )
    for tier in dict.fromkeys(tiers):
        filters += _own_filters(tier, tiers, config, follow_keys)
    return [*filters, *last_filters()]


def last_filters() -> list[Dict]:
    """Return the filters next to the upstream. The filters before them still need the headers that they remove.

    Answers pass the filters in reverse order, so a tier cannot forge a verdict.
    """
    # Upstreams need none of these headers. Envoy writes the number of the attempt again before each attempt.
    strip_ours = typed(
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={
            "request_mutations": [strip_headers(prefix) for prefix in HeaderPrefix],
            "response_mutations": [strip_headers(prefix) for prefix in (HeaderPrefix.ROUTER, HeaderPrefix.CASCADE)],
        },
    )
    codec = typed("envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec")
    # The first name differs from the listener's filter, whose per-route settings would apply here, too.
    return [filter_entry("upstream_claims", strip_ours), filter_entry("envoy.filters.http.upstream_codec", codec)]


def _own_filters(tier: Tier, tiers: Sequence[Tier], config: Config, follow_keys: bool) -> list[Dict]:
    """Return the filters of one tier's own settings. On a ladder, the other tiers' attempts skip them."""
    path = path_filter(tier, config, _is_attempt(1))
    filters = {"base_path": path} if path is not None else {}
    if any(other.key is not None for other in config.policy.tiers):
        filters |= _client_filters(tier, config)
    filters |= key_filters(tier, follow_keys)
    if len(tiers) == 1:
        filters["failure"] = failure_filter(tier)
        return [filter_entry(name, _skipped(own, [own.skip])) for name, own in filters.items()]
    attempts = [_is_attempt(number) for number, other in enumerate(tiers, 1) if other == tier]
    other_tier = {"not_matcher": any_of(*attempts)}
    failure = failure_filter(tier, [number for number, other in enumerate(tiers, 1) if other == tier])
    return [
        *(
            filter_entry(f"{name}_{tier.name}", _skipped(own, [other_tier, own.skip]))
            for name, own in filters.items()
        ),
        filter_entry(f"failure_{tier.name}", _skipped(failure, [failure.skip])),
    ]


def _client_filters(tier: Tier, config: Config) -> dict[str, OwnFilter]:
    """Return filters that remove the client's keys for a tier with its own key, and restore them for the others."""
    own_key = tier.key is not None
    query = OwnFilter(LUA, write_query(own_key), no_query())
    if own_key:
        return {"client_query": query, "client_keys": OwnFilter(_HEADER_MUTATION, remove_headers(config))}
    restored = OwnFilter(_HEADER_MUTATION, restore_headers(config), _is_attempt(1))
    return {"client_query": query, "client_keys": restored}


def _skipped(own: OwnFilter, predicates: Sequence[Dict | None]) -> Dict:
    """Return the config of a filter that Envoy skips if one of the predicates is true. None is never true."""
    real = [predicate for predicate in predicates if predicate is not None]
    return skip_if(any_of(*real), own.kind, own.config) if real else own.config


def _is_attempt(number: int) -> Dict:
    """Return a predicate: this is the attempt with that number, counted from 1."""
    attempt_count = typed("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=HeaderName.ATTEMPT_COUNT)
    return {
        "single_predicate": {
            "input": {"name": "attempt", "typed_config": attempt_count},
            "value_match": {"exact": str(number)},
        }
    }


def _not_judged(tiers: Sequence[Tier], mode: JudgeMode) -> Dict:
    """Return a predicate: no verifier judges the answer of this attempt in this mode."""
    value = {"string_match": {"exact": mode}}
    if len(tiers) == 1:
        return metadata_predicate([Key.JUDGE, tiers[0].name], value, invert=True)
    judged = [
        {"and_matcher": {"predicate": [_is_attempt(number), metadata_predicate([Key.JUDGE, tier.name], value)]}}
        for number, tier in enumerate(tiers, 1)
    ]
    return {"not_matcher": {"or_matcher": {"predicate": judged}}}


def _rung_body(config: Config, last: Tier, same_retries: int | None) -> str:
    """Return Lua code for the attempts after the first one.

    It notes the number of the attempt, and patches the body of the first attempt into the body of the rung. The
    patches are applied backwards, so that earlier offsets stay valid. A rung that a verdict skipped has no attempt.
    The attempts that are left over repeat the `last` rung, at most `same_retries` times. Repeated attempts are for
    broken connections: if an attempt has run into its timeout, the tier is not asked again.
    """
    repeated_s, request_s = REPEATED_UNTIL * config.policy.attempt_s(last), config.policy.timeouts.request_s
    most = "math.huge" if same_retries is None else str(same_retries)
    return f"""{COUNT_DETOUR}
function envoy_on_request(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local attempt = tonumber(handle:headers():get("{HeaderName.ATTEMPT_COUNT}")) or 1
  metadata:set("{Namespace.ATTEMPT}", "{Key.ATTEMPTS}", attempt)
  local detours = metadata:get("{Namespace.ATTEMPT}")["{Key.DETOURS}"]
  if detours then metadata:set("{Namespace.ATTEMPT}", "{Key.MADE}", attempt - detours) end
  local ladder, decision = metadata:get("{Namespace.LADDER}"), metadata:get("{Namespace.DECISION}")
  local groups = ladder and ladder["priority_groups"] or {{}}
  local over = attempt - math.max(#groups, 1)
  local age_s = handle:timestamp() / 1000 - (tonumber(handle:streamInfo():filterState():get("{START}")) or 0)
  if age_s > (over > 0 and {repeated_s:g} or {request_s:g}) then
    count_detour(metadata, attempt)
    handle:respond({{[":status"] = "504"}}, "{_TIMED_OUT}")
    return
  end
  if over > {most} then
    count_detour(metadata, attempt)
    handle:respond({{[":status"] = "503"}}, "{_BROKEN}")
    return
  end
  local rungs = metadata:get("{Namespace.RUNGS}")
  if rungs == nil or rungs["{Key.ATTEMPTS}"] == nil then return end
  local skipped = decision["{Key.SKIPPED}"] or 0
  if groups[attempt] and groups[attempt]["name"] == groups[attempt - 1]["name"] then
    skipped = skipped - 1
    metadata:set("{Namespace.DECISION}", "{Key.SKIPPED}", skipped)
  end
  local patches = rungs["{Key.ATTEMPTS}"][math.min(attempt - 1 + skipped, #rungs["{Key.ATTEMPTS}"])]
  if patches == nil then return end
  local body = handle:body()
  if body == nil then return end
  local text = body:getBytes(0, body:length())
  for i = #patches, 1, -1 do
    local patch = patches[i]
    local after = text:sub(patch["{Key.AT}"] + patch["{Key.LENGTH}"] + 1)
    text = text:sub(1, patch["{Key.AT}"]) .. patch["{Key.TEXT}"] .. after
  end
  body:setBytes(text)
end
"""


# Envoy puts these texts into the JSON of the client's API.
_TIMED_OUT = "the upstream did not answer in time"
_BROKEN = "the upstream closed the connection before it answered"


_COUNTS = {"key": HeaderName.COUNTS, "value": COUNTS_TOKENS}
_ENDINGS = {"key": HeaderName.ENDINGS, "value": READS_ENDINGS}


def _verifier(config: Config, body_mode: str, counts: bool) -> Dict:
    """Return a verifier. It gets a whole answer in one message, or a stream chunk by chunk.

    Envoy keeps each chunk until the server has replied to it. So no part of an answer is lost if the server dies
    while it buffers that answer. The headers of a buffered stream wait for its first tokens, at most for the whole
    attempt. Envoy notices a dead server much earlier, by its connection.

    `counts`: Envoy counts the tokens of answers, and reads how they end.
    """
    streamed = body_mode == "STREAMED"
    forwarded = [Namespace.DECISION, Namespace.REQUIREMENTS, Namespace.LEDGER]
    if config.has_cache:
        forwarded.append(Namespace.CACHE)
    timeout_s = max([2.0, *(judge.timeout_ms / 1000 + 1 for judge in config.policy.judges.values())])
    if streamed:
        # This timeout must end after the attempt. Otherwise Envoy would send the buffered answer just when it asks
        # the next rung.
        timeout_s = min(config.policy.longest_attempt_s + _TIMER_DELAY_S, _MAX_MESSAGE_TIMEOUT_S)
    return typed(
        "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        stat_prefix="verifier",
        grpc_service={
            "envoy_grpc": {"cluster_name": "extproc"},
            "initial_metadata": [*role_metadata(Role.VERIFIER), *([_COUNTS, _ENDINGS] if counts else [])],
        },
        failure_mode_allow=True,  # without the server, answers pass without a verdict
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
            "forwarding_namespaces": {"untyped": forwarded},
            "receiving_namespaces": {
                "untyped": [Namespace.DECISION, Namespace.LADDER, Namespace.ANSWER, Namespace.LEDGER]
            },
        },
    )
