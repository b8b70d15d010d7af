"""The clusters: our own server, the collector, and one for each tier with what runs on every attempt at it."""

from collections.abc import Sequence

from extproc.config.load import Config
from extproc.contract.names import Key, Namespace
from extproc.envoy.attempts import attempt_filters
from extproc.envoy.builders import BUFFER_BYTES, Dict, address, typed
from extproc.envoy.tls import ClientTls, host_name, transport_socket
from extproc.settings import Tier

# Where Debian, Alpine and Envoy's own images keep the public certificate authorities.
_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
# The second priority of every tier: nobody listens there. Envoy does not climb over a tier without hosts (a service
# scaled to zero), but it does over a refused connection. A tier that has hosts sends nothing there, as long as
# nothing marks them unhealthy: tiers have no health checks and no outlier detection.
_REFUSES = "127.0.0.1:1"


def extproc_cluster(endpoints: list[str], tls: ClientTls | None = None) -> Dict:
    return {
        # A server that stalls for seconds keeps its connection, and with it the streams that it holds: only a lost
        # connection loses them. That it answers nothing meanwhile is the health check's to see.
        **grpc_cluster("extproc", endpoints, {"interval": "1s", "timeout": "5s"}),
        **(transport_socket(tls, endpoints) if tls is not None else {}),
        # Buffered bodies of many exchanges share one connection: the larger buffer is required.
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {
            "thresholds": [{"max_requests": 20000, "max_pending_requests": 20000, "max_retries": 1000}]
        },
        # A dead or stuck server costs its message time-outs only until these see it.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 1,
            "enforcing_consecutive_local_origin_failure": 100,
            "interval": "0.2s",
            "base_ejection_time": "2s",
            "max_ejection_percent": 100,
        },
        "health_checks": [
            {
                "timeout": "0.5s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
        # With every server out, fail open at once instead of trying the dead.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }


def grpc_cluster(name: str, endpoints: list[str], keepalive: Dict) -> Dict:
    http2 = {"connection_keepalive": keepalive}
    return {
        "name": name,
        **_discovery(endpoints),
        "connect_timeout": "0.25s",
        "typed_extension_protocol_options": _protocol({"http2_protocol_options": http2}),
        "load_assignment": _endpoints(name, endpoints),
    }


def tier_cluster(tier: Tier, config: Config) -> Dict:
    name = tier.cluster_name
    cluster: Dict = {
        "name": name,
        **_discovery([tier.endpoint]),
        "connect_timeout": "1s",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_requests": 4096,
                    "max_pending_requests": 4096,
                    "max_connections": 4096,
                    # The most of this tier's traffic that may climb, failures and rejections together.
                    "retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 50},
                }
            ]
        },
        "typed_extension_protocol_options": _protocol(
            {"http_protocol_options": {}}, attempt_filters([tier], config)
        ),
        "load_assignment": _endpoints(
            name, [tier.endpoint], [_REFUSES], metadata={Namespace.DECISION: {Key.TIER: tier.name}}
        ),
    }
    if tier.tls:
        host = tier.endpoint.rpartition(":")[0]
        tls = typed(
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            sni=host,
            auto_sni_san_validation=True,
            common_tls_context={"validation_context": {"trusted_ca": {"filename": _CA_FILE}}},
        )
        cluster["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
    return cluster


def ladder_cluster(name: str, tiers: Sequence[Tier], config: Config) -> Dict:
    """The tiers of one ladder as one cluster, for Envoys that choose by attempt: the nth serves the nth attempt."""
    members = [{"name": tier.cluster_name} for tier in tiers]
    composite = typed("envoy.extensions.clusters.composite.v3.ClusterConfig", clusters=members)
    first = tier_cluster(tiers[0], config)
    return {
        "name": name,
        "connect_timeout": first["connect_timeout"],
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {"name": "envoy.clusters.composite", "typed_config": composite},
        "circuit_breakers": first["circuit_breakers"],
        # Those of its members do not run.
        "typed_extension_protocol_options": _protocol(
            {"http_protocol_options": {}}, attempt_filters(tiers, config)
        ),
    }


def _protocol(explicit: Dict, filters: list[Dict] | None = None) -> Dict:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {name: typed(name, explicit_http_config=explicit, **({"http_filters": filters} if filters else {}))}


def _discovery(endpoints: list[str]) -> Dict:
    named = any(host_name(e) for e in endpoints)
    return {"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED"} if named else {"type": "STATIC"}


def _endpoints(name: str, *priorities: list[str], metadata: Dict | None = None) -> Dict:
    said = {"metadata": {"filter_metadata": metadata}} if metadata is not None else {}
    return {
        "cluster_name": name,
        "endpoints": [
            {
                "priority": priority,
                "lb_endpoints": [
                    {"endpoint": {"address": address(e), "hostname": e.rpartition(":")[0]}, **said}
                    for e in endpoints
                ],
            }
            for priority, endpoints in enumerate(priorities)
        ],
    }
