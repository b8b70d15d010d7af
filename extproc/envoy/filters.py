"""The filters that every request passes, in their order."""

from extproc.config.load import Config
from extproc.contract.names import (
    ATTEMPT_ATTRIBUTE,
    HEADER_ATTRIBUTE,
    MAX_BODY_BYTES,
    PATH_ATTRIBUTE,
    VERDICT_HEADERS,
    HeaderName,
    HeaderPrefix,
    Key,
    Namespace,
)
from extproc.contract.words import Role, VerdictWord
from extproc.envoy.attempts import client_keys
from extproc.envoy.builders import (
    ATTEMPTS,
    SERVED_BY,
    Dict,
    filter_entry,
    from_metadata,
    metadata_predicate,
    opened_by,
    set_header,
    skipped,
    strip_headers,
    typed,
)

# A body grows when a longer model name is written: the limits behind ours leave room for that.
ROOM_BYTES = 1024 * 1024
# Envoy waits this much longer than the router's own deadline, so that the router's fallback arrives first.
_GRACE_S = 0.2
RESCUE_FILTER = "rescue"
FAILOPEN_FILTER = "failopen_model"
ROUTER_FILTER = "envoy.filters.http.ext_proc.router"
USAGE_FILTER = "envoy.filters.http.ai_protocol_manager"
SIZE_LIMIT_FILTER = "envoy.filters.http.body_size_limit"
BUFFER_FILTER = "envoy.filters.http.buffer"
HEADERS_FILTER = "envoy.filters.http.header_mutation"
_WRITTEN_BY_ROUTER = [
    Namespace.DECISION,
    Namespace.LADDER,
    Namespace.RUNGS,
    Namespace.REQUIREMENTS,
    Namespace.LEDGER,
]


def http_filters(config: Config, trusted: list[str]) -> list[Dict]:
    own_keys = any(tier.credential for tier in config.policy.tiers)
    return [
        filter_entry(RESCUE_FILTER, _rescue()),
        *([filter_entry("client_keys", client_keys())] if own_keys else []),
        filter_entry(
            SIZE_LIMIT_FILTER,
            typed(
                "envoy.extensions.filters.http.body_size_limit.v3.BodySizeLimit",
                max_request_bytes=MAX_BODY_BYTES,
            ),
            disabled=True,
        ),
        filter_entry(ROUTER_FILTER, _ext_proc(config, trusted), disabled=True),
        filter_entry(
            BUFFER_FILTER,
            typed(
                "envoy.extensions.filters.http.buffer.v3.Buffer",
                max_request_bytes=MAX_BODY_BYTES + ROOM_BYTES,
            ),
            disabled=True,
        ),
        filter_entry(FAILOPEN_FILTER, _unless_decided(), disabled=True),
        filter_entry(HEADERS_FILTER, _contract_headers()),
        # Reads the tokens that the answer tells of, while it passes; nothing is held or changed, nobody is asked.
        filter_entry(
            USAGE_FILTER,
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
        HeaderName.TIER: SERVED_BY,
        HeaderName.ATTEMPTS: ATTEMPTS,
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
