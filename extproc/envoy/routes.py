"""The routes: the LLM paths with their retries and the filters that they enable, and all other paths."""

from extproc.api.request import APIS
from extproc.config.load import Config
from extproc.contract.names import MAX_BODY_BYTES, HeaderName, Namespace
from extproc.contract.words import Undecided, VerdictWord
from extproc.envoy.builders import Dict, set_header, typed
from extproc.envoy.filters import (
    BUFFER_FILTER,
    FAILOPEN_FILTER,
    HEADERS_FILTER,
    ROOM_BYTES,
    ROUTER_FILTER,
    SIZE_LIMIT_FILTER,
    USAGE_FILTER,
)
from extproc.envoy.kept import kept_routes
from extproc.settings import Tier

# The format in which the upstreams of each API report tokens. Completions report them in the format of chat.
_USAGE_FORMATS = {
    "chat": "OPENAI_CHAT_COMPLETIONS",
    "completions": "OPENAI_CHAT_COMPLETIONS",
    "responses": "OPENAI_RESPONSES",
    "messages": "ANTHROPIC_MESSAGES",
}


def virtual_host(config: Config) -> Dict:
    """Return the routes. Paths that are not in `APIS` go to the default tier and no filter reads them."""
    default = next(t for t in config.policy.tiers if t.name == config.policy.default_tier)
    specifier = typed(
        "envoy.extensions.router.cluster_specifiers.priority_group.v3.PriorityGroupClusterSpecifier",
        override_metadata_namespace=Namespace.LADDER,
        # Requests without a decision go to the default tier.
        priority_groups=[{"name": default.name, "clusters": [{"cluster_name": default.cluster_name, "weight": 1}]}],
    )
    most_retries = (
        len(config.policy.tiers)
        + max((len(i.escalate.rungs) for i in config.intents if i.escalate), default=0)
        + max(tier.same_retries for tier in config.policy.tiers)
    )
    route = {
        # An answer may flow for as long as it comes. The filters of the attempts see to `request_s`.
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
            "per_try_timeout": f"{config.policy.timeouts.attempt_s:g}s",  # until an answer begins
            "per_try_idle_timeout": f"{config.policy.timeouts.attempt_s:g}s",  # after that, between its parts
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
    routes: list[Dict] = [
        {
            "name": api,
            "match": {"path": path, "headers": [{"name": ":method", "string_match": {"exact": "POST"}}]},
            "route": route,
            "typed_per_filter_config": _enabled_filters(default, _USAGE_FORMATS[api]),
        }
        for path, api in APIS.items()
    ]
    routes += kept_routes(route, ROUTER_FILTER)
    rest = {"cluster": default.cluster_name, "timeout": "0s"}
    routes.append({"name": "rest", "match": {"prefix": "/"}, "route": rest})
    return {
        "name": "llm",
        "domains": ["*"],
        "include_request_attempt_count": True,
        "request_body_buffer_limit": MAX_BODY_BYTES + ROOM_BYTES,
        "routes": routes,
    }


def _enabled_filters(default: Tier, usage_format: str) -> Dict:
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
    per_route = {
        SIZE_LIMIT_FILTER: {},
        ROUTER_FILTER: typed("envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute", overrides={}),
        BUFFER_FILTER: typed(
            "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
            buffer={"max_request_bytes": MAX_BODY_BYTES + ROOM_BYTES},
        ),
        FAILOPEN_FILTER: transform,
        # If there is no decision, the response says so in the header for the decision's reason.
        HEADERS_FILTER: typed(
            "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
            mutations={
                "request_mutations": [
                    {"remove": "accept-encoding"},  # a compressed answer cannot be judged
                    # Without a decision there is no other tier for a retry.
                    set_header(HeaderName.MAX_RETRIES, str(default.same_retries), "ADD_IF_ABSENT"),
                ],
                "response_mutations": [set_header(HeaderName.REASON, Undecided.FAIL_OPEN, "ADD_IF_ABSENT")],
            },
        ),
        USAGE_FILTER: typed(
            "envoy.extensions.filters.http.ai_protocol_manager.v3.AiProtocolManagerPerRoute",
            response={"llm_protocol": usage_format},
        ),
    }
    return {
        name: value if name == HEADERS_FILTER else typed("envoy.config.route.v3.FilterConfig", config=value)
        for name, value in per_route.items()
    }
