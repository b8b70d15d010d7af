"""The filter chain of the listener: the filters that a request passes once, before any attempt."""

from extproc.config.load import Config
from extproc.contract.names import (
    ATTEMPT_ATTRIBUTE,
    HEADER_ATTRIBUTE,
    HOST_ATTRIBUTE,
    PATH_ATTRIBUTE,
    REQUEST_ID,
    VERDICT_HEADERS,
    HeaderName,
    HeaderPrefix,
    Key,
    Namespace,
)
from extproc.contract.words import Role, VerdictWord
from extproc.envoy.answered import report_answers
from extproc.envoy.builders import (
    ATTEMPTS,
    SERVED_BY,
    Dict,
    filter_entry,
    from_metadata,
    metadata_predicate,
    role_metadata,
    set_header,
    skip_if,
    strip_headers,
    typed,
)
from extproc.envoy.client_keys import save_headers, save_query
from extproc.envoy.packed import PACKED_FILTER, note_end
from extproc.envoy.tier_filters import start_state
from extproc.envoy.undecided import UNDECIDED_FILTER, undecided_filter
from extproc.routing.cache_form import ANSWER_HEADERS, CONTROL_HEADER
from extproc.routing.conversations import SESSION_HEADERS

# A body grows if the new model name is longer. Limits that apply after the edit are larger by this many bytes.
ROOM_BYTES = 1024 * 1024
_MAX_RATIO = 1032  # the most that gzip can reach
# Envoy waits this much longer than the server's own deadline, so that the server's fallback arrives first.
_GRACE_S = 0.2
# The names of filters. Per-route settings refer to a filter by its name.
RESCUE_FILTER = "rescue"
STATE_FILTER = "attempt_state"
FAILOPEN_FILTER = "failopen_model"
ROUTER_FILTER = "envoy.filters.http.ext_proc.router"
USAGE_FILTER = "envoy.filters.http.ai_protocol_manager"
# The encodings of request bodies that Envoy decodes, and its name for the library of each.
ENCODINGS = {"gzip": "Gzip", "br": "Brotli", "zstd": "Zstd"}
SIZE_LIMIT_FILTER = "body_size_limit"
BUFFER_FILTER = "envoy.filters.http.buffer"
HEADERS_FILTER = "envoy.filters.http.header_mutation"
_ROUTER_NAMESPACES = [
    Namespace.DECISION,
    Namespace.LADDER,
    Namespace.RUNGS,
    Namespace.REQUIREMENTS,
    Namespace.LEDGER,
    Namespace.CONVERSATION,
]
# The headers that the router may set.
_ROUTER_HEADERS = [HeaderName.CLUSTER, "content-type", "retry-after", "x-should-retry"]


def http_filters(config: Config, rule_headers: list[str]) -> list[Dict]:
    """Return the filters in their order. The LLM routes enable the disabled ones; other paths do not pass them."""
    keys = [filter_entry("client_keys", save_headers(config)), filter_entry("client_query", save_query())]
    has_credentials = any(tier.key is not None for tier in config.policy.tiers)
    limit = config.policy.max_body_bytes
    return [
        filter_entry(RESCUE_FILTER, _rescue()),
        filter_entry(STATE_FILTER, start_state(config)),
        *(keys if has_credentials else []),
        filter_entry("answered", report_answers()),
        filter_entry(PACKED_FILTER, note_end(), disabled=True),
        *(filter_entry(decompressor_name(word), _decompressor(word), disabled=True) for word in ENCODINGS),
        filter_entry(SIZE_LIMIT_FILTER, _buffer(limit), disabled=True),
        filter_entry(ROUTER_FILTER, _router(config, rule_headers), disabled=True),
        filter_entry(BUFFER_FILTER, _buffer(limit + ROOM_BYTES), disabled=True),
        filter_entry(HEADERS_FILTER, _contract_headers(config.has_cache)),
        filter_entry(FAILOPEN_FILTER, _failopen_model(), disabled=True),
        filter_entry(UNDECIDED_FILTER, undecided_filter(), disabled=True),
        # It reads the number of tokens from answers as they pass, without buffering or changing them.
        filter_entry(
            USAGE_FILTER,
            typed(
                "envoy.extensions.filters.http.ai_protocol_manager.v3.AiProtocolManager",
                response_handling={"token_usage": {"metadata_namespace": Namespace.USAGE}},
            ),
            disabled=True,
        ),
        filter_entry(
            "envoy.filters.http.router",
            # Otherwise upstreams get a header with the host that the client asked for.
            typed("envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True),
        ),
    ]


def _buffer(limit_bytes: int) -> Dict:
    """Return a filter that waits for the whole body, and answers 413 above the limit.

    It reads up to the limit before it answers. Clients that speak HTTP/2 do not see an answer that comes earlier.
    """
    return typed("envoy.extensions.filters.http.buffer.v3.Buffer", max_request_bytes=limit_bytes)


def decompressor_name(encoding: str) -> str:
    """Return the name of the filter that decodes bodies with this encoding."""
    return f"decompress_{encoding}"


def _decompressor(encoding: str) -> Dict:
    """Return a filter that decodes requests, and never answers."""
    library = ENCODINGS[encoding]
    kind = f"envoy.extensions.compression.{library.lower()}.decompressor.v3.{library}"
    never = {"common_config": {"enabled": {"default_value": False, "runtime_key": "decompress_answers"}}}
    # The limit of a body's size is enough. Conversations repeat themselves, so they may shrink a lot.
    ratio = {"max_inflate_ratio": _MAX_RATIO} if encoding == "gzip" else {}
    return typed(
        "envoy.extensions.filters.http.decompressor.v3.Decompressor",
        decompressor_library={"name": encoding, "typed_config": typed(kind, **ratio)},
        request_direction_config={
            "advertise_accept_encoding": False,
            "common_config": {"ignore_no_transform_header": True},  # without it, the router cannot read the body
        },
        response_direction_config=never,
    )


def _router(config: Config, rule_headers: list[str]) -> Dict:
    """Return the filter that asks the server for a decision, with one message."""
    timeout = config.policy.encoder.deadline_ms / 1000 + _GRACE_S
    headers = {*rule_headers, *config.policy.escalations.principal, *SESSION_HEADERS, REQUEST_ID}
    namespaces = list(_ROUTER_NAMESPACES)
    if config.has_cache:
        headers |= {CONTROL_HEADER, *ANSWER_HEADERS}
        namespaces.append(Namespace.CACHE)
    age = ["age"] if config.has_cache else []  # of a kept answer
    host = [HOST_ATTRIBUTE] if any(app.hosts for app in config.policy.apps.values()) else []
    return typed(
        "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        stat_prefix="router",
        grpc_service={
            "envoy_grpc": {"cluster_name": "extproc"},
            "initial_metadata": role_metadata(Role.ROUTER),
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream,reset",
                "num_retries": 1,
                "retry_back_off": {"base_interval": "0.002s", "max_interval": "0.004s"},
            },
        },
        failure_mode_allow=True,
        message_timeout=f"{timeout:.3f}s",
        # The one message is the body. It carries the path and the headers that are needed as attributes.
        processing_mode={
            "request_header_mode": "SKIP",
            "request_body_mode": "BUFFERED",
            "response_header_mode": "SKIP",
        },
        request_attributes=[PATH_ATTRIBUTE, *host, *(HEADER_ATTRIBUTE.format(name) for name in sorted(headers))],
        # The metadata takes effect only if Envoy chooses the route again. It does so only after a header mutation.
        route_cache_action="CLEAR",
        mutation_rules={
            "disallow_all": True,
            # All but the first are for the router's own answer: an error in the shape of the API, or a kept answer.
            "allow_expression": {"regex": f"^({'|'.join([*_ROUTER_HEADERS, *age])})$"},
        },
        metadata_options={
            "forwarding_namespaces": {"untyped": [Namespace.PACKED]},
            "receiving_namespaces": {"untyped": namespaces},
        },
    )


def _failopen_model() -> Dict:
    """Return the filter that writes the default tier's model name into requests without a decision."""
    transform = typed("envoy.extensions.filters.http.transform.v3.TransformConfig")
    decided = metadata_predicate([Key.CLUSTER], {"present_match": True})
    return skip_if(decided, "envoy.filters.http.transform", transform)


def _rescue() -> Dict:
    """Return the filter that replaces a failure by an earlier answer.

    It asks the server only about a status at which the next tier may be asked, and only if a rejected answer
    was kept.
    """
    failed = {
        "input": {
            "name": "status",
            "typed_config": typed("envoy.type.matcher.v3.HttpResponseHeaderMatchInput", header_name=":status"),
        },
        "value_match": {"safe_regex": {"google_re2": {}, "regex": "40[1-48]|429|5.."}},
    }
    answer_kept = metadata_predicate([Key.BODY], {"present_match": True}, namespace=Namespace.ANSWER)
    rescue = typed(
        "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        stat_prefix="rescue",
        grpc_service={
            "envoy_grpc": {"cluster_name": "extproc"},
            "initial_metadata": role_metadata(Role.RESCUE),
        },
        failure_mode_allow=True,  # without the server, the client gets the failure
        message_timeout="2s",
        processing_mode={"request_header_mode": "SKIP", "response_header_mode": "SEND"},
        mutation_rules={
            "disallow_all": True,
            "allow_expression": {"regex": f"^({HeaderPrefix.ROUTER}[a-z]+|{VERDICT_HEADERS}|content-type)$"},
        },
        response_attributes=[ATTEMPT_ATTRIBUTE],
        metadata_options={
            "forwarding_namespaces": {"untyped": [Namespace.DECISION, Namespace.ANSWER, Namespace.ATTEMPT]},
            "receiving_namespaces": {"untyped": [Namespace.DECISION]},
        },
    )
    can_rescue = {"and_matcher": {"predicate": [{"single_predicate": failed}, answer_kept]}}
    return skip_if({"not_matcher": can_rescue}, "envoy.filters.http.ext_proc", rescue)


def _contract_headers(caches: bool) -> Dict:
    """Return the filter that copies the decision's metadata into headers. A header without a value is not added."""
    # Envoy does not escalate beyond its retry budget. The client then gets the rejected answer, so the verdict is
    # degraded and that escalation is not counted.
    escalate, degraded = f"'{VerdictWord.ESCALATE}'", f"'{VerdictWord.DEGRADED}'"
    verdict = f"response.headers['{HeaderName.VERDICT}']"
    not_escalated = f"'{HeaderName.VERDICT}' in response.headers && {verdict} == {escalate}"
    escalations = f"metadata.filter_metadata['{Namespace.DECISION}']['{Key.ESCALATIONS}']"
    response = {
        HeaderName.COHORT: from_metadata(Key.COUNTED_AS),
        HeaderName.REASON: from_metadata(Key.REASON),
        HeaderName.ESCALATIONS: f"%CEL({escalations} - ({not_escalated} ? 1.0 : 0.0))%",
        HeaderName.VERDICT_REASON: from_metadata(Key.VERDICT_REASON),  # why it was, or should have been, escalated
        HeaderName.TIER: SERVED_BY,
        HeaderName.ATTEMPTS: ATTEMPTS,
        **({HeaderName.CACHE: from_metadata(Key.CACHE)} if caches else {}),
        HeaderName.VERDICT: f"%CEL({verdict} == {escalate} ? {degraded} : {verdict})%",
    }
    return typed(
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={
            "request_mutations": [
                set_header(HeaderName.CLUSTER, from_metadata(Key.CLUSTER)),
                set_header(HeaderName.MAX_RETRIES, from_metadata(Key.MAX_RETRIES)),
            ],
            "response_mutations": [
                strip_headers(HeaderPrefix.ROUTER),  # an upstream cannot set the contract's headers
                *(set_header(header, value) for header, value in response.items()),
                # Without this value, Envoy's own count of attempts stays.
                set_header(HeaderName.ATTEMPTS, from_metadata(Key.MADE, Namespace.ATTEMPT)),
                *([set_header(HeaderName.TIER, from_metadata(Key.CACHE_TIER))] if caches else []),
            ],
        },
    )
