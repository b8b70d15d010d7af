"""The listener: routes, and the filters that every request passes."""

from extproc.api.request import APIS
from extproc.config.load import Config
from extproc.contract.names import (
    ATTEMPT_ATTRIBUTE,
    DECISION_LOG,
    HEADER_ATTRIBUTE,
    MAX_BODY_BYTES,
    PATH_ATTRIBUTE,
    PREFIX,
    VERDICT_HEADERS,
    HeaderName,
    HeaderPrefix,
    Key,
    Namespace,
)
from extproc.contract.words import Role, Undecided, VerdictWord
from extproc.envoy.attempts import client_keys
from extproc.envoy.builders import (
    BUFFER_BYTES,
    Dict,
    address,
    filter_entry,
    from_metadata,
    metadata_predicate,
    opened_by,
    set_header,
    skipped,
    strip_headers,
    typed,
)
from extproc.settings import Tier

# A body grows when a longer model name is written: the limits behind ours leave room for that.
_ROOM_BYTES = 1024 * 1024
# Envoy waits this much longer than the router's own deadline, so that the router's fallback arrives first.
_GRACE_S = 0.2
_FAILOPEN = "failopen_model"
_ROUTER = "envoy.filters.http.ext_proc.router"
_USAGE_FILTER = "envoy.filters.http.ai_protocol_manager"
# What the upstreams of each API say of tokens; the older completions say it as chat does.
_USAGE_SHAPES = {
    "chat": "OPENAI_CHAT_COMPLETIONS",
    "completions": "OPENAI_CHAT_COMPLETIONS",
    "responses": "OPENAI_RESPONSES",
    "messages": "ANTHROPIC_MESSAGES",
}
# Entries of the access log wait this long, or until there are so many bytes, and then travel together; while no
# router runs they wait up to those bytes. An entry has about 1.5 KB.
_LOG_FLUSH_S, _LOG_BYTES = 1, 1024 * 1024
_WRITTEN_BY_ROUTER = [
    Namespace.DECISION,
    Namespace.LADDER,
    Namespace.RUNGS,
    Namespace.REQUIREMENTS,
    Namespace.LEDGER,
]
# Envoy's formatters for the tier of the last attempt, and for how many attempts there were.
_SERVED_BY = f"%UPSTREAM_METADATA({Namespace.DECISION}:{Key.TIER})%"
_ATTEMPTS = "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"


def listener(config: Config, listen: str, trusted: list[str], otlp: str | None) -> Dict:
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="llm",
        stream_idle_timeout="300s",
        **({"tracing": _tracing()} if otlp is not None else {}),
        # Clients can set none of the contract's headers: gone before the first route match.
        early_header_mutation_extensions=[
            {
                "name": "envoy.http.early_header_mutation.header_mutation",
                "typed_config": typed(
                    "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                    mutations=[strip_headers(prefix) for prefix in HeaderPrefix],
                ),
            }
        ],
        access_log=[_access_log(), _ledger_log()],
        route_config={"virtual_hosts": [_virtual_host(config)]},
        http_filters=_http_filters(config, trusted),
    )
    name = "envoy.filters.network.http_connection_manager"
    return {
        "name": "llm",
        "address": address(listen),
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "filter_chains": [{"filters": [{"name": name, "typed_config": manager}]}],
    }


def _virtual_host(config: Config) -> Dict:
    default = next(t for t in config.policy.tiers if t.name == config.policy.default_tier)
    specifier = typed(
        "envoy.extensions.router.cluster_specifiers.priority_group.v3.PriorityGroupClusterSpecifier",
        override_metadata_namespace=Namespace.LADDER,
        # Without a decision: the default tier.
        priority_groups=[{"name": default.name, "clusters": [{"cluster_name": default.cluster_name, "weight": 1}]}],
    )
    longest = len(config.policy.tiers) + max(
        (len(i.escalate.rungs) for i in config.intents if i.escalate), default=0
    )
    route = {
        "timeout": f"{config.policy.timeouts.request_s:g}s",
        # Failover and escalation are one ladder: the next attempt goes to the next group of the metadata.
        "retry_policy": {
            "retry_on": "retriable-headers,retriable-status-codes,5xx,connect-failure,refused-stream,reset",
            "retriable_status_codes": [429],
            "retriable_headers": [{"name": HeaderName.VERDICT, "string_match": {"exact": VerdictWord.ESCALATE}}],
            "num_retries": longest,  # the decision lowers it to its own rungs
            "refresh_cluster_on_retry": True,
            "per_try_timeout": f"{config.policy.timeouts.attempt_s:g}s",
            "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"},
        },
        "auto_host_rewrite": True,  # providers answer to their own name only
        "inline_cluster_specifier_plugin": {
            "extension": {
                "name": "envoy.router.cluster_specifier_plugin.priority_group",
                "typed_config": specifier,
            }
        },
    }
    routes: list[Dict] = [
        {
            "name": api,
            "match": {"path": path, "headers": [{"name": ":method", "string_match": {"exact": "POST"}}]},
            "route": route,
            "typed_per_filter_config": _switched_on(default, _USAGE_SHAPES[api]),
        }
        for path, api in APIS.items()
    ]
    rest = {"cluster": default.cluster_name, "timeout": "0s"}
    routes.append({"name": "rest", "match": {"prefix": "/"}, "route": rest})
    return {
        "name": "llm",
        "domains": ["*"],
        "include_request_attempt_count": True,
        "request_body_buffer_limit": MAX_BODY_BYTES + _ROOM_BYTES,
        "routes": routes,
    }


def _switched_on(default: Tier, usage_shape: str) -> Dict:
    """What the LLM routes switch on: the filters that are off in the chain."""
    transform = typed(
        "envoy.extensions.filters.http.transform.v3.TransformConfig",
        request_transformation={
            "body_transformation": {
                "action": "MERGE",
                "body_format": {"json_format": {"model": default.model.replace("%", "%%")}},
            }
        },
    )
    per_route = {
        "envoy.filters.http.body_size_limit": {},
        _ROUTER: typed("envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute", overrides={}),
        "envoy.filters.http.buffer": typed(
            "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
            buffer={"max_request_bytes": MAX_BODY_BYTES + _ROOM_BYTES},
        ),
        _FAILOPEN: transform,
        # Where the decision's own reason is missing: visible, too.
        "envoy.filters.http.header_mutation": typed(
            "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
            mutations={
                "request_mutations": [
                    {"remove": "accept-encoding"},  # a compressed answer cannot be judged
                    # Without a decision there is no other tier to retry at.
                    set_header(HeaderName.MAX_RETRIES, "0", "ADD_IF_ABSENT"),
                ],
                "response_mutations": [set_header(HeaderName.REASON, Undecided.FAIL_OPEN, "ADD_IF_ABSENT")],
            },
        ),
        _USAGE_FILTER: typed(
            "envoy.extensions.filters.http.ai_protocol_manager.v3.AiProtocolManagerPerRoute",
            response={"llm_protocol": usage_shape},
        ),
    }
    return {
        name: value
        if name == "envoy.filters.http.header_mutation"
        else typed("envoy.config.route.v3.FilterConfig", config=value)
        for name, value in per_route.items()
    }


def _http_filters(config: Config, trusted: list[str]) -> list[Dict]:
    own_keys = any(tier.credential for tier in config.policy.tiers)
    return [
        filter_entry("rescue", _rescue()),
        *([filter_entry("client_keys", client_keys())] if own_keys else []),
        filter_entry(
            "envoy.filters.http.body_size_limit",
            typed(
                "envoy.extensions.filters.http.body_size_limit.v3.BodySizeLimit",
                max_request_bytes=MAX_BODY_BYTES,
            ),
            disabled=True,
        ),
        filter_entry(_ROUTER, _ext_proc(config, trusted), disabled=True),
        filter_entry(
            "envoy.filters.http.buffer",
            typed(
                "envoy.extensions.filters.http.buffer.v3.Buffer",
                max_request_bytes=MAX_BODY_BYTES + _ROOM_BYTES,
            ),
            disabled=True,
        ),
        filter_entry(_FAILOPEN, _unless_decided(), disabled=True),
        filter_entry("envoy.filters.http.header_mutation", _contract_headers()),
        # Reads the tokens that the answer tells of, while it passes; nothing is held or changed, nobody is asked.
        filter_entry(
            _USAGE_FILTER,
            typed(
                "envoy.extensions.filters.http.ai_protocol_manager.v3.AiProtocolManager",
                response_handling={"token_usage": {"metadata_namespace": Namespace.USAGE}},
            ),
            disabled=True,
        ),
        filter_entry("envoy.filters.http.router", typed("envoy.extensions.filters.http.router.v3.Router")),
    ]


def _ext_proc(config: Config, trusted: list[str]) -> Dict:
    timeout = config.policy.encoder.deadline_ms / 1000 + _GRACE_S
    told = {*trusted, *config.policy.escalations.principal}  # what rules look at, and who asks
    return typed(
        "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        stat_prefix="router",
        grpc_service={
            "envoy_grpc": {"cluster_name": "extproc"},
            "initial_metadata": opened_by(Role.ROUTER),
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream,reset",
                "num_retries": 1,
                "retry_back_off": {"base_interval": "0.002s", "max_interval": "0.004s"},
            },
        },
        failure_mode_allow=True,
        message_timeout=f"{timeout:.3f}s",
        # One message: the body. The path and the few headers that matter ride along as attributes.
        processing_mode={
            "request_header_mode": "SKIP",
            "request_body_mode": "BUFFERED",
            "response_header_mode": "SKIP",
        },
        request_attributes=[PATH_ATTRIBUTE, *(HEADER_ATTRIBUTE.format(name) for name in sorted(told))],
        # The metadata counts only if the route is chosen again, and that only with a header mutation.
        route_cache_action="CLEAR",
        mutation_rules={
            "disallow_all": True,
            "allow_expression": {"regex": f"^{HeaderName.CLUSTER}$"},
        },
        metadata_options={"receiving_namespaces": {"untyped": _WRITTEN_BY_ROUTER}},
    )


def _unless_decided() -> Dict:
    """The fail-open model name, skipped when the decision's metadata is there."""
    transform = typed("envoy.extensions.filters.http.transform.v3.TransformConfig")
    when = metadata_predicate([Key.CLUSTER], {"present_match": True})
    return skipped(when, "envoy.filters.http.transform", transform)


def _rescue() -> Dict:
    """Asked about nothing but a failure that would have been climbed for, where a rejected answer is kept."""
    status = {
        "input": {
            "name": "status",
            "typed_config": typed("envoy.type.matcher.v3.HttpResponseHeaderMatchInput", header_name=":status"),
        },
        "value_match": {"safe_regex": {"google_re2": {}, "regex": "429|5.."}},
    }
    kept = metadata_predicate([Key.BODY], {"present_match": True}, namespace=Namespace.ANSWER)
    ask = typed(
        "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        stat_prefix="rescue",
        grpc_service={
            "envoy_grpc": {"cluster_name": "extproc"},
            "initial_metadata": opened_by(Role.RESCUE),
        },
        failure_mode_allow=True,  # without us, the failure is the answer
        message_timeout="2s",
        processing_mode={"request_header_mode": "SKIP", "response_header_mode": "SEND"},
        mutation_rules={
            "disallow_all": True,
            "allow_expression": {"regex": f"^({HeaderPrefix.ROUTER}[a-z]+|{VERDICT_HEADERS}|content-type)$"},
        },
        response_attributes=[ATTEMPT_ATTRIBUTE],
        metadata_options={
            "forwarding_namespaces": {"untyped": [Namespace.DECISION, Namespace.ANSWER]},
            "receiving_namespaces": {"untyped": [Namespace.DECISION]},
        },
    )
    weak = {"and_matcher": {"predicate": [{"single_predicate": status}, kept]}}
    return skipped({"not_matcher": weak}, "envoy.filters.http.ext_proc", ask)


def _contract_headers() -> Dict:
    """Headers from the decision's metadata; where it is absent they are left out."""
    # A climb that was ordered and that Envoy refused (its retry budget) is none: the client has the small answer.
    escalate, degraded = f"'{VerdictWord.ESCALATE}'", f"'{VerdictWord.DEGRADED}'"
    verdict = f"response.headers['{HeaderName.VERDICT}']"
    refused = f"'{HeaderName.VERDICT}' in response.headers && {verdict} == {escalate}"
    escalations = f"metadata.filter_metadata['{Namespace.DECISION}']['{Key.ESCALATIONS}']"
    response = {
        HeaderName.COHORT: from_metadata(Key.COHORT),
        HeaderName.REASON: from_metadata(Key.REASON),
        HeaderName.ESCALATIONS: f"%CEL({escalations} - ({refused} ? 1.0 : 0.0))%",
        HeaderName.VERDICT_REASON: from_metadata(Key.VERDICT_REASON),  # why it climbed, or should have
        HeaderName.TIER: _SERVED_BY,
        HeaderName.ATTEMPTS: _ATTEMPTS,
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
                strip_headers(HeaderPrefix.ROUTER),  # what an upstream says under our names is not believed
                *(set_header(header, value) for header, value in response.items()),
            ],
        },
    )


def _access_log() -> Dict:
    """The decision log: docs/decision-log.schema.json says what a line holds."""
    line = {
        "version": DECISION_LOG,
        "time": "%START_TIME%",
        "path": "%REQ(:PATH)%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "attempts": _ATTEMPTS,
        "tier": _SERVED_BY,
        "verdict": f"%RESP({HeaderName.VERDICT})%",
        "duration_ms": "%DURATION%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "principal": from_metadata(Key.PRINCIPAL, Namespace.LEDGER),
        "session": from_metadata(Key.SESSION, Namespace.LEDGER),
        "decision": f"%DYNAMIC_METADATA({Namespace.DECISION})%",
        "router_us": f"%FILTER_STATE({_ROUTER}:FIELD:request_body_max_latency_us)%",
    }
    return {
        "name": "envoy.access_loggers.stdout",
        "typed_config": typed(
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            log_format={"json_format": line},
        ),
    }


def _ledger_log() -> Dict:
    """The same, to our server, for the ledger: in batches, when the answer has gone out, and with the metadata."""
    tier = {
        "tag": Key.TIER,
        "metadata": {
            "kind": {"host": {}},
            "metadata_key": {"key": Namespace.DECISION, "path": [{"key": Key.TIER}]},
        },
    }
    return {
        "name": "envoy.access_loggers.http_grpc",
        "typed_config": typed(
            "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            common_config={
                "log_name": "ledger",
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": "extproc"}},
                "buffer_flush_interval": f"{_LOG_FLUSH_S}s",
                "buffer_size_bytes": _LOG_BYTES,
                "custom_tags": [tier],
            },
        ),
    }


def _tracing() -> Dict:
    tags = [
        {
            "tag": f"{PREFIX}.{key}",
            "metadata": {
                "kind": {"request": {}},
                "metadata_key": {"key": Namespace.DECISION, "path": [{"key": key}]},
            },
        }
        for key in (Key.COHORT, Key.TIER, Key.REASON)
    ]
    return {
        "spawn_upstream_span": True,
        "custom_tags": tags,
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": typed(
                "envoy.config.trace.v3.OpenTelemetryConfig",
                grpc_service={"envoy_grpc": {"cluster_name": "otlp"}, "timeout": "1s"},
                service_name="envoy",
            ),
        },
    }
