"""The listener for clients: a connection manager with the routes, the filters, the access logs and tracing."""

from extproc.config.load import Config
from extproc.contract.names import PREFIX, HeaderPrefix, Key, Namespace
from extproc.envoy.access_log import decision_log, ledger_log
from extproc.envoy.builders import BUFFER_BYTES, Dict, address, strip_headers, typed
from extproc.envoy.filters import http_filters
from extproc.envoy.local_replies import local_replies
from extproc.envoy.routes import virtual_host
from extproc.envoy.tier_filters import CLIENT_PATH

# The list of models is the largest answer of Envoy itself.
_MAX_MODELS_BYTES = 1024 * 1024


def listener(config: Config, listen: str, rule_headers: list[str], otlp: str | None) -> Dict:
    """Return the listener at `listen`. `rule_headers` are the request headers that the policy's rules read.

    With `otlp`, Envoy sends spans to the cluster of that name.
    """
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="llm",
        # Longer than any wait for an answer: the limits of attempts and of their streams are on the routes.
        stream_idle_timeout=f"{config.policy.timeouts.request_s + config.policy.longest_attempt_s:g}s",
        **({"tracing": _tracing()} if otlp is not None else {}),
        # Clients cannot set headers of the contract. Envoy removes them before it first matches a route.
        early_header_mutation_extensions=[
            {
                "name": "envoy.http.early_header_mutation.header_mutation",
                "typed_config": typed(
                    "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                    mutations=[strip_headers(prefix) for prefix in HeaderPrefix],
                ),
            }
        ],
        access_log=[decision_log(), ledger_log()],
        # The id by which `extproc why` finds the request.
        always_set_request_id_in_response=True,
        # Clients write paths in several ways. `..` cannot leave a path that the policy opens.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="UNESCAPE_AND_FORWARD",
        # nginx speaks HTTP/1.0 to its upstreams unless it is configured otherwise.
        http_protocol_options={"accept_http_10": True, "default_host_for_http_10": "llm"},
        local_reply_config=local_replies(config),
        route_config={
            "max_direct_response_body_size_bytes": _MAX_MODELS_BYTES,
            "virtual_hosts": [virtual_host(config)],
        },
        http_filters=http_filters(config, rule_headers),
    )
    name = "envoy.filters.network.http_connection_manager"
    return {
        "name": "llm",
        "address": address(listen),
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "filter_chains": [{"filters": [{"name": name, "typed_config": manager}]}],
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
        for key in (Key.COHORT, Key.COUNTED_AS, Key.TIER, Key.REASON)
    ]
    return {
        "spawn_upstream_span": True,
        # A query may hold a key. So Envoy's tag for the URL ends with the host, and the path has its own tag.
        "max_path_tag_length": 0,
        "custom_tags": [*tags, {"tag": "url.path", "value": CLIENT_PATH}],
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": typed(
                "envoy.config.trace.v3.OpenTelemetryConfig",
                grpc_service={"envoy_grpc": {"cluster_name": "otlp"}, "timeout": "1s"},
                service_name="envoy",
            ),
        },
    }
