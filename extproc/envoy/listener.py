"""The listener for clients: a connection manager with the routes, the filters, the access logs and tracing."""

from extproc.config.load import Config
from extproc.contract.names import PREFIX, HeaderPrefix, Key, Namespace
from extproc.envoy.access_log import decision_log, ledger_log
from extproc.envoy.builders import BUFFER_BYTES, Dict, address, strip_headers, typed
from extproc.envoy.filters import http_filters
from extproc.envoy.routes import virtual_host


def listener(config: Config, listen: str, rule_headers: list[str], otlp: str | None) -> Dict:
    """Return the listener at `listen`. `rule_headers` are the request headers that the policy's rules read.

    With `otlp`, Envoy sends spans to the cluster of that name.
    """
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="llm",
        # Longer than any wait for an answer: the limits of attempts and of their streams are on the routes.
        stream_idle_timeout=f"{config.policy.timeouts.request_s + config.policy.timeouts.attempt_s:g}s",
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
        route_config={"virtual_hosts": [virtual_host(config)]},
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
