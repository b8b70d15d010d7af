"""The routes of the four APIs, with their retries and the filters that they enable."""

from extproc.api.paths import APIS, SIDE_PATHS
from extproc.config.load import Config
from extproc.contract.names import ROUTE_NAMESPACE, HeaderName, Namespace
from extproc.contract.records import ATTEMPTS_OF_A_REPEAT
from extproc.contract.words import Undecided, VerdictWord
from extproc.envoy.builders import Dict, set_header, typed
from extproc.envoy.feedback import feedback_routes
from extproc.envoy.filters import (
    BUFFER_FILTER,
    ENCODINGS,
    FAILOPEN_FILTER,
    HEADERS_FILTER,
    ROOM_BYTES,
    ROUTER_FILTER,
    SIZE_LIMIT_FILTER,
    USAGE_FILTER,
    decompressor_name,
)
from extproc.envoy.kept import kept_routes
from extproc.envoy.other_routes import bad_encoding, closed_routes, model_routes, opened_routes, path_match
from extproc.envoy.packed import PACKED_FILTER
from extproc.envoy.residency import confine_routes
from extproc.envoy.undecided import UNDECIDED_FILTER, guard_form, guard_opened, guard_routed
from extproc.settings import Tier

# The format in which the upstreams of each API report tokens. Completions report them in the format of chat.
_USAGE_FORMATS = {
    "chat": "OPENAI_CHAT_COMPLETIONS",
    "completions": "OPENAI_CHAT_COMPLETIONS",
    "responses": "OPENAI_RESPONSES",
    "messages": "ANTHROPIC_MESSAGES",
}


# The value of an expression that fails is empty, and adds no header.
_REASON = f"%CEL(upstream.request_attempt_count > 0u ? '{Undecided.FAIL_OPEN}' : request.headers[':none'])%"
# The name of the route of each path.
_ROUTED: dict[str, str] = {**APIS, **{path: path.rpartition("/")[2] for path in SIDE_PATHS}}


def virtual_host(config: Config) -> Dict:
    """Return the routes: the APIs first, then responses, paths that the policy opens, and answers to the rest."""
    return {
        "name": "llm",
        "domains": ["*"],
        "include_request_attempt_count": True,
        "request_body_buffer_limit": config.policy.max_body_bytes + ROOM_BYTES,
        "routes": confine_routes(
            [
                *_api_routes(config),
                *_kept_routes(config),
                *feedback_routes(_inspected(config)),
                *opened_routes(
                    config,
                    _inspected(config) | {UNDECIDED_FILTER: enabled(guard_opened(config))},
                    _decoded() | {UNDECIDED_FILTER: enabled(guard_form(config))},
                ),
                *model_routes(config),
                *closed_routes(),
            ],
            config,
        ),
    }


def _api_routes(config: Config) -> list[Dict]:
    default = _default_tier(config)
    action = _route_action(config, default)
    routes = []
    for path, name in _ROUTED.items():
        match = path_match(path) | {"headers": [{"name": ":method", "string_match": {"exact": "POST"}}]}
        rewrite = {"regex_rewrite": {"pattern": {"regex": "^/.+$"}, "substitution": path}}
        routes.append(bad_encoding(match))
        routes.append(
            {
                "name": name,
                "match": match,
                "route": action | rewrite,
                # The path behind the base URL of an upstream.
                "metadata": {"filter_metadata": {ROUTE_NAMESPACE: {"path": path.removeprefix("/v1")}}},
                "typed_per_filter_config": _enabled_filters(config, default, _USAGE_FORMATS.get(name)),
            }
        )
    return routes


def _kept_routes(config: Config) -> list[Dict]:
    default = _default_tier(config)
    return [*kept_routes(_route_action(config, default), ROUTER_FILTER, {HEADERS_FILTER: _headers(default)})]


def _default_tier(config: Config) -> Tier:
    return next(tier for tier in config.policy.tiers if tier.name == config.policy.default_tier)


def _route_action(config: Config, default: Tier) -> Dict:
    """Return how a request goes to the tiers of its ladder."""
    specifier = typed(
        "envoy.extensions.router.cluster_specifiers.priority_group.v3.PriorityGroupClusterSpecifier",
        override_metadata_namespace=Namespace.LADDER,
        # Requests without a decision go to the default tier.
        priority_groups=[{"name": default.name, "clusters": [{"cluster_name": default.cluster_name, "weight": 1}]}],
    )
    most_retries = (
        len(config.policy.tiers)
        + max((len(i.escalate.rungs) for i in config.every_intent if i.escalate), default=0)
        + sum(len(tier.failover or ()) for tier in config.policy.tiers)
        + ATTEMPTS_OF_A_REPEAT * sum(tier.same_retries for tier in config.policy.tiers)
    )
    return {
        # A flowing answer is never cut. The filters of the attempts enforce `request_s`.
        "timeout": "0s",
        # Failover and escalation use the same ladder: each attempt goes to the next group in the metadata.
        "retry_policy": {
            # Each tier's own filter marks the statuses that are failures of that tier.
            "retry_on": "retriable-headers,connect-failure,refused-stream,reset",
            "retriable_headers": [
                {"name": HeaderName.VERDICT, "string_match": {"exact": VerdictWord.ESCALATE}},
                {"name": HeaderName.FAILED, "present_match": True},
            ],
            "num_retries": most_retries,  # the decision lowers it to the rungs of its ladder
            "refresh_cluster_on_retry": True,
            # It bounds the wait for an answer, the hold of a judged one, and each pause of a stream. With a
            # `per_try_timeout` beside it, Envoy would not end a stream that stalls.
            "per_try_idle_timeout": f"{config.policy.longest_attempt_s:g}s",  # `silence` has the shorter ones
            "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"},
        },
        "auto_host_rewrite": True,  # providers accept only their own host name
        "inline_cluster_specifier_plugin": {
            "extension": {
                "name": "envoy.router.cluster_specifier_plugin.priority_group",
                "typed_config": specifier,
            }
        },
    }


def _enabled_filters(config: Config, default: Tier, usage_format: str | None) -> Dict:
    """Return the settings of an LLM route for filters, most of which are disabled in the chain."""
    transform = typed(
        "envoy.extensions.filters.http.transform.v3.TransformConfig",
        request_transformation={
            "body_transformation": {
                "action": "MERGE",
                "body_format": {"json_format": {"model": default.model.replace("%", "%%")}},
            }
        },
    )
    usage = typed(
        "envoy.extensions.filters.http.ai_protocol_manager.v3.AiProtocolManagerPerRoute",
        response={"llm_protocol": usage_format},
    )
    edited = [
        {"remove": "accept-encoding"},  # a compressed answer cannot be judged
        # The fail-open filter changes only bodies of this type, and the APIs take no other.
        set_header("content-type", "application/json"),
    ]
    return {
        **_inspected(config),
        FAILOPEN_FILTER: enabled(transform),
        UNDECIDED_FILTER: enabled(guard_routed(config, default)),
        HEADERS_FILTER: _headers(default, *edited),
        **({USAGE_FILTER: enabled(usage)} if usage_format is not None else {}),
    }


def _headers(default: Tier, *edited: Dict) -> Dict:
    """Return the header mutations of a route whose requests the router decides about."""
    return typed(
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
        mutations={
            "request_mutations": [
                *edited,
                # Without a decision there is no other tier for a retry.
                set_header(HeaderName.MAX_RETRIES, str(default.same_retries), "ADD_IF_ABSENT"),
            ],
            # If an upstream was asked without a decision, the response says so in the header for the reason.
            "response_mutations": [set_header(HeaderName.REASON, _REASON, "ADD_IF_ABSENT")],
        },
    )


def _inspected(config: Config) -> Dict:
    """Return the filters of a route whose bodies the router reads."""
    buffer = typed(
        "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
        buffer={"max_request_bytes": config.policy.max_body_bytes + ROOM_BYTES},
    )
    return {
        **_decoded(),
        PACKED_FILTER: enabled({}),
        ROUTER_FILTER: enabled(typed("envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute", overrides={})),
        BUFFER_FILTER: enabled(buffer),
    }


def _decoded() -> Dict:
    """Return the filters that decode a body and bound its size."""
    return {
        **{decompressor_name(encoding): enabled({}) for encoding in ENCODINGS},
        SIZE_LIMIT_FILTER: enabled({}),
    }


def enabled(config: Dict) -> Dict:
    """Return the setting of a route that enables a filter of the chain."""
    return typed("envoy.config.route.v3.FilterConfig", config=config)
